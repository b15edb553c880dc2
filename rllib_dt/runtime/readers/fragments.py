"""Fragments: contiguous steps of one episode in one file; and their assembly to episodes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.record import DataError, Episode

Array = NDArray[Any]
IncompletePolicy = Literal["error", "drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Some steps of one episode, in order.

    Attributes:
        source: the file, for messages.
        key: what tells the episode from others, or None where only end flags do.
        start: the timestep of the first step, or None where the file does not say.
        observations: (n, …).
        actions: (n, …).
        rewards: (n,).
        next_observation: (…) what followed the last action, or None where not recorded.
        terminated: the environment ended the episode here.
        truncated: a time limit ended it here.
        marks_end: the format marks each episode's end, so that one without is incomplete.
        may_drop_tail: a last episode without end is customary in this format.
    """

    source: str
    key: str | None
    start: int | None
    observations: Array
    actions: Array
    rewards: Array
    next_observation: Array | None = None
    terminated: bool = False
    truncated: bool = False
    marks_end: bool = True
    may_drop_tail: bool = False

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Columns of steps as they stand in a file, several episodes one behind another.

    Attributes:
        source: the file, for messages.
        observations, actions, rewards: (n, …), (n, …), (n,).
        episode_ids: (n,) or None.
        timesteps: (n,) or None.
        next_observations: (n, …) or None.
        terminateds: (n,) bool.
        truncateds: (n,) bool, or None where only terminations (or old `dones`) are marked.
        may_drop_tail: see `Fragment`.
    """

    source: str
    observations: Array
    actions: Array
    rewards: Array
    terminateds: Array
    truncateds: Array | None = None
    episode_ids: Array | None = None
    timesteps: Array | None = None
    next_observations: Array | None = None
    may_drop_tail: bool = False

    def __post_init__(self) -> None:
        lengths = {
            name: len(value) for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        if len(set(lengths.values())) > 1:
            raise DataError(
                self.source,
                f"its columns have different lengths: {lengths}",
                "record every column at every step",
            )
        if not len(self.rewards):
            raise DataError(self.source, "it is empty", "remove it from the input")

    def fragments(self) -> Iterator[Fragment]:
        """Splits at ends, and groups by episode where ids are given, in order of appearance."""
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
        stops = [*(np.flatnonzero(breaks) + 1), len(rows)]
        start = 0
        for stop in stops:
            if stop > start:
                yield self._fragment(rows[start:stop], key)
            start = stop

    def _in_time(self, rows: Array) -> Array:
        # rows of one episode may stand in any order, unless two episodes share the id
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
            observations=self.observations[rows],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            next_observation=(
                None if self.next_observations is None else self.next_observations[last]
            ),
            terminated=bool(self.terminateds[last]),
            truncated=truncated,
            # old recordings mark terminations only: a time limit shows as the id's last row
            marks_end=self.truncateds is not None or key is None,
            may_drop_tail=self.may_drop_tail,
        )

    def split_at_last_end(self) -> "tuple[StepTable | None, StepTable | None]":
        """What stands up to the last marked end, and what stands behind it."""
        ends = self.terminateds.astype(bool)
        if self.truncateds is not None:
            ends = ends | self.truncateds.astype(bool)
        last = np.flatnonzero(ends)
        if not len(last):
            return None, self
        cut = int(last[-1]) + 1
        return self._rows(slice(0, cut)), self._rows(slice(cut, None))

    def _rows(self, rows: slice) -> "StepTable | None":
        columns: dict[str, Any] = {
            k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)
        }
        return replace(self, **columns) if len(columns["rewards"]) else None

    def followed_by(self, other: "StepTable") -> "StepTable":
        """Both tables' rows, one behind the other."""
        columns: dict[str, Any] = {
            k: np.concatenate([v, getattr(other, k)])
            for k, v in vars(self).items()
            if isinstance(v, np.ndarray)
        }
        return replace(self, **columns)


def fragments_of_parts(parts: Iterable[StepTable]) -> Iterator[Fragment]:
    """The fragments of a file that is read part by part.

    Where only end flags tell episodes apart, the rows behind a part's last end are read with the
    next part. Else fragments of one id are joined as those of several files are.
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


def one_a_step(values: Array, name: str, source: str) -> Array:
    """(n,) from (n,) or (n, 1); DataError for any other shape."""
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise DataError(
            source,
            f"{name} have shape {values.shape}, wanted (n,)",
            "record one number for each step",
        )
    return values


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Whole episodes, and what was left out on the way (one message each)."""

    episodes: Sequence[Episode]
    dropped: Sequence[str]


def assemble(fragments: Iterable[Fragment], incomplete: IncompletePolicy = "error") -> Assembly:
    """Joins fragments, in the order of their files, to episodes in the order of their first."""
    assembler = Assembler(incomplete)
    placed = [item for fragment in fragments for item in assembler.add(fragment)]
    placed.extend(assembler.finish())
    placed.sort(key=lambda item: item[0])
    return Assembly(episodes=[episode for _, episode in placed], dropped=assembler.dropped)


