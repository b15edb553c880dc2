"""Reads a Parquet file's footer without pyarrow, before pyarrow is let near the file.

Opening a file in pyarrow already rebuilds extension types by calling their Python classes, and
asking it about a damaged column ends the whole process. The footer is a struct in Thrift's compact
protocol (github.com/apache/thrift, doc/specs/thrift-compact-protocol.md), and its fields are
numbered in github.com/apache/parquet-format, src/main/thrift/parquet.thrift.
"""

import io
import struct
from dataclasses import dataclass
from typing import IO, Any

_MAX_DEPTH = 32


class DamagedFooterError(ValueError):
    """A Parquet footer that cannot be read, or that no program writes."""


@dataclass(frozen=True)
class ColumnChunk:
    """A column's values in one row group, as the footer declares them.

    Attributes:
        column: the top-level column.
        path: the column's path, such as "obs.list.element".
        num_values: how many values there are, those within lists counted one by one.
        num_bytes: their size, encoded but not compressed.
        width: bytes of each value; None for text and bytes of any length.
        has_dictionary: values may refer to a dictionary.
    """

    column: str
    path: str
    num_values: int
    num_bytes: int
    width: int | None
    has_dictionary: bool


@dataclass(frozen=True)
class Footer:
    """What a footer says.

    Attributes:
        metadata: (key, value) pairs; a key may be there twice.
        columns: the column chunks of all row groups.
        num_bytes: the size of all row groups, encoded but not compressed.
        num_rows: the rows of all row groups.
    """

    metadata: list[tuple[bytes, bytes]]
    columns: list[ColumnChunk]
    num_bytes: int
    num_rows: int

    def values(self, key: bytes) -> list[bytes]:
        """Returns the values of a key."""
        return [value for name, value in self.metadata if name == key]


def read_footer(file: IO[bytes]) -> Footer:
    """Reads the footer of an open file; the file's place is moved to the start.

    Raises:
        DamagedFooterError: it cannot be read.
    """
    try:
        return _footer(_Reader(_footer_bytes(file)).struct())
    except DamagedFooterError:
        raise
    except Exception as error:  # fields of other types than they should have can raise anything
        raise DamagedFooterError(f"its footer is damaged ({error!r})") from error


def _footer_bytes(file: IO[bytes]) -> bytes:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    if end[4:] != b"PAR1":
        raise DamagedFooterError("it does not end like a Parquet file")
    (length,) = struct.unpack("<I", end[:4])
    if length > size - 12:
        raise DamagedFooterError("its footer is longer than the file")
    file.seek(size - 8 - length)
    content = file.read(length)
    file.seek(0)
    return content


# numbers of fields in parquet.thrift
_SCHEMA, _NUM_ROWS, _ROW_GROUPS, _KEY_VALUES = 2, 3, 4, 5
_KIND, _KIND_LENGTH, _NUM_CHILDREN = 1, 2, 5  # of a SchemaElement
_COLUMNS, _NUM_BYTES = 1, 2  # of a RowGroup
_CHUNK = 3  # of a ColumnChunk
# of a ColumnMetaData
_ENCODINGS, _PATH, _NUM_VALUES, _CHUNK_BYTES, _DICTIONARY_PAGE = 2, 3, 5, 6, 11

_DICTIONARY_ENCODINGS = {2, 8}
_WIDTHS: dict[int, int | None] = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, 6: None}
_FIXED_LENGTH = 7


def _footer(fields: dict[int, Any]) -> Footer:
    leaves = [element for element in fields[_SCHEMA] if not element.get(_NUM_CHILDREN)]
    groups = fields[_ROW_GROUPS]
    columns = []
    for group in groups:
        if len(group[_COLUMNS]) != len(leaves):
            raise DamagedFooterError("a row group lacks some of the schema's columns")
        for chunk, leaf in zip(group[_COLUMNS], leaves, strict=True):
            columns.append(_column(chunk[_CHUNK], leaf))
    return Footer(
        metadata=[(pair[1], pair.get(2, b"")) for pair in fields.get(_KEY_VALUES, [])],
        columns=columns,
        num_bytes=sum(_count(group[_NUM_BYTES]) for group in groups),
        num_rows=_count(fields[_NUM_ROWS]),
    )


def _column(chunk: dict[int, Any], leaf: dict[int, Any]) -> ColumnChunk:
    kind = leaf[_KIND]
    if kind != chunk[_KIND]:
        raise DamagedFooterError(f"a column is of two types, {kind} and {chunk[_KIND]}")
    width = _count(leaf[_KIND_LENGTH]) if kind == _FIXED_LENGTH else _WIDTHS[kind]
    encodings = set(chunk[_ENCODINGS])
    return ColumnChunk(
        column=chunk[_PATH][0].decode(),
        path=b".".join(chunk[_PATH]).decode(),
        num_values=_count(chunk[_NUM_VALUES]),
        num_bytes=_count(chunk[_CHUNK_BYTES]),
        width=width,
        has_dictionary=bool(encodings & _DICTIONARY_ENCODINGS) or _DICTIONARY_PAGE in chunk,
    )


def _count(value: int) -> int:
    if value < 0:
        raise DamagedFooterError(f"it counts {value} of something")
    return value


class _Reader:
    """Reads values in Thrift's compact protocol."""

    def __init__(self, content: bytes):
        self._content, self._place, self._depth = content, 0, 0

    def struct(self) -> dict[int, Any]:
        """Reads a struct as its fields by number."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise DamagedFooterError(f"it is nested more than {_MAX_DEPTH} deep")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._signed()
            if number in fields:  # readers differ in which of the two they take
                raise DamagedFooterError(f"field {number} of a struct is there twice")
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # an element of a list; a field has its value in the header
            return self._byte() == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 13):
            return self._bytes(8 if kind == 7 else 16)
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (9, 10):
            return self._list()
        if kind == 11:
            return self._map()
        if kind == 12:
            return self.struct()
        raise DamagedFooterError(f"it holds a value of the unknown type {kind}")

    def _list(self) -> list[Any]:
        header = self._byte()
        size = header >> 4
        size = self._unsigned() if size == 15 else size
        self._check_size(size)
        return [self._value(header & 15) for _ in range(size)]

    def _map(self) -> list[tuple[Any, Any]]:
        size = self._unsigned()
        self._check_size(size)
        kinds = self._byte() if size else 0
        return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(size)]

    def _check_size(self, size: int) -> None:
        if size > len(self._content) - self._place:
            raise DamagedFooterError(f"a list claims {size} elements")

    def _byte(self) -> int:
        value = self._content[self._place]
        self._place += 1
        return value

    def _bytes(self, size: int) -> bytes:
        value = self._content[self._place : self._place + size]
        if len(value) != size:
            raise DamagedFooterError("a value ends behind the footer")
        self._place += size
        return value

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise DamagedFooterError("a number is longer than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
