"""`DecisionTransformerGPT2Model`: the network's backbone under Hugging Face's signature."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_dt.huggingface.configuration import DecisionTransformerConfig
from rllib_dt.huggingface.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    PastKeyValues,
)
from rllib_dt.huggingface.pretrained import PretrainedFacade
from rllib_dt.network.cache import GrowingCache
from rllib_dt.network.transformer import CausalTransformer
from rllib_dt.policy.weight_files import Weights
from rllib_dt.policy.weight_names import to_ours, to_theirs

_ENCODER = "encoder."
_REFUSED = (
    "head_mask", "encoder_hidden_states", "encoder_attention_mask",
)  # fmt: skip


def attended(attention_mask: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Turns (B, L) of 1 and 0 into what each query attends to, as transformers 4.27 has it.

    A query attends to the real tokens up to itself. One that sees padding alone attends alike to
    all of it, where `causal_mask` lets it attend to itself alone.

    Returns:
        (B, 1, Q, L) bool, and (B, Q) bool, True for queries that see padding alone.
    """
    L = attention_mask.shape[1]
    keys = torch.arange(L, device=attention_mask.device)
    is_causal = keys <= keys[L - num_queries :, None]  # (Q, L)
    is_real = attention_mask != 0
    seen = is_causal & is_real[:, None, :]  # (B, Q, L)
    alike = ~seen.any(dim=-1)
    return (seen | (is_causal & alike[..., None])).unsqueeze(1), alike


class _WordEmbedding:
    """The word embedding as `transformers` has it: it can be called, and has a `weight`."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, ids: Tensor) -> Tensor:
        """Maps (…) int to (…, D)."""
        return F.embedding(ids, self.weight)


class DecisionTransformerGPT2Model(PretrainedFacade):
    """GPT-2 without its last layer: token embeddings to hidden states.

    Args:
        config: the settings.
        backbone: the network's, for the encoder of a `DecisionTransformerModel`.
    """

    def __init__(
        self, config: DecisionTransformerConfig, backbone: CausalTransformer | None = None
    ):
        super().__init__(config)
        if backbone is None:
            backbone = CausalTransformer(config.model_config())
            for name, module in backbone.named_modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    depth = 2 * config.n_layer if name.endswith("c_proj") else 1
                    nn.init.normal_(module.weight, std=config.initializer_range / depth**0.5)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
        self.backbone = backbone
        words = torch.randn(config.vocab_size, config.hidden_size) * config.initializer_range
        # a buffer of the backbone, which itself never reads it
        del backbone.wte
        backbone.wte = nn.Parameter(words)

    @property
    def wte(self) -> _WordEmbedding:
        """The word embedding; its weight is (vocab_size, D)."""
        return _WordEmbedding(self.backbone.wte)

    def _own_state(self, weights: Weights) -> tuple[nn.Module, Weights]:
        # alone, or within a whole model
        is_whole = any(name.startswith(_ENCODER + "h.") for name in weights)
        found = {
            name if name.startswith(_ENCODER) else _ENCODER + name: value
            for name, value in weights.items()
            if not is_whole or name.startswith(_ENCODER)
        }
        return self, to_ours(found, self.config.model_config())

    def _their_state(self) -> Weights:
        found = to_theirs(self.state_dict(), self.config.model_config())
        return {name.removeprefix(_ENCODER): value for name, value in found.items()}

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Maps L new tokens, which follow P earlier ones, to hidden states.

        Args:
            input_ids: (B, L) int, rows of the word embedding; or give `inputs_embeds`.
            past_key_values: keys and values of the P tokens: an earlier output's, tuples by layer,
                or a cache of `transformers`. They are not changed.
            attention_mask: (B, P + L), 1 where real; all real by default.
            token_type_ids: (B, L) int, rows of the word embedding that are added.
            position_ids: (B, L) int, rows of the position embedding; P, …, P + L - 1 by default.
            inputs_embeds: (B, L, D).
            use_cache, output_attentions, output_hidden_states, return_dict: what to return;
                the config's by default.
            head_mask, encoder_hidden_states, encoder_attention_mask: not supported.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds` are given, a mask has
                another shape, or something is given that is not supported.
        """
        given = (head_mask, encoder_hidden_states, encoder_attention_mask)
        for name, value in zip(_REFUSED, given, strict=True):
            if value is not None:
                raise ValueError(f"{name} is not supported; leave it out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = inputs_embeds if inputs_embeds is not None else self._words(input_ids)
        B, L, _ = x.shape
        if token_type_ids is not None:
            x = x + self._words(token_type_ids.view(-1, L))
        past = PastKeyValues(past_key_values if past_key_values is not None else ())
        P = past.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(P, P + L, device=x.device)[None]
        if attention_mask is None:
            attention_mask = torch.ones(B, P + L, device=x.device)
        if attention_mask.shape != (B, P + L):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, wanted {(B, P + L)}: a "
                "number for each earlier and each new token"
            )
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = GrowingCache(past)
        mask, alike = attended(attention_mask, L)
        out = self.backbone(
            x,
            mask,
            position_ids.view(-1, L),
            cache,
            output_hidden_states=self.wants("output_hidden_states", output_hidden_states),
            output_attentions=self.wants("output_attentions", output_attentions),
            alike=alike,
        )
        found = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=out.last_hidden_state,
            past_key_values=PastKeyValues(cache.layers) if use_cache else None,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return found if self.wants("return_dict", return_dict) else found.to_tuple()

    def _words(self, ids: Tensor | None) -> Tensor:
        assert ids is not None
        return self.wte(ids)

    def get_input_embeddings(self) -> _WordEmbedding:
        """Returns the word embedding; its weight is (vocab_size, D)."""
        return self.wte
