"""Bounds what a file may take in memory once it is unpacked.

A few megabytes can be made to unpack to terabytes: by compression, by a dataset that is declared
and never written, by one value that a dictionary repeats. Each decoder therefore announces what it
is about to allocate to the file's `Expansion`, which refuses what is out of proportion.
"""

import io
from typing import IO

from rllib_dt.episodes.episode import DataError

DEFAULT_MAX_EXPANSION = 1000.0
"""Well above what real data needs: Atari frames in Parquet unpack to 250 times their size."""

ALWAYS_ALLOWED_BYTES = 256 * 2**20
"""What any file may take, however small it is."""


class Expansion:
    """What one file may still take in memory.

    Args:
        source: the file's name, for messages.
        file_bytes: the file's size.
        max_expansion: how many times its size a file may take; see `ALWAYS_ALLOWED_BYTES`.
    """

    def __init__(self, source: str, file_bytes: int, max_expansion: float = DEFAULT_MAX_EXPANSION):
        self._source = source
        self._file_bytes = file_bytes
        self._limit = max(ALWAYS_ALLOWED_BYTES, int(file_bytes * max_expansion))
        self._taken = 0

    @property
    def left(self) -> int:
        """Bytes that the file may still take."""
        return max(0, self._limit - self._taken)

    def take(self, num_bytes: int, what: str) -> None:
        """Counts bytes before they are allocated.

        Args:
            num_bytes: how many.
            what: what they hold, for the message.

        Raises:
            DataError: the file takes more than it may.
        """
        assert num_bytes >= 0
        self._taken += num_bytes
        if self._taken > self._limit:
            self.refuse(what)

    def refuse(self, what: str) -> None:
        """Raises the DataError for a file that takes more than it may."""
        raise DataError(
            self._source,
            f"unpacked, {what} takes the file past {self._limit / 2**20:.0f} MiB, and it has only "
            f"{self._file_bytes} bytes, so it is probably damaged or hostile",
            "record it again, or, if it is right, raise offline_data(max_expansion=…)",
        )


def size_of(file: IO[bytes]) -> int:
    """Returns an open file's size in bytes; its place is moved to the start."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


class BoundedStream(io.RawIOBase):
    """The unpacked bytes of a compressed stream, which count towards an `Expansion`.

    Args:
        stream: yields unpacked bytes.
        expansion: what they count towards.
        bytes_each: the memory that each of them takes once it is parsed.
    """

    def __init__(self, stream: IO[bytes], expansion: Expansion, bytes_each: int = 1):
        self._stream, self._expansion, self._bytes_each = stream, expansion, bytes_each

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        content = self._stream.read(len(buffer))
        self._expansion.take(len(content) * self._bytes_each, "its text")
        buffer[: len(content)] = content
        return len(content)
