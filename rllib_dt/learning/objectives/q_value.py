"""The value of the policy's own actions, by a critic that was learned first and then frozen.

Added to the loss: - gap min(Q1, Q2)(s, π(s)) / mean |Q|, gap = (R_max - R) / (R_max - R_min), with
R the return of the window's trajectory: poor trajectories are improved, the best one is imitated
(Kim et al. 2024, arXiv:2402.02017, whose gap is in D4RL's units of return). The critic's own
training is in `critic_phase.py`.
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
        weighted = gaps(window.episode_returns, *self.learner.return_range) * values
        return -torch.where(window.mask, weighted, 0.0).sum()


def gaps(returns: Tensor, least: float, largest: float) -> Tensor:
    """Returns (R_max - R) / (R_max - R_min) in [0, 1]; 0 if all returns are the same."""
    if largest <= least:
        return torch.zeros_like(returns)
    return ((largest - returns) / (largest - least)).clamp(0, 1)
