"""Windows from data that does not fit in memory: a pool of which the oldest part is replaced.

A *chunk* is an `EpisodePool` of some episodes. Chunks come in the order of the data, pass after
pass; so many are held as fit the capacity. At each update every step of the pool is equally
likely to end a window, and a chunk stays until each of its steps has been drawn with the same
expectation, however large the chunk is and however many learners draw. So an episode's share of
the draws is its share of the steps, as it is when everything is held.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.buffers import Buffers
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.windows import MASK, TIMESTEPS, empty_windows, gather_windows

Array = NDArray[Any]
Position = tuple[int, int]
"""(pass over the data, chunk in this pass), from 0 on."""

CHUNKS_PER_POOL = 8
"""So many chunks are drawn from while one more is waiting: together they are the capacity."""


class ChunkFeed(Protocol):
    """Where chunks come from."""

    def next(self) -> tuple[Position, EpisodePool]:
        """The chunk behind the last one that was given; waits until it is there."""


def chunk_steps(capacity: int) -> int:
    """The steps of one chunk for a pool of so many steps."""
    return max(1, capacity // (CHUNKS_PER_POOL + 1))


@dataclass
class _Resident:
    position: Position
    pool: EpisodePool
    drawn: float
    """Windows that have ended in each of its steps, in expectation."""


class RollingSampler:
    """Draws windows from the chunks that are in, and replaces those that have been drawn enough.

    Which chunks are in follows from the updates alone, so that all learners hold the same ones.

    Args:
        feed: gives chunks; where `state` is given, from its first position on.
        capacity: steps that may be held, the waiting chunk included; exceeded where one episode
            is longer than a chunk, and where one update draws more windows than it holds.
        draws_per_step: windows that end in each step, in expectation, while its chunk is in.
        window_length, batch_size, seed, stream: see `WindowSampler`.
        num_streams: learners that draw from the same chunks.
        state: of an earlier sampler, to go on where it was.
    """

    def __init__(
        self,
        feed: ChunkFeed,
        *,
        capacity: int,
        draws_per_step: float,
        window_length: int,
        batch_size: int,
        seed: int,
        stream: int = 0,
        num_streams: int = 1,
        state: Mapping[str, Any] | None = None,
    ):
        self.batch_size = batch_size
        self._feed = feed
        self._capacity = capacity
        self._target = chunk_steps(capacity) * CHUNKS_PER_POOL
        self._draws_per_step = draws_per_step
        self._window_length = window_length
        self._seed, self._stream, self._num_streams = seed, stream, num_streams
        self._resident: deque[_Resident] = deque()
        self._buffers = Buffers()
        if state is None:
            self._fill()
            # as if they had come in one after another: they leave one after another
            for age, chunk in enumerate(reversed(self._resident)):
                chunk.drawn = draws_per_step * age / len(self._resident)
        else:
            for drawn in state["drawn"]:
                self._resident.append(_Resident(*feed.next(), drawn=drawn))

    @property
    def num_steps(self) -> int:
        """Steps that are held."""
        return sum(len(chunk.pool) for chunk in self._resident)

    @property
    def positions(self) -> list[Position]:
        """The chunks that are held, oldest first."""
        return [chunk.position for chunk in self._resident]

    def state(self) -> dict[str, Any]:
        """All that another sampler needs to go on with the same windows."""
        return {
            "capacity": self._capacity,
            "first": self._resident[0].position,
            "drawn": [chunk.drawn for chunk in self._resident],
        }

    def sample(self, update: int) -> dict[str, Array]:
        """The batch of one update, as `gather_windows` returns it, windows in the data's order."""
        self._replace()
        sizes = np.array([len(chunk.pool) for chunk in self._resident])
        draws = self._draws(sizes)
        stops = np.cumsum(draws * sizes)
        rng = np.random.default_rng((self._seed, self._stream, update))
        drawn = np.sort(rng.random(self.batch_size)) * stops[-1]
        columns = self._resident[0].pool.columns
        out = empty_windows(columns, self.batch_size, self._window_length, self._buffers)
        parts = []
        filled = 0
        for chunk, draw, start, rows in zip(
            self._resident,
            draws,
            np.concatenate([[0.0], stops[:-1]]),
            np.split(drawn, np.searchsorted(drawn, stops[:-1])),
            strict=True,
        ):
            chunk.drawn += draw
            if len(rows):
                last = np.minimum((rows - start) / draw, len(chunk.pool) - 1).astype(np.int64)
                timestep = chunk.pool.timesteps[last].astype(np.int64)
                place = {k: v[filled : filled + len(rows)] for k, v in out.items()}
                filled += len(rows)
                parts.append(
                    gather_windows(chunk.pool.columns, last, timestep, self._window_length, place)
                )
        told = {name: np.concatenate([part[name] for part in parts]) for name in (TIMESTEPS, MASK)}
        return {**out, **told}

    def _draws(self, sizes: Array) -> Array:
        """Windows that one update shall end in each step of each chunk, in expectation.

        The same for all chunks, but for those that need less to be complete.
        """
        draws = np.zeros(len(sizes))
        windows, steps = float(self._num_streams * self.batch_size), int(sizes.sum())
        for i, chunk in enumerate(self._resident):  # the oldest needs least
            draws[i] = min(windows / steps, self._draws_per_step - chunk.drawn)
            windows -= draws[i] * sizes[i]
            steps -= sizes[i]
        return draws

    def _replace(self) -> None:
        while self._resident and self._is_complete(self._resident[0]):
            self._resident.popleft()
        self._fill()

    def _is_complete(self, chunk: _Resident) -> bool:
        return chunk.drawn >= self._draws_per_step * (1 - 1e-9)

    def _fill(self) -> None:
        held = self.num_steps
        due = sum((self._draws_per_step - c.drawn) * len(c.pool) for c in self._resident)
        # whatever the capacity: what is in must be owed as many windows as an update draws
        while (
            held + self._chunk_of_usual_size() <= self._target
            or due < self._num_streams * self.batch_size
        ):
            position, pool = self._feed.next()
            self._resident.append(_Resident(position, pool, drawn=0.0))
            held += len(pool)
            due += self._draws_per_step * len(pool)

    def _chunk_of_usual_size(self) -> int:
        return self._target // CHUNKS_PER_POOL
