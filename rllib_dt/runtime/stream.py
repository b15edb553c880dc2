"""Chunks of episodes from an actor to every learner's pool, when the data exceeds the pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rllib_dt.episodes.pool import EpisodePool, PoolOptions, pack
from rllib_dt.episodes.rolling import Position, RollingSampler, chunk_steps
from rllib_dt.runtime.reading import EpisodeReader, Holdout

_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class ChunkRecipe:
    """What the sequence of chunks follows from; the same in every process and every run.

    Attributes:
        reader: gives the episodes.
        holdout: leaves out those kept for validation, or None.
        options: how rewards become returns-to-go.
        seed: of the order in which each pass goes through the files.
        shuffle: whether each pass has an order of its own.
    """

    reader: EpisodeReader
    holdout: Holdout | None
    options: PoolOptions
    seed: int
    shuffle: bool = True

    def chunks(self, first: Position, capacity: int) -> Iterator[tuple[Position, EpisodePool]]:
        """Chunks for a pool of so many steps, without end, pass after pass, from a position on."""
        number, skip = first
        while True:
            for index, pool in enumerate(self._one_pass(number, capacity)):
                if index >= skip:
                    yield (number, index), pool
            number, skip = number + 1, 0

    def _one_pass(self, number: int, capacity: int) -> Iterator[EpisodePool]:
        order = np.arange(len(self.reader.groups))
        if self.shuffle:
            np.random.default_rng((self.seed, number)).shuffle(order)
        episodes = self.reader.episodes(order=order.tolist(), max_open_steps=capacity, quiet=True)
        if self.holdout is not None:
            episodes = self.holdout.skip(episodes)
        return pack(episodes, chunk_steps(capacity), self.options)


@dataclass
class _Given:
    answer: "tuple[Position, ray.ObjectRef] | Exception"
    takers: set[int]


class ChunkFeeder:
    """Reads chunks and puts each once into the object store, for all learners.

    After a restart, of this actor or of a run, reading begins again with the pass asked for.
    """

    def __init__(self, recipe: ChunkRecipe, num_streams: int):
        self._recipe = recipe
        self._num_streams = num_streams
        self._chunks: Iterator[tuple[Position, EpisodePool]] | None = None
        self._last: Position | None = None
        # by the position before; each is kept until every learner has taken it
        self._given: dict[Position | None, _Given] = {}

    def after(
        self, position: Position | None, stream: int, capacity: int
    ) -> tuple[Position, ray.ObjectRef]:
        """The chunk behind a position (None: the first of all), as a reference.

        Where it cannot be read every learner is told the same, and the next time it is tried again.

        Args:
            position: of the chunk before.
            stream: the learner that asks.
            capacity: of the learners' pools, in steps; what chunks are cut for.
        """
        if position not in self._given:
            self._given[position] = _Given(self._read_after(position, capacity), set())
        given = self._given[position]
        given.takers.add(stream)
        if len(given.takers) == self._num_streams:
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
            self._given.clear()  # of before a restart: whoever still needs one asks again
        try:
            self._last, pool = next(self._chunks)
        except Exception as error:
            self._chunks = None
            return error
        return self._last, ray.put(pool)


def start_feeder(recipe: ChunkRecipe, num_streams: int) -> Any:
    """A `ChunkFeeder` as an actor, which needs no CPU of its own and comes back if it dies."""
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=_ATTEMPTS)(ChunkFeeder)
    return remote.remote(recipe, num_streams)


class RemoteFeed:
    """A learner's side of a `ChunkFeeder`: asks for one chunk in advance."""

    def __init__(self, feeder: Any, stream: int, capacity: int, first: Position | None = None):
        self._feeder, self._stream, self._capacity = feeder, stream, capacity
        self._behind = before(first) if first is not None else None
        self._ask()

    def next(self) -> tuple[Position, EpisodePool]:
        """See `ChunkFeed`."""
        for _ in range(_ATTEMPTS):
            try:
                position, reference = ray.get(self._asked)
                pool: EpisodePool = ray.get(reference)
            except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError):
                self._ask()  # the feeder died behind its answer: the next one reads it again
            except Exception:
                self._ask()  # who comes again may find that it can be read
                raise
            else:
                self._behind = position
                self._ask()
                return position, pool
        raise RuntimeError(
            f"the process that reads the data died {_ATTEMPTS} times; see its log, and whether "
            "the node is short of memory"
        )

    def _ask(self) -> None:
        self._asked = self._feeder.after.remote(self._behind, self._stream, self._capacity)


def before(position: Position) -> Position | None:
    """What stands in for the chunk before a position, whichever it was."""
    number, index = position
    return None if position == (0, 0) else (number, index - 1)


@dataclass(frozen=True, kw_only=True)
class StreamSource:
    """A learner's way to the windows of data that is larger than the pool.

    Attributes:
        feeder: the `ChunkFeeder`.
        capacity: of the pool, in steps.
        reuse: how often each step is trained, on average, while it is in the pool.
        window_length, batch_size, seed: see `WindowSampler`.
        num_steps: steps in the data.
    """

    feeder: Any
    capacity: int
    reuse: float
    window_length: int
    batch_size: int
    seed: int
    num_steps: int

    def sampler(
        self, stream: int, num_streams: int, state: dict[str, Any] | None = None
    ) -> RollingSampler:
        """The sampler of learner number `stream`, going on from a sampler's state.

        With the capacity that it had: by default it follows from the cluster's nodes.
        """
        capacity = state.get("capacity", self.capacity) if state else self.capacity
        return RollingSampler(
            RemoteFeed(self.feeder, stream, capacity, state["first"] if state else None),
            capacity=capacity,
            draws_per_step=self.reuse / self.window_length,
            window_length=self.window_length,
            batch_size=self.batch_size,
            seed=self.seed,
            stream=stream,
            num_streams=num_streams,
            state=state,
        )
