"""Reuses the memory of batches: fresh pages cost more than writing to them."""

import weakref

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rllib_dt.types import Array

_WORTH_KEEPING = 2**20
"""The smallest size in bytes that is kept; the allocator itself reuses smaller blocks."""


class Buffers:
    """Allocates arrays to write to, and reuses the memory of those that nothing refers to any more.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref]] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Returns an uninitialised array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size < _WORTH_KEEPING:
            return np.empty(shape, dtype)
        memory = self._free(size)
        # numpy collapses chains of views: every view of this memory, and every tensor made from
        # one, refers directly to the array at the end of the chain, here `root`
        root = np.frombuffer(memory.data, dtype)
        self._kept.append((memory, weakref.ref(root)))
        return root.reshape(shape)

    def _free(self, size: int) -> NDArray[np.uint8]:
        for i, (memory, holder) in enumerate(self._kept):
            if holder() is None and memory.nbytes == size:
                del self._kept[i]
                return memory
        # none of this size is free: batches have changed, so drop the free ones
        self._kept = [(m, holder) for m, holder in self._kept if holder() is not None]
        return np.empty(size, np.uint8)
