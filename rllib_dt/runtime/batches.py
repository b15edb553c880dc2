"""Batches made one update ahead, and random numbers that belong to an update."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rllib_dt.episodes.rolling import RollingSampler
from rllib_dt.episodes.windows import WindowSampler

Batch = dict[str, torch.Tensor]


class PrefetchedBatches:
    """Draws the next update's batch in a thread while the present one is trained on.

    Args:
        sampler: draws it.
        update: the number of the first one.
        device: where it will be wanted; for a GPU it is laid into pinned memory, from which it
            is copied while the device works.
    """

    def __init__(self, sampler: WindowSampler | RollingSampler, update: int, device: torch.device):
        self._sampler = sampler
        self._update = update
        self._pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dt-batches")
        self._next = self._draw_next()

    def next(self) -> tuple[Batch, Any]:
        """The next update's batch, and the sampler's state for the one behind it."""
        try:
            drawn = self._next.result()
        except Exception:
            self._next = self._draw_next()  # who comes again may find that it can be read
            raise
        self._update += 1
        self._next = self._draw_next()
        return drawn

    def _draw_next(self) -> "Future[tuple[Batch, Any]]":
        return self._thread.submit(_draw, self._sampler, self._update, self._pinned)


def _draw(sampler: WindowSampler | RollingSampler, update: int, pinned: bool) -> tuple[Batch, Any]:
    # a function, so that the thread's queue does not keep the owner alive
    batch = {name: torch.from_numpy(column) for name, column in sampler.sample(update).items()}
    if pinned:
        batch = {name: column.pin_memory() for name, column in batch.items()}
    return batch, sampler.state()


@contextmanager
def seeded_torch(entropy: Sequence[int], device: torch.device) -> Iterator[None]:
    """Torch's global random numbers from `entropy` within, and as they were afterwards."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
