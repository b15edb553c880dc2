"""Contender: this package's readers, on one core: a million steps from a file to the pool."""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import logging
import os
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from gymnasium.spaces import Box

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.reading.offline_data import DTOfflineData

STEPS, LENGTH = 1_000_000, 500


def write(folder: Path) -> None:
    """Writes a million random steps as D4RL's HDF5 and as step-row Parquet."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((STEPS, c.OBSERVATIONS), np.float32)
    actions = rng.uniform(-1, 1, (STEPS, c.ACTIONS)).astype(np.float32)
    rewards = rng.uniform(0, 1, STEPS).astype(np.float32)
    ends = np.arange(STEPS) % LENGTH == LENGTH - 1
    terminated = np.zeros(STEPS, bool)
    with h5py.File(folder / "d4rl.hdf5", "w") as file:
        for name, values in dict(
            observations=obs, actions=actions, rewards=rewards, terminals=terminated, timeouts=ends
        ).items():
            # compressed like D4RL's own files
            file.create_dataset(name, data=values, compression="gzip")

    def lists(values: np.ndarray) -> pa.Array:
        size = values.shape[1]
        fixed = pa.FixedSizeListArray.from_arrays(values.ravel(), size)
        return fixed.cast(pa.list_(pa.float32()))

    table = pa.table(
        {
            "eps_id": np.arange(STEPS) // LENGTH,
            "t": np.arange(STEPS) % LENGTH,
            "obs": lists(obs),
            "actions": lists(actions),
            "rewards": rewards,
            "terminateds": terminated,
            "truncateds": ends,
        }
    )
    pq.write_table(table, folder / "steps.parquet", row_group_size=100_000)


def settings(path: Path) -> DTConfig:
    """Returns the settings for training on a file."""
    return (
        DTConfig()
        .environment(
            observation_space=Box(-np.inf, np.inf, (c.OBSERVATIONS,)),
            action_space=Box(-1.0, 1.0, (c.ACTIONS,)),
        )
        .offline_data(input_=str(path))
        .rl_module(model_config=DTModelConfig(max_ep_len=1000))
    )


def reading(path: Path) -> c.Task:
    """Returns a task that reads a file n times."""

    def read(n: int) -> None:
        for _ in range(n):
            config = settings(path)
            config.validate()
            assert DTOfflineData(config).summary.num_steps == STEPS

    return read


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        # applies to this process and to all that Ray starts
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        for name in ("rllib_dt", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        c.serve(
            dict(
                read_hdf5=reading(Path(folder) / "d4rl.hdf5"),
                read_parquet=reading(Path(folder) / "steps.parquet"),
            ),
            dict(h5py=h5py.__version__, pyarrow=pa.__version__),
        )
