"""Reads which extension types an Arrow schema holds, without loading any.

Opening a Parquet or Arrow file, even to read its metadata, makes pyarrow rebuild each registered
extension type from bytes in the file, by calling a Python method of that type. This looks at the
names first: in the schema, a flatbuffer (Apache Arrow's `Message.fbs` and `Schema.fbs`), of which
it follows only the fields that lead to those names.
"""

import base64
import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_FIELDS = 100_000
"""More than any schema has; a hostile one can refer to itself."""

# places of fields in their tables
_MESSAGE_KIND, _MESSAGE_HEADER, _MESSAGE_BODY_LENGTH = 1, 2, 3
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DICTIONARY_DATA = 1
_BATCH_COMPRESSION = 3
_SCHEMA_FIELDS = 1
_FIELD_NAME, _FIELD_CHILDREN, _FIELD_METADATA = 0, 5, 6
_PAIR_KEY, _PAIR_VALUE = 0, 1


class DamagedSchemaError(ValueError):
    """The serialised schema cannot be followed."""


@dataclass(frozen=True)
class ExtensionType:
    """An extension type that a schema names.

    Attributes:
        column: the top-level column that it is part of.
        name: its name.
        metadata: the bytes that its own class would rebuild it from.
    """

    column: str
    name: str
    metadata: bytes


def extension_types(serialized: bytes) -> list[ExtensionType]:
    """Lists every extension type in a schema.

    Args:
        serialized: the value of a Parquet file's `ARROW:schema`, base64 text.

    Raises:
        DamagedSchemaError: it is not a serialised schema.
    """
    if not serialized:
        return []
    try:
        content = base64.b64decode(serialized, validate=True)
    except binascii.Error as error:
        raise DamagedSchemaError(str(error)) from error
    # an encapsulated message: 0xFFFFFFFF (absent before Arrow 0.15), its length, the message
    return extension_types_of_message(content[8 if content[:4] == b"\xff\xff\xff\xff" else 4 :])


def extension_types_of_message(content: bytes) -> list[ExtensionType]:
    """Lists every extension type in the schema that a message holds; see `extension_types`."""
    try:
        schema = _Table(content, _unsigned(content, 0)).table(_MESSAGE_HEADER)
        if schema is None:
            raise DamagedSchemaError("it holds no schema")
        found = []
        left = iter(range(_MAX_FIELDS))  # for the whole schema, whose columns may share fields
        for field in schema.tables(_SCHEMA_FIELDS):
            column = field.text(_FIELD_NAME).decode("utf-8", "replace")
            found += [ExtensionType(column, *kind) for kind in _within(field, left)]
    except (struct.error, IndexError) as error:
        raise DamagedSchemaError(str(error)) from error
    return found


@dataclass(frozen=True)
class MessageOutline:
    """What a message of an Arrow file says about what follows it.

    Attributes:
        body_length: the bytes that follow.
        is_compressed: they are compressed.
    """

    body_length: int
    is_compressed: bool


def outline(content: bytes) -> MessageOutline:
    """Reads a message's outline; raises a DamagedSchemaError if it cannot be followed."""
    try:
        message = _Table(content, _unsigned(content, 0))
        batch = message.table(_MESSAGE_HEADER)
        if message.scalar(_MESSAGE_KIND, "<B") == _DICTIONARY_BATCH and batch is not None:
            batch = batch.table(_DICTIONARY_DATA)
        elif message.scalar(_MESSAGE_KIND, "<B") != _RECORD_BATCH:
            batch = None
        is_compressed = batch is not None and batch.table(_BATCH_COMPRESSION) is not None
        return MessageOutline(message.scalar(_MESSAGE_BODY_LENGTH, "<q"), is_compressed)
    except (struct.error, IndexError) as error:
        raise DamagedSchemaError(str(error)) from error


def _within(column: "_Table", left: Iterator[int]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, metadata) of each extension type in a column."""
    waiting = [column]
    while waiting:
        field = waiting.pop()
        if next(left, None) is None:
            raise DamagedSchemaError(f"it consists of more than {_MAX_FIELDS} fields")
        pairs = [(p.text(_PAIR_KEY), p.text(_PAIR_VALUE)) for p in field.tables(_FIELD_METADATA)]
        metadata = dict(pairs).get(b"ARROW:extension:metadata", b"")
        for key, value in pairs:
            if key == b"ARROW:extension:name":
                yield value.decode("utf-8", "replace"), metadata
        waiting += field.tables(_FIELD_CHILDREN)
        if len(waiting) > _MAX_FIELDS:
            raise DamagedSchemaError(f"it consists of more than {_MAX_FIELDS} fields")


def _unsigned(content: bytes, place: int) -> int:
    if place < 0:
        raise IndexError(place)
    return int(struct.unpack_from("<I", content, place)[0])


class _Table:
    """A table of a flatbuffer; fields are found by their number."""

    def __init__(self, content: bytes, place: int):
        self._content, self._place = content, place
        (back,) = struct.unpack_from("<i", content, place)
        self._vtable = place - back
        if self._vtable < 0:
            raise IndexError(self._vtable)
        (self._vtable_size,) = struct.unpack_from("<H", content, self._vtable)

    def _field(self, number: int) -> int | None:
        """The place of a field, or None if the table lacks it."""
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return None
        (offset,) = struct.unpack_from("<H", self._content, self._vtable + entry)
        return self._place + offset if offset else None

    def _target(self, number: int) -> int | None:
        """The place that a field refers to, or None if the table lacks the field."""
        place = self._field(number)
        return None if place is None else place + _unsigned(self._content, place)

    def scalar(self, number: int, kind: str) -> int:
        """A number of the format `kind`; 0, the default, if the table lacks the field."""
        place = self._field(number)
        return 0 if place is None else int(struct.unpack_from(kind, self._content, place)[0])

    def table(self, number: int) -> "_Table | None":
        place = self._target(number)
        return None if place is None else _Table(self._content, place)

    def tables(self, number: int) -> Iterator["_Table"]:
        place = self._target(number)
        if place is None:
            return
        count = _unsigned(self._content, place)
        if count * 4 > len(self._content):
            raise IndexError(count)
        for entry in range(place + 4, place + 4 + 4 * count, 4):
            yield _Table(self._content, entry + _unsigned(self._content, entry))

    def text(self, number: int) -> bytes:
        place = self._target(number)
        if place is None:
            return b""
        size = _unsigned(self._content, place)
        return self._content[place + 4 : place + 4 + size]
