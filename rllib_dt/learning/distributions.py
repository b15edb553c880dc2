"""RLlib's distributions of the actions that a module's `action_dist_inputs` stand for."""

from functools import singledispatch

import gymnasium as gym
import numpy as np
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDistribution,
    TorchMultiCategorical,
    TorchSquashedGaussian,
)


@singledispatch
def distribution_of(space: gym.Space) -> type[TorchDistribution] | None:
    """Returns RLlib's class for an action space whose policy is stochastic; None if it has none.

    RLlib has one for categories from 0 on, and for vectors of numbers that share two bounds.
    """
    return None


@distribution_of.register
def _(space: gym.spaces.Discrete) -> type[TorchDistribution] | None:
    return TorchCategorical if space.start == 0 else None


@distribution_of.register
def _(space: gym.spaces.MultiDiscrete) -> type[TorchDistribution] | None:
    if space.nvec.ndim > 1 or np.any(space.start):
        return None
    lengths = [int(n) for n in space.nvec]
    found: type[TorchDistribution] = TorchMultiCategorical.get_partial_dist_cls(input_lens=lengths)
    return found


@distribution_of.register
def _(space: gym.spaces.Box) -> type[TorchDistribution] | None:
    low, high = float(space.low.min()), float(space.high.max())
    is_one = (space.low == low).all() and (space.high == high).all() and low < high
    if len(space.shape) != 1 or not space.is_bounded() or not is_one:
        return None
    found: type[TorchDistribution] = TorchSquashedGaussian.get_partial_dist_cls(low=low, high=high)
    return found
