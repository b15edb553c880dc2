"""Encoders and heads by gymnasium space, one registered function each.

An action codec says what a space's actions look like to the network: their features, what
its head's output means, the loss of a prediction, and the action to take.
"""

from functools import singledispatch

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_dt.episodes.spaces import check_action_space, check_observation_space


@singledispatch
def observation_size(space: gym.Space) -> int:
    """S, the length of an observation as a vector."""
    check_observation_space(space)
    raise AssertionError(f"{type(space).__name__} passed the check but has no encoder")


@observation_size.register
def _(space: gym.spaces.Box) -> int:
    check_observation_space(space)
    return int(np.prod(space.shape))


class BoxActions(nn.Module):
    """Actions of a bounded Box: the network sees and predicts them in [-1, 1].

    Attributes:
        size: A, the number of action components.
    """

    middle: Tensor
    half_range: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: gym.spaces.Box):
        super().__init__()
        self.size = int(np.prod(space.shape))
        # of the space, not of a checkpoint: `middle` and `spread` miss them by a rounding
        for name in ("low", "high"):
            bound = torch.tensor(getattr(space, name), dtype=torch.float32)
            self.register_buffer(name, bound, persistent=False)
        low, high = (torch.as_tensor(b, dtype=torch.float64) for b in (space.low, space.high))
        half = (high - low) / 2
        self.register_buffer("middle", ((high + low) / 2).float())
        # a component with one legal value has no range; 1 keeps the division harmless
        self.register_buffer("half_range", torch.where(half > 0, half, 1.0).float())
        self.register_buffer("spread", half.float())

    def encode(self, actions: Tensor) -> Tensor:
        """(…, A) in the environment's units to (…, A) in [-1, 1]."""
        return (actions.to(self.middle.dtype) - self.middle) / self.half_range

    def decode(self, outputs: Tensor) -> Tensor:
        """(…, A) in the head's range to (…, A) in the environment's units."""
        return outputs.float() * self.spread + self.middle

    def losses(self, predictions: Tensor, actions: Tensor) -> Tensor:
        """(…,) squared error, the mean over the A components, in [-1, 1] units."""
        error = (predictions - actions.to(predictions.dtype)) / self.half_range
        return error.square().mean(dim=-1)

    def act(self, predictions: Tensor, *, sample: bool) -> Tensor:
        """(…, A) predictions are the actions, within the bounds: this policy is deterministic."""
        return predictions.clamp(self.low, self.high)


class DiscreteActions(nn.Module):
    """Actions start, …, start + n - 1: one-hot to the network, logits from it.

    Attributes:
        size: n, the number of actions.
    """

    def __init__(self, space: gym.spaces.Discrete):
        super().__init__()
        self.size = int(space.n)
        self.start = int(space.start)

    def encode(self, actions: Tensor) -> Tensor:
        """(…,) int to (…, n); a padded action, whatever it holds, becomes a legal one."""
        index = (actions.long() - self.start).clamp(0, self.size - 1)
        return F.one_hot(index, self.size).float()

    def decode(self, outputs: Tensor) -> Tensor:
        """(…, n) logits, as they are."""
        return outputs.float()

    def losses(self, predictions: Tensor, actions: Tensor) -> Tensor:
        """(…,) cross-entropy of the taken action, in nats."""
        index = (actions.long() - self.start).clamp(0, self.size - 1)
        return F.cross_entropy(predictions.flatten(0, -2), index.flatten(), reduction="none").view(
            index.shape
        )

    def act(self, predictions: Tensor, *, sample: bool) -> Tensor:
        """(…, n) logits to (…,) actions: the likeliest, or one drawn."""
        if sample:
            index = torch.distributions.Categorical(logits=predictions).sample()
        else:
            index = predictions.argmax(dim=-1)
        return index + self.start


ActionCodec = BoxActions | DiscreteActions


@singledispatch
def action_codec(space: gym.Space) -> ActionCodec:
    """The codec of an action space; UnsupportedSpaceError where there is none."""
    check_action_space(space)
    raise AssertionError(f"{type(space).__name__} passed the check but has no codec")


@action_codec.register
def _(space: gym.spaces.Box) -> ActionCodec:
    check_action_space(space)
    return BoxActions(space)


@action_codec.register
def _(space: gym.spaces.Discrete) -> ActionCodec:
    return DiscreteActions(space)


def has_tanh(space: gym.Space, action_tanh: bool) -> bool:
    """Whether the action head ends in a tanh: only where actions are bounded numbers."""
    return action_tanh and isinstance(space, gym.spaces.Box)