class Assembler:
    """Joins fragments to episodes as they come, and holds only those that may go on.

    Fragments of one key join where the earlier has not ended and the later continues it: by its
    timestep where there are timesteps, else by the observation that followed where that was
    recorded, else by standing next. An episode of a format that marks ends, but without one, is
    incomplete: its returns-to-go would be wrong. `incomplete` says what to do with it.

    Attributes:
        dropped: a message for each episode that was left out.
        open_steps: steps that are held, of episodes that may go on.
        joins_by_order: an episode was joined from several files without timesteps to tell how.
    """

    def __init__(self, incomplete: IncompletePolicy = "error"):
        self.dropped: list[str] = []
        self.open_steps = 0
        self.joins_by_order = False
        self._incomplete = incomplete
        self._open: dict[str, list[_Placed]] = defaultdict(list)
        self._added = 0
        self._without_key: dict[str, int] = defaultdict(int)

    def add(self, fragment: Fragment) -> Iterator[tuple[int, Episode]]:
        """Takes a fragment in; gives what is whole by now, with its first fragment's place."""
        placed = (self._added, fragment)
        self._added += 1
        if fragment.key is None:
            yield from self._emit([placed])
            return
        parts = self._open[fragment.key]
        parts.append(placed)
        self.open_steps += len(fragment)
        if any(part.ended for _, part in parts):
            for chain in _chains(parts):
                if chain[-1][1].ended and not chain[0][1].start:
                    taken = {place for place, _ in chain}
                    parts[:] = [part for part in parts if part[0] not in taken]
                    self.open_steps -= sum(len(part) for _, part in chain)
                    yield from self._emit(chain)
        if not parts:
            del self._open[fragment.key]

    def finish(self) -> Iterator[tuple[int, Episode]]:
        """What is held still, now that no more fragments come."""
        chains = [chain for parts in self._open.values() for chain in _chains(parts)]
        self._open.clear()
        self.open_steps = 0
        for chain in sorted(chains, key=lambda chain: chain[0][0]):
            yield from self._emit(chain)

    def _emit(self, placed: "list[_Placed]") -> Iterator[tuple[int, Episode]]:
        chain = [fragment for _, fragment in placed]
        first = chain[0]
        several = len({fragment.source for fragment in chain}) > 1
        self.joins_by_order |= several and any(fragment.start is None for fragment in chain)
        name = first.key
        if name is None:
            name = str(self._without_key[first.source])
            self._without_key[first.source] += 1
        problem = _incomplete(chain)
        if problem is None or self._incomplete == "keep":
            yield placed[0][0], _join(chain, name)
        elif self._incomplete == "drop" or chain[-1].may_drop_tail:
            self.dropped.append(str(problem))
        else:
            raise problem


_Placed = tuple[int, Fragment]


def _chains(parts: list[_Placed]) -> list[list[_Placed]]:
    """Fragments of one key as the episodes that they make."""
    starts = [fragment.start for _, fragment in parts]
    if None not in starts and len(set(starts)) == len(starts):
        parts = sorted(parts, key=lambda part: part[1].start or 0)
    chains: list[list[_Placed]] = []
    for part in parts:
        if chains and _continues([fragment for _, fragment in chains[-1]], part[1]):
            chains[-1].append(part)
        else:
            chains.append([part])
    return chains


def _continues(chain: list[Fragment], fragment: Fragment) -> bool:
    last = chain[-1]
    if last.ended:
        return False
    if fragment.start is not None:
        return fragment.start == (chain[0].start or 0) + sum(map(len, chain))
    if last.next_observation is not None:
        return bool(np.array_equal(last.next_observation, fragment.observations[0]))
    return True


def _incomplete(chain: list[Fragment]) -> DataError | None:
    first, last = chain[0], chain[-1]
    steps = sum(map(len, chain))
    name = first.key or "(without id)"
    if first.start:
        return DataError(
            first.source,
            f"its steps 0 … {first.start - 1} are missing, {steps} steps follow",
            'add the missing rows, or leave such episodes out with offline_data(incomplete="drop")',
            episode=name,
        )
    if last.ended or not last.marks_end:
        return None
    return DataError(
        last.source,
        f"the last of its {steps} steps is neither terminated nor truncated, so the episode has "
        "no end and its returns-to-go are not known",
        'record whole episodes, or choose offline_data(incomplete="drop") to leave such episodes '
        'out, or "keep" to take their last step as the end',
        episode=name,
    )


def _join(chain: list[Fragment], name: str) -> Episode:
    first, last = chain[0], chain[-1]
    observations = [fragment.observations for fragment in chain]
    if last.next_observation is not None:
        observations.append(np.asarray(last.next_observation)[None])
    try:
        return Episode(
            id=name,
            source=first.source,
            observations=np.concatenate(observations),
            actions=np.concatenate([fragment.actions for fragment in chain]),
            rewards=np.concatenate([fragment.rewards for fragment in chain]),
            terminated=last.terminated,
            truncated=last.truncated or not last.terminated,
        )
    except DataError:
        raise
    except ValueError as error:  # np.concatenate, on shapes that differ between files
        raise DataError(
            first.source,
            f"its steps have different shapes ({error})",
            "record arrays of one shape at every step",
            episode=first.key,
        ) from error
