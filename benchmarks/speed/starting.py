"""Contender: from a file of a million steps to the end of the first update, on all cores."""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import logging
import os
import tempfile
from pathlib import Path

import ray
import torch

from benchmarks.speed.reading import settings, write


def first_update(path: Path) -> c.Task:
    """Returns a task that builds the algorithm and runs one update, n times.

    The file is read before, so that it is in the page cache.
    """
    path.read_bytes()

    def start(n: int) -> None:
        for _ in range(n):
            config = settings(path).offline_data(dataset_num_iters_per_learner=1)
            config.training(train_batch_size_per_learner=c.WINDOWS)
            algo = config.debugging(seed=0, log_level="ERROR").build_algo()
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
