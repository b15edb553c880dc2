"""Action heads: everything about an action leaf that the network, the loss and acting need.

A head turns recorded actions into features, interprets the network's outputs, computes its loss in
its own normalised unit, picks the action to take, and computes its metrics. The network owns the
linear layers; a head determines their width.
"""

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rllib_dt.spaces.exact import ExactBuffers, at_least_float32
from rllib_dt.spaces.leaves import check_action_space
from rllib_dt.types import Tree


class ActionHead(ExactBuffers, ABC):
    """An action leaf, as the network sees it.

    Attributes:
        size: the number of an action's features, and of the network's outputs for it.
        squashes: whether outputs pass through a tanh.
        metric_names: the names of the metrics in `metric_sums`.
        spread_size: the number of further outputs, behind the others, that say how far actions
            spread; see `log_std`.
        has_log_probs: whether actions have probabilities, or densities.
    """

    size: int
    squashes: bool
    metric_names: tuple[str, ...]
    spread_size: int = 0
    has_log_probs: bool = False

    @abstractmethod
    def features(self, actions: Tree) -> Tensor:
        """Converts actions in the environment's units to features, (…, size) float."""

    @abstractmethod
    def squash(self, raw: Tensor) -> Tensor:
        """Maps the last linear layer's result, (…, size), to outputs in the head's own range."""

    @property
    def num_drawn(self) -> int:
        """The number of numbers that are drawn."""
        return 0

    def log_std(self, raw: Tensor) -> Tensor:
        """Maps the last layer's (…, spread_size) result to outputs."""
        raise NotImplementedError(f"{type(self).__name__} has no spread")

    def log_probs(self, outputs: Tensor, actions: Tree) -> Tensor:
        """Returns (…,) log-probabilities of actions in the environment's units.

        Raises:
            NotImplementedError: `has_log_probs` is False.
        """
        raise NotImplementedError(f"{type(self).__name__}'s actions are not drawn")

    def entropies(self, outputs: Tensor) -> Tensor:
        """Returns (…,) estimates of the entropy of the leaves with a spread, with a gradient.

        Raises:
            NotImplementedError: `spread_size` is 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no spread")

    @abstractmethod
    def decode(self, outputs: Tensor) -> Tensor:
        """Converts outputs, (…, size), to `DTOutput.action_preds`, (…, size) float."""

    @abstractmethod
    def losses(self, outputs: Tensor, actions: Tree) -> Tensor:
        """Returns each step's loss, (…,) float, for `actions` in the environment's units."""

    @abstractmethod
    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tree:
        """Returns actions in the environment's units.

        Args:
            outputs: (…, size).
            temperature: 0 takes the likeliest; otherwise categories are drawn, from logits that are
                divided by it, and numbers with a spread that is multiplied by it.
            generator: draws; torch's global one by default.
        """

    @abstractmethod
    def metric_sums(self, outputs: Tensor, actions: Tree, mask: Tensor) -> dict[str, Tensor]:
        """Returns each metric summed over the steps where `mask`, (…,) bool, is True."""

    @abstractmethod
    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, size) features of the action that outputs stand for, with a gradient.

        Numbers are within their bounds; of categories and bits it is the expectation.
        """

    @property
    @abstractmethod
    def are_choices(self) -> Tensor:
        """(size,) bool on the CPU: features of categories and bits, not of numbers."""

    @property
    def is_one_choice(self) -> bool:
        """Whether an action is a single category."""
        return False

    def set_statistics(self, mean: Tree, std: Tree) -> None:
        """Takes note of recorded actions' mean and deviation, of an action's shape; optional."""

    def loss_sum(self, outputs: Tensor, actions: Tree, mask: Tensor) -> Tensor:
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
    """Actions of a Box, A components: features and outputs are in [-1, 1] where it is bounded.

    A component without two finite bounds has the data's standardised unit instead: features are
    (action - mean) / deviation, and outputs pass through no tanh.
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
        self._shape = space.shape
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
        return outputs.to(self.middle.dtype) * self.spread + self.middle

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
        return self.shaped(self.legal(outputs))

    def legal(self, unit: Tensor) -> Tensor:
        """Converts (…, A) in the head's unit to the environment's, clamped to the bounds."""
        actions = unit.to(self.middle.dtype) * self.spread + self.middle
        return actions.clamp(self.low, self.high)

    def shaped(self, actions: Tensor) -> Tensor:
        """Gives (…, A) actions the space's shape."""
        return _shaped(actions, self._shape)

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
        return _flat(actions, len(self._shape))


def _flat(values: Tensor, rank: int) -> Tensor:
    """Flattens the last `rank` axes to one."""
    if rank == 1:
        return values
    return values.flatten(values.ndim - rank) if rank else values.unsqueeze(-1)


def _shaped(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gives the last axis a space's shape; the inverse of `_flat`."""
    return values if len(shape) == 1 else values.reshape(*values.shape[:-1], *shape)


class LogitsHead(ActionHead):
    """Base of heads whose outputs are logits of categories or bits.

    Attributes:
        shape: the shape of an action.
    """

    squashes = False
    has_log_probs = True
    metric_names = ("action_accuracy",)
    shape: tuple[int, ...] = ()

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) log-probabilities: the losses, negative."""
        return -self.losses(outputs, actions)

    def squash(self, raw: Tensor) -> Tensor:
        """Returns the (…, size) logits unchanged."""
        return raw

    def decode(self, outputs: Tensor) -> Tensor:
        """Returns the (…, size) logits, as float32 at least."""
        return at_least_float32(outputs)

    @property
    def are_choices(self) -> Tensor:
        """(size,) True."""
        return torch.ones(self.size, dtype=torch.bool)

    def metric_sums(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Counts, as `action_accuracy`, the steps whose likeliest action is the recorded one."""
        rank = len(self.shape)
        chosen = _flat(self.act(outputs), rank)
        correct = (chosen == _flat(actions, rank)).all(dim=-1)
        return {"action_accuracy": (correct & mask).sum()}


