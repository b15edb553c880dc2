"""Streams chunks of episodes from an actor to every learner, for data that exceeds the pool.

ChunkRecipe.chunks ─▶ ChunkFeeder (an actor) ─▶ object store ─▶ RemoteFeed of each learner
pass after pass       reads each chunk once     one per node    asks one chunk ahead
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray

from rllib_dt.episodes.episode import DataError
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.samplers import Position, chunk_steps
from rllib_dt.reading.holdout import Holdout
from rllib_dt.reading.passes import Passes
from rllib_dt.types import ActorHandle

_ATTEMPTS = 5
"""Number of times that the feeder may die over one chunk before a learner gives up."""


@dataclass(frozen=True, kw_only=True)
class ChunkRecipe:
    """Everything that determines the sequence of chunks, the same in every process and run.

    Attributes:
        passes: how to read the input.
        holdout: leaves out the episodes held out for validation, or None.
        seed: the seed of the passes' orders of files.
        shuffle: whether each pass reads the files in a different order.
    """

    passes: Passes
    holdout: Holdout | None
    seed: int
    shuffle: bool = True

    def chunks(self, first: Position, capacity: int) -> Iterator[tuple[Position, EpisodePool]]:
        """Yields chunks endlessly, starting at a position, for a pool of `capacity` steps."""
        number, skip = first
        while True:
            is_empty = True
            for index, pool in enumerate(self._one_pass(number, capacity)):
                is_empty = False
                if index >= skip:
                    yield (number, index), pool
            if is_empty:  # otherwise it would be read again forever
                raise DataError(
                    ", ".join(group[0] for group in self.passes.groups[:3]),
                    "a pass over the data gave no episode to train on",
                    "restore the files as they were when the run began, or hold out fewer episodes",
                )
            number, skip = number + 1, 0

    def _one_pass(self, number: int, capacity: int) -> Iterator[EpisodePool]:
        order = np.arange(len(self.passes.groups))
        if self.shuffle:
            np.random.default_rng((self.seed, number)).shuffle(order)
        return self.passes.pools(
            chunk_steps(capacity),
            order=order.tolist(),
            assembler=self.passes.assembler(max_open_steps=capacity),
            keep=self.holdout.skip if self.holdout is not None else iter,
            quiet=True,
        )


@dataclass
class _Given:
    answer: "tuple[Position, ray.ObjectRef] | Exception"
    takers: set[int]


class ChunkFeeder:
    """Reads chunks and puts each into the object store once, for all learners.

    After a restart of this actor or of the run, the requested pass is read again from its start.
    """

    def __init__(self, recipe: ChunkRecipe, num_learners: int):
        self._recipe = recipe
        self._num_learners = num_learners
        self._chunks: Iterator[tuple[Position, EpisodePool]] | None = None
        self._last: Position | None = None
        # chunks by the position before them; kept until every learner has taken them
        self._given: dict[Position | None, _Given] = {}

    def after(
        self, position: Position | None, learner: int, capacity: int
    ) -> tuple[Position, ray.ObjectRef]:
        """Returns the position of the chunk after a given one, and a reference to the chunk.

        If it cannot be read, every learner gets the same error, and a later call tries again.

        Args:
            position: the position of the chunk before, or None for the first of all.
            learner: the number of the learner that asks.
            capacity: the capacity of the learners' pools in steps; determines the chunks' size.
        """
        if position not in self._given:
            self._given[position] = _Given(self._read_after(position, capacity), set())
        given = self._given[position]
        given.takers.add(learner)
        if len(given.takers) == self._num_learners:
            del self._given[position]
        if isinstance(given.answer, Exception):
            raise given.answer
        return given.answer

    def _read_after(
        self, position: Position | None, capacity: int
    ) -> tuple[Position, ray.ObjectRef] | Exception:
        if self._chunks is None or self._last != position:
            first = (0, 0) if position is None else (position[0], position[1] + 1)
            self._chunks = self._recipe.chunks(first, capacity)
            self._given.clear()  # from before a restart: a learner that still needs one asks again
        try:
            self._last, pool = next(self._chunks)
        except Exception as error:
            self._chunks = None
            return error
        return self._last, ray.put(pool)


def start_feeder(recipe: ChunkRecipe, num_learners: int) -> ActorHandle:
    """Starts a `ChunkFeeder` as an actor, which reserves no CPU and restarts if it dies."""
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=_ATTEMPTS)(ChunkFeeder)
    return remote.remote(recipe, num_learners)


class RemoteFeed:
    """A learner's side of a `ChunkFeeder`; always asks for one chunk ahead.

    Args:
        feeder: the actor.
        learner: the learner's number.
        capacity: the pool's capacity in steps.
        first: the position to start at; the beginning by default.
    """

    def __init__(
        self, feeder: ActorHandle, learner: int, capacity: int, first: Position | None = None
    ):
        self._feeder, self._learner, self._capacity = feeder, learner, capacity
        self._last = before(first) if first is not None else None
        self._ask()

    def next(self) -> tuple[Position, EpisodePool]:
        """See `ChunkFeed`."""
        for _ in range(_ATTEMPTS):
            try:
                position, reference = ray.get(self._asked)
                pool: EpisodePool = ray.get(reference)
            except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError):
                self._ask()  # the feeder died after answering; the next one reads the chunk again
            except Exception:
                self._ask()  # a retry may succeed
                raise
            else:
                self._last = position
                self._ask()
                return position, pool
        raise RuntimeError(
            f"the process that reads the data died {_ATTEMPTS} times; see its log, and check "
            "whether the node is short of memory"
        )

    def _ask(self) -> None:
        self._asked = self._feeder.after.remote(self._last, self._learner, self._capacity)


def before(position: Position) -> Position | None:
    """Returns a stand-in for the position before a given one; None for the first of all."""
    number, index = position
    return None if position == (0, 0) else (number, index - 1)
