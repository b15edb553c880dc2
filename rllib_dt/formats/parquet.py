"""Reads Parquet files of any known layout."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import canonical, rllib_episodes, step_rows
from rllib_dt.formats.arrow_schema import (
    DamagedSchemaError,
    extension_types,
    serialized_schemas,
)
from rllib_dt.formats.columns import check_extension, check_types
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions


@dataclass(frozen=True)
class Layout:
    """A layout of episodes in Parquet.

    Attributes:
        matches: whether a file with this schema has the layout, given the options.
        read: yields the file's fragments, given its name, the options, and what it may take.
    """

    matches: Callable[[pa.Schema, ReadOptions], bool]
    read: Callable[[pq.ParquetFile, str, ReadOptions, Expansion], Iterator[Fragment]]


LAYOUTS = (
    Layout(canonical.matches, canonical.read),
    Layout(rllib_episodes.matches, rllib_episodes.read),
    # anything else must have one row per step, or is refused for the columns that it lacks
    Layout(lambda schema, options: True, step_rows.read),
)


def read_parquet(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of a Parquet file of any known layout.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: `names` maps RLlib's column names to the file's own.
    """
    try:
        expansion = Expansion(source, size_of(file), options.max_expansion)
        _check_extensions(file, source)
        parquet = pq.ParquetFile(file)
        repeated = _repeated(parquet.metadata)
        if repeated:
            parquet = pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=repeated)
        if parquet.metadata.num_rows == 0:
            raise DataError(source, "it is empty", "remove it from the input")
        schema = parquet.schema_arrow
        check_types(schema, source)
        _check_names(schema, source)
        layout = next(layout for layout in LAYOUTS if layout.matches(schema, options))
        yield from layout.read(parquet, source, options, expansion)
    except (pa.ArrowException, OSError, UnicodeDecodeError, DamagedSchemaError) as error:
        raise DataError(
            source, f"it is not a complete Parquet file ({error})", "copy or record it again"
        ) from error


def _check_extensions(file: IO[bytes], source: str) -> None:
    """Refuses extension types by name, before pyarrow rebuilds any of them."""
    for found in (kind for schema in serialized_schemas(file) for kind in extension_types(schema)):
        check_extension(found.name, found.column, source)
        try:
            json.loads(found.metadata)
        except ValueError as error:  # Ray 2.49 to 2.54 pickled it
            raise DataError(
                source,
                f"column {found.column!r} is a tensor whose description is no JSON ({error}); it "
                "could hold code",
                "write it again with a current version of Ray, or as lists",
            ) from error


def _repeated(metadata: pq.FileMetaData) -> list[str]:
    """Names columns of text or bytes whose values may be repeated by reference.

    They are read with their dictionaries, so that how much they unpack to is known beforehand.
    """
    columns = [
        metadata.row_group(group).column(index)
        for group in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
    ]
    return sorted(
        {
            column.path_in_schema
            for column in columns
            if column.physical_type == "BYTE_ARRAY"
            and column.has_dictionary_page
            and column.path_in_schema != rllib_episodes.ITEM  # few and large, so read in batches
        }
    )


def _check_names(schema: pa.Schema, source: str) -> None:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(
            source, f"it has several columns of the names {twice}", "rename or remove all but one"
        )
