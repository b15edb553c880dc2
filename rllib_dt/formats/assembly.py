"""Joins fragments into whole episodes as they arrive."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.formats.fragments import Fragment
from rllib_dt.spaces.trees import at, by_leaf, map_tree
from rllib_dt.types import Array

IncompletePolicy = Literal["error", "drop", "keep"]
"""What to do with an episode without an end, whose returns-to-go are unknown."""


def assemble(fragments: Iterable[Fragment], assembler: "Assembler") -> Iterator[Episode]:
    """Yields each episode as soon as it is whole."""
    for fragment in fragments:
        yield from assembler.add(fragment)
    yield from assembler.finish()


class Assembler:
    """Joins fragments into episodes, and holds only the fragments of episodes that may continue.

    Fragments of one key are joined if the earlier one has not ended and the later one continues it.
    That is decided by its timestep if there are timesteps, else by the recorded next observation if
    there is one, else by their order. In a format that marks ends, an episode without one is
    incomplete: its returns-to-go would be wrong.

    Args:
        incomplete: what to do with an incomplete episode.
        join_files: join an episode's parts from several files by the files' order alone, if there
            are neither timesteps nor next observations to prove that they belong together.
        max_open_steps: the most steps to hold of episodes that may continue; unlimited by default.

    Attributes:
        dropped: a message for each episode that was left out.
        notes: what settings did to the data, added up; see `Fragment`.
        joins_by_order: whether an episode was joined from several files without timesteps to prove
            the order; files must then not be shuffled.
    """

    def __init__(
        self,
        incomplete: IncompletePolicy = "error",
        max_open_steps: int | None = None,
        *,
        join_files: bool = False,
    ):
        self.dropped: list[str] = []
        self.notes: Counter[str] = Counter()
        self.joins_by_order = False
        self._incomplete = incomplete
        self._join_files = join_files
        self._max_open_steps = max_open_steps
        self._open_steps = 0
        self._open: dict[str, _OpenParts] = defaultdict(_OpenParts)
        self._added = 0
        self._without_key: dict[str, int] = defaultdict(int)

    def add(self, fragment: Fragment) -> Iterator[Episode]:
        """Adds a fragment and yields the episodes that it completes."""
        placed = (self._added, fragment)
        self._added += 1
        for note, count in fragment.notes.items():
            self.notes[note] += count
        if fragment.key is None:
            yield from self._emit([placed])
            return
        parts = self._open[fragment.key]
        parts.add(placed)
        self._open_steps += len(fragment)
        if parts.may_be_whole():
            for chain in _chains(parts.placed):
                if chain[-1][1].ended and not chain[0][1].start:
                    self._open_steps -= parts.remove(chain)
                    yield from self._emit(chain)
        if not parts.placed:
            del self._open[fragment.key]
        self._check_open(fragment)

    def finish(self) -> Iterator[Episode]:
        """Yields the episodes left after the last fragment, in the order of their first ones."""
        chains = []
        for parts in self._open.values():
            of_one_key = _chains(parts.placed)
            chains += [(chain, _gap(chain, of_one_key)) for chain in of_one_key]
        self._open.clear()
        self._open_steps = 0
        for chain, gap in sorted(chains, key=lambda entry: entry[0][0][0]):
            yield from self._emit(chain, gap)

    def _check_open(self, fragment: Fragment) -> None:
        if self._max_open_steps is not None and self._open_steps > self._max_open_steps:
            raise DataError(
                fragment.source,
                f"{self._open_steps} steps read so far belong to episodes whose end has not "
                f"been read yet, more than the pool holds ({self._max_open_steps})",
                "mark episodes' ends (truncateds), keep an episode's files next to each other, or "
                "raise offline_data(pool_capacity_steps=…)",
            )

    def _emit(self, placed: "list[_Placed]", gap: DataError | None = None) -> Iterator[Episode]:
        chain = [fragment for _, fragment in placed]
        first = chain[0]
        self._check_joints(chain)
        name = first.key
        if name is None:
            name = str(self._without_key[first.source])
            self._without_key[first.source] += 1
        problem = gap or _incomplete(chain)
        if problem is None or self._incomplete == "keep":
            yield _join(chain, name)
        elif self._incomplete == "drop" or chain[-1].may_drop_tail:
            self.dropped.append(str(problem))
        else:
            raise problem

    def _check_joints(self, chain: Sequence[Fragment]) -> None:
        """Refuses an episode from several files that nothing proves to be one."""
        for last, following in itertools.pairwise(chain):
            if last.source == following.source or following.start is not None:
                continue
            self.joins_by_order = True
            if last.next_observation is None and not self._join_files:
                raise DataError(
                    following.source,
                    f"it would continue an episode that {last.source} does not finish, but neither "
                    "timesteps (t) nor next observations (new_obs) prove that it does",
                    "record one of them, use ids that no two files share, mark the end of each "
                    "episode (truncateds), or set offline_data(join_files=True) if each file "
                    "continues the one before",
                    episode=following.key,
                )


@dataclass
class _OpenParts:
    """The fragments of one key that may still continue or be continued.

    A single pass over them finds whole episodes, but it must not be made for every fragment: rows
    in random order are as many fragments. So it is made only once enough steps are held.
    """

    placed: "list[_Placed]" = field(default_factory=list)
    steps: int = 0
    ended: list[Fragment] = field(default_factory=list)

    def add(self, placed: "_Placed") -> None:
        self.placed.append(placed)
        self.steps += len(placed[1])
        if placed[1].ended:
            self.ended.append(placed[1])

    def may_be_whole(self) -> bool:
        """Whether the steps up to an end could all be here."""
        return any(e.start is None or self.steps >= e.start + len(e) for e in self.ended)

    def remove(self, chain: "list[_Placed]") -> int:
        """Removes an episode's fragments; returns their steps."""
        taken = {place for place, _ in chain}
        self.placed = [part for part in self.placed if part[0] not in taken]
        self.ended = [part for _, part in self.placed if part.ended]
        steps = sum(len(part) for _, part in chain)
        self.steps -= steps
        return steps


