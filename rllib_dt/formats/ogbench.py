"""Reads OGBench's npz (1.2): flat arrays, whose `terminals` mark the last state of an episode.

The action beside the last state is invalid, so an episode of T + 1 rows has T steps. Sets for
reaching goals have no rewards; `offline_data(missing_rewards=…)` says what they get.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import (
    Fragment,
    end_flags,
    one_a_step,
    rewards_for,
    whole_episode,
)
from rllib_dt.formats.npz_input import NpzInput

ARRAYS = ("observations", "actions", "terminals")


def read(given: NpzInput) -> Iterator[Fragment]:
    """Yields a fragment for each episode; every end is a truncation."""
    ends = end_flags(given.values("terminals"), "terminals", given.source)
    if not ends[-1:].all():
        raise DataError(
            given.source,
            "its last row is no end of an episode (terminals)",
            "download it again, or remove the rows after the last end",
        )
    lengths = np.diff([0, *(np.flatnonzero(ends) + 1)]).tolist()
    columns = ["observations", "actions", *({"rewards"} & set(given.names))]
    for number, rows in enumerate(given.segments(columns, lengths)):
        steps = len(rows["actions"]) - 1
        notes: Mapping[str, int] = {}
        if "rewards" in rows:
            rewards = one_a_step(rows["rewards"], "rewards", given.source)[:-1]
        else:
            rewards, notes = rewards_for(steps, given.options, given.source)
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
