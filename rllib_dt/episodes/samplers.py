"""Draws batches of windows: from a pool that holds everything, or from one that is streamed.

Either way each step is equally likely to end a window, so an episode's share of the draws is its
share of the steps. A batch depends on (seed, learner, update) and, if streamed, on which chunks are
held, but not on random numbers drawn before.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.buffers import Buffers
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.windows import (
    MASK,
    TIMESTEPS,
    Column,
    Window,
    empty_windows,
    gather_windows,
)
from rllib_dt.types import Array, SamplerState

Position = tuple[int, int]
"""(pass over the data, chunk within that pass), both counted from 0."""

CHUNKS_PER_POOL = 8
"""Number of chunks sampled from; one more waits, and together they fill the capacity."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What a learner draws in each update.

    Attributes:
        window_length: K, steps in a window.
        batch_size: B, windows in a batch.
        seed: any non-negative integer.
        learner: the learner's number; learners with the same seed draw different windows.
        num_learners: learners that draw from the same steps.
    """

    window_length: int
    batch_size: int
    seed: int
    learner: int = 0
    num_learners: int = 1

    def rng(self, update: int) -> np.random.Generator:
        """Returns the random number generator of one update."""
        return np.random.default_rng((self.seed, self.learner, update))

    def empty_batch(self, columns: Mapping[str, Column], buffers: Buffers) -> dict[str, Array]:
        """Allocates (B, K, …) arrays for one batch."""
        return empty_windows(columns, self.batch_size, self.window_length, buffers)


class Sampler(Protocol):
    """Draws the batch of an update."""

    def sample(self, update: int) -> Window:
        """Draws the B windows of one update."""

    def state(self) -> SamplerState | None:
        """Returns what a new sampler needs besides the update's number to draw the same windows."""


class FixedSampler:
    """Draws windows from steps that are all in memory.

    Args:
        columns: flat arrays by name, (N, …) each.
        timesteps: (N,) int32, each step's timestep in its episode.
        draws: what to draw.
    """

    def __init__(self, columns: Mapping[str, Column], timesteps: Array, draws: Draws):
        self.columns, self.timesteps, self.draws = columns, timesteps, draws
        self._buffers = Buffers()

    def sample(self, update: int) -> Window:
        """See `Sampler`."""
        draws = self.draws
        last = draws.rng(update).integers(len(self.timesteps), size=draws.batch_size)
        timestep = self.timesteps[last].astype(np.int64)
        out = draws.empty_batch(self.columns, self._buffers)
        return gather_windows(self.columns, last, timestep, draws.window_length, out)

    def state(self) -> None:
        """Returns None: the update's number is enough."""


class ChunkFeed(Protocol):
    """A source of chunks."""

    def next(self) -> tuple[Position, EpisodePool]:
        """Returns the next chunk and its position; waits for it if necessary."""


