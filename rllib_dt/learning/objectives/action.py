"""The Decision Transformer's own objective: the recorded action (Chen et al. 2021, §3)."""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.objectives.base import Objective
from rllib_dt.types import Batch


class ActionObjective(Objective):
    """The action head's loss at each state token, in the head's own unit.

    `DTTorchLearner.step_weights` weighs the steps.
    """

    name = "action_loss"

    @classmethod
    def weight_in(cls, config: Any) -> float:
        """Returns 1: it is always there."""
        return 1.0

    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum over valid steps; padded ones contribute exactly zero."""
        predicted = outputs[Columns.ACTION_DIST_INPUTS]
        losses = self.network.action_head.losses(predicted, window.actions)
        weights = self.learner.step_weights(window)
        if weights is not None:
            _check_weights(weights, losses)
            # a weight of a padded step may be anything, and NaN would reach the gradient
            losses = losses * torch.where(window.mask, weights, 0.0)
        return torch.where(window.mask, losses, 0.0).sum()


def _check_weights(weights: object, losses: Tensor) -> None:
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        found = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"step_weights returned {found}, wanted a tensor {tuple(losses.shape)}")
