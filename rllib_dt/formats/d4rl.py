"""Reads D4RL's HDF5 layout: flat arrays, `terminals` and, in most files, `timeouts`."""

from collections.abc import Iterator
from typing import IO

import h5py
import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import (
    Fragment,
    ReadOptions,
    StepTable,
    end_flags,
    fragments_of_parts,
    one_a_step,
)
from rllib_dt.formats.hdf5 import names, open_dataset, open_tree
from rllib_dt.spaces.trees import at, column_names
from rllib_dt.types import Array

ROWS_AT_ONCE = 500_000
"""Rows read at a time, so that a file is never in memory as a whole."""

_REQUIRED = ("observations", "actions", "rewards", "terminals")


def read_d4rl(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields the fragments of a D4RL file; either flag, or both, ends an episode.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: `time_limit` splits files without `timeouts`.
    """
    file_bytes = size_of(file)
    try:
        with h5py.File(file, "r") as data:
            missing = [name for name in _REQUIRED if name not in names(data)]
            if missing:
                raise DataError(
                    source,
                    f"datasets {missing} are missing; it has {names(data)}",
                    "use D4RL's layout (docs/dataset_format.md)",
                )
            expansion = Expansion(source, file_bytes, options.max_expansion)
            yield from fragments_of_parts(_tables(data, source, options, expansion))
    except (OSError, LookupError, RuntimeError, TypeError, OverflowError) as error:
        raise DataError(
            source, f"it is not a complete HDF5 file ({error})", "copy or download it again"
        ) from error


def _tables(
    data: h5py.File, source: str, options: ReadOptions, expansion: Expansion
) -> Iterator[StepTable]:
    """Reads the file's steps, part by part."""
    terminals = _flags(data, "terminals", source, expansion)
    if "timeouts" in names(data):
        timeouts = _flags(data, "timeouts", source, expansion)
    else:
        timeouts = _timeouts(terminals, options.time_limit, source)
    flags = {"terminateds": terminals, "truncateds": timeouts}
    observations = open_tree(data, "observations", source, expansion, options.observed)
    actions = open_tree(data, "actions", source, expansion)
    rewards = open_dataset(data, "rewards", source, expansion)
    columns = {
        **dict(column_names("observations", observations)),
        **dict(column_names("actions", actions)),
        "rewards": rewards,
    }
    lengths = {name: len(values) for name, values in (columns | flags).items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            source,
            f"its columns have different lengths: {lengths}",
            "record every column at every step",
        )
    for start in range(0, max(1, len(terminals)), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield StepTable(
            source=source,
            observations=at(observations, rows),
            actions=at(actions, rows),
            rewards=one_a_step(rewards[rows], "rewards", source),
            terminateds=terminals[rows],
            truncateds=timeouts[rows],
            may_drop_tail=True,
        )


def _flags(data: h5py.File, name: str, source: str, expansion: Expansion) -> Array:
    return end_flags(open_dataset(data, name, source, expansion)[()], name, source)


def _timeouts(terminals: np.ndarray, time_limit: int | None, source: str) -> np.ndarray:
    if time_limit is None:
        raise DataError(
            source,
            "it has no 'timeouts', so the ends of episodes are unknown",
            "set offline_data(time_limit=…) to the environment's step limit",
        )
    timeouts = np.zeros(len(terminals), bool)
    start = 0
    for stop in [*(np.flatnonzero(terminals) + 1), len(terminals)]:
        timeouts[start + time_limit - 1 : stop : time_limit] = True
        start = stop
    return timeouts
