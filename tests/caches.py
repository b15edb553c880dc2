"""A cache that keeps everything, to compare with."""

import torch
from torch import Tensor


class GrowingCache:
    """A cache that keeps every token; exact while no token has to be forgotten."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache`."""
        if layer in self._layers:
            past_keys, past_values = self._layers[layer]
            keys = torch.cat([past_keys, keys], dim=2)
            values = torch.cat([past_values, values], dim=2)
        self._layers[layer] = keys, values
        return keys, values
