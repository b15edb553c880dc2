"""Reads Arrow files (IPC, as files or streams) of any known layout."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import imitation, minari
from rllib_dt.formats.arrow_schema import (
    DamagedSchemaError,
    extension_types_of_message,
    outline,
)
from rllib_dt.formats.columns import check_extension, check_types
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.layouts import Layout

_MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_END = struct.pack("<II", _CONTINUES, 0)


@dataclass(frozen=True)
class ArrowInput:
    """An open Arrow file.

    Attributes:
        source: its name, for messages.
        options: see `ReadOptions`.
        schema: the file's schema.
        expansion: what it may take in memory.
    """

    source: str
    options: ReadOptions
    schema: pa.Schema
    expansion: Expansion
    _reader: pa.RecordBatchStreamReader

    def announce(self, columns: Sequence[str]) -> int:
        """Returns 0: uncompressed, columns take no more than they do in the file."""
        return 0

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads columns as a whole."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches(self.batches(columns), schema)

    def batches(
        self, columns: Sequence[str], num_rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Reads columns some rows at a time, at most as many as a batch of the file has."""
        for batch in self._reader:
            batch.validate(full=True)  # offsets may point anywhere
            chosen = batch.select(list(columns))
            for start in range(0, len(chosen), num_rows or max(1, len(chosen))):
                yield chosen.slice(start, num_rows)


LAYOUTS: tuple[Layout[ArrowInput], ...] = (
    Layout(minari.matches_table, minari.read_table),
    Layout(imitation.matches_table, imitation.read_table),
)


def read_arrow(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of an Arrow file of any known layout.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: see `ReadOptions`.
    """
    try:
        given = _open(file, source, options)
        layout = next((layout for layout in LAYOUTS if layout.matches(given)), None)
        if layout is None:
            raise DataError(
                source,
                f"its columns {given.schema.names} are of no known layout of Arrow files",
                f"wanted {list(minari.COLUMNS)} (Minari) or {list(imitation.COLUMNS)} (imitation); "
                "write Parquet for one row per step",
            )
        yield from layout.read(given)
    except (pa.ArrowException, OSError, DamagedSchemaError, struct.error) as error:
        raise DataError(
            source, f"it is not a complete Arrow file ({error})", "copy or record it again"
        ) from error


def _open(file: IO[bytes], source: str, options: ReadOptions) -> ArrowInput:
    """Opens a file once its messages are checked; a file is a stream between magic and footer."""
    size = size_of(file)
    start = 8 if file.read(len(_MAGIC)) == _MAGIC else 0
    _check_messages(file, start, size, source)
    file.seek(start)
    reader = pa.ipc.open_stream(file)
    check_types(reader.schema, source)
    expansion = Expansion(source, size, options.max_expansion)
    return ArrowInput(source, options, reader.schema, expansion, reader)


def _check_messages(file: IO[bytes], start: int, size: int, source: str) -> None:
    """Refuses extension types before pyarrow sees them, compression, and a file cut short."""
    place, is_first = start, True
    while True:
        file.seek(place)
        head = file.read(8)
        if not is_first and head == _END:
            return
        mark, length = struct.unpack("<II", head)
        if mark != _CONTINUES or place + 8 + length > size:
            raise DamagedSchemaError(f"no message of an Arrow stream begins at byte {place}")
        content = file.read(length)
        if is_first:
            for found in extension_types_of_message(content):
                check_extension(found.name, found.column, source)
        message = outline(content)
        if message.is_compressed:
            raise DataError(
                source, "its record batches are compressed", "write it again without compression"
            )
        place += 8 + length + message.body_length
        if message.body_length < 0 or place > size:
            raise DamagedSchemaError(f"it ends at byte {size}, before a record batch does")
        is_first = False
