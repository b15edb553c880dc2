"""Reads robomimic's HDF5 (0.3): `data/demo_<i>` with `obs`, `next_obs`, `actions`, `rewards`."""

import re
from collections.abc import Iterator

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import Fragment, end_flags, one_a_step, whole_episode
from rllib_dt.formats.hdf5_input import Hdf5Input, names
from rllib_dt.spaces.trees import map_tree
from rllib_dt.types import Array

_GROUP = "data"
_DEMO = re.compile(r"demo_(\d+)")


def matches(given: Hdf5Input) -> bool:
    """Returns whether an HDF5 file has robomimic's layout."""
    present = names(given.root)
    return _GROUP in present and "observations" not in present


def read(given: Hdf5Input) -> Iterator[Fragment]:
    """Yields a fragment for each demonstration, in the order of their numbers.

    A demonstration ends with its group. It terminated if the last of `dones` is set; those before
    mark a success, after which the recording goes on.
    """
    given.options.refuse_names(given.source, ("obs", "actions", "rewards", "dones"))
    data = given.group(_GROUP)
    found = (_DEMO.fullmatch(name) for name in names(data))
    demos = sorted((int(match[1]), match[0]) for match in found if match)
    if not demos:
        raise DataError(
            given.source,
            f"its group {_GROUP!r} holds no demo_0, demo_1, …; it has {names(data)[:5]}",
            "use robomimic's layout (docs/dataset_format.md)",
        )
    for _, name in demos:
        yield _fragment(given, name)


def _with_last(now: Array, after: Array) -> Array:
    """Returns (T + 1, …): all of `now`, (T, …), and the last of what comes after it."""
    if now.shape != after.shape:
        raise ValueError(f"they have the shapes {now.shape} and {after.shape}")
    return np.concatenate([now, after[-1:]])


def _fragment(given: Hdf5Input, name: str) -> Fragment:
    source, options = given.source, given.options
    demo = given.group(f"{_GROUP}/{name}")
    given.check_names(demo, ("obs", "actions", "rewards", "dones"), name)
    observations = given.tree(demo, "obs", options.observed)
    if "next_obs" in names(demo):
        following = given.tree(demo, "next_obs", options.observed)
        try:
            observations = map_tree(_with_last, observations, following)
        except ValueError as error:
            raise DataError(
                source,
                f"obs and next_obs differ ({error})",
                "record both alike, or remove next_obs",
                episode=name,
            ) from error
    dones = end_flags(given.values(demo, "dones"), "dones", f"{source}, episode {name}")
    terminated = bool(dones[-1:].any())
    return whole_episode(
        source=source,
        key=name,
        observations=observations,
        actions=given.tree(demo, "actions", options.acted),
        rewards=one_a_step(given.values(demo, "rewards"), "rewards", source),
        terminated=terminated,
        truncated=not terminated,
    )
