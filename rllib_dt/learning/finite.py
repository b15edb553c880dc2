"""Losses and weights that are not finite: the run stops, and no checkpoint is written."""

import torch
from torch import nn


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite. The run stops, and no checkpoint is written."""


class NonFiniteWeightsError(NonFiniteLossError):
    """A weight became NaN or infinite. The run stops, and no checkpoint is written."""


def check_weights(network: nn.Module, update: int) -> None:
    """Raises a NonFiniteWeightsError if a parameter or buffer is not finite. Reads one value.

    Args:
        network: what to check.
        update: the number of updates so far, for the message.
    """
    bad = [~weight.isfinite().all() for weight in network.state_dict().values()]
    if torch.stack(bad).any():
        raise NonFiniteWeightsError(
            f"the weights are not finite after update {update}; the last checkpoint is unharmed. "
            "Lower lr, set grad_clip, or look for extreme values in the data"
        )
