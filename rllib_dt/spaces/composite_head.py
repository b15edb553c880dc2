"""`CompositeHead`: a head for each leaf of a composite action space."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rllib_dt.spaces.action_head import ActionHead
from rllib_dt.spaces.encoders import module_name
from rllib_dt.types import Tree

_LEAF_LOSS = "action_loss"


class CompositeHead(ActionHead):
    """Actions of several leaves, each predicted by a head of its own from the same state token.

    Features and outputs are those of the leaves, one after another; then the leaves' spreads, in
    the same order. The loss is the sum of the leaves' losses. Metrics are the leaves', each with
    the leaf's path at its end, and so are their losses: "action_loss/gripper".

    Args:
        heads: the head of each leaf, by path.
    """

    def __init__(self, heads: Mapping[str, ActionHead]):
        super().__init__()
        self._paths = list(heads)
        self.heads = nn.ModuleDict({module_name(path): head for path, head in heads.items()})
        self._sizes = [head.size for head in heads.values()]
        self.size = sum(self._sizes)
        self._spreads = [head.spread_size for head in heads.values()]
        self.spread_size = sum(self._spreads)
        self.has_log_probs = all(head.has_log_probs for head in heads.values())
        self.squashes = any(head.squashes for head in heads.values())
        self.metric_names = tuple(
            f"{name}/{path}"
            for path, head in heads.items()
            for name in (_LEAF_LOSS, *head.metric_names)
        )

    def features(self, actions: Tree) -> Tensor:
        """Converts (…) actions by path to (…, size)."""
        return torch.cat([head.features(actions[path]) for path, head in self._leaves()], dim=-1)

    def squash(self, raw: Tensor) -> Tensor:
        """Maps each leaf's part of (…, size) to its head's range."""
        return torch.cat([head.squash(part) for _, head, part in self._parts(raw)], dim=-1)

    def decode(self, outputs: Tensor) -> Tensor:
        """Converts each leaf's part of (…, size)."""
        return torch.cat([head.decode(part) for _, head, part in self._parts(outputs)], dim=-1)

    @property
    def num_drawn(self) -> int:
        """The sum over the leaves."""
        return sum(head.num_drawn for _, head in self._leaves())

    def log_std(self, raw: Tensor) -> Tensor:
        """Maps each leaf's part of (…, spread_size)."""
        parts = torch.split(raw, self._spreads, dim=-1)
        pairs = zip(self._leaves(), parts, strict=True)
        return torch.cat([h.log_std(part) for (_, h), part in pairs if h.spread_size], dim=-1)

    def log_probs(self, outputs: Tensor, actions: Tree) -> Tensor:
        """Returns the (…,) sum of the leaves' log-probabilities."""
        total = torch.zeros(outputs.shape[:-1], device=outputs.device)
        for path, head, part in self._parts(outputs):
            total = total + head.log_probs(part, actions[path])
        return total

    def entropies(self, outputs: Tensor) -> Tensor:
        """Returns the (…,) sum over the leaves that have a spread."""
        total = torch.zeros(outputs.shape[:-1], device=outputs.device)
        for _, head, part in self._parts(outputs):
            if head.spread_size:
                total = total + head.entropies(part)
        return total

    def losses(self, outputs: Tensor, actions: Tree) -> Tensor:
        """Returns the (…,) sum of the leaves' losses."""
        total = torch.zeros(outputs.shape[:-1], device=outputs.device)
        for path, head, part in self._parts(outputs):
            total = total + head.losses(part, actions[path])
        return total

    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tree:
        """Returns (…) actions by path."""
        return {
            path: head.act(part, temperature=temperature, generator=generator)
            for path, head, part in self._parts(outputs)
        }

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns each leaf's part of (…, size)."""
        taken = [head.taken_features(part) for _, head, part in self._parts(outputs)]
        return torch.cat(taken, dim=-1)

    @property
    def are_choices(self) -> Tensor:
        """(size,) of each leaf's features."""
        return torch.cat([head.are_choices for _, head in self._leaves()])

    def metric_sums(self, outputs: Tensor, actions: Tree, mask: Tensor) -> dict[str, Tensor]:
        """Returns each leaf's loss and metrics, summed over valid steps."""
        sums = {}
        for path, head, part in self._parts(outputs):
            sums[f"{_LEAF_LOSS}/{path}"] = head.loss_sum(part, actions[path], mask)
            for name, value in head.metric_sums(part, actions[path], mask).items():
                sums[f"{name}/{path}"] = value
        return sums

    def set_statistics(self, mean: Tree, std: Tree) -> None:
        """Takes note of each leaf's mean and deviation."""
        for path, head in self._leaves():
            head.set_statistics(mean[path], std[path])

    def _leaves(self) -> Iterator[tuple[str, ActionHead]]:
        heads: Any = self.heads.values()
        return zip(self._paths, heads, strict=True)

    def _parts(self, outputs: Tensor) -> Iterator[tuple[str, ActionHead, Tensor]]:
        has_spread = outputs.shape[-1] > self.size  # the last layer's own result has none yet
        spreads = self._spreads if has_spread else [0] * len(self._sizes)
        parts = torch.split(outputs, [*self._sizes, *spreads], dim=-1)
        means, rest = parts[: len(spreads)], parts[len(spreads) :]
        for (path, head), mean, spread in zip(self._leaves(), means, rest, strict=True):
            yield path, head, torch.cat([mean, spread], dim=-1) if spread.shape[-1] else mean
