"""The largest return that the data show from each step, by expectile regression.

With u = R_t / c - R̂_t, the loss is |m - 1(u < 0)| u²: as the expectile m approaches 1, R̂_t tends to
the largest return-to-go seen from what precedes it (Reinformer: Zhuang et al. 2024,
arXiv:2405.08740, §3). c is `return_scale`. Reinformer puts states before returns; here a head reads
the tokens before R_t and the state's own, so that Hugging Face's order and weights stay.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.expectiles import expectile_losses
from rllib_dt.learning.objectives.base import Objective
from rllib_dt.learning.rl_module import MAX_RETURN_OUTPUTS
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import Batch


class MaxReturnObjective(Objective):
    """The expectile of returns-to-go; trains its own head only."""

    name = "max_return_loss"
    predicts_next = True

    @classmethod
    def weight_in(cls, config: Any) -> float:
        """Returns 1 if `max_return_expectile` is set."""
        return 0.0 if config.max_return_expectile is None else 1.0

    @classmethod
    def head(cls, network: DecisionTransformer) -> nn.Module | None:
        """Returns the network's estimate of returns."""
        return network.estimate_return

    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum over valid steps, of (B, K, 1) `max_return_outputs`."""
        returns = window.returns_to_go.float() / self.network.return_scale
        errors = (returns - outputs[MAX_RETURN_OUTPUTS])[..., 0]
        losses = expectile_losses(errors, self.learner.config.max_return_expectile)
        return torch.where(window.mask, losses, 0.0).sum()
