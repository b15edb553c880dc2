"""The entropy of a stochastic policy, with a temperature that is learned.

Added to the loss: -α H, H estimated by one draw at each step. α rises where the mean entropy is
below a target H*, by Adam on α (H - H*) (Zheng et al. 2022, arXiv:2202.05607, §3; α as in soft
actor-critic, Haarnoja et al. 2018, arXiv:1812.05905).
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.objectives.base import Objective
from rllib_dt.learning.optimizer_state import moments, set_moments
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import Batch, State

if TYPE_CHECKING:
    from rllib_dt.learning.learner import DTTorchLearner


class EntropyObjective(Objective):
    """The negative entropy of actions that are numbers, weighed by α."""

    name = "entropy_loss"

    @classmethod
    def weight_in(cls, config: Any) -> float:
        """Returns 1 for a stochastic policy of numbers."""
        return float(config.dt_model_config.action_distribution == "squashed_gaussian")

    def __init__(self, network: DecisionTransformer, weight: float, learner: "DTTorchLearner"):
        super().__init__(network, weight, learner)
        config, device = learner.config, network.return_scale.device
        wanted = config.target_entropy
        self._wanted = float(-network.action_head.num_drawn if wanted is None else wanted)
        self._log_alpha = torch.tensor(
            math.log(config.initial_alpha), device=device, requires_grad=True
        )
        self._optimizer = torch.optim.Adam([self._log_alpha], lr=config.alpha_lr)
        self._entropy = torch.zeros((), device=device)
        self._sums: list[Tensor] = []  # of a batch's parts, [entropies, steps]

    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum over valid steps."""
        entropies = self.network.action_head.entropies(outputs["action_dist_inputs"])
        total = torch.where(window.mask, entropies, 0.0).sum()
        alpha = self._log_alpha.detach().exp()
        self._sums.append(torch.stack([total.detach(), self.count(window).to(total.dtype)]))
        return -alpha * total

    def begin_update(self) -> None:
        """Forgets what an update that failed has left."""
        self._sums.clear()

    def end_update(self) -> None:
        """Moves α towards where the batch's mean entropy is its target."""
        if not self._sums:  # a learner with a loss of its own does not ask for this one
            return
        sums = torch.stack(self._sums).sum(dim=0)
        if self.learner.world_size > 1:
            torch.distributed.all_reduce(sums)
        self._entropy = sums[0] / sums[1].clamp(min=1)
        alpha = self._log_alpha.detach().exp()
        self._log_alpha.grad = alpha * (self._entropy - self._wanted)
        self._optimizer.step()

    def metrics(self) -> dict[str, float]:
        """Returns the last batch's mean entropy, in nats, and α."""
        alpha = self._log_alpha.detach().exp()
        return {"entropy": float(self._entropy), "entropy_alpha": float(alpha)}

    def state(self) -> State:
        """Returns α, and its optimiser."""
        log_alpha = float(self._log_alpha.detach())
        return {"log_alpha": log_alpha, "moments": moments(self._optimizer)}

    def set_state(self, state: State) -> None:
        """Restores α."""
        with torch.no_grad():
            self._log_alpha.fill_(state["log_alpha"])
        set_moments(self._optimizer, state["moments"])
