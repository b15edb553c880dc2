"""Action heads: everything about an action leaf that the network, the loss and acting need.

A head turns recorded actions into features, interprets the network's outputs, computes its loss in
its own normalised unit, picks the action to take, and computes its metrics. The network owns the
linear layers; a head determines their width.
"""

from abc import ABC, abstractmethod
from functools import singledispatch

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_dt.spaces.leaves import check_action_space


class ActionHead(nn.Module, ABC):
    """An action leaf, as the network sees it.

    Attributes:
        size: the number of an action's features, and of the network's outputs for it.
        squashes: whether outputs pass through a tanh.
        metric_names: the names of the metrics in `metric_sums`.
    """

    size: int
    squashes: bool
    metric_names: tuple[str, ...]

    @abstractmethod
    def features(self, actions: Tensor) -> Tensor:
        """Converts actions in the environment's units to features, (…, size) float."""

    @abstractmethod
    def squash(self, raw: Tensor) -> Tensor:
        """Maps the last linear layer's result, (…, size), to outputs in the head's own range."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> Tensor:
        """Converts outputs, (…, size), to `DTOutput.action_preds`, (…, size) float."""

    @abstractmethod
    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns each step's loss, (…,) float, for `actions` in the environment's units."""

    @abstractmethod
    def act(self, outputs: Tensor, *, sample: bool) -> Tensor:
        """Returns actions in the environment's units: the likeliest, or with `sample` drawn."""

    @abstractmethod
    def metric_sums(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Returns each metric summed over the steps where `mask`, (…,) bool, is True."""

    def loss_sum(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Returns the sum of `losses` over valid steps; divide by their number, never by B·K.

        Args:
            outputs: (B, K, size).
            actions: (B, K, …), in the environment's units.
            mask: (B, K) bool, True where real.

        Returns:
            () float. Padded steps contribute exactly zero, regardless of their values.
        """
        return torch.where(mask, self.losses(outputs, actions), 0.0).sum()


class BoxHead(ActionHead):
    """Actions of a bounded Box, A components: features and outputs are in [-1, 1]."""

    middle: Tensor
    half_range: Tensor
    spread: Tensor
    has_range: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: gym.spaces.Box, *, tanh: bool):
        super().__init__()
        self.size = int(np.prod(space.shape))
        self.squashes = tanh
        self.metric_names = ()
        # taken from the space: computed from `middle` and `spread`, they would have rounding errors
        for name in ("low", "high"):
            bound = torch.tensor(getattr(space, name), dtype=torch.float32)
            self.register_buffer(name, bound, persistent=False)
        low, high = (torch.as_tensor(b, dtype=torch.float64) for b in (space.low, space.high))
        half = (high - low) / 2
        self.register_buffer("middle", ((high + low) / 2).float())
        # a component with one legal value has no range; 1 avoids a division by zero
        self.register_buffer("half_range", torch.where(half > 0, half, 1.0).float())
        self.register_buffer("spread", half.float())
        self.register_buffer("has_range", (half > 0).float(), persistent=False)

    def features(self, actions: Tensor) -> Tensor:
        """Converts (…, A) in the environment's units to (…, A) in [-1, 1]."""
        return (actions.to(self.middle.dtype) - self.middle) / self.half_range

    def squash(self, raw: Tensor) -> Tensor:
        """Maps (…, A) to [-1, 1] by a tanh, unless the head has none."""
        return raw.tanh() if self.squashes else raw

    def decode(self, outputs: Tensor) -> Tensor:
        """Converts (…, A) in [-1, 1] to (…, A) in the environment's units."""
        return outputs.to(self.middle.dtype) * self.spread + self.middle

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns (…,) squared errors in [-1, 1] units, the mean over the A components."""
        error = outputs.to(self.middle.dtype) - self.features(actions)
        return (error * self.has_range).square().mean(dim=-1)

    def act(self, outputs: Tensor, *, sample: bool) -> Tensor:
        """Returns (…, A) actions within the bounds; deterministic, so `sample` is ignored."""
        return self.decode(outputs).clamp(self.low, self.high)

    def metric_sums(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Returns no metrics: the loss is enough."""
        return {}


class DiscreteHead(ActionHead):
    """Actions start, …, start + n - 1: one-hot features, logits as outputs."""

    def __init__(self, space: gym.spaces.Discrete):
        super().__init__()
        self.size = int(space.n)
        self.squashes = False
        self.metric_names = ("action_accuracy",)
        self.start = int(space.start)

    def features(self, actions: Tensor) -> Tensor:
        """Converts (…,) int to (…, n) one-hot."""
        return F.one_hot(self._index(actions), self.size).float()

    def squash(self, raw: Tensor) -> Tensor:
        """Returns the (…, n) logits unchanged."""
        return raw

    def decode(self, outputs: Tensor) -> Tensor:
        """Returns the (…, n) logits as float32."""
        return outputs.float()

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) cross-entropy of the recorded actions, in nats."""
        index = self._index(actions)
        logits = self.decode(outputs).flatten(0, -2)
        return F.cross_entropy(logits, index.flatten(), reduction="none").view(index.shape)

    def act(self, outputs: Tensor, *, sample: bool) -> Tensor:
        """Returns (…,) actions: the likeliest, or drawn ones."""
        logits = self.decode(outputs)
        if sample:
            drawn: Tensor = torch.distributions.Categorical(logits=logits).sample()  # type: ignore[no-untyped-call]
            return drawn + self.start
        return logits.argmax(dim=-1) + self.start

    def metric_sums(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Counts, as `action_accuracy`, the steps whose likeliest action is the recorded one."""
        correct = self.act(outputs, sample=False) == actions
        return {"action_accuracy": (correct & mask).sum()}

    def _index(self, actions: Tensor) -> Tensor:
        """Converts actions to (…,) long in [0, n); those of padded steps become legal ones."""
        return (actions.long() - self.start).clamp(0, self.size - 1)


@singledispatch
def action_head(space: gym.Space, *, tanh: bool) -> ActionHead:
    """Returns the head of an action space.

    Args:
        space: the action space.
        tanh: squash the outputs of bounded numbers (`DTModelConfig.action_tanh`).

    Raises:
        UnsupportedSpaceError: there is no head for the space.
    """
    check_action_space(space)
    raise AssertionError(f"{type(space).__name__} passed the check but has no head")


@action_head.register
def _(space: gym.spaces.Box, *, tanh: bool) -> ActionHead:
    check_action_space(space)
    return BoxHead(space, tanh=tanh)


@action_head.register
def _(space: gym.spaces.Discrete, *, tanh: bool) -> ActionHead:
    return DiscreteHead(space)
