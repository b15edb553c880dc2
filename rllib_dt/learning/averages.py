"""Averaged weights: an exponential moving average over updates (Polyak & Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rllib_dt.types import Batch

Parameters = list[tuple[str, nn.Parameter]]


class AveragedWeights:
    """The moving average of a network's parameters: a ← d a + (1 - d) w after each update.

    The decay d rises to its final value, d_t = min(decay, (1 + t) / (10 + t)) after t updates, so
    that early weights are soon forgotten. Buffers are not averaged.

    Args:
        network: the network that is trained.
        decay: in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float):
        self._decay = decay
        self._parameters: Parameters = list(network.named_parameters())
        self._averages = [parameter.detach().clone() for _, parameter in self._parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Takes in the weights after an update.

        Args:
            updates: t, the number of updates so far, from 1.
        """
        decay = min(self._decay, (1 + updates) / (10 + updates))
        for average, value in zip(self._averages, self._values(), strict=True):
            average.lerp_(value, 1 - decay)

    def reset(self) -> None:
        """Begins anew with the network's current weights."""
        for average, value in zip(self._averages, self._values(), strict=True):
            average.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the network the averages within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, value in zip(self._averages, self._values(), strict=True):
            kept = value.clone()
            value.copy_(average)
            average.copy_(kept)

    def _values(self) -> list[Tensor]:
        return [parameter.data for _, parameter in self._parameters]


def raw_weights(network: nn.Module) -> Batch:
    """Returns copies of a network's parameters by name, as numpy arrays."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, parameter in network.named_parameters()
    }


@torch.no_grad()
def set_raw_weights(network: nn.Module, weights: Batch) -> None:
    """Loads what `raw_weights` returned."""
    for name, parameter in network.named_parameters():
        parameter.copy_(torch.tensor(weights[name]))
