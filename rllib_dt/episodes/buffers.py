"""Reuses the memory of batches: fresh pages cost more than writing to them."""

import weakref

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rllib_dt.types import Array

_WORTH_KEEPING = 2**20
"""Bytes; the allocator itself keeps smaller blocks."""


class Buffers:
    """Hands out arrays to write to, and reuses the memory of those that nobody holds any more.

    Not shared between threads.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref]] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An uninitialised array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size < _WORTH_KEEPING:
            return np.empty(shape, dtype)
        memory = self._free(size)
        # every numpy view, and torch's tensor, holds the array at the end of the chain of bases
        # that does not itself view an array: here `root`
        root = np.frombuffer(memory.data, dtype)
        self._kept.append((memory, weakref.ref(root)))
        return root.reshape(shape)

    def _free(self, size: int) -> NDArray[np.uint8]:
        for i, (memory, holder) in enumerate(self._kept):
            if holder() is None and memory.nbytes == size:
                del self._kept[i]
                return memory
        # none of this size: batches have changed, so drop what is free
        self._kept = [(m, holder) for m, holder in self._kept if holder() is not None]
        return np.empty(size, np.uint8)
