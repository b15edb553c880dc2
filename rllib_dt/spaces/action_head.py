"""`ActionHead`: everything about an action leaf that the network, the loss and acting need.

A head turns recorded actions into features, interprets the network's outputs, computes its loss in
its own normalised unit, picks the action to take, and computes its metrics. The network owns the
linear layers; a head determines their width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rllib_dt.spaces.exact import ExactBuffers
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


def flat(values: Tensor, rank: int) -> Tensor:
    """Flattens the last `rank` axes to one."""
    if rank == 1:
        return values
    return values.flatten(values.ndim - rank) if rank else values.unsqueeze(-1)


def shaped(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gives the last axis a space's shape; the inverse of `flat`."""
    return values if len(shape) == 1 else values.reshape(*values.shape[:-1], *shape)