def _one_hot(index: Tensor, size: int) -> Tensor:
    # torch's own asks for the largest index, which an exported graph cannot
    return (index.unsqueeze(-1) == torch.arange(size, device=index.device)).float()


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Returns the likeliest of (…, n) categories, or with a temperature drawn ones."""
    if not temperature:
        return logits.argmax(dim=-1)
    # as `torch.distributions.Categorical` draws, which takes no generator
    warmed = (logits / temperature).log_softmax(dim=-1)
    shares = warmed.softmax(dim=-1).reshape(-1, logits.shape[-1])
    drawn = torch.multinomial(shares, 1, replacement=True, generator=generator)
    return drawn.reshape(logits.shape[:-1])


class DiscreteHead(LogitsHead):
    """Actions start, …, start + n - 1: one-hot features, logits as outputs."""

    def __init__(self, space: gym.spaces.Discrete):
        super().__init__()
        self.size = int(space.n)
        self.start = int(space.start)

    def features(self, actions: Tensor) -> Tensor:
        """Converts (…,) int to (…, n) one-hot."""
        return _one_hot(self._index(actions), self.size)

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, n) probabilities."""
        return self.decode(outputs).softmax(dim=-1)

    @property
    def is_one_choice(self) -> bool:
        """True."""
        return True

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) cross-entropy of the recorded actions, in nats."""
        index = self._index(actions)
        logits = self.decode(outputs).flatten(0, -2)
        return F.cross_entropy(logits, index.flatten(), reduction="none").view(index.shape)

    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns (…,) actions: the likeliest, or drawn ones."""
        return _chosen(self.decode(outputs), temperature, generator) + self.start

    def _index(self, actions: Tensor) -> Tensor:
        """Converts actions to (…,) long in [0, n); those of padded steps become legal ones."""
        return (actions.long() - self.start).clamp(0, self.size - 1)


class MultiDiscreteHead(LogitsHead):
    """C categories, predicted independently: one-hot features and logits, one after another."""

    starts: Tensor

    def __init__(self, space: gym.spaces.MultiDiscrete):
        super().__init__()
        self._counts = [int(n) for n in space.nvec.ravel()]
        self.shape = space.nvec.shape
        self.size = sum(self._counts)
        starts = torch.as_tensor(np.asarray(space.start).ravel().astype(np.int64))
        self.register_buffer("starts", starts, persistent=False)

    def features(self, actions: Tensor) -> Tensor:
        """Converts (…) int to (…, Σn) one-hot."""
        index = self._index(actions)
        parts = [_one_hot(index[..., i], n) for i, n in enumerate(self._counts)]
        return torch.cat(parts, dim=-1)

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, Σn) probabilities of each category."""
        return torch.cat([part.softmax(dim=-1) for part in self._parts(outputs)], dim=-1)

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) sum of the C cross-entropies, in nats."""
        index = self._index(actions)
        total = torch.zeros(index.shape[:-1], device=outputs.device)
        for i, logits in enumerate(self._parts(outputs)):
            part = F.cross_entropy(logits.flatten(0, -2), index[..., i].flatten(), reduction="none")
            total = total + part.view(total.shape)
        return total

    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns (…) actions: the likeliest, or drawn ones."""
        chosen = [_chosen(logits, temperature, generator) for logits in self._parts(outputs)]
        return _shaped(torch.stack(chosen, dim=-1) + self.starts, self.shape)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = torch.split(self.decode(outputs), self._counts, dim=-1)
        return parts

    def _index(self, actions: Tensor) -> Tensor:
        """Converts actions to (…, C) long from 0; those of padded steps become legal ones."""
        index = _flat(actions, len(self.shape)).long() - self.starts
        counts = torch.tensor(self._counts, device=index.device)
        return torch.minimum(index.clamp(min=0), counts - 1)


class MultiBinaryHead(LogitsHead):
    """C bits, predicted independently: features are -1 and 1, outputs the logits of a 1."""

    def __init__(self, space: gym.spaces.MultiBinary):
        super().__init__()
        self.shape = space.shape
        self.size = int(np.prod(space.shape))

    def features(self, actions: Tensor) -> Tensor:
        """Converts (…) bits to (…, C) of -1 and 1."""
        return _flat(actions, len(self.shape)).float() * 2 - 1

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, C) expectations of -1 and 1."""
        return self.decode(outputs).sigmoid() * 2 - 1

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) sum of the C cross-entropies, in nats."""
        logits = self.decode(outputs)
        bits = _flat(actions, len(self.shape)).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, bits, reduction="none").sum(dim=-1)

    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns (…) bits, int8: the likeliest, or drawn ones."""
        logits = self.decode(outputs)
        if not temperature:
            return _shaped((logits > 0).to(torch.int8), self.shape)
        ones = torch.bernoulli((logits / temperature).sigmoid(), generator=generator)
        return _shaped(ones.to(torch.int8), self.shape)


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
    from rllib_dt.spaces.gaussian_head import SquashedGaussianHead  # which derives from BoxHead

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
