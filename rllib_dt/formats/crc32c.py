"""CRC-32C of long contents with numpy, for lack of a library that is always there.

The checksum is linear: with a start value of 0, leading zeros change nothing, and that of two parts
is that of the first, moved on by the second's length, plus that of the second. So the content is
laid out in lanes, which are summed side by side and then joined in pairs.
"""

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # reflected
_SHORT = 64
"""Contents up to this long are not worth the lanes."""

Words = NDArray[np.uint32]


def _table() -> Words:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        odd = np.where(crc & np.uint32(1), np.uint32(_POLYNOMIAL), np.uint32(0))
        crc = np.asarray((crc >> np.uint32(1)) ^ odd, np.uint32)
    return crc


_TABLE = _table()


def _next(crc: Words, byte: NDArray[np.uint8]) -> Words:
    following: Words = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return following


class _Moved:
    """Moves checksums on by some zero bytes: a linear map, as four tables of 256.

    Args:
        columns: (32,) what becomes of each bit.
    """

    def __init__(self, columns: Words):
        self._columns = columns
        bits = (np.arange(256)[:, None] >> np.arange(8)) & 1  # (256, 8)
        self._tables = [
            np.bitwise_xor.reduce(np.where(bits, columns[8 * i : 8 * i + 8], np.uint32(0)), axis=1)
            for i in range(4)
        ]

    def __call__(self, crc: Words) -> Words:
        moved: Words = np.zeros_like(crc)
        for i, table in enumerate(self._tables):
            moved ^= table[(crc >> (8 * i)) & 0xFF]
        return moved

    def twice(self) -> "_Moved":
        """Moves on by twice as many."""
        return _Moved(self(self._columns))


def crc32c(content: bytes) -> int:
    """Returns the CRC-32C of some bytes (Castagnoli 1993; RFC 3720, appendix B.4)."""
    data = np.frombuffer(content, np.uint8)
    if len(data) <= _SHORT:
        crc = np.full(1, 0xFFFFFFFF, np.uint32)
        for byte in data:
            crc = _next(crc, byte)
        return int(crc[0]) ^ 0xFFFFFFFF
    levels = max(1, round(np.log2(len(data)) / 2))
    lanes = 1 << levels
    length = -(-len(data) // lanes)
    laid = np.zeros(lanes * length, np.uint8)
    laid[-len(data) :] = data
    laid[len(laid) - len(data) :][:4] ^= 0xFF  # the start value
    laid = np.ascontiguousarray(laid.reshape(lanes, length).T)
    crc = np.zeros(lanes, np.uint32)
    for row in laid:
        crc = _next(crc, row)
    moved = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(length):
        moved = _next(moved, np.zeros(32, np.uint8))
    move = _Moved(moved)
    for _ in range(levels):
        crc = move(crc[0::2]) ^ crc[1::2]
        move = move.twice()
    return int(crc[0]) ^ 0xFFFFFFFF
