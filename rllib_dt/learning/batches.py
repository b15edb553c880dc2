"""Draws batches one update ahead, and seeds torch for an update."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from rllib_dt.episodes.samplers import Sampler
from rllib_dt.episodes.windows import Window
from rllib_dt.types import SamplerState


class PrefetchedBatches:
    """Draws the next update's batch in a thread while the current one is trained on.

    Args:
        sampler: draws the batches.
        update: the number of the first update.
        device: the device that batches are for. For a GPU they are put into pinned memory, so that
            copying them does not wait for the device.
    """

    def __init__(self, sampler: Sampler, update: int, device: torch.device):
        self._sampler = sampler
        self._update = update
        self._pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dt-batches")
        self._next = self._draw_next()

    def next(self) -> tuple[Window, SamplerState | None]:
        """Returns the next update's batch, as tensors, and the sampler's state after it."""
        try:
            drawn = self._next.result()
        except Exception:
            self._next = self._draw_next()  # a retry may succeed
            raise
        self._update += 1
        self._next = self._draw_next()
        return drawn

    def _draw_next(self) -> "Future[tuple[Window, SamplerState | None]]":
        return self._thread.submit(_draw, self._sampler, self._update, self._pinned)


def _draw(sampler: Sampler, update: int, pinned: bool) -> tuple[Window, SamplerState | None]:
    # a function, so that the thread's queue does not keep the owner alive
    batch = sampler.sample(update).map(torch.from_numpy)
    if pinned:
        batch = batch.map(torch.Tensor.pin_memory)
    return batch, sampler.state()


@contextmanager
def seeded_torch(entropy: Sequence[int], device: torch.device) -> Iterator[None]:
    """Seeds torch's global random number generators for the block, and restores them afterwards."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
