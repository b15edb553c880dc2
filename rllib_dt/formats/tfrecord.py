"""Reads TFRecord files and the `tf.train.Example`s in them, without TensorFlow.

A record is a u64 length, its checksum, the content, its checksum (tensorflow's
`record_writer.h`). An Example is a protobuf message of named lists of floats, integers or bytes
(`example.proto`, `feature.proto`).
"""

import struct
from collections.abc import Iterator
from typing import IO

import numpy as np

from rllib_dt.formats.crc32c import crc32c
from rllib_dt.types import Array

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LISTS = {1: "bytes", 2: "floats", 3: "integers"}
"""Fields of a `Feature`."""

Feature = list[bytes] | Array
"""The values of one name: bytes, or (n,) float32 or int64."""


class DamagedRecordError(ValueError):
    """A record, or the message in it, cannot be followed."""


def records(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yields the content of each record of an open file of `size` bytes.

    Raises:
        DamagedRecordError: a length or a content fails its checksum, or the file ends within a
            record.
    """
    place = 0
    while place < size:
        head = file.read(12)
        if len(head) < 12:
            raise DamagedRecordError(f"it ends within a record, at byte {size}")
        length, checksum = struct.unpack("<QI", head)
        if _masked_crc(head[:8]) != checksum:
            raise DamagedRecordError(f"the length of the record at byte {place} is damaged")
        if place + 16 + length > size:
            raise DamagedRecordError(f"it ends within a record, at byte {size}")
        content, tail = file.read(length), file.read(4)
        if len(content) < length or len(tail) < 4:
            raise DamagedRecordError(f"it ends within a record, at byte {size}")
        if _masked_crc(content) != struct.unpack("<I", tail)[0]:
            raise DamagedRecordError(f"the record at byte {place} fails its checksum")
        yield content
        place += 16 + length


def features(record: bytes) -> dict[str, Feature]:
    """Parses an Example: its lists by name; empty ones are left out.

    Raises:
        DamagedRecordError: it is none.
    """
    found: dict[str, Feature] = {}
    try:
        for example in _fields(memoryview(record), 1):
            for entry in _fields(example, 1):
                (key,) = _fields(entry, 1)
                for feature in _fields(entry, 2):
                    value = _feature(feature)
                    if value is not None:
                        found[str(key, "utf-8")] = value
    except (ValueError, IndexError, struct.error) as error:
        raise DamagedRecordError(f"a record holds no tf.train.Example ({error})") from error
    return found


def _feature(message: memoryview) -> Feature | None:
    for number, kind in _LISTS.items():
        for values in _fields(message, number):
            if kind == "bytes":
                return [bytes(value) for value in _fields(values, 1)]
            parts = [
                _numbers(kind, wire, content)
                for field, wire, content in _messages(values)
                if field == 1
            ]
            return np.concatenate(parts) if parts else None
    return None


def _numbers(kind: str, wire: int, content: memoryview) -> Array:
    if kind == "floats":
        return np.frombuffer(content, "<f4")
    return _varints(np.frombuffer(content, np.uint8))


def _varints(content: Array) -> Array:
    """Decodes (n,) int64 from little-endian groups of 7 bits, whose last has no high bit."""
    ends = np.flatnonzero(content < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if not len(ends) or ends[-1] != len(content) - 1 or lengths.max() > 10:
        raise ValueError("a list of integers is damaged")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        longer = lengths > place
        group = (content[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= group << np.uint64(7 * place)
    return values.view(np.int64)


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yields the contents of a message's fields of a number that are messages, text or bytes."""
    for field, wire, content in _messages(message):
        if field == number and wire == _BYTES:
            yield content


def _messages(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yields (number, wire type, content) of each of a message's fields."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == _BYTES:
            length, place = _varint(message, place)
        elif wire == _VARINT:
            length = _varint(message, place)[1] - place
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + length > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, wire, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("an integer has more than 10 bytes")


def _masked_crc(content: bytes) -> int:
    """Returns tensorflow's masked CRC-32C."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
