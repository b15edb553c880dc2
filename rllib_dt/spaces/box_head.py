"""`BoxHead`: numbers, one action each."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_dt.spaces.action_head import ActionHead, flat, shaped


class BoxHead(ActionHead):
    """Actions of a Box, A components: features and outputs are in [-1, 1] where it is bounded.

    A component without two finite bounds has the data's standardised unit instead: features are
    (action - mean) / deviation, and outputs pass through no tanh.

    Attributes:
        shape: the shape of an action.
    """

    exact = ("middle", "half_range", "spread", "has_range", "low", "high")
    middle: Tensor
    half_range: Tensor
    spread: Tensor
    has_range: Tensor
    low: Tensor
    high: Tensor
    bounded: Tensor

    def __init__(self, space: gym.spaces.Box, *, tanh: bool):
        super().__init__()
        self.size = int(np.prod(space.shape))
        self.squashes = tanh
        self.metric_names = ()
        self.shape = space.shape
        # taken from the space: computed from `middle` and `spread`, they would have rounding errors
        for name in ("low", "high"):
            bound = torch.tensor(getattr(space, name), dtype=torch.float32).reshape(-1)
            self.register_buffer(name, bound, persistent=False)
        low, high = (
            torch.as_tensor(b, dtype=torch.float64).reshape(-1) for b in (space.low, space.high)
        )
        bounded = low.isfinite() & high.isfinite()
        self.register_buffer("bounded", bounded, persistent=False)
        self._all_bounded = bool(bounded.all())
        half = torch.where(bounded, (high - low) / 2, 1.0)
        self.register_buffer("middle", torch.where(bounded, (high + low) / 2, 0.0).float())
        # a component with one legal value has no range; 1 avoids a division by zero
        self.register_buffer("half_range", torch.where(half > 0, half, 1.0).float())
        self.register_buffer("spread", half.float())
        self.register_buffer("has_range", (half > 0).float(), persistent=False)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Sets the unit of unbounded components: (…) mean and deviation of recorded actions."""
        if not self._all_bounded:
            mean, std = (value.to(self.middle).reshape(-1) for value in (mean, std))
            self.middle.copy_(torch.where(self.bounded, self.middle, mean))
            for unit in (self.half_range, self.spread):
                unit.copy_(torch.where(self.bounded, unit, std))

    def features(self, actions: Tensor) -> Tensor:
        """Converts (…) in the environment's units to (…, A) in the head's."""
        return (self._flat(actions).to(self.middle.dtype) - self.middle) / self.half_range

    def squash(self, raw: Tensor) -> Tensor:
        """Maps (…, A) to [-1, 1] by a tanh, unless the head has none or there are no bounds."""
        if not self.squashes:
            return raw
        return raw.tanh() if self._all_bounded else torch.where(self.bounded, raw.tanh(), raw)

    def decode(self, outputs: Tensor) -> Tensor:
        """Converts (…, A) in the head's unit to (…, A) in the environment's units."""
        return self.in_units(outputs)

    def in_units(self, unit: Tensor) -> Tensor:
        """Converts (…, A) in the head's unit to the environment's."""
        return unit.to(self.middle.dtype) * self.spread + self.middle

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns (…,) squared errors in the head's unit, the mean over the A components."""
        error = outputs.to(self.middle.dtype) - self.features(actions)
        return (error * self.has_range).square().mean(dim=-1)

    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns actions within the bounds; deterministic at any temperature."""
        return shaped(self.legal(outputs), self.shape)

    def legal(self, unit: Tensor) -> Tensor:
        """Converts (…, A) in the head's unit to the environment's, clamped to the bounds."""
        return self.in_units(unit).clamp(self.low, self.high)

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, A) features of the actions, clamped to the bounds."""
        return self.within_bounds(outputs)

    def within_bounds(self, unit: Tensor) -> Tensor:
        """Clamps (…, A) in the head's unit to the bounds."""
        return (self.legal(unit) - self.middle) / self.half_range

    @property
    def are_choices(self) -> Tensor:
        """(A,) False."""
        return torch.zeros(self.size, dtype=torch.bool)

    def metric_sums(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Returns no metrics: the loss is enough."""
        return {}

    def _flat(self, actions: Tensor) -> Tensor:
        return flat(actions, len(self.shape))
