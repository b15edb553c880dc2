"""Contender: from a file of a million steps to the end of the first update, on all cores."""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import ray
import torch
from gymnasium.spaces import Box

from benchmarks.speed.reading import write
from rllib_dt import DTConfig, DTModelConfig


def first_update(path: Path) -> c.Task:
    """Returns a task that builds the algorithm and runs one update, n times.

    The file is read before, so that it is in the page cache.
    """
    path.read_bytes()

    def start(n: int) -> None:
        for _ in range(n):
            config = (
                DTConfig()
                .environment(
                    observation_space=Box(-np.inf, np.inf, (c.OBSERVATIONS,)),
                    action_space=Box(-1.0, 1.0, (c.ACTIONS,)),
                )
                .offline_data(input_=str(path), dataset_num_iters_per_learner=1)
                .rl_module(model_config=DTModelConfig(max_ep_len=1000))
                .training(train_batch_size_per_learner=c.WINDOWS)
                .debugging(seed=0, log_level="ERROR")
            )
            algo = config.build_algo()
            algo.train()
            algo.stop()

    return start


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        for name in ("rllib_dt", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        c.serve(
            {
                "start_hdf5": first_update(Path(folder) / "d4rl.hdf5"),
                "start_parquet": first_update(Path(folder) / "steps.parquet"),
            },
            {},
        )
