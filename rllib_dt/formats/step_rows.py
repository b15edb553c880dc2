"""Reads Parquet with one row per step, such as RLlib's recordings in columns."""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import shaped_bytes
from rllib_dt.formats.fragments import Fragment, fragments_of_parts
from rllib_dt.formats.ids import ids_from_arrow
from rllib_dt.formats.nested import tree_from_arrow
from rllib_dt.formats.parquet_input import ParquetInput
from rllib_dt.formats.steps import OPTIONAL, REQUIRED, check_columns, step_table
from rllib_dt.spaces.trees import LeafChoice, column_names
from rllib_dt.types import Tree

_MAY_HAVE_LEAVES = ("obs", "new_obs", "actions")

MAX_BYTES_AT_ONCE = 128 * 2**20
"""Larger files are read in parts of about this size."""


def read(given: ParquetInput) -> Iterator[Fragment]:
    """Yields the fragments of a file with one row per step."""
    names, source = given.options.names, given.source
    present = set(given.schema.names)
    of_leaves = {n for n in _MAY_HAVE_LEAVES if _theirs(n, present, given)}
    check_columns(present | {given.name(name) for name in of_leaves}, names, source)
    wanted = {name: _theirs(name, present, given) for name in (*REQUIRED, *OPTIONAL)}
    wanted = {name: columns for name, columns in wanted.items() if columns}
    tables = _tables(given, [column for columns in wanted.values() for column in columns])
    absent: dict[str, bool] = {}
    parts = (step_table(_columns(table, wanted, given, absent), source) for table in tables)
    yield from fragments_of_parts(parts)


def _theirs(name: str, present: set[str], given: ParquetInput) -> list[str]:
    """Returns a column's own name in the file, or those of its leaves ("obs/camera")."""
    theirs, choice = given.name(name), given.options.choice_of(name)
    if name not in _MAY_HAVE_LEAVES:
        return [theirs] if theirs in present else []
    prefix = f"{theirs}/"
    paths = (c.removeprefix(prefix) for c in sorted(present) if c.startswith(prefix))
    within = [f"{prefix}{path}" for path in paths if not choice.skips(path)]
    if theirs not in present:
        return within
    if within and pa.types.is_struct(given.schema.field(theirs).type):
        raise DataError(
            given.source,
            f"column {theirs!r} is a struct of leaves, and {within} are leaves too",
            "remove the ones that do not belong to it",
        )
    return [theirs]


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
    table: pa.Table, wanted: Mapping[str, list[str]], given: ParquetInput, absent: dict[str, bool]
) -> dict[str, Tree]:
    """Converts the columns; `absent` takes note of those that hold nothing, for later parts."""
    columns: dict[str, Tree] = {}
    for name, (theirs, *others) in wanted.items():
        each = [table[column] for column in (theirs, *others)]
        is_empty = name in OPTIONAL and all(c.null_count == len(c) for c in each)
        if absent.setdefault(name, is_empty):
            if not is_empty:
                raise DataError(
                    given.source,
                    f"column {theirs!r} has missing values, the first in row 0",
                    "remove the rows or fill the values in",
                )
            continue
        parts = {c: _values(table[c], name, c, given) for c in (theirs, *others)}
        if list(parts) == [given.name(name)]:
            columns[name] = parts[theirs]
        else:
            prefix = f"{given.name(name)}/"
            columns[name] = {
                leaf.removeprefix(prefix): array
                for column, part in parts.items()
                for leaf, array in column_names(column, part)
            }
    return columns


def _values(column: pa.ChunkedArray, name: str, theirs: str, given: ParquetInput) -> Tree:
    """Converts a column of steps: `name` is RLlib's name of it, `theirs` the file's own."""
    if name == "eps_id":
        return ids_from_arrow(column, given.source, theirs, given.expansion)
    choice = given.options.choice_of(name)
    path = theirs.removeprefix(given.name(name)).removeprefix("/")
    if path:  # the column is a leaf
        choice = LeafChoice(texts=("",) if path in choice.texts else ())
    values = tree_from_arrow(column, given.source, theirs, given.expansion, choice)
    if pa.types.is_fixed_size_binary(column.type):
        described = given.schema.metadata or {}
        return shaped_bytes(values, described, given.source, name, theirs)
    return values
