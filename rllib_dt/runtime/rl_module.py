"""The network as an RLModule."""

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor, nn

from rllib_dt.episodes import windows
from rllib_dt.network.cache import RollingCache
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer

ACTION_PREDS = "action_preds"


class DTTorchRLModule(TorchRLModule):
    """Reads windows of K steps (`rllib_dt.episodes.windows` names the columns).

    `forward_train` returns `action_preds` (B, K, A) or (B, K, n); `forward_inference` and
    `forward_exploration` return `actions` (B, …) for each window's last step, in the
    environment's units. They differ for Discrete actions only: the likeliest, and one drawn.

    With `attention="window"` and the columns `slots` and `new_steps` in the batch, only the new
    steps are computed, and their keys and values stay in this module, by slot. They are no part of
    its state, and are forgotten when it takes one on.

    Attributes:
        network: the `DecisionTransformer`.
        cache_version: changes when what the module holds of running episodes becomes void.
        autocast_dtype: in which `forward_train` computes, or None for fp32.
    """

    autocast_dtype: torch.dtype | None = None
    cache_version: int = 0
    _cache: RollingCache | None = None

    @override(RLModule)
    def setup(self) -> None:
        config = DTModelConfig.from_dict(self.model_config or {})
        self.network = DecisionTransformer(config, self.observation_space, self.action_space)
        # not part of the loss; DDP would wait for their gradients
        self.network.predict_state.requires_grad_(False)
        self.network.predict_return.requires_grad_(False)
        self._train_predictions: Callable[..., Tensor] = self._action_preds

    @override(nn.Module)
    def train(self, mode: bool = True) -> "DTTorchRLModule":
        # RLlib sets the mode at every call, and torch then walks through every part
        if self.training is mode and self.network.training is mode:
            return self
        return super().train(mode)

    def compile_training(self, **settings: Any) -> None:
        """Compiles what `forward_train` computes: one graph, for the batch's shape as it comes.

        Args:
            settings: `torch.compile`'s `backend`, `mode`, …
        """
        self._train_predictions = torch.compile(
            self._action_preds, fullgraph=True, dynamic=False, **settings
        )

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {ACTION_PREDS: self._train_predictions(*_inputs(batch))}

    def _action_preds(self, *inputs: Tensor) -> Tensor:
        if self.autocast_dtype is None:
            return self.network(*inputs, only_actions=True).action_preds
        with torch.autocast(inputs[0].device.type, self.autocast_dtype):
            return self.network(*inputs, only_actions=True).action_preds

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self._act(batch, sample=False)}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self._act(batch, sample=True)}

    @override(TorchRLModule)
    def set_state(self, state: Any) -> None:
        super().set_state(state)
        self._cache = None
        self.cache_version += 1

    def _act(self, batch: dict[str, Any], sample: bool) -> Tensor:
        if windows.SLOTS not in batch:
            return self.network.act(*_inputs(batch), sample=sample)
        slots, new_steps = batch[windows.SLOTS], batch[windows.NEW_STEPS]
        cache = self._cache_for(int(slots.max()) + 1)
        inputs = _inputs(batch)
        steps = batch[windows.MASK].shape[1] - 1
        actions: Tensor | None = None
        for step in range(steps):
            # those that are behind catch up, the last step is everybody's
            rows = slice(None) if step == steps - 1 else new_steps >= steps - step
            pair = (column[rows, step : step + 2] for column in inputs)
            actions = self.network.step(cache, slots[rows], *pair, sample=sample)
        assert actions is not None
        return actions

    def _cache_for(self, num_slots: int) -> RollingCache:
        if self._cache is None:
            device = next(self.parameters()).device
            self._cache = RollingCache(self.network.config, num_slots, device)
        elif num_slots > self._cache.num_slots:
            self._cache = self._cache.grown(self.network.config, num_slots)
        return self._cache


def _inputs(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        batch[windows.OBSERVATIONS],
        batch[windows.ACTIONS],
        batch[windows.RETURNS_TO_GO],
        batch[windows.TIMESTEPS],
        batch[windows.MASK],
    )
