"""Reads Stable-Baselines 2's expert npz: flat arrays, and where episodes start."""

from collections.abc import Iterator

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import Fragment, end_flags, one_a_step, whole_episode
from rllib_dt.formats.npz_input import NpzInput

ARRAYS = ("obs", "actions", "rewards", "episode_starts")


def read(given: NpzInput) -> Iterator[Fragment]:
    """Yields a fragment for each episode; whether it terminated or was cut is not recorded.

    It counts as terminated, like `dones` of RLlib's old recordings.
    """
    given.options.refuse_names(given.source, ARRAYS)
    starts = end_flags(given.values("episode_starts"), "episode_starts", given.source)
    if not starts[:1].all():
        raise DataError(
            given.source,
            "its first row is no start of an episode (episode_starts)",
            "remove the rows before the first start",
        )
    lengths = np.diff([*np.flatnonzero(starts), len(starts)]).tolist()
    for number, columns in enumerate(given.segments(ARRAYS[:3], lengths)):
        yield whole_episode(
            source=given.source,
            key=str(number),
            observations=columns["obs"],
            actions=columns["actions"],
            rewards=one_a_step(columns["rewards"], "rewards", given.source),
            terminated=True,
            truncated=False,
        )
