"""Reads files on remote storage, with retries."""

import io
import logging
import time
from typing import Any

import pyarrow.fs as pafs

logger = logging.getLogger(__name__)

ATTEMPTS = 6
"""Number of times that one read is tried before the error is raised."""

_FIRST_PAUSE_SECONDS = 0.5


class RemoteReadError(Exception):
    """A remote file could not be read after several attempts; its content may be fine."""


class PersistentFile(io.RawIOBase):
    """A remote file for random access that reopens itself when the connection breaks.

    Args:
        filesystem: the file's file system.
        path: the file's path within it.
        name: the file's name, for messages.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, name: str):
        self._filesystem, self._path, self._name = filesystem, path, name
        self._file: Any = None
        self._place = 0
        self._size = int(self._insist(lambda file: file.size()))

    def size(self) -> int:
        """Returns the file's size in bytes."""
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        """Reads `size` bytes from the current position, or everything to the end."""
        wanted = self._size - self._place if size is None or size < 0 else size
        wanted = max(0, min(wanted, self._size - self._place))
        place = self._place
        content: bytes = self._insist(lambda file: _read_at(file, place, wanted))
        self._place += len(content)
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _insist(self, operation: Any) -> Any:
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._file is None:
                    self._file = self._filesystem.open_input_file(self._path)
                return operation(self._file)
            except FileNotFoundError:
                raise
            except OSError as error:
                self._file = None
                if attempt == ATTEMPTS:
                    raise RemoteReadError(
                        f"{self._name}: reading failed {ATTEMPTS} times, the last time with: "
                        f"{error}; check the connection and the credentials"
                    ) from error
                logger.warning("%s: reading failed (%s); trying again", self._name, error)
                time.sleep(pause)
                pause *= 2
        raise AssertionError("unreachable")


def _read_at(file: Any, place: int, size: int) -> bytes:
    content: bytes = file.read_at(size, place)
    if len(content) != size:
        raise OSError(f"the connection ended after {len(content)} of {size} bytes")
    return content
