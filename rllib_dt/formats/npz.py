"""Reads npz files of any known layout."""

import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import IO

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import d4rl, imitation, ogbench, stable_baselines
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions
from rllib_dt.formats.npz_input import NpzInput


@dataclass(frozen=True)
class Layout:
    """A layout of episodes in npz.

    Attributes:
        columns: the arrays that a file must have to be of the layout.
        read: yields the file's fragments.
    """

    columns: Collection[str]
    read: Callable[[NpzInput], Iterator[Fragment]]


LAYOUTS = (
    Layout(imitation.ARRAYS, imitation.read_npz),
    Layout(stable_baselines.ARRAYS, stable_baselines.read),
    Layout(d4rl.ARRAYS, d4rl.read_npz),
    Layout(ogbench.ARRAYS, ogbench.read),
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
            present = set(given.names)
            layout = next((each for each in LAYOUTS if present >= set(each.columns)), None)
            if layout is None:
                wanted = ", or ".join(str(sorted(each.columns)) for each in LAYOUTS)
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