def chunk_steps(capacity: int) -> int:
    """Returns the steps of one chunk for a pool of `capacity` steps."""
    return max(1, capacity // (CHUNKS_PER_POOL + 1))


@dataclass
class _Resident:
    position: Position
    pool: EpisodePool
    drawn: float
    """Expected number of windows that have ended in each of its steps so far."""


class RollingSampler:
    """Draws windows from a pool whose oldest part is replaced, for data that exceeds memory.

    A *chunk* is an `EpisodePool` of some episodes. Chunks arrive in order, pass after pass, and the
    pool holds as many as fit:

        feed …  9  8 ─▶ │ 7  6  5  4  3  2  1  0 │ ─▶ dropped once drawn `draws_per_step` times

    In each update every step of the pool is equally likely to end a window; only a chunk that needs
    less to be complete is drawn less. A chunk leaves when `draws_per_step` windows are expected to
    have ended in each of its steps, regardless of its size and of the number of learners. Which
    chunks are held depends only on the updates done, so all learners hold the same ones.

    Args:
        feed: the source of chunks; with a `state`, it must start at the state's first position.
        capacity: steps that may be held, the waiting chunk included. It is exceeded if one episode
            is longer than a chunk, or if one update needs more windows than the held chunks may
            still yield.
        draws_per_step: the expected number of windows that end in each step while it is held.
        draws: what to draw.
        state: the state of an earlier sampler to continue from.
    """

    def __init__(
        self,
        feed: ChunkFeed,
        *,
        capacity: int,
        draws_per_step: float,
        draws: Draws,
        state: SamplerState | None = None,
    ):
        self._feed, self._draws = feed, draws
        self._capacity = capacity
        self._target = chunk_steps(capacity) * CHUNKS_PER_POOL
        self._draws_per_step = draws_per_step
        self._resident: deque[_Resident] = deque()
        self._buffers = Buffers()
        if state is None:
            self._fill()
            # as if they had arrived one after another, so that they also leave one after another
            for age, chunk in enumerate(reversed(self._resident)):
                chunk.drawn = draws_per_step * age / len(self._resident)
        else:
            for drawn in state["drawn"]:
                self._resident.append(_Resident(*feed.next(), drawn=drawn))

    @property
    def num_steps(self) -> int:
        """The number of steps held."""
        return sum(len(chunk.pool) for chunk in self._resident)

    def state(self) -> SamplerState:
        """See `Sampler`."""
        return {
            "capacity": self._capacity,
            "first": self._resident[0].position,
            "drawn": [chunk.drawn for chunk in self._resident],
        }

    def sample(self, update: int) -> Window:
        """See `Sampler`; the windows are sorted by their place in the pool."""
        self._replace()
        draws = self._draws
        sizes = np.array([len(chunk.pool) for chunk in self._resident])
        per_step = self._per_step(sizes)
        stops = np.cumsum(per_step * sizes)
        drawn = np.sort(draws.rng(update).random(draws.batch_size)) * stops[-1]
        out = draws.empty_batch(self._resident[0].pool.columns, self._buffers)
        parts = []
        filled = 0
        for chunk, each, start, rows in zip(
            self._resident,
            per_step,
            np.concatenate([[0.0], stops[:-1]]),
            np.split(drawn, np.searchsorted(drawn, stops[:-1])),
            strict=True,
        ):
            chunk.drawn += each
            if len(rows):
                last = np.minimum((rows - start) / each, len(chunk.pool) - 1).astype(np.int64)
                place = {k: v[filled : filled + len(rows)] for k, v in out.items()}
                filled += len(rows)
                parts.append(chunk.pool.windows(last, draws.window_length, place))
        columns = {
            TIMESTEPS: np.concatenate([part.timesteps for part in parts]),
            MASK: np.concatenate([part.mask for part in parts]),
        }
        return Window.from_columns({**out, **columns})

    def _per_step(self, sizes: Array) -> NDArray[np.float64]:
        """Returns, for each chunk, how many windows this update is expected to end in each step.

        The number is the same for all chunks, except for those that need less to be complete.
        """
        per_step = np.zeros(len(sizes))
        windows = float(self._draws.num_learners * self._draws.batch_size)
        steps = int(sizes.sum())
        for i, chunk in enumerate(self._resident):  # the oldest needs least
            per_step[i] = min(windows / steps, self._draws_per_step - chunk.drawn)
            windows -= per_step[i] * sizes[i]
            steps -= sizes[i]
        return per_step

    def _replace(self) -> None:
        while self._resident and self._is_complete(self._resident[0]):
            self._resident.popleft()
        self._fill()

    def _is_complete(self, chunk: _Resident) -> bool:
        return chunk.drawn >= self._draws_per_step * (1 - 1e-9)

    def _fill(self) -> None:
        held = self.num_steps
        due = sum((self._draws_per_step - c.drawn) * len(c.pool) for c in self._resident)
        usual = self._target // CHUNKS_PER_POOL
        wanted = self._draws.num_learners * self._draws.batch_size
        # beyond the capacity if necessary: one update draws `wanted` windows, and no chunk may be
        # drawn more than it is due
        while held + usual <= self._target or due < wanted:
            position, pool = self._feed.next()
            self._resident.append(_Resident(position, pool, drawn=0.0))
            held += len(pool)
            due += self._draws_per_step * len(pool)
