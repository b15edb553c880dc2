"""Reads Parquet with one row per step, such as RLlib's recordings in columns."""

from collections.abc import Iterator, Mapping

import numpy as np
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


def read(
    given: ParquetInput, *, separator: str = "/", has_rewards: bool = True
) -> Iterator[Fragment]:
    """Yields the fragments of a file with one row per step.

    Args:
        given: the file.
        separator: stands between the names of a leaf and of what it belongs to ("obs/camera").
        has_rewards: otherwise they are 0, for the caller to replace.
    """
    names, source = given.options.names, given.source
    present = set(given.schema.names)
    of_leaves = {n for n in _MAY_HAVE_LEAVES if _theirs(n, present, given, separator)}
    invented = set() if has_rewards else {given.name("rewards")}
    found = present | {given.name(name) for name in of_leaves} | invented
    check_columns(found, names, source)
    wanted = {name: _theirs(name, present, given, separator) for name in (*REQUIRED, *OPTIONAL)}
    wanted = {name: columns for name, columns in wanted.items() if columns}
    tables = _tables(given, [column for columns in wanted.values() for column in columns])
    absent: dict[str, bool] = {}
    parts = (
        step_table(_columns(table, wanted, given, absent, separator), source) for table in tables
    )
    yield from fragments_of_parts(parts)


def _theirs(name: str, present: set[str], given: ParquetInput, separator: str) -> list[str]:
    """Returns a column's own name in the file, or those of its leaves ("obs/camera")."""
    theirs, choice = given.name(name), given.options.choice_of(name)
    if name not in _MAY_HAVE_LEAVES:
        return [theirs] if theirs in present else []
    prefix = f"{theirs}{separator}"
    within = [
        column
        for column in sorted(present)
        if column.startswith(prefix)
        and not choice.skips(_path(column.removeprefix(prefix), separator))
    ]
    if theirs not in present:
        return within
    if within and pa.types.is_struct(given.schema.field(theirs).type):
        raise DataError(
            given.source,
            f"column {theirs!r} is a struct of leaves, and {within} are leaves too",
            "remove the ones that do not belong to it",
        )
    return [theirs]


def _path(name: str, separator: str) -> str:
    return name.replace(separator, "/")


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
    table: pa.Table,
    wanted: Mapping[str, list[str]],
    given: ParquetInput,
    absent: dict[str, bool],
    separator: str,
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
        if theirs == given.name(name):
            columns[name] = _values(table[theirs], name, theirs, "", given)
        else:
            prefix = f"{given.name(name)}{separator}"
            paths = {c: _path(c.removeprefix(prefix), separator) for c in (theirs, *others)}
            columns[name] = {
                leaf: array
                for column, path in paths.items()
                for leaf, array in column_names(
                    path, _values(table[column], name, column, path, given)
                )
            }
    columns.setdefault("rewards", np.zeros(len(table)))
    return columns


def _values(
    column: pa.ChunkedArray, name: str, theirs: str, path: str, given: ParquetInput
) -> Tree:
    """Converts a column of steps.

    Args:
        column: its values.
        name: RLlib's name of it.
        theirs: the file's own.
        path: of the leaf that the column is, if it is one.
        given: the file.
    """
    if name == "eps_id":
        return ids_from_arrow(column, given.source, theirs, given.expansion)
    choice = given.options.choice_of(name)
    if path:  # the column is a leaf
        choice = LeafChoice(texts=("",) if path in choice.texts else ())
    values = tree_from_arrow(column, given.source, theirs, given.expansion, choice)
    if pa.types.is_fixed_size_binary(column.type):
        described = given.schema.metadata or {}
        return shaped_bytes(values, described, given.source, name, theirs)
    return values
