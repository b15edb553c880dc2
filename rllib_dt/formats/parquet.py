"""Reads Parquet files of any known layout."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import canonical, rllib_episodes, step_rows
from rllib_dt.formats.columns import check_types
from rllib_dt.formats.fragments import Fragment, ReadOptions


@dataclass(frozen=True)
class Layout:
    """A layout of episodes in Parquet.

    Attributes:
        matches: whether a file with this schema has the layout, given the options.
        read: yields the file's fragments, given its name and the options.
    """

    matches: Callable[[pa.Schema, ReadOptions], bool]
    read: Callable[[pq.ParquetFile, str, ReadOptions], Iterator[Fragment]]


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
        parquet = pq.ParquetFile(file)
        if parquet.metadata.num_rows == 0:
            raise DataError(source, "it is empty", "remove it from the input")
        schema = parquet.schema_arrow
        check_types(schema, source)
        layout = next(layout for layout in LAYOUTS if layout.matches(schema, options))
        yield from layout.read(parquet, source, options)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            source, f"it is not a complete Parquet file ({error})", "copy or record it again"
        ) from error
