"""Reads HDF5 files of any known layout."""

from collections.abc import Iterator
from typing import IO

import h5py

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import d3rlpy, d4rl, minari, robomimic
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.hdf5_input import Hdf5Input
from rllib_dt.formats.layouts import Layout

LAYOUTS: tuple[Layout[Hdf5Input], ...] = (
    Layout(minari.matches_hdf5, minari.read_hdf5),
    Layout(robomimic.matches, robomimic.read),
    Layout(d3rlpy.matches, d3rlpy.read),
    # anything else must be flat, or is refused for the datasets that it lacks
    Layout(lambda given: True, d4rl.read),
)


def read_hdf5(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of an HDF5 file of any known layout.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: see `ReadOptions`.
    """
    file_bytes = size_of(file)
    try:
        with h5py.File(file, "r") as root:
            expansion = Expansion(source, file_bytes, options.max_expansion)
            given = Hdf5Input(source, options, root, expansion)
            layout = next(layout for layout in LAYOUTS if layout.matches(given))
            yield from layout.read(given)
    except (OSError, LookupError, RuntimeError, TypeError, OverflowError) as error:
        raise DataError(
            source, f"it is not a complete HDF5 file ({error})", "copy or download it again"
        ) from error
