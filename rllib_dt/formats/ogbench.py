"""Reads OGBench's npz (1.2): flat arrays, whose `terminals` mark the last state of an episode.

The action beside the last state is invalid, so an episode of T + 1 rows has T steps. Sets for
reaching goals have no rewards; `offline_data(missing_rewards=…)` says what they get.
"""

from collections.abc import Iterator

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import (
    Fragment,
    end_flags,
    rewards_for,
    whole_episode,
)
from rllib_dt.formats.npz_input import NpzInput

ARRAYS = ("observations", "actions", "terminals")

_NOT_OGBENCHS = {"rewards", "next_observations", "dones", "truncations", "episode_ends"}


def read(given: NpzInput) -> Iterator[Fragment]:
    """Yields a fragment for each episode; every end is a truncation."""
    given.options.refuse_names(given.source, ARRAYS)
    others = sorted(_NOT_OGBENCHS & set(given.names))
    if others:
        raise DataError(
            given.source,
            f"it has {others} beside {sorted(ARRAYS)}, which OGBench's files do not, so whether an "
            "end's row is a step is not known",
            "save flags as D4RL does (terminals and timeouts, one row a step), or convert it with "
            "write_episodes",
        )
    ends = end_flags(given.values("terminals"), "terminals", given.source)
    if not ends[-1:].all():
        raise DataError(
            given.source,
            "its last row is no end of an episode (terminals)",
            "download it again, or remove the rows after the last end",
        )
    lengths = np.diff([0, *(np.flatnonzero(ends) + 1)]).tolist()
    for number, rows in enumerate(given.segments(("observations", "actions"), lengths)):
        rewards, notes = rewards_for(len(rows["actions"]) - 1, given.options, given.source)
        yield whole_episode(
            source=given.source,
            key=str(number),
            observations=rows["observations"],
            actions=rows["actions"][:-1],
            rewards=rewards,
            terminated=False,
            truncated=True,
            notes=notes,
        )
