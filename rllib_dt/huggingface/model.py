"""`DecisionTransformerModel`: the network under Hugging Face's signature."""

from typing import Any

import torch
from torch import Tensor, nn

from rllib_dt.episodes.windows import Window
from rllib_dt.huggingface.backbone import DecisionTransformerGPT2Model
from rllib_dt.huggingface.configuration import DecisionTransformerConfig
from rllib_dt.huggingface.outputs import DecisionTransformerOutput
from rllib_dt.huggingface.pretrained import PretrainedFacade
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.folders import box_spaces
from rllib_dt.policy.weight_files import Weights
from rllib_dt.policy.weight_names import to_ours, to_theirs
from rllib_dt.policy.weight_values import is_own


class DecisionTransformerModel(PretrainedFacade):
    """Predicts actions, states and returns, in the network's units.

    Attributes:
        network: the `DecisionTransformer` that does the work.
    """

    def __init__(self, config: DecisionTransformerConfig):
        super().__init__(config)
        self.network = DecisionTransformer(
            config.model_config(), *box_spaces(config.state_dim, config.act_dim)
        )
        # in a tuple, since its only module is the network's
        self._encoder = (DecisionTransformerGPT2Model(config, self.network.backbone),)

    @property
    def encoder(self) -> DecisionTransformerGPT2Model:
        """The backbone."""
        return self._encoder[0]

    def _own_state(self, weights: Weights) -> tuple[nn.Module, Weights]:
        return self.network, to_ours(weights, self.network.config)

    def _their_state(self) -> Weights:
        state = self.network.state_dict()
        kept = {name: value for name, value in state.items() if not is_own(name)}
        return to_theirs(kept, self.network.config)

    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        rewards: Tensor | None = None,
        returns_to_go: Tensor | None = None,
        timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> DecisionTransformerOutput | tuple[Tensor, Tensor, Tensor]:
        """Predicts each step's action from its state and everything before it.

        Args:
            states: (B, K, state_dim).
            actions: (B, K, act_dim).
            rewards: not read.
            returns_to_go: (B, K, 1) or (B, K).
            timesteps: (B, K) int; those past the table use its last row.
            attention_mask: (B, K), 1 where real; all real by default. Where a window is wholly
                padded, as in the page's example, each token attends alike to all tokens up to its
                own, as in transformers 4.27; later versions differ among each other.
            output_hidden_states, output_attentions, return_dict: what to return; the config's by
                default.

        Returns:
            The predictions, or with `return_dict=False` states, actions and returns.

        Raises:
            ValueError: `returns_to_go` or `timesteps` are missing.
        """
        if returns_to_go is None or timesteps is None:
            raise ValueError("returns_to_go and timesteps are needed: (B, K, 1) and (B, K)")
        B, K = states.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(B, K, device=states.device)
        tokens = self.network.embed(
            Window(
                observations=states,
                actions=actions,
                returns_to_go=returns_to_go.reshape(B, K, 1),
                timesteps=timesteps,
                mask=attention_mask,
            )
        )  # (B, 3K, D)
        out: Any = self.encoder(
            inputs_embeds=tokens,
            attention_mask=attention_mask.repeat_interleave(3, dim=1),
            position_ids=torch.zeros(1, 3 * K, dtype=torch.long, device=tokens.device),
            use_cache=False,
            output_attentions=self.wants("output_attentions", output_attentions),
            output_hidden_states=self.wants("output_hidden_states", output_hidden_states),
            return_dict=True,
        )
        x = out.last_hidden_state.view(B, K, 3, -1)
        network = self.network
        assert network.predict_state is not None
        assert network.predict_return is not None
        found = DecisionTransformerOutput(
            state_preds=network.predict_state(x[:, :, 2]),
            action_preds=network.action_head.squash(network.predict_action(x[:, :, 1])),
            return_preds=network.predict_return(x[:, :, 2]),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            last_hidden_state=out.last_hidden_state,
        )
        if self.wants("return_dict", return_dict):
            return found
        return found.state_preds, found.action_preds, found.return_preds
