"""One update of the network without RLlib, and what several benchmarks need around it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rllib_dt import DecisionTransformer
from rllib_dt.episodes.windows import Window

Step = Callable[[], object]
"""One update."""


def full_windows(
    windows: int, context: int, observations: int, actions: int, device: torch.device | str = "cpu"
) -> Window:
    """Returns random windows without padding."""
    g = torch.Generator().manual_seed(0)
    shape = windows, context
    window = Window(
        observations=torch.randn(*shape, observations, generator=g),
        actions=torch.rand(*shape, actions, generator=g) * 2 - 1,
        returns_to_go=torch.rand(*shape, 1, generator=g),
        timesteps=torch.arange(context).expand(shape),
        mask=torch.ones(shape, dtype=torch.bool),
    )
    return window.map(lambda column: column.to(device))


def action_loss(
    network: DecisionTransformer, window: Window, dtype: torch.dtype | None = None
) -> Tensor:
    """Returns the mean loss of the actions, as a learner computes it.

    Args:
        network: the network.
        window: the batch.
        dtype: of autocast, for the network's pass; None for fp32.
    """
    enabled = dtype is not None
    with torch.autocast(window.mask.device.type, dtype or torch.bfloat16, enabled=enabled):
        out = network.predict(window, only_actions=True)
    total: Tensor = network.action_head.loss_sum(out.action_outputs, window.actions, window.mask)
    return total / window.mask.sum()


def in_training(network: DecisionTransformer) -> DecisionTransformer:
    """Puts a network in train mode; its heads for states and returns are not trained."""
    for head in (network.predict_state, network.predict_return):
        if head is not None:
            head.requires_grad_(False)
    return network.train()


def make_update(
    network: nn.Module,
    loss: Callable[[], Tensor],
    *,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    clip: float = 0.25,
) -> Step:
    """Returns an update: a loss, its gradient, a clip of its norm, a step of fused AdamW.

    Args:
        network: what is trained.
        loss: computes the () loss.
        lr, weight_decay, clip: the paper's for gym, by default.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    return step
