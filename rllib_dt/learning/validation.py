"""Computes the loss on held-out episodes; needs no environment."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from rllib_dt.compat import on_every_learner
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.windows import Window, covering_windows
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import LearnerGroup

_LOSS, _STEPS = "action_loss", "num_steps"


class Validation:
    """Held-out episodes, and the loss on them in evaluation mode.

    Args:
        pool: the held-out episodes.
        window_length: K, steps in a window.
        batch_size: windows at a time.
        metric_names: the metrics that the network's action head reports besides its loss.
    """

    def __init__(
        self,
        pool: EpisodePool,
        *,
        window_length: int,
        batch_size: int,
        metric_names: Sequence[str],
    ):
        self.num_episodes, self.num_steps = len(pool.lengths), len(pool)
        self._share = _Share(pool=ray.put(pool), window_length=window_length, batch_size=batch_size)
        self._names = (_LOSS, *metric_names)

    def run(self, learner_group: LearnerGroup) -> dict[str, float]:
        """Computes the results, each learner a share of the windows; see `DT.validate`."""
        sums: Counter[str] = Counter()
        for share in on_every_learner(learner_group, self._share):
            sums.update(share)
        return {
            **{name: sums[name] / sums[_STEPS] for name in self._names},
            "num_episodes": self.num_episodes,
            _STEPS: int(sums[_STEPS]),
        }


@dataclass(frozen=True, kw_only=True)
class _Share:
    """Computes one learner's share, when called with the learner: sums over its steps."""

    pool: ray.ObjectRef
    window_length: int
    batch_size: int

    def __call__(self, learner: DTTorchLearner) -> dict[str, float]:
        with learner.acting() as network:
            return self._sums(network, ray.get(self.pool), learner.rank, learner.world_size)

    @torch.no_grad()
    def _sums(
        self, network: DecisionTransformer, pool: EpisodePool, rank: int, world_size: int
    ) -> dict[str, float]:
        device = next(network.parameters()).device
        ends = covering_windows(pool.lengths, self.window_length)[rank::world_size]
        sums: Counter[str] = Counter()
        for start in range(0, len(ends), self.batch_size):
            last = ends[start : start + self.batch_size]
            window = pool.windows(last, self.window_length)
            window = window.map(lambda column: torch.from_numpy(column).to(device))
            sums.update(_batch_sums(network, window))
        return dict(sums)


def _batch_sums(network: DecisionTransformer, window: Window) -> dict[str, float]:
    head, actions, mask = network.action_head, window.actions, window.mask
    outputs = network.predict(window, only_actions=True).action_outputs
    metrics = head.metric_sums(outputs, actions, mask)
    return {
        _LOSS: float(head.loss_sum(outputs, actions, mask)),
        _STEPS: int(mask.sum()),
        **{name: float(value) for name, value in metrics.items()},
    }
