"""`Fragment`, which readers yield: contiguous steps of one episode in one file."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import DEFAULT_MAX_EXPANSION
from rllib_dt.spaces.trees import EVERYTHING, LeafChoice, at, by_leaf, column_names, map_tree
from rllib_dt.types import Array, Batch, Tree

MissingRewards = Literal["success"] | float
LastRow = Literal["drop", "keep"]
MissingEnds = Literal["terminated", "truncated"]
_WORDS = {"missing_ends": get_args(MissingEnds), "last_row": get_args(LastRow)}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options that readers need besides the file.

    Attributes:
        names: maps RLlib's column names to the data's own (`input_read_schema`).
        time_limit: the environment's step limit, for D4RL files without `timeouts`.
        max_expansion: how many times its size a file may take when unpacked; see `Expansion`.
        observed, acted: what is read of composite observations and actions.
        shapes: the shape of a step's value by column ("obs/camera"), for formats that record it
            flat; empty where the spaces are not known.
        missing_rewards, missing_ends, last_row: see `DTConfig.offline_data`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    time_limit: int | None = None
    max_expansion: float = DEFAULT_MAX_EXPANSION
    observed: LeafChoice = EVERYTHING
    acted: LeafChoice = EVERYTHING
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    missing_rewards: MissingRewards | None = None
    missing_ends: MissingEnds | None = None
    last_row: LastRow | None = None

    def __post_init__(self) -> None:
        rewards: object = self.missing_rewards
        is_number = isinstance(rewards, int | float) and not isinstance(rewards, bool)
        is_finite = is_number and math.isfinite(float(rewards))  # type: ignore[arg-type]
        if rewards not in (None, "success") and not is_finite:
            raise ValueError(f'missing_rewards={rewards!r} must be "success" or a finite number')
        for name, allowed in _WORDS.items():
            if getattr(self, name) not in (None, *allowed):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {allowed}")

    def refuse_names(self, source: str, present: Collection[str]) -> None:
        """Raises a DataError if columns are mapped in a format whose names are fixed."""
        if self.names:
            raise DataError(
                source,
                f"input_read_schema={dict(self.names)} maps columns, but this format's are always "
                f"{sorted(present)}",
                "leave it out, or convert the data with write_episodes",
            )

    def choice_of(self, column: str) -> LeafChoice:
        """Returns what is read of one of RLlib's columns."""
        choices = {"obs": self.observed, "new_obs": self.observed, "actions": self.acted}
        return choices.get(column, EVERYTHING)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Some steps of one episode, in order.

    Attributes:
        source: the file, for messages.
        key: identifies the episode, or None if only end flags tell episodes apart.
        start: the timestep of the first step, or None if the file does not say.
        observations: (n, …), a tree.
        actions: (n, …), a tree.
        rewards: (n,).
        next_observation: (…) the observation after the last action, or None if not recorded.
        terminated: the environment ended the episode here.
        truncated: a time limit ended it here.
        marks_end: the format marks each episode's end, so an episode without one is incomplete.
        may_drop_tail: in this format the last episode often has no end and may be dropped.
        notes: what a setting did to these steps, by what was done, as numbers to add up.
    """

    source: str
    key: str | None
    start: int | None
    observations: Tree
    actions: Tree
    rewards: Array
    next_observation: Tree = None
    terminated: bool = False
    truncated: bool = False
    marks_end: bool = True
    may_drop_tail: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the episode ends with this fragment."""
        return self.terminated or self.truncated

    def __len__(self) -> int:
        return len(self.rewards)


