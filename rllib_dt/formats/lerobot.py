"""Reads the tables of LeRobot's data sets (Hugging Face; v2.1 and v3.0): one row per step.

A row is (o_t, a_t), and `next.reward` the reward after a_t. The observation after the last action
is not recorded. Most sets have no reward, and some no end flag; `offline_data(missing_rewards=…)`
and `missing_ends` say what they are. Cameras may be recorded as video; see `lerobot_video`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats import step_rows
from rllib_dt.formats.fragments import Fragment, ReadOptions, end_for, rewards_for
from rllib_dt.formats.lerobot_video import Cameras
from rllib_dt.formats.parquet_input import ParquetInput
from rllib_dt.spaces.trees import by_leaf

_NAMES = {
    "obs": "observation",
    "actions": "action",
    "rewards": "next.reward",
    # set at a time limit too; beside `next.truncated` it counts as the other kind of end
    "dones": "next.done",
    "truncateds": "next.truncated",
    "eps_id": "episode_index",
    "t": "frame_index",
}
_ENDS = ("dones", "terminateds", "truncateds")


def matches(given: ParquetInput) -> bool:
    """Returns whether a table has LeRobot's columns."""
    return {"action", "episode_index", "frame_index"} <= set(given.schema.names)


def read(given: ParquetInput) -> Iterator[Fragment]:
    """Yields the fragments of a table."""
    options = given.options
    names = {**_NAMES, **options.names}
    present = set(given.schema.names)
    absent = {k: v for k, v in options.names.items() if not _is_there(v, present)}
    if absent:
        raise DataError(
            given.source,
            f"input_read_schema maps {absent}, which it does not have; it has {sorted(present)}",
            "correct the names",
        )
    names = {k: v for k, v in names.items() if k not in _ENDS or v in present}
    has_rewards = names["rewards"] in present
    has_ends = any(name in names for name in _ENDS)
    if not has_rewards:
        rewards_for(1, options, given.source)  # refuses if nothing says what they are
    if not has_ends and options.missing_ends is None:
        raise DataError(
            given.source,
            f"neither {_NAMES['dones']} nor {_NAMES['truncateds']} says how episodes end",
            'set offline_data(missing_ends="terminated"), or "truncated" if a time limit or the '
            "end of the recording ended them",
        )
    renamed = replace(given, options=replace(options, names=names))
    fragments = step_rows.read(renamed, separator=".", has_rewards=has_rewards)
    cameras = Cameras(given.source, options, present, f"{names['obs']}.", given.beside)
    try:
        for fragment, is_last in _with_ends(fragments):
            ended = _seen(fragment, cameras)
            if not has_ends and is_last:
                terminated, truncated, notes = end_for(options)
                ended = replace(ended, terminated=terminated, truncated=truncated, notes=notes)
            yield ended if has_rewards else _rewarded(ended, options, given.source, is_last)
    finally:
        cameras.close()


def _seen(fragment: Fragment, cameras: Cameras) -> Fragment:
    """Adds what the cameras saw to a fragment's observations."""
    frames = cameras.leaves(fragment.key, fragment.start or 0, len(fragment))
    if not frames:
        return fragment
    return replace(fragment, observations={**by_leaf(fragment.observations), **frames})


def _is_there(name: str, present: set[str]) -> bool:
    return any(column == name or column.startswith(f"{name}.") for column in present)


def _with_ends(fragments: Iterator[Fragment]) -> Iterator[tuple[Fragment, bool]]:
    """Yields each fragment, and whether its episode's rows end with it."""
    before: Fragment | None = None
    for fragment in fragments:
        if before is not None:
            yield before, fragment.key != before.key
        before = fragment
    if before is not None:
        yield before, True


def _rewarded(fragment: Fragment, options: ReadOptions, source: str, is_last: bool) -> Fragment:
    rewards, notes = rewards_for(len(fragment), options, source)
    if options.missing_rewards == "success" and not is_last:
        rewards = np.zeros(len(fragment))
    return replace(fragment, rewards=rewards, notes={**fragment.notes, **notes})
