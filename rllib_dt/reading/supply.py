"""What a learner gets its windows from: a pool that holds everything, or one that is streamed.

A supply is small to send; each learner makes its own sampler from it.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray

from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.samplers import Draws, FixedSampler, RollingSampler, Sampler
from rllib_dt.reading.stream import RemoteFeed


class Supply(Protocol):
    """A supply of windows.

    Attributes:
        draws: what each learner draws; see `Draws`.
        num_steps: steps in the data.
        is_streamed: whether the data is read again and again, a part of it held.
    """

    @property
    def draws(self) -> Draws: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def is_streamed(self) -> bool: ...

    def sampler(
        self,
        learner: int,
        num_learners: int,
        *,
        seed: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> Sampler:
        """Makes the sampler of one learner.

        Args:
            learner: the learner's number.
            num_learners: learners that draw from the data.
            seed: what the windows follow from; by default the seed of `draws`.
            state: of an earlier sampler, to continue from; None starts afresh.
        """


def _of_learner(draws: Draws, learner: int, num_learners: int, seed: int | None) -> Draws:
    seed = draws.seed if seed is None else seed
    return replace(draws, learner=learner, num_learners=num_learners, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ResidentSupply:
    """Windows of a pool that holds everything; each learner fetches it once.

    Attributes:
        pool: the `EpisodePool` in the object store; numpy reads it there, uncopied.
        draws, num_steps: see `Supply`.
    """

    pool: ray.ObjectRef
    draws: Draws
    num_steps: int
    is_streamed: bool = False

    def sampler(
        self,
        learner: int,
        num_learners: int,
        *,
        seed: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> FixedSampler:
        """See `Supply`; a fixed sampler has no state."""
        pool: EpisodePool = ray.get(self.pool)
        draws = _of_learner(self.draws, learner, num_learners, seed)
        return FixedSampler(pool.columns, pool.timesteps, draws)


@dataclass(frozen=True, kw_only=True)
class StreamedSupply:
    """Windows of data that is larger than the pool.

    Attributes:
        feeder: the `ChunkFeeder`.
        capacity: of the pool, in steps.
        reuse: how often each step is trained, on average, while it is in the pool.
        draws, num_steps: see `Supply`.
    """

    feeder: Any
    capacity: int
    reuse: float
    draws: Draws
    num_steps: int
    is_streamed: bool = True

    def sampler(
        self,
        learner: int,
        num_learners: int,
        *,
        seed: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> RollingSampler:
        """See `Supply`.

        A resumed run keeps the capacity that it had: chunks were cut for it, and by default it
        follows from the cluster's nodes.
        """
        capacity = state.get("capacity", self.capacity) if state else self.capacity
        return RollingSampler(
            RemoteFeed(self.feeder, learner, capacity, state["first"] if state else None),
            capacity=capacity,
            draws_per_step=self.reuse / self.draws.window_length,
            draws=_of_learner(self.draws, learner, num_learners, seed),
            state=state,
        )