def whole_episode(
    *,
    source: str,
    key: str | None,
    observations: Tree,
    actions: Tree,
    rewards: Array,
    terminated: bool,
    truncated: bool,
    notes: Mapping[str, int] | None = None,
) -> Fragment:
    """Builds the fragment of an episode that a file holds as a whole.

    Args:
        source: the file, for messages.
        key: the episode's name.
        observations: (T + 1, …), of which the last is after the last action, or (T, …).
        actions, rewards: (T, …) and (T,).
        terminated, truncated: see `Fragment`.
        notes: see `Fragment`.

    Raises:
        DataError: there is no step. `Episode` checks that the columns' lengths agree.
    """
    num_steps = len(rewards)
    if not num_steps:
        raise DataError(
            source,
            "it has no step, only the observation that begins it",
            "remove the episode",
            episode=key,
        )
    one_more = {len(array) for array in by_leaf(observations).values()} == {num_steps + 1}
    return Fragment(
        source=source,
        key=key,
        start=0,
        observations=at(observations, slice(-1)) if one_more else observations,
        actions=actions,
        rewards=rewards,
        next_observation=at(observations, -1) if one_more else None,
        terminated=terminated,
        truncated=truncated,
        notes=notes or {},
    )


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Batch of steps as a file holds them, of several episodes.

    Attributes:
        source: the file, for messages.
        observations, actions, rewards: (n, …), (n, …), (n,); the first two are trees.
        episode_ids: (n,) or None.
        timesteps: (n,) or None.
        next_observations: (n, …) or None.
        terminateds: (n,) bool.
        truncateds: (n,) bool, or None if only terminations (or old `dones`) are marked.
        may_drop_tail: see `Fragment`.
    """

    source: str
    observations: Tree
    actions: Tree
    rewards: Array
    terminateds: Array
    truncateds: Array | None = None
    episode_ids: Array | None = None
    timesteps: Array | None = None
    next_observations: Tree = None
    may_drop_tail: bool = False

    def __post_init__(self) -> None:
        lengths = {
            column: len(array)
            for name, value in self._trees().items()
            for column, array in column_names(name, value)
        }
        if len(set(lengths.values())) > 1:
            raise DataError(
                self.source,
                f"its columns have different lengths: {lengths}",
                "record every column at every step",
            )
        if not len(self.rewards):
            raise DataError(self.source, "it is empty", "remove it from the input")

    def _trees(self) -> dict[str, Tree]:
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray | Mapping)}

    def fragments(self) -> Iterator[Fragment]:
        """Yields fragments, split at ends; with ids, grouped by episode in order of appearance."""
        if self.episode_ids is None:
            yield from self._split(np.arange(len(self.rewards)), None)
            return
        _, inverse = np.unique(self.episode_ids, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        for rows in sorted(groups, key=lambda rows: rows[0]):
            yield from self._split(rows, str(self.episode_ids[rows[0]]))

    def _split(self, rows: Array, key: str | None) -> Iterator[Fragment]:
        if self.timesteps is not None and key is not None:
            rows = self._in_time(rows)
        ends = self.terminateds[rows].astype(bool)
        if self.truncateds is not None:
            ends = ends | self.truncateds[rows].astype(bool)
        breaks = ends.copy()
        if self.timesteps is not None:
            breaks[:-1] |= np.diff(self.timesteps[rows]) != 1
        if self.timesteps is None and self.next_observations is not None:
            self._check_order(rows, ends)
        stops = [*(np.flatnonzero(breaks) + 1), len(rows)]
        start = 0
        for stop in stops:
            if stop > start:
                yield self._fragment(rows[start:stop], key)
            start = stop

    def _check_order(self, rows: Array, ends: Array) -> None:
        """Refuses rows that do not follow each other, where nothing else tells their order."""
        same = np.ones(len(rows) - 1, bool)
        nexts = by_leaf(self.next_observations)
        for path, array in by_leaf(self.observations).items():
            following = array[rows[1:]]
            expected = nexts[path][rows[:-1]] if path in nexts else None
            if expected is None or following.shape != expected.shape:
                others = sorted(nexts) if expected is None else expected.shape[1:]
                raise DataError(
                    self.source,
                    f"observations {path} have the shape {following.shape[1:]}, but the next "
                    f"observations (new_obs) {others}",
                    "record both alike, or leave new_obs out",
                )
            same &= np.asarray(following == expected).all(axis=tuple(range(1, following.ndim)))
        wrong = np.flatnonzero(~same & ~ends[:-1])
        if len(wrong):
            first, second = rows[wrong[0]], rows[wrong[0] + 1]
            raise DataError(
                self.source,
                f"the observation of row {second} is not the next observation (new_obs) of row "
                f"{first}, which comes before it in its episode",
                "put the rows in order, number the steps of each episode in a column t, or leave "
                "new_obs out",
            )

    def _in_time(self, rows: Array) -> Array:
        # an episode's rows may come in any order, unless two episodes share the id
        times = self.timesteps[rows]  # type: ignore[index]
        if len(np.unique(times)) == len(times):
            return rows[np.argsort(times, kind="stable")]
        return rows

    def _fragment(self, rows: Array, key: str | None) -> Fragment:
        last = rows[-1]
        truncated = bool(self.truncateds[last]) if self.truncateds is not None else False
        return Fragment(
            source=self.source,
            key=key,
            start=None if self.timesteps is None else int(self.timesteps[rows[0]]),
            observations=at(self.observations, rows),
            actions=at(self.actions, rows),
            rewards=self.rewards[rows],
            next_observation=(
                None if self.next_observations is None else at(self.next_observations, last)
            ),
            terminated=bool(self.terminateds[last]),
            truncated=truncated,
            # old recordings mark terminations only; a time limit shows as the id's last row
            marks_end=self.truncateds is not None or key is None,
            may_drop_tail=self.may_drop_tail,
        )

    def split_at_last_end(self) -> "tuple[StepTable | None, StepTable | None]":
        """Splits into the rows up to the last marked end and the rows after it."""
        ends = self.terminateds.astype(bool)
        if self.truncateds is not None:
            ends = ends | self.truncateds.astype(bool)
        last = np.flatnonzero(ends)
        if not len(last):
            return None, self
        cut = int(last[-1]) + 1
        return self._rows(slice(0, cut)), self._rows(slice(cut, None))

    def _rows(self, rows: slice) -> "StepTable | None":
        columns: Batch = {name: at(value, rows) for name, value in self._trees().items()}
        return replace(self, **columns) if len(columns["rewards"]) else None

    def followed_by(self, other: "StepTable") -> "StepTable":
        """Returns a table of this one's rows and then the other's."""
        columns: Batch = {}
        for name in (name for name in self._trees() if name != "truncateds"):
            columns[name] = map_tree(
                lambda *parts: np.concatenate(parts), getattr(self, name), getattr(other, name)
            )
        flags = self.truncateds, other.truncateds
        if any(value is not None for value in flags):  # a part may mark no truncation
            tables = self, other
            columns["truncateds"] = np.concatenate(
                [
                    np.zeros(len(table.rewards), bool) if value is None else value
                    for table, value in zip(tables, flags, strict=True)
                ]
            )
        return replace(self, **columns)


def fragments_of_parts(parts: Iterable[StepTable]) -> Iterator[Fragment]:
    """Yields the fragments of a file that is read part by part.

    If only end flags tell episodes apart, the rows after a part's last end are joined with the next
    part. With ids, fragments are joined later, like those of several files.
    """
    carried: StepTable | None = None
    for part in parts:
        if part.episode_ids is not None:
            yield from part.fragments()
            continue
        whole, carried = (carried.followed_by(part) if carried else part).split_at_last_end()
        if whole is not None:
            yield from whole.fragments()
    if carried is not None:
        yield from carried.fragments()


def end_for(options: ReadOptions) -> tuple[bool, bool, Mapping[str, int]]:
    """Returns how an episode ended whose data does not say it: terminated, truncated, a note."""
    choice = options.missing_ends
    notes = {f"episodes whose end missing_ends={choice!r} gave": 1} if choice else {}
    return choice == "terminated", choice == "truncated", notes


def rewards_for(
    num_steps: int, options: ReadOptions, source: str
) -> tuple[Array, Mapping[str, int]]:
    """Returns the rewards of an episode that was recorded without, and a note of them.

    Raises:
        DataError: `missing_rewards` does not say what they are.
    """
    choice = options.missing_rewards
    if choice is None:
        raise DataError(
            source,
            "it has no rewards, which a Decision Transformer is conditioned on",
            'set offline_data(missing_rewards="success") for a reward of 1 at the last step of an '
            "episode, or missing_rewards=-1.0 (any number) for that reward at every step",
        )
    rewards = np.zeros(num_steps)
    rewards[-1 if choice == "success" else slice(None)] = 1.0 if choice == "success" else choice
    return rewards, {f"steps whose reward missing_rewards={choice!r} gave": num_steps}


def one_a_step(values: Array, name: str, source: str) -> Array:
    """Turns (n,) or (n, 1) into (n,); raises a DataError for any other shape."""
    if isinstance(values, Mapping):
        raise DataError(
            source,
            f"{name} have the leaves {sorted(values)}",
            "record one number for each step",
        )
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise DataError(
            source,
            f"{name} have shape {values.shape}, wanted (n,)",
            "record one number for each step",
        )
    return values


def end_flags(values: Array, name: str, source: str) -> NDArray[np.bool_]:
    """Turns flags, (n,) or (n, 1) booleans or numbers 0 and 1, into (n,) bool.

    Raises:
        DataError: there is any other value. NaN, -1 or 0.5 would count as True.
    """
    flags = one_a_step(values, name, source)
    is_flag = np.isin(flags, (0, 1))
    if not is_flag.all():
        row = int(np.argmin(is_flag))
        raise DataError(
            source,
            f"{name} hold {flags[row]!s} at row {row}",
            "record end flags as booleans, or as the numbers 0 and 1",
        )
    chosen: NDArray[np.bool_] = flags.astype(bool)
    return chosen


def end_flag(value: object, name: str, where: str) -> bool:
    """Turns one flag, a boolean or a number 0 or 1, into a bool; see `end_flags`."""
    if not isinstance(value, bool | int | float | np.generic):
        raise DataError(
            where,
            f"{name} is {value!r}, a {type(value).__name__}",
            "record end flags as booleans, or as the numbers 0 and 1",
        )
    return bool(end_flags(np.asarray([value]), name, where)[0])
