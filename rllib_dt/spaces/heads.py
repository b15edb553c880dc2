"""The action head of a space: a leaf's own, or one for each leaf of a composite space."""

from functools import singledispatch
from typing import Literal

import gymnasium as gym

from rllib_dt.spaces.action_head import ActionHead
from rllib_dt.spaces.box_head import BoxHead
from rllib_dt.spaces.choice_heads import DiscreteHead, MultiBinaryHead, MultiDiscreteHead
from rllib_dt.spaces.composite_head import CompositeHead
from rllib_dt.spaces.gaussian_head import SquashedGaussianHead
from rllib_dt.spaces.leaves import check_action_space
from rllib_dt.spaces.trees import leaves

Distribution = Literal["deterministic", "squashed_gaussian"]


@singledispatch
def action_head(
    space: gym.Space, *, tanh: bool, distribution: Distribution = "deterministic"
) -> ActionHead:
    """Returns the head of an action leaf.

    Args:
        space: the leaf.
        tanh: squash the outputs of bounded numbers (`DTModelConfig.action_tanh`).
        distribution: of numbers (`DTModelConfig.action_distribution`).

    Raises:
        UnsupportedSpaceError: there is no head for the space.
    """
    check_action_space(space)
    raise AssertionError(f"{type(space).__name__} passed the check but has no head")


@action_head.register
def _(
    space: gym.spaces.Box, *, tanh: bool, distribution: Distribution = "deterministic"
) -> ActionHead:
    check_action_space(space)
    return (
        BoxHead(space, tanh=tanh)
        if distribution == "deterministic"
        else SquashedGaussianHead(space)
    )


@action_head.register
def _(space: gym.spaces.Discrete, **_: object) -> ActionHead:
    return DiscreteHead(space)


@action_head.register
def _(space: gym.spaces.MultiDiscrete, **_: object) -> ActionHead:
    return MultiDiscreteHead(space)


@action_head.register
def _(space: gym.spaces.MultiBinary, **_: object) -> ActionHead:
    return MultiBinaryHead(space)


def head_of_space(
    space: gym.Space, *, tanh: bool, distribution: Distribution = "deterministic"
) -> ActionHead:
    """Returns the head of an action space, composite or not; see `action_head`."""
    heads = {
        path: action_head(leaf, tanh=tanh, distribution=distribution)
        for path, leaf in leaves(space).items()
    }
    return heads[""] if list(heads) == [""] else CompositeHead(heads)
