"""The loss: a mean over what is real."""

import torch
from torch import Tensor

from rllib_dt.network.spaces import ActionCodec


def action_loss_sum(
    codec: ActionCodec, action_preds: Tensor, actions: Tensor, mask: Tensor
) -> Tensor:
    """Σ of the action losses over valid steps: divide by their number, never by B·K.

    Args:
        codec: of the action space; its `losses` are squared errors or cross-entropies.
        action_preds: (B, K, A) or (B, K, n), as the network gives them.
        actions: (B, K, A) or (B, K), in the environment's units.
        mask: (B, K) bool, True where real.

    Returns:
        () float32. Padded steps contribute exactly nothing, whatever they hold.
    """
    losses = codec.losses(action_preds, actions)
    return torch.where(mask, losses, 0.0).sum()


def action_loss(codec: ActionCodec, action_preds: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """The mean of `action_loss_sum` over valid steps; 0 where there is none."""
    return action_loss_sum(codec, action_preds, actions, mask) / mask.sum().clamp(min=1)
