"""The loss on episodes that are not trained on, without an environment."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from rllib_dt.episodes import windows
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.windows import covering_windows, gather_windows
from rllib_dt.network.loss import action_loss_sum
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.network.spaces import DiscreteActions
from rllib_dt.runtime.compat import on_every_learner
from rllib_dt.runtime.learner import DTTorchLearner


class _Sums(NamedTuple):
    """Over steps; of several shares they add up."""

    loss: float
    correct: float
    steps: int


class Validation:
    """Held-out episodes, and the loss on them in evaluation mode.

    Args:
        pool: the episodes.
        window_length: K, steps of a window.
        batch_size: windows at a time.
        discrete: whether actions are Discrete.
    """

    def __init__(self, pool: EpisodePool, *, window_length: int, batch_size: int, discrete: bool):
        self.num_episodes, self.num_steps = len(pool.lengths), len(pool)
        self._share = _Share(pool=ray.put(pool), window_length=window_length, batch_size=batch_size)
        self._discrete = discrete

    def run(self, learner_group: Any) -> dict[str, float]:
        """Each learner computes its share; see `DT.validate` for what comes out."""
        shares = on_every_learner(learner_group, self._share)
        loss, correct, steps = (sum(column) for column in zip(*shares, strict=True))
        return self._results(loss / steps, correct / steps, self.num_episodes, int(steps))

    def nothing(self) -> dict[str, float]:
        """Of iterations without a validation: NaN, since nothing was measured."""
        return self._results(math.nan, math.nan, 0, 0)

    def _results(
        self, loss: float, accuracy: float, num_episodes: int, num_steps: int
    ) -> dict[str, float]:
        return {
            "action_loss": loss,
            **({"action_accuracy": accuracy} if self._discrete else {}),
            "num_episodes": num_episodes,
            "num_steps": num_steps,
        }


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one learner computes, as a call on it."""

    pool: ray.ObjectRef
    window_length: int
    batch_size: int

    def __call__(self, learner: DTTorchLearner) -> _Sums:
        network = learner.network
        was_training = network.training
        network.eval()
        try:
            return self._sums(network, ray.get(self.pool), learner.rank, learner.world_size)
        finally:
            network.train(was_training)

    @torch.no_grad()
    def _sums(
        self, network: DecisionTransformer, pool: EpisodePool, rank: int, world_size: int
    ) -> _Sums:
        device = next(network.parameters()).device
        ends = covering_windows(pool.lengths, self.window_length)[rank::world_size]
        loss, correct, steps = 0.0, 0.0, 0
        for start in range(0, len(ends), self.batch_size):
            last = ends[start : start + self.batch_size]
            timestep = pool.timesteps[last].astype(np.int64)
            batch = {
                name: torch.from_numpy(column).to(device)
                for name, column in gather_windows(
                    pool.columns, last, timestep, self.window_length
                ).items()
            }
            mask, actions = batch[windows.MASK], batch[windows.ACTIONS]
            out = network(
                batch[windows.OBSERVATIONS],
                actions,
                batch[windows.RETURNS_TO_GO],
                batch[windows.TIMESTEPS],
                mask,
                only_actions=True,
            )
            loss += float(action_loss_sum(network.codec, out.action_preds, actions, mask))
            steps += int(mask.sum())
            if isinstance(network.codec, DiscreteActions):
                right = network.codec.act(out.action_preds, sample=False) == actions
                correct += float((right & mask).sum())
        return _Sums(loss, correct, steps)
