"""Reads d4rl-atari's folders, and those of the DQN replay data: a gzipped npy file for each field.

Observations are single frames, (N, 84, 84) uint8; set `offline_data(frame_stack=4)` to have them
stacked. Rewards were clipped to their sign. Only terminations are marked, so the steps after the
last one belong to an episode that was cut, which is left out. A file of the DQN replay data is a
part of a circular buffer (Dopamine's `CircularReplayBuffer`): it begins within an episode, which is
left out, and each episode begins with three blank rows, which are no steps.
"""

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import Fragment, ReadOptions, end_flags, one_a_step
from rllib_dt.formats.npz_input import open_column
from rllib_dt.formats.paths import without_options
from rllib_dt.types import Array

FIELD = "observation"
NAMED = re.compile(rf"(^|/)(\$store\$_)?{FIELD}(_ckpt\.\d+)?(\.npy)?\.gz$")
"""Names of the files that stand for their folder; the other fields' files are beside them."""

_OTHERS = ("action", "reward", "terminal")
_OF_BUFFER = "$store$_"
"""In the names of the DQN replay data's files."""
_MOST_BLANK = 3
_BLANK = "blank rows at the beginning of episodes left out"

Beside = Callable[[str], IO[bytes]]
"""Opens a file beside another by its name."""


def _num_blank(rows: Mapping[str, Array]) -> int:
    """Counts the rows of zeros at the beginning of an episode, at most `_MOST_BLANK`."""
    is_blank = [
        not any(rows[name][row].any() for name in rows)
        for row in range(min(_MOST_BLANK, len(rows["action"])))
    ]
    return is_blank.index(False) if False in is_blank else len(is_blank)


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
    options.refuse_names(source, (FIELD, *_OTHERS))
    size = size_of(file)
    own = without_options(source).rpartition("/")[2]
    files = {FIELD: file, **{name: beside(own.replace(FIELD, name)) for name in _OTHERS}}
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
        is_buffer = _OF_BUFFER in source.rpartition("/")[2]
        start = 0
        for number, stop in enumerate(stops):
            rows = {name: columns[name].rows(stop - start) for name in (FIELD, "action", "reward")}
            blank = _num_blank(rows) if is_buffer else 0
            if stop - start > blank and not (is_buffer and number == 0):
                yield Fragment(
                    source=source,
                    key=str(number),
                    start=0,
                    observations=rows[FIELD][blank:],
                    actions=rows["action"][blank:],
                    rewards=one_a_step(rows["reward"], "reward", source)[blank:],
                    terminated=bool(ends[stop - 1]),
                    may_drop_tail=True,
                    notes={_BLANK: blank} if blank else {},
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
