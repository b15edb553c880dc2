"""Opens numpy's npz files, and reads their arrays row by row, in step with each other."""

import io
import math
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.types import Array, Batch

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class NpzInput:
    """An open npz file.

    Attributes:
        source: its name, for messages.
        options: see `ReadOptions`.
        expansion: what it may take in memory.
    """

    source: str
    options: ReadOptions
    expansion: Expansion
    _zip: zipfile.ZipFile

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return sorted(n.removesuffix(".npy") for n in self._zip.namelist() if n.endswith(".npy"))

    def has(self, arrays: Collection[str]) -> bool:
        """Returns whether the file has all of these arrays."""
        return set(arrays) <= set(self.names)

    def values(self, name: str) -> Array:
        """Reads an array as a whole."""
        column = self._open(name)
        return column.rows(column.length)

    def length(self, name: str) -> int:
        """Returns the number of rows of an array."""
        return self._open(name).length

    def segments(self, columns: Collection[str], lengths: Sequence[int]) -> Iterator[Batch]:
        """Yields the columns' rows, one segment at a time.

        Args:
            columns: the arrays' names.
            lengths: the numbers of rows, which add up to the arrays' lengths.

        Raises:
            DataError: an array has another length.
        """
        opened = {name: self._open(name) for name in columns}
        wanted = int(sum(lengths))
        found = {name: column.length for name, column in opened.items()}
        if any(length != wanted for length in found.values()):
            raise DataError(
                self.source,
                f"its arrays have the lengths {found}, but its episodes have {wanted} rows",
                "record every column at every step",
            )
        for length in lengths:
            yield {name: column.rows(int(length)) for name, column in opened.items()}

    def _open(self, name: str) -> "Column":
        try:
            stream = self._zip.open(f"{name}.npy")
        except KeyError as error:
            raise DataError(
                self.source,
                f"it has no array {name!r}, only {self.names}",
                "use the layout of the format (docs/dataset_format.md)",
            ) from error
        return open_column(stream, name, self.source, self.expansion)


def open_column(stream: IO[bytes], name: str, source: str, expansion: Expansion) -> "Column":
    """Opens an array in numpy's npy format, whose rows are then read in their order.

    Args:
        stream: its bytes.
        name: the array's name, for messages.
        source: the file's name, for messages.
        expansion: what the array's declared size counts towards.

    Raises:
        DataError: it does not hold numbers, or too many.
        ValueError: it is no array.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise DataError(source, f"{name!r} has numpy's format {version}", "save it again")
    shape, is_fortran, dtype = _HEADERS[version](stream)
    if dtype.kind not in "biuf":
        raise DataError(
            source,
            f"{name!r} holds {dtype}, not numbers",
            "record numbers; objects are pickles, which are not read",
        )
    if any(length < 0 for length in shape):
        raise DataError(source, f"{name!r} declares the shape {shape}", "save it again")
    expansion.take(math.prod(shape) * dtype.itemsize, f"array {name!r}")
    if is_fortran and len(shape) > 1:  # its first axis is the innermost: no part is a row
        content = _read(stream, math.prod(shape) * dtype.itemsize, name, source)
        whole = np.frombuffer(content, dtype).reshape(shape, order="F")
        stream = io.BytesIO(np.ascontiguousarray(whole).tobytes())
    return Column(source, name, stream, tuple(shape), dtype)


@dataclass(frozen=True)
class Column:
    """An array of which the next rows are read."""

    source: str
    name: str
    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def length(self) -> int:
        """The number of rows."""
        return self.shape[0] if self.shape else 1

    def rows(self, count: int) -> Array:
        """Reads the next rows."""
        inner = self.shape[1:]
        size = count * math.prod(inner) * self.dtype.itemsize
        content = _read(self.stream, size, self.name, self.source)
        return np.frombuffer(content, self.dtype).reshape(count, *inner)


def _read(stream: IO[bytes], size: int, name: str, source: str) -> bytes:
    content: Any = stream.read(size)
    if len(content) != size:
        raise DataError(
            source, f"array {name!r} ends before its declared size", "copy or save it again"
        )
    return bytes(content)
