"""Reads flat HDF5: D4RL's, with `terminals` and, in most files, `timeouts`, and d3rlpy 1's."""

from collections.abc import Iterator

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import (
    Fragment,
    StepTable,
    end_flags,
    fragments_of_parts,
    one_a_step,
)
from rllib_dt.formats.hdf5_input import Hdf5Input, names, open_dataset, open_tree
from rllib_dt.formats.npz_input import NpzInput
from rllib_dt.spaces.trees import at, column_names
from rllib_dt.types import Array

ROWS_AT_ONCE = 500_000
"""Rows read at a time, so that a file is never in memory as a whole."""

ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts")

_REQUIRED = ("observations", "actions", "rewards", "terminals")

_ENDS_OF_D3RLPY = "episode_terminals"
"""In d3rlpy 1 (`MDPDataset.dump`) this marks every end; `terminals` marks the environment's own."""


def read(given: Hdf5Input) -> Iterator[Fragment]:
    """Yields the fragments of a flat file; either flag, or both, ends an episode.

    `time_limit` of the options splits files without `timeouts`.
    """
    given.options.refuse_names(given.source, _REQUIRED)
    given.check_names(given.root, _REQUIRED)
    yield from fragments_of_parts(_tables(given))


def _tables(given: Hdf5Input) -> Iterator[StepTable]:
    """Reads the file's steps, part by part."""
    data, source, expansion = given.root, given.source, given.expansion
    terminals = _flags(given, "terminals")
    present = names(data)
    if "timeouts" in present:
        timeouts = _flags(given, "timeouts")
    elif _ENDS_OF_D3RLPY in present:
        ends = _flags(given, _ENDS_OF_D3RLPY)
        terminals, timeouts = terminals & ends, ends & ~terminals
    else:
        timeouts = _timeouts(terminals, given.options.time_limit, source)
    flags = {"terminateds": terminals, "truncateds": timeouts}
    observations = open_tree(data, "observations", source, expansion, given.options.observed)
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


def read_npz(given: NpzInput) -> Iterator[Fragment]:
    """Yields the fragments of the same arrays in npz; either flag, or both, ends an episode."""
    given.options.refuse_names(given.source, ARRAYS)
    flags = {
        name: end_flags(given.values(name), name, given.source)
        for name in ("terminals", "timeouts")
    }
    ends = flags["terminals"] | flags["timeouts"]
    stops = [*(np.flatnonzero(ends) + 1).tolist(), len(ends)]
    lengths = [length for length in np.diff([0, *stops]).tolist() if length]
    stop = 0
    for number, rows in enumerate(given.segments(ARRAYS[:3], lengths)):
        stop += lengths[number]
        yield Fragment(
            source=given.source,
            key=str(number),
            start=0,
            observations=rows["observations"],
            actions=rows["actions"],
            rewards=one_a_step(rows["rewards"], "rewards", given.source),
            terminated=bool(flags["terminals"][stop - 1]),
            truncated=bool(flags["timeouts"][stop - 1]),
            may_drop_tail=True,
        )


def _flags(given: Hdf5Input, name: str) -> Array:
    return end_flags(given.values(given.root, name), name, given.source)


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
