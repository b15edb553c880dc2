"""Files on remote storage: reads that are tried again, and credentials that stay in memory."""

import hashlib
import io
import logging
import pickle
import re
import time
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.experimental import internal_kv

logger = logging.getLogger(__name__)

ATTEMPTS = 6
"""How often one read is tried before the error is passed on."""

_FIRST_PAUSE_SECONDS = 0.5
_NAMESPACE = b"rllib_dt"


class RemoteReadError(Exception):
    """A remote file could not be read, however often it was tried. Not the data's fault."""


class PersistentFile(io.RawIOBase):
    """A remote file for random access, opened again where a connection breaks.

    Args:
        filesystem: where it is.
        path: its path there.
        name: its name for messages.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, name: str):
        self._filesystem, self._path, self._name = filesystem, path, name
        self._file: Any = None
        self._place = 0
        self._size = int(self._insist(lambda file: file.size()))

    def size(self) -> int:
        """In bytes."""
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here on: so many, or all."""
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


class Sealed:
    """A setting that may hold credentials: it shows nothing, and pickles to a name only.

    The value travels through the running cluster's memory (its key-value store), so that every
    process of the cluster has it, but no checkpoint, no result file and no log does. In another
    cluster the same setting must be given again; a config that was restored without it says so
    when it is read.
    """

    _known: dict[str, Any] = {}

    def __init__(self, value: Any):
        content = pickle.dumps(value)
        self._name = hashlib.blake2b(content, digest_size=32, key=b"rllib_dt").hexdigest()
        self._known[self._name] = value

    @classmethod
    def seal(cls, value: Any) -> Any:
        """The value sealed, or as it is where it cannot hold credentials."""
        plain = value is None or isinstance(value, str | Sealed)
        return value if plain else cls(value)

    @classmethod
    def unseal(cls, value: Any) -> Any:
        """What was sealed; anything else as it is.

        Raises:
            ValueError: this cluster was never given the value.
        """
        if not isinstance(value, cls):
            return value
        name = value._name
        if name not in cls._known and ray.is_initialized():
            content = internal_kv._internal_kv_get(name, namespace=_NAMESPACE)
            if content is not None:
                cls._known[name] = pickle.loads(content)
        if name not in cls._known:
            raise ValueError(
                "the credentials of input_filesystem are not saved in checkpoints; give the same "
                "offline_data(input_filesystem=…, input_filesystem_kwargs=…) in this process, or "
                "leave them to the environment (AWS_ACCESS_KEY_ID, a role, …)"
            )
        return cls._known[name]

    def __repr__(self) -> str:
        return "<sealed>"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sealed) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __getstate__(self) -> dict[str, str]:
        if self._name in self._known and ray.is_initialized():
            content = pickle.dumps(self._known[self._name])
            internal_kv._internal_kv_put(self._name, content, overwrite=True, namespace=_NAMESPACE)
        return {"_name": self._name}

    def __setstate__(self, state: Mapping[str, str]) -> None:
        self._name = state["_name"]

    def __deepcopy__(self, memo: Any) -> "Sealed":
        return self


def check_no_credentials(path: str) -> None:
    """Raises a ValueError for a URI that holds a password: it would be logged and saved."""
    scheme, found, rest = path.partition("://")
    if not found:
        return
    place, _, query = rest.partition("?")
    names = [part.split("=", 1)[0].lower() for part in query.split("&")]
    secret = any(re.search("secret|password|token|sas|access_?key|account_?key", n) for n in names)
    if secret or re.search(r":.*@", place):
        raise ValueError(
            f"the {scheme}:// path holds credentials, which would be logged and saved; give them "
            "as offline_data(input_filesystem_kwargs=…) or in the environment"
        )
