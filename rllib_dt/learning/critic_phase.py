"""`CriticPhase`: a critic is learned before the policy, from the same data, and then frozen."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.batches import PrefetchedBatches, seeded_torch
from rllib_dt.learning.critic import Critic
from rllib_dt.learning.finite import NonFiniteLossError
from rllib_dt.reading.supply import Supply
from rllib_dt.types import SamplerState, State

if TYPE_CHECKING:
    from rllib_dt.learning.learner import DTTorchLearner

BATCH_SIZE = 256
_MEASURED_BATCHES = 64
"""Batches whose mean |Q| becomes the unit of the policy's term: up to 32,768 steps."""

_STREAM = 1
"""What tells the seed of the critic's draws from the policy's."""


class CriticPhase:
    """A critic, and how far its training has come; it depends on seed and data alone.

    Every learner does the same updates on the same draws, and takes the first one's weights at
    the end of a call, so that all have the same critic. (A critic's update is far smaller than a
    policy's; dividing its batch among learners would send more than it saves.)

    Attributes:
        updates: so far.
        scale: the mean |min(Q1, Q2)(s, a)| over the data, in the critic's unit; 0 until it is done.
        metrics: the latest of its training, which later results repeat.
    """

    def __init__(self, learner: "DTTorchLearner"):
        self._learner = learner
        self.updates, self.scale = 0, 0.0
        self.metrics: dict[str, float] = {}
        self._critic: Critic | None = None
        self._sampler: SamplerState | None = None
        self._batches: PrefetchedBatches | None = None

    @property
    def critic(self) -> Critic:
        """The critic; made when it is first needed, after the network has its normalisation."""
        if self._critic is None:
            config = self._learner.config
            with seeded_torch((self._seed(), 0), torch.device("cpu")):
                self._critic = Critic(
                    self._learner.network,
                    expectile=config.critic_expectile,
                    gamma=config.critic_gamma,
                )
        return self._critic

    def learn(self, supply: Supply, updates: int) -> None:
        """Does as many updates, or as are left, and freezes the critic after the last.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        last = self._learner.config.critic_updates
        critic = self.critic
        critic.begin()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self._device))
        self._batches = batches = self._batches or self._batches_of(supply)
        done = 0
        while done < updates and self.updates < last:
            for name, value in critic.update(self._next(batches)).items():
                sums[name] = sums[name] + value
            self.updates += 1
            done += 1
        if self.updates >= last:
            critic.freeze()
            self.scale = self._mean_value(batches)
            self._batches = None
        self._agree([*sums.values(), *critic.parameters()])
        means = {name: float(total / max(1, done)) for name, total in sums.items()}
        if done:
            self.metrics = {**means, "critic_updates_lifetime": self.updates}
        if not np.isfinite([*means.values(), self.scale]).all():
            raise NonFiniteLossError(
                f"the critic's loss is not finite by its update {self.updates}; look for extreme "
                "rewards or observations in the data"
            )

    def _agree(self, tensors: Sequence[Tensor]) -> None:
        """Gives all learners the first one's tensors and scale, so that they go on alike."""
        if self._learner.world_size == 1:
            return
        scale = torch.tensor(self.scale, dtype=torch.float64, device=self._device)
        for tensor in (scale, *tensors):
            torch.distributed.broadcast(tensor, src=0)
        self.scale = float(scale)

    @property
    def is_done(self) -> bool:
        """Whether the policy may be trained."""
        return self.updates >= self._learner.config.critic_updates and self.scale > 0

    def state(self) -> State:
        """Returns plain values and arrays for a checkpoint."""
        return {
            "updates": self.updates,
            "scale": self.scale,
            "metrics": self.metrics,
            "sampler": self._sampler,
            "critic": None if self._critic is None else self._critic.state(),
        }

    def set_state(self, state: State) -> None:
        """Restores `state()`."""
        self.updates, self.scale = int(state["updates"]), float(state["scale"])
        self.metrics, self._sampler = dict(state["metrics"]), state["sampler"]
        self._critic = self._batches = None
        if state["critic"] is not None:
            self.critic.set_state(state["critic"])
            if self.is_done:
                self.critic.freeze()

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._learner.network.return_scale.device
        return device

    def _seed(self) -> int:
        entropy = np.random.SeedSequence((self._learner.progress.seed or 0, _STREAM))
        return int(entropy.generate_state(1)[0])

    def _batches_of(self, supply: Supply) -> PrefetchedBatches:
        sampler = supply.sampler(
            self._learner.rank,
            self._learner.world_size,
            seed=self._seed(),
            state=self._sampler,
            all_alike=True,
            window_length=2,
            batch_size=BATCH_SIZE,
        )
        return PrefetchedBatches(sampler, self.updates, self._device)

    def _next(self, batches: PrefetchedBatches) -> Window:
        drawn, self._sampler = batches.next()
        return drawn.map(lambda column: column.to(self._device, non_blocking=True))

    @torch.no_grad()
    def _mean_value(self, batches: PrefetchedBatches) -> float:
        total = steps = torch.zeros((), device=self._device, dtype=torch.float64)
        head, sampler = self._learner.network.action_head, self._sampler
        for _ in range(_MEASURED_BATCHES):
            window = self._next(batches)
            values = self.critic.least(window, head.features(window.actions)).abs()
            total = total + torch.where(window.mask, values, 0.0).sum()
            steps = steps + window.mask.sum()
        self._sampler = sampler
        # data without any reward has values of 0, and nothing to improve
        return float(total / steps) or float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class LearnCritic:
    """Called with a learner: does some of its critic's updates, and returns its metrics."""

    supply: Supply
    updates: int

    def __call__(self, learner: "DTTorchLearner") -> Any:
        assert learner.critic_phase is not None
        learner.critic_phase.learn(self.supply, self.updates)
        learner.log_without_training()
        return learner.metrics.reduce()
