"""Heads of categories and bits: logits as outputs."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rllib_dt.spaces.action_head import ActionHead, flat, shaped
from rllib_dt.spaces.exact import at_least_float32


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
        chosen = flat(self.act(outputs), rank)
        correct = (chosen == flat(actions, rank)).all(dim=-1)
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
        return shaped(torch.stack(chosen, dim=-1) + self.starts, self.shape)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = torch.split(self.decode(outputs), self._counts, dim=-1)
        return parts

    def _index(self, actions: Tensor) -> Tensor:
        """Converts actions to (…, C) long from 0; those of padded steps become legal ones."""
        index = flat(actions, len(self.shape)).long() - self.starts
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
        return flat(actions, len(self.shape)).float() * 2 - 1

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, C) expectations of -1 and 1."""
        return self.decode(outputs).sigmoid() * 2 - 1

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) sum of the C cross-entropies, in nats."""
        logits = self.decode(outputs)
        bits = flat(actions, len(self.shape)).to(logits.dtype)
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
            return shaped((logits > 0).to(torch.int8), self.shape)
        ones = torch.bernoulli((logits / temperature).sigmoid(), generator=generator)
        return shaped(ones.to(torch.int8), self.shape)
