"""Reads Parquet with one row per step, such as RLlib's recordings in columns."""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from rllib_dt.formats.columns import announce_columns, array_from_arrow
from rllib_dt.formats.expansion import Expansion
from rllib_dt.formats.fragments import Fragment, ReadOptions, fragments_of_parts
from rllib_dt.formats.ids import ids_from_arrow
from rllib_dt.formats.steps import OPTIONAL, REQUIRED, check_columns, step_table
from rllib_dt.types import Array

MAX_BYTES_AT_ONCE = 128 * 2**20
"""Larger files are read in parts of about this size."""


def read(
    parquet: pq.ParquetFile, source: str, options: ReadOptions, expansion: Expansion
) -> Iterator[Fragment]:
    """Yields the fragments of a file with one row per step."""
    names = options.names
    present = set(parquet.schema_arrow.names)
    check_columns(present, names, source)
    wanted = [n for n in (*REQUIRED, *OPTIONAL) if names.get(n, n) in present]
    tables = _tables(parquet, [names.get(name, name) for name in wanted], expansion)
    parts = (step_table(_columns(t, wanted, source, names, expansion), source) for t in tables)
    yield from fragments_of_parts(parts)


def _tables(
    parquet: pq.ParquetFile, columns: list[str], expansion: Expansion
) -> Iterator[pa.Table]:
    """Reads the whole file or, if it is large, part by part."""
    groups = range(parquet.num_row_groups)
    encoded = sum(parquet.metadata.row_group(i).total_byte_size for i in groups)
    size = max(encoded, announce_columns(parquet.metadata, columns, expansion))
    if size <= MAX_BYTES_AT_ONCE:
        yield parquet.read(columns=columns)
        return
    rows = max(1, parquet.metadata.num_rows * MAX_BYTES_AT_ONCE // size)
    for batch in parquet.iter_batches(batch_size=rows, columns=columns):
        yield pa.Table.from_batches([batch])


def _columns(
    table: pa.Table,
    wanted: list[str],
    source: str,
    names: Mapping[str, str],
    expansion: Expansion,
) -> dict[str, Array]:
    columns = {}
    for name in wanted:
        column = table[names.get(name, name)]
        if name in OPTIONAL and column.null_count == len(column):
            continue
        if name == "eps_id":  # ids have any type that can be compared
            columns[name] = ids_from_arrow(column, source, names.get(name, name), expansion)
        else:
            columns[name] = array_from_arrow(column, source, names.get(name, name), expansion)
    return columns