_Placed = tuple[int, Fragment]
"""(the number of fragments added before it, fragment)."""


def _chains(parts: list[_Placed]) -> list[list[_Placed]]:
    """Groups the fragments of one key by episode."""
    starts = [fragment.start for _, fragment in parts]
    if None not in starts and len(set(starts)) == len(starts):
        parts = sorted(parts, key=lambda part: part[1].start or 0)
    chains: list[list[_Placed]] = []
    stop = 0
    for part in parts:
        fragment = part[1]
        if chains and _continues(chains[-1][-1][1], stop, fragment):
            chains[-1].append(part)
            stop += len(fragment)
        else:
            chains.append([part])
            stop = (fragment.start or 0) + len(fragment)
    return chains


def _continues(last: Fragment, stop: int, fragment: Fragment) -> bool:
    """Whether a fragment continues a chain that ends with `last`, before timestep `stop`."""
    if last.ended:
        return False
    if fragment.start is not None:
        return fragment.start == stop
    if last.next_observation is not None:
        first = at(fragment.observations, 0)
        try:
            equal = map_tree(np.array_equal, last.next_observation, first)
        except ValueError:  # other leaves
            return False
        return all(by_leaf(equal).values())
    return True


def _gap(placed: "list[_Placed]", of_one_key: "list[list[_Placed]]") -> DataError | None:
    """Describes what lies between an episode's parts if a step is missing, or there twice."""
    first, last = placed[0][1], placed[-1][1]
    others = [chain for chain in of_one_key if chain is not placed]
    if first.start:
        befores = [c for c in others if (c[0][1].start or 0) < first.start and not c[-1][1].ended]
        if befores:
            before = max(befores, key=_stop)
            return _gap_between(_stop(before), first)
    if last.start is not None and not last.ended:
        afters = [c[0][1] for c in others if (c[0][1].start or 0) > (first.start or 0)]
        after = min(afters, key=lambda fragment: fragment.start or 0, default=None)
        if after is not None:
            return _gap_between(_stop(placed), after)
    return None


def _stop(placed: "list[_Placed]") -> int:
    """The timestep after a chain's last one."""
    return (placed[0][1].start or 0) + sum(len(fragment) for _, fragment in placed)


def _gap_between(stop: int, after: Fragment) -> DataError:
    start = after.start or 0
    if start < stop:
        problem = f"its step {start} is recorded more than once"
        remedy = "give each episode an id of its own, or remove the rows that are there twice"
    else:
        missing = f"step {stop} is" if start == stop + 1 else f"steps {stop} … {start - 1} are"
        problem, remedy = f"its {missing} missing", "add the missing rows"
    return DataError(
        after.source,
        problem,
        f'{remedy}, or leave such episodes out with offline_data(incomplete="drop")',
        episode=after.key,
    )


def _incomplete(chain: Sequence[Fragment]) -> DataError | None:
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
        'out, or "keep" to treat their last step as the end',
        episode=name,
    )


def _concatenate(*parts: Array) -> Array:
    return np.concatenate(parts)


def _join(chain: Sequence[Fragment], name: str) -> Episode:
    first, last = chain[0], chain[-1]
    observations = [fragment.observations for fragment in chain]
    if last.next_observation is not None:
        observations.append(map_tree(lambda a: np.asarray(a)[None], last.next_observation))
    try:
        return Episode(
            id=name,
            source=first.source,
            observations=map_tree(_concatenate, *observations),
            actions=map_tree(_concatenate, *(fragment.actions for fragment in chain)),
            rewards=np.concatenate([fragment.rewards for fragment in chain]),
            terminated=last.terminated,
            truncated=last.truncated or not last.terminated,
        )
    except DataError:
        raise
    except ValueError as error:  # shapes or leaves that differ between files
        raise DataError(
            first.source,
            f"its steps have different shapes ({error})",
            "record arrays of one shape at every step",
            episode=first.key,
        ) from error
