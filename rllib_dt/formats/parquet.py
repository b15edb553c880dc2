"""Reads Parquet files of any known layout."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import canonical, imitation, lerobot, minari, rllib_episodes, step_rows
from rllib_dt.formats.arrow_schema import DamagedSchemaError
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.layouts import Layout
from rllib_dt.formats.parquet_footer import DamagedFooterError
from rllib_dt.formats.parquet_input import ParquetInput, open_parquet

LAYOUTS: tuple[Layout[ParquetInput], ...] = (
    Layout(canonical.matches, canonical.read),
    Layout(rllib_episodes.matches, rllib_episodes.read),
    Layout(minari.matches_table, minari.read_table),
    Layout(imitation.matches_table, imitation.read_table),
    Layout(lerobot.matches, lerobot.read),
    # anything else must have one row per step, or is refused for the columns that it lacks
    Layout(lambda given: True, step_rows.read),
)

_DAMAGED = (
    pa.ArrowException,
    OSError,
    UnicodeDecodeError,
    DamagedFooterError,
    DamagedSchemaError,
)


def read_parquet(
    file: IO[bytes],
    source: str,
    options: ReadOptions,
    beside: Callable[[str], IO[bytes]] | None = None,
) -> Iterator[Fragment]:
    """Yields the fragments of a Parquet file of any known layout.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: `names` maps RLlib's column names to the file's own.
        beside: opens files by their path relative to the file's folder.
    """
    try:
        opened = open_parquet(file, source, options, as_they_are=[rllib_episodes.ITEM])
        given = replace(opened, beside=beside)
        layout = next(layout for layout in LAYOUTS if layout.matches(given))
        yield from layout.read(given)
    except _DAMAGED as error:
        raise DataError(
            source, f"it is not a complete Parquet file ({error})", "copy or record it again"
        ) from error
