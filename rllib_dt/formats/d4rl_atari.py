"""Reads d4rl-atari's folders, and those of the DQN replay data: a gzipped npy file for each field.

Observations are single frames, (N, 84, 84) uint8; set `offline_data(frame_stack=4)` to have them
stacked. Rewards were clipped to their sign. Only terminations are marked, so the steps after the
last one belong to an episode that was cut, which is left out.
"""

import gzip
import re
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions, end_flags, one_a_step
from rllib_dt.formats.npz_input import open_column

FIELD = "observation"
NAMED = re.compile(rf"(^|/)(\$store\$_)?{FIELD}(_ckpt\.\d+)?(\.npy)?\.gz$")
"""Names of the files that stand for their folder; the other fields' files are beside them."""

_OTHERS = ("action", "reward", "terminal")

Beside = Callable[[str, str], IO[bytes]]
"""Opens the file beside another whose name has the second word in place of the first."""


def read_d4rl_atari(
    file: IO[bytes], source: str, options: ReadOptions, beside: Beside
) -> Iterator[Fragment]:
    """Yields a fragment for each episode.

    Args:
        file: the open file of the observations.
        source: its name, for messages.
        options: see `ReadOptions`.
        beside: opens the files of the other fields.
    """
    size = size_of(file)
    files = {FIELD: file, **{name: beside(FIELD, name) for name in _OTHERS}}
    try:
        # a file unpacks to what its array declares, which is counted
        expansion = Expansion(source, size, options.max_expansion)
        columns = {
            name: open_column(gzip.GzipFile(fileobj=each), name, source, expansion)  # type: ignore[arg-type]
            for name, each in files.items()
        }
        lengths = {name: column.length for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                source,
                f"the files of its fields have different lengths: {lengths}",
                "download them again",
            )
        ends = end_flags(columns["terminal"].rows(lengths["terminal"]), "terminal", source)
        stops = [*(np.flatnonzero(ends) + 1).tolist(), len(ends)]
        start = 0
        for number, stop in enumerate(stops):
            if stop > start:
                rewards = columns["reward"].rows(stop - start)
                yield Fragment(
                    source=source,
                    key=str(number),
                    start=0,
                    observations=columns[FIELD].rows(stop - start),
                    actions=columns["action"].rows(stop - start),
                    rewards=one_a_step(rewards, "reward", source),
                    terminated=bool(ends[stop - 1]),
                    may_drop_tail=True,
                )
            start = stop
    except (EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            source,
            f"it, or a file of a field beside it, is not complete ({error})",
            "download them again",
        ) from error
    finally:
        for name in _OTHERS:
            files[name].close()
