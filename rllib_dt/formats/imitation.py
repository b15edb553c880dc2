"""Reads the trajectories of the `imitation` library: npz, and folders of Hugging Face `datasets`.

Demonstrations without rewards get those that `offline_data(missing_rewards=…)` says. `infos` are
pickles in npz, and are not read.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.columns import array_from_arrow, is_list
from rllib_dt.formats.fragments import (
    Fragment,
    end_flag,
    end_flags,
    one_a_step,
    rewards_for,
    whole_episode,
)
from rllib_dt.formats.npz_input import NpzInput
from rllib_dt.formats.table_input import TableInput
from rllib_dt.types import Array

ARRAYS = ("obs", "acts", "terminal", "indices")
COLUMNS = ("obs", "acts", "terminal")
_REWARDS = "rews"
_ROWS_AT_ONCE = 256


def read_npz(given: NpzInput) -> Iterator[Fragment]:
    """Yields a fragment for each trajectory, one more of `obs` than of the actions.

    `indices` are those of the actions where a trajectory begins, without the first.
    """
    given.options.refuse_names(given.source, ARRAYS)
    ends = end_flags(given.values("terminal"), "terminal", given.source)
    acts = {"acts", *({_REWARDS} & set(given.names))}
    num_steps = given.length("acts")
    lengths = np.diff([0, *given.values("indices"), num_steps])
    if len(lengths) != len(ends) or (lengths < 1).any():
        raise DataError(
            given.source,
            f"its indices cut {num_steps} actions into {len(lengths)} trajectories, the shortest "
            f"of {lengths.min()} steps, and terminal has {len(ends)}",
            "save the trajectories again",
        )
    steps = given.segments(acts, lengths.tolist())
    states = given.segments(["obs"], (lengths + 1).tolist())
    for number, (taken, seen) in enumerate(zip(steps, states, strict=True)):
        yield _fragment(given, number, {**taken, **seen}, bool(ends[number]))


# --- Hugging Face datasets


def matches_table(given: TableInput) -> bool:
    """Returns whether each row of a table is a trajectory."""
    schema = given.schema
    return set(COLUMNS) <= set(schema.names) and all(
        is_list(schema.field(name).type) for name in ("obs", "acts")
    )


def read_table(given: TableInput) -> Iterator[Fragment]:
    """Yields a fragment for each row."""
    lists = ["obs", "acts", *({_REWARDS} & set(given.schema.names))]
    given.options.refuse_names(given.source, COLUMNS)
    given.announce([*lists, "terminal"])
    number = 0
    for batch in given.batches([*lists, "terminal"], _ROWS_AT_ONCE):
        for row in range(len(batch)):
            where = f"{given.source}, episode {number}"
            columns = {name: _row(batch[name][row], where, name, given) for name in lists}
            ended = end_flag(batch["terminal"][row].as_py(), "terminal", where)
            yield _fragment(given, number, columns, ended)
            number += 1


def _row(row: pa.ListScalar, where: str, name: str, given: TableInput) -> Array:
    if row.values is None:
        raise DataError(where, f"{name} are missing", "remove the trajectory")
    return array_from_arrow(pa.chunked_array([row.values]), where, name, given.expansion)


def _fragment(
    given: NpzInput | TableInput, number: int, columns: Mapping[str, Array], terminated: bool
) -> Fragment:
    notes: Mapping[str, int]
    if _REWARDS in columns:
        rewards, notes = one_a_step(columns[_REWARDS], _REWARDS, given.source), {}
    else:
        rewards, notes = rewards_for(len(columns["acts"]), given.options, given.source)
    return whole_episode(
        source=given.source,
        key=str(number),
        observations=columns["obs"],
        actions=columns["acts"],
        rewards=rewards,
        terminated=terminated,
        truncated=not terminated,
        notes=notes,
    )
