"""Reads d3rlpy 2's HDF5 (`ReplayBuffer.dump`): `observations_<i>`, `actions_<i>`, … an episode.

d3rlpy 1's flat layout is read by `d4rl`.
"""

import re
from collections.abc import Iterator

from rllib_dt.formats.fragments import Fragment, end_flag, one_a_step, whole_episode
from rllib_dt.formats.hdf5_input import Hdf5Input, names
from rllib_dt.spaces.trees import from_leaves
from rllib_dt.types import Tree

_ACTIONS = re.compile(r"actions_(\d+)")


def matches(given: Hdf5Input) -> bool:
    """Returns whether an HDF5 file has datasets for each episode."""
    return any(_ACTIONS.fullmatch(name) for name in names(given.root))


def read(given: Hdf5Input) -> Iterator[Fragment]:
    """Yields a fragment for each episode, in the order of their numbers.

    The observation after the last action is not recorded; an episode that did not terminate was
    truncated.
    """
    given.options.refuse_names(given.source, ("observations", "actions", "rewards", "terminated"))
    present = names(given.root)
    numbers = sorted(int(match[1]) for name in present if (match := _ACTIONS.fullmatch(name)))
    for number in numbers:
        yield _fragment(given, number, present)


def _fragment(given: Hdf5Input, number: int, present: list[str]) -> Fragment:
    root, source, key = given.root, given.source, str(number)
    given.check_names(root, [f"{name}_{number}" for name in ("rewards", "terminated")])
    flag = given.scalar(root, f"terminated_{number}")
    terminated = end_flag(flag, "terminated", f"{source}, episode {key}")
    return whole_episode(
        source=source,
        key=key,
        observations=_observations(given, number, present),
        actions=given.values(root, f"actions_{number}"),
        rewards=one_a_step(given.values(root, f"rewards_{number}"), "rewards", source),
        terminated=terminated,
        truncated=not terminated,
    )


def _observations(given: Hdf5Input, number: int, present: list[str]) -> Tree:
    """Reads an episode's observations; several of them have numbers, like those of a Tuple."""
    name = f"observations_{number}"
    if name in present:
        return given.values(given.root, name)
    parts = sorted(int(match[1]) for n in present if (match := re.fullmatch(rf"{name}_(\d+)", n)))
    given.check_names(given.root, [] if parts else [name])
    return from_leaves({str(i): given.values(given.root, f"{name}_{i}") for i in parts})
