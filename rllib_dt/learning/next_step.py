"""The losses of predicting the next observation and the next return-to-go.

The paper's network has heads for both, and its authors found that training them did not help (Chen
et al. 2021, §3). At the token of a_t they predict s_{t+1} and R_{t+1}.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.rl_module import RETURN_OUTPUTS, STATE_OUTPUTS
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import Batch


@dataclass(frozen=True, kw_only=True)
class NextStepLoss:
    """One of the two losses, over B windows of K steps.

    Attributes:
        name: "state_loss" or "return_loss".
        weight: what it is multiplied by.
        loss_sum: (), summed over all steps that have a next one in their window.
    """

    name: str
    weight: float
    loss_sum: Tensor


def next_steps(window: Window) -> Tensor:
    """Returns (B, K - 1) bool, True where a step and its next one are real."""
    mask: Tensor = window.mask
    return mask[:, :-1] & mask[:, 1:]


def next_step_losses(
    network: DecisionTransformer,
    outputs: Batch,
    window: Window,
    *,
    state_weight: float,
    return_weight: float,
) -> list[NextStepLoss]:
    """Returns the losses whose weights are not 0: squared errors in the network's own units.

    The state's is the mean over an observation's normalised numbers, the return's is that of
    returns-to-go divided by `return_scale`.

    Args:
        network: made the outputs.
        outputs: `state_outputs` (B, K, S) and `return_outputs` (B, K, 1).
        window: B windows of K steps.
        state_weight, return_weight: 0 for none.
    """
    losses = []
    if state_weight:
        states = network.normalized_numbers(window.observations)
        loss_sum = _squared_error(outputs[STATE_OUTPUTS], states, window)
        losses.append(NextStepLoss(name="state_loss", weight=state_weight, loss_sum=loss_sum))
    if return_weight:
        returns = window.returns_to_go.float() / network.return_scale
        loss_sum = _squared_error(outputs[RETURN_OUTPUTS], returns, window)
        losses.append(NextStepLoss(name="return_loss", weight=return_weight, loss_sum=loss_sum))
    return losses


def _squared_error(predicted: Tensor, values: Tensor, window: Window) -> Tensor:
    """Sums errors between (B, K, N) predictions and the values of the step after each."""
    errors = (predicted[:, :-1] - values[:, 1:]).square().mean(dim=-1)  # (B, K - 1)
    return torch.where(next_steps(window), errors, 0.0).sum()
