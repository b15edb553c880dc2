"""Reads npz files of any known layout."""

import zipfile
from collections.abc import Iterator
from functools import partial
from typing import IO

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import d4rl, imitation, ogbench, stable_baselines
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.layouts import Layout
from rllib_dt.formats.npz_input import NpzInput

_ARRAYS = (imitation.ARRAYS, stable_baselines.ARRAYS, d4rl.ARRAYS, ogbench.ARRAYS)
_READERS = (imitation.read_npz, stable_baselines.read, d4rl.read_npz, ogbench.read)

LAYOUTS: tuple[Layout[NpzInput], ...] = tuple(
    Layout(partial(NpzInput.has, arrays=arrays), read)
    for arrays, read in zip(_ARRAYS, _READERS, strict=True)
)


def read_npz(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of an npz file of any known layout.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: see `ReadOptions`.
    """
    expansion = Expansion(source, size_of(file), options.max_expansion)
    try:
        with zipfile.ZipFile(file) as archive:
            given = NpzInput(source, options, expansion, archive)
            layout = next((layout for layout in LAYOUTS if layout.matches(given)), None)
            if layout is None:
                wanted = ", or ".join(str(sorted(arrays)) for arrays in _ARRAYS)
                raise DataError(
                    source,
                    f"its arrays {given.names} are of no known layout",
                    f"wanted {wanted}; see docs/dataset_format.md",
                )
            yield from layout.read(given)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            source, f"it is not a complete npz file ({error})", "copy or save it again"
        ) from error
