"""Predicting the next observation and the next return-to-go.

The paper's network has heads for both, and its authors found that training them did not help (Chen
et al. 2021, §3). At the token of a_t they predict s_{t+1} and R_{t+1}.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.objectives.base import Objective
from rllib_dt.learning.rl_module import RETURN_OUTPUTS, STATE_OUTPUTS
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import Batch


def next_steps(window: Window) -> Tensor:
    """Returns (B, K - 1) bool, True where a step and its next one are real."""
    mask: Tensor = window.mask
    return mask[:, :-1] & mask[:, 1:]


class _NextStep(Objective):
    """Base of both: squared errors over the steps that have a next one in their window."""

    predicts_next = True

    def count(self, window: Window) -> Tensor:
        """Returns the () number of steps that have a next one in their window."""
        return next_steps(window).sum()

    def _squared_error(self, predicted: Tensor, values: Tensor, window: Window) -> Tensor:
        """Sums errors between (B, K, N) predictions and the values of the step after each."""
        errors = (predicted[:, :-1] - values[:, 1:]).square().mean(dim=-1)  # (B, K - 1)
        return torch.where(next_steps(window), errors, 0.0).sum()


class StateObjective(_NextStep):
    """The next observation: the mean squared error of its normalised numbers."""

    name = "state_loss"

    @classmethod
    def weight_in(cls, config: Any) -> float:
        """Returns `state_loss_weight`."""
        return float(config.state_loss_weight)

    @classmethod
    def head(cls, network: DecisionTransformer) -> nn.Module | None:
        """Returns the network's head for states."""
        return network.predict_state

    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum of squared errors, of (B, K, S) `state_outputs`."""
        states = self.network.normalized_numbers(window.observations)
        return self._squared_error(outputs[STATE_OUTPUTS], states, window)


class ReturnObjective(_NextStep):
    """The next return-to-go, divided by `return_scale`: its squared error."""

    name = "return_loss"

    @classmethod
    def weight_in(cls, config: Any) -> float:
        """Returns `return_loss_weight`."""
        return float(config.return_loss_weight)

    @classmethod
    def head(cls, network: DecisionTransformer) -> nn.Module | None:
        """Returns the network's head for returns."""
        return network.predict_return

    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum of squared errors, of (B, K, 1) `return_outputs`."""
        returns = window.returns_to_go.float() / self.network.return_scale
        return self._squared_error(outputs[RETURN_OUTPUTS], returns, window)
