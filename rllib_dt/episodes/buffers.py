"""Memory for batches that is used again: fresh pages cost more than what is written to them."""

import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_WORTH_KEEPING = 2**20
"""Bytes; the allocator keeps smaller ones itself."""


class Buffers:
    """Hands out arrays to write to; the memory of one serves again once nobody holds it.

    Not shared between threads.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref]] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array that holds anything."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size < _WORTH_KEEPING:
            return np.empty(shape, dtype)
        memory = self._free(size)
        # numpy makes every view of an array, and torch its tensor, hold the outermost array that
        # stands on something else than an array: here `root`
        root = np.frombuffer(memory.data, dtype)
        self._kept.append((memory, weakref.ref(root)))
        return root.reshape(shape)

    def _free(self, size: int) -> NDArray[np.uint8]:
        for i, (memory, holder) in enumerate(self._kept):
            if holder() is None and memory.nbytes == size:
                del self._kept[i]
                return memory
        # of another size: batches have changed
        self._kept = [(m, holder) for m, holder in self._kept if holder() is not None]
        return np.empty(size, np.uint8)
