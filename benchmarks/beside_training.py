"""Compares the wall time of iterations with evaluation in parallel to training and after it.

`python benchmarks/beside_training.py [--rounds 8]`

The environment sleeps, so that evaluation needs no processor, and there are as many updates as take
the same time. The two run alternately; the result has their medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import ray
import torch
from gymnasium.spaces import Box

from rllib_dt import DT, DTConfig, DTModelConfig, write_episodes

PAUSE, LENGTH, EPISODES = 0.01, 100, 4


class Sleepy(gym.Env):
    """An environment with episodes of 100 steps of 10 ms."""

    observation_space = Box(-np.inf, np.inf, (11,), np.float32)
    action_space = Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, config: dict | None = None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(11, np.float32), {}

    def step(self, action):
        time.sleep(PAUSE)
        self.t += 1
        return np.zeros(11, np.float32), 1.0, self.t == LENGTH, False, {}


def build(data: Path, updates: int, beside: bool, num_learners: int) -> DT:
    """Builds an algorithm that evaluates in parallel to training (`beside`) or after it."""
    config = (
        DTConfig()
        .environment(Sleepy)
        .offline_data(input_=str(data), dataset_num_iters_per_learner=updates)
        .rl_module(model_config=DTModelConfig(context_length=20, max_ep_len=200))
        .training(train_batch_size_per_learner=16)
        .learners(num_learners=num_learners)
        .env_runners(num_envs_per_env_runner=1)
        .evaluation(
            target_returns=[50.0],
            evaluation_duration=EPISODES,
            evaluation_num_env_runners=1,
            evaluation_interval=1,
            evaluation_parallel_to_training=beside,
        )
        .debugging(seed=0)
    )
    return config.build_algo()


def seconds(function) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--num-learners", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        episode = {
            "obs": rng.standard_normal((LENGTH, 11), np.float32),
            "actions": rng.uniform(-1, 1, (LENGTH, 3)),
            "rewards": np.ones(LENGTH),
            "terminated": True,
            "truncated": False,
        }
        write_episodes([episode] * 50, data, Sleepy.observation_space, Sleepy.action_space)
        probe = build(data, 20, beside=False, num_learners=args.num_learners)
        probe.train()
        each = seconds(probe.training_step) / 20
        wanted = seconds(probe.evaluate)
        probe.stop()
        updates = max(1, round(wanted / each))
        algos = {
            name: build(data, updates, name == "beside", args.num_learners)
            for name in ("behind", "beside")
        }
        times: dict[str, list[float]] = {name: [] for name in algos}
        for turn in range(args.rounds + 1):
            for name, algo in algos.items():
                took = seconds(algo.train)
                if turn:
                    times[name].append(took)
        for algo in algos.values():
            algo.stop()
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        json.dumps(
            {
                "updates": updates,
                "seconds": {k: [round(v, 2) for v in values] for k, values in times.items()},
                "beside_to_behind": round(medians["beside"] / medians["behind"], 3),
            }
        )
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
