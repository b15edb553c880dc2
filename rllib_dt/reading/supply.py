"""Supplies of windows for learners: from a pool that holds everything, or one that is streamed.

A supply is small to send; each learner makes its own sampler from it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import ray

from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.samplers import Draws, FixedSampler, RollingSampler, Sampler
from rllib_dt.reading.stream import RemoteFeed
from rllib_dt.types import ActorHandle, SamplerState


@dataclass(frozen=True, kw_only=True)
class Supply(ABC):
    """A supply of windows.

    Attributes:
        draws: what each learner draws; see `Draws`.
        num_steps: steps in the data.
        return_range: the least and the largest return among the data's episodes, as training
            sees them.
        generation: changes when the data does; learners then draw from the new supply.
    """

    draws: Draws
    num_steps: int
    return_range: tuple[float, float]
    generation: int = 0

    @property
    @abstractmethod
    def is_streamed(self) -> bool:
        """Whether the data is read repeatedly, with only a part of it in memory."""

    @abstractmethod
    def _sampler(self, draws: Draws, learner: int, state: SamplerState | None) -> Sampler:
        """Makes a learner's sampler; a `state` continues an earlier one."""

    def sampler(
        self,
        learner: int,
        num_learners: int,
        *,
        seed: int | None = None,
        state: SamplerState | None = None,
        all_alike: bool = False,
        **other: int,
    ) -> Sampler:
        """Makes the sampler of one learner.

        Args:
            learner: the learner's number.
            num_learners: learners that draw from the data.
            seed: the seed to draw windows with; by default that of `draws`.
            state: the state of an earlier sampler to continue from; None starts afresh.
            all_alike: every learner draws the same windows, as if there were one.
            other: `window_length` or `batch_size` in place of those of `draws`.
        """
        draws = replace(
            self.draws,
            learner=0 if all_alike else learner,
            num_learners=1 if all_alike else num_learners,
            seed=self.draws.seed if seed is None else seed,
            **other,
        )
        return self._sampler(draws, learner, state)


@dataclass(frozen=True, kw_only=True)
class ResidentSupply(Supply):
    """Windows of a pool that holds everything; each learner fetches it once.

    Attributes:
        pool: the `EpisodePool` in the object store, which numpy reads without a copy.
    """

    pool: ray.ObjectRef

    @property
    def is_streamed(self) -> bool:
        """See `Supply`."""
        return False

    def _sampler(self, draws: Draws, learner: int, state: SamplerState | None) -> FixedSampler:
        pool: EpisodePool = ray.get(self.pool)
        return FixedSampler(pool.columns, pool.timesteps, draws)


@dataclass(frozen=True, kw_only=True)
class StreamedSupply(Supply):
    """Windows of data that is larger than the pool.

    Attributes:
        feeder: the `ChunkFeeder`.
        capacity: the pool's capacity in steps.
        reuse: how many times each step is trained on, on average, while it is in the pool.
    """

    feeder: ActorHandle
    capacity: int
    reuse: float

    @property
    def is_streamed(self) -> bool:
        """See `Supply`."""
        return True

    def _sampler(self, draws: Draws, learner: int, state: SamplerState | None) -> RollingSampler:
        # a resumed run keeps its former capacity: chunks were cut for it, and the default depends
        # on the cluster's nodes
        capacity = state.get("capacity", self.capacity) if state else self.capacity
        return RollingSampler(
            RemoteFeed(self.feeder, learner, capacity, state["first"] if state else None),
            capacity=capacity,
            draws_per_step=self.reuse / draws.window_length,
            draws=draws,
            state=state,
        )
