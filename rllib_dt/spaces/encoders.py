"""Encoders: how the network reads an observation leaf."""

from functools import singledispatch

import gymnasium as gym
import numpy as np

from rllib_dt.spaces.leaves import check_observation_space


@singledispatch
def observation_size(space: gym.Space) -> int:
    """Returns S, the length of an observation as a vector of numbers."""
    check_observation_space(space)
    raise AssertionError(f"{type(space).__name__} passed the check but has no encoder")


@observation_size.register
def _(space: gym.spaces.Box) -> int:
    check_observation_space(space)
    return int(np.prod(space.shape))
