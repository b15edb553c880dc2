"""The network as an RLModule."""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_dt.episodes import windows
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer

ACTION_PREDS = "action_preds"


class DTTorchRLModule(TorchRLModule):
    """Reads windows of K steps (`rllib_dt.episodes.windows` names the columns).

    `forward_train` returns `action_preds` (B, K, A) or (B, K, n); `forward_inference` and
    `forward_exploration` return `actions` (B, …) for each window's last step, in the
    environment's units. They differ for Discrete actions only: the likeliest, and one drawn.

    Attributes:
        network: the `DecisionTransformer`.
        autocast_dtype: in which `forward_train` computes, or None for fp32.
    """

    autocast_dtype: torch.dtype | None = None

    @override(RLModule)
    def setup(self) -> None:
        config = DTModelConfig.from_dict(self.model_config or {})
        self.network = DecisionTransformer(config, self.observation_space, self.action_space)
        # not part of the loss; DDP would wait for their gradients
        self.network.predict_state.requires_grad_(False)
        self.network.predict_return.requires_grad_(False)

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        device_type = next(self.parameters()).device.type
        with torch.autocast(
            device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        ):
            out = self.network(*_inputs(batch), only_actions=True)
        return {ACTION_PREDS: out.action_preds}

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.network.act(*_inputs(batch), sample=False)}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.network.act(*_inputs(batch), sample=True)}


def _inputs(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        batch[windows.OBSERVATIONS],
        batch[windows.ACTIONS],
        batch[windows.RETURNS_TO_GO],
        batch[windows.TIMESTEPS],
        batch[windows.MASK],
    )
