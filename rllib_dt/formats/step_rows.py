"""Reads Parquet with one row per step, such as RLlib's recordings in columns."""

from collections.abc import Iterator

import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import array_from_arrow, shaped_bytes
from rllib_dt.formats.fragments import Fragment, fragments_of_parts
from rllib_dt.formats.ids import ids_from_arrow
from rllib_dt.formats.parquet_input import ParquetInput
from rllib_dt.formats.steps import OPTIONAL, REQUIRED, check_columns, step_table
from rllib_dt.types import Array

MAX_BYTES_AT_ONCE = 128 * 2**20
"""Larger files are read in parts of about this size."""


def read(given: ParquetInput) -> Iterator[Fragment]:
    """Yields the fragments of a file with one row per step."""
    names, source = given.options.names, given.source
    present = set(given.schema.names)
    check_columns(present, names, source)
    wanted = [n for n in (*REQUIRED, *OPTIONAL) if names.get(n, n) in present]
    tables = _tables(given, [names.get(name, name) for name in wanted])
    absent: dict[str, bool] = {}
    parts = (step_table(_columns(table, wanted, given, absent), source) for table in tables)
    yield from fragments_of_parts(parts)


def _tables(given: ParquetInput, columns: list[str]) -> Iterator[pa.Table]:
    """Reads the whole file or, if it is large, part by part."""
    size = given.announce(columns)
    if size <= MAX_BYTES_AT_ONCE:
        yield given.read(columns)
        return
    rows = max(1, given.num_rows * MAX_BYTES_AT_ONCE // size)
    for batch in given.batches(columns, rows):
        yield pa.Table.from_batches([batch])


def _columns(
    table: pa.Table, wanted: list[str], given: ParquetInput, absent: dict[str, bool]
) -> dict[str, Array]:
    """Converts the columns; `absent` takes note of those that hold nothing, for later parts."""
    columns = {}
    for name in wanted:
        theirs = given.name(name)
        column = table[theirs]
        is_empty = name in OPTIONAL and column.null_count == len(column)
        if absent.setdefault(name, is_empty):
            if not is_empty:
                raise DataError(
                    given.source,
                    f"column {theirs!r} has missing values, the first in row 0",
                    "remove the rows or fill the values in",
                )
            continue
        convert = ids_from_arrow if name == "eps_id" else array_from_arrow
        values = convert(column, given.source, theirs, given.expansion)
        if name != "eps_id" and pa.types.is_fixed_size_binary(column.type):
            described = given.schema.metadata or {}
            values = shaped_bytes(values, described, given.source, name, theirs)
        columns[name] = values
    return columns
