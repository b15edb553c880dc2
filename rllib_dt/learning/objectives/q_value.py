"""The value of the policy's own actions, by a critic that was learned first and then frozen.

Added to the loss: - gap min(Q1, Q2)(s, π(s)) / mean |Q|, gap = (R* - R) / (R* - R_min), with R the
return of the window's trajectory: poor trajectories are improved, one that returned R* is imitated.
R* is the data's best, or `q_best_return` (Kim et al. 2024, arXiv:2402.02017, whose gap is in D4RL's
units, and whose R* is an expert's return). The critic's own training is in `critic_phase.py`.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.critic_phase import CriticPhase
from rllib_dt.learning.objectives.base import Objective
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import Batch, State

if TYPE_CHECKING:
    from rllib_dt.learning.learner import DTTorchLearner


class QValueObjective(Objective):
    """The negative value of the actions that the policy would take.

    Attributes:
        phase: the critic, and its training before the policy's.
    """

    name = "q_loss"
    reads_outcomes = True

    @classmethod
    def weight_in(cls, config: Any) -> float:
        """Returns `q_weight`."""
        return float(config.q_weight)

    def __init__(self, network: DecisionTransformer, weight: float, learner: "DTTorchLearner"):
        super().__init__(network, weight, learner)
        self.phase = CriticPhase(learner)
        self._best = learner.config.q_best_return

    def metrics(self) -> dict[str, float]:
        """Returns the critic's latest."""
        return self.phase.metrics

    def state(self) -> State:
        """Returns the critic, and how far its training has come."""
        return self.phase.state()

    def set_state(self, state: State) -> None:
        """Restores the critic."""
        self.phase.set_state(state)

    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum over valid steps; the gradient flows through the actions only."""
        taken = self.network.action_head.taken_features(outputs["action_dist_inputs"])
        values = self.phase.critic.least(window, taken) / self.phase.scale
        least, largest = self.learner.return_range
        best = largest if self._best is None else self._best
        weighted = gaps(window.episode_returns, least, best) * values
        return -torch.where(window.mask, weighted, 0.0).sum()


def gaps(returns: Tensor, least: float, best: float) -> Tensor:
    """Returns (R* - R) / (R* - R_min) in [0, 1]; 0 if none of the returns is below R*."""
    if best <= least:
        return torch.zeros_like(returns)
    return ((best - returns) / (best - least)).clamp(0, 1)
