"""Measures a learner's memory beyond that of torch and RLlib; prints one line of JSON (MB)."""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import ray
from gymnasium.spaces import Box

from rllib_dt import DTConfig, DTModelConfig, write_episodes

STEPS = 1_000_000


def resident() -> dict[str, int]:
    """Returns this process's resident MB: anonymous, of files, and shared."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"own": "RssAnon", "files": "RssFile", "shared": "RssShmem"}
    return {name: int(status[field].split()[0]) // 1024 for name, field in fields.items()}


@ray.remote(num_cpus=1)
class Bare:
    """A process with the imports of RLlib's offline algorithms and an optimiser's first step."""

    def resident(self) -> dict[str, int]:
        """Returns the process's resident MB after these imports and one step."""
        import torch
        from ray.rllib.algorithms.bc import BCConfig
        from ray.rllib.core.learner.torch.torch_learner import TorchLearner

        assert BCConfig().get_default_learner_class()
        assert TorchLearner
        layer = torch.nn.Linear(128, 128)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.zeros(4, 128)).sum().backward()
        optimizer.step()
        return resident()


def measure(folder: Path) -> dict[str, object]:
    """Returns the MB of a bare process, of a learner, of the data, and their differences."""
    rng = np.random.default_rng(0)
    spaces = Box(-np.inf, np.inf, (c.OBSERVATIONS,)), Box(-1.0, 1.0, (c.ACTIONS,))
    episodes = (
        dict(
            obs=rng.standard_normal((1000, c.OBSERVATIONS), np.float32),
            actions=rng.uniform(-1, 1, (1000, c.ACTIONS)),
            rewards=np.ones(1000),
            terminated=True,
            truncated=False,
        )
        for _ in range(STEPS // 1000)
    )
    write_episodes(episodes, folder / "data", *spaces)
    actor = Bare.remote()
    bare = ray.get(actor.resident.remote())
    ray.kill(actor)
    config = (
        DTConfig()
        .environment(observation_space=spaces[0], action_space=spaces[1])
        .offline_data(input_=str(folder / "data"), dataset_num_iters_per_learner=50)
        .rl_module(model_config=DTModelConfig(max_ep_len=1000))
        .training(train_batch_size_per_learner=c.WINDOWS)
        .learners(num_learners=1)
        .debugging(seed=0, log_level="ERROR")
    )
    algo = config.build_algo()
    algo.train()
    (learner,) = (
        result.get() for result in algo.learner_group.foreach_learner(lambda learner: resident())
    )
    data = ray.get(algo.offline_data.supply.pool).nbytes // 2**20
    algo.stop()
    return {
        "bare": bare,
        "learner": learner,
        "data": data,
        "beyond": {
            "own": learner["own"] - bare["own"],
            "files": learner["files"] - bare["files"],
            "shared": learner["shared"] - bare["shared"],
        },
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    for name in ("rllib_dt", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    c.serve({}, {"memory": found})  # type: ignore[dict-item]
