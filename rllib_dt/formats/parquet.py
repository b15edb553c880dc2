"""Reads Parquet files of any known layout."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import canonical, imitation, lerobot, minari, rllib_episodes, step_rows
from rllib_dt.formats.arrow_schema import DamagedSchemaError
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.parquet_footer import DamagedFooterError
from rllib_dt.formats.parquet_input import ParquetInput, open_parquet


@dataclass(frozen=True)
class Layout:
    """A layout of episodes in Parquet.

    Attributes:
        matches: whether a file with this schema has the layout, given the options.
        read: yields the file's fragments.
    """

    matches: Callable[[pa.Schema, ReadOptions], bool]
    read: Callable[[ParquetInput], Iterator[Fragment]]


LAYOUTS = (
    Layout(canonical.matches, canonical.read),
    Layout(rllib_episodes.matches, rllib_episodes.read),
    Layout(lambda schema, options: minari.matches_table(schema), minari.read_table),
    Layout(lambda schema, options: imitation.matches_table(schema), imitation.read_table),
    Layout(lerobot.matches, lerobot.read),
    # anything else must have one row per step, or is refused for the columns that it lacks
    Layout(lambda schema, options: True, step_rows.read),
)

_DAMAGED = (
    pa.ArrowException,
    OSError,
    UnicodeDecodeError,
    DamagedFooterError,
    DamagedSchemaError,
)


def read_parquet(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of a Parquet file of any known layout.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: `names` maps RLlib's column names to the file's own.
    """
    try:
        given = open_parquet(file, source, options, as_they_are=[rllib_episodes.ITEM])
        layout = next(layout for layout in LAYOUTS if layout.matches(given.schema, options))
        yield from layout.read(given)
    except _DAMAGED as error:
        raise DataError(
            source, f"it is not a complete Parquet file ({error})", "copy or record it again"
        ) from error
