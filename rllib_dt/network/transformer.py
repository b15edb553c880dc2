"""The backbone: a causal transformer like GPT-2, the same function as Hugging Face's.

Letters: B batch, L tokens, Q queries, D width, H heads, P cached tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_dt.network.activations import activation
from rllib_dt.network.cache import KeyValueCache
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.dropout import Dropout, dropout


def causal_mask(attention_mask: Tensor, num_queries: int, band: int | None = None) -> Tensor:
    """Turns (B, L) bool, True where real, into (B, 1, Q, L), True where a query may attend.

    The queries are the last Q of the L tokens. A token attends to itself and to the real tokens
    before it; with a `band`, only to the last `band` tokens, itself included:

        causal   x . . . .      band = 3   x . . . .
                 x x . . .                 x x . . .
                 x x x . .                 x x x . .
                 x x x x .                 . x x x .
                 x x x x x                 . . x x x

    A padded token attends to itself too, which keeps the softmax of an all-padded row finite.
    """
    L = attention_mask.shape[1]
    keys = torch.arange(L, device=attention_mask.device)
    queries = keys[L - num_queries :, None]  # (Q, 1)
    seen = keys <= queries
    if band is not None:
        seen &= keys > queries - band
    allowed = seen & attention_mask[:, None, :]  # (B, Q, L)
    return (allowed | (keys == queries)).unsqueeze(1)


class Attention(nn.Module):
    """Multi-head self-attention; computes queries only for the tokens asked for."""

    def __init__(self, config: DTModelConfig, layer_index: int):
        super().__init__()
        self.layer_index = layer_index
        self.n_head = config.n_head
        self.dropout = config.attn_pdrop
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.resid_dropout = Dropout(config.resid_pdrop)
        scale = (config.hidden_size // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= layer_index + 1
        self.scale = scale

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        queries: slice | None,
        cache: KeyValueCache | None,
        need_weights: bool,
        alike: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Maps (B, L, D) to (B, Q, D); also returns the attention weights if it computed them.

        Queries where `alike`, (B, Q) bool, is True attend alike to all that the mask allows.
        """
        q, k, v = (self._heads(part) for part in self._project(x, queries))
        if alike is not None:
            q = q.masked_fill(alike[:, None, :, None], 0.0)  # all scores are 0
        if cache is not None:
            k, v = cache.extend(self.layer_index, k, v)
        weights = None
        p = self.dropout if self.training else 0.0
        if need_weights or (p and x.device.type == "cpu" and not torch.compiler.is_compiling()):
            # torch has no fused CPU kernel with dropout, and its plain one is slower than this
            weights = dropout(self._weights(q, k, mask), p, self.training)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=p, scale=self.scale
            )
        y = y.transpose(1, 2).flatten(2)  # (B, H, Q, D/H) -> (B, Q, D)
        return self.resid_dropout(self.c_proj(y)), weights

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)) * self.scale  # (B, H, Q, P+L)
        return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)

    def _project(self, x: Tensor, queries: slice | None) -> tuple[Tensor, ...]:
        if queries is None:
            qkv: Tensor = self.c_attn(x)
            return qkv.chunk(3, dim=-1)
        D = x.shape[-1]
        w, b = self.c_attn.weight, self.c_attn.bias
        kv = F.linear(x, w[D:], b[D:])
        return F.linear(x[:, queries], w[:D], b[:D]), *kv.chunk(2, dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        return x.view(B, L, self.n_head, D // self.n_head).transpose(1, 2)  # (B, H, L, D/H)


class MLP(nn.Module):
    """The two-layer perceptron of a block."""

    def __init__(self, config: DTModelConfig):
        super().__init__()
        inner = config.n_inner or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, inner)
        self.c_proj = nn.Linear(inner, config.hidden_size)
        self.act = activation(config.activation_function)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        # a Linear's output in two dimensions is no view, whose gradient an activation in place
        # would have to copy
        hidden = self.act(self.c_fc(x.flatten(0, -2)))
        out: Tensor = self.dropout(self.c_proj(hidden).view_as(x))
        return out


class Block(nn.Module):
    """A pre-norm transformer block like GPT-2's."""

    def __init__(self, config: DTModelConfig, layer_index: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer_index)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        queries: slice | None = None,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
        alike: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Maps (B, L, D) to (B, Q, D); also returns the attention weights if it computed them."""
        y, weights = self.attn(self.ln_1(x), mask, queries, cache, need_weights, alike)
        x = (x if queries is None else x[:, queries]) + y
        return x + self.mlp(self.ln_2(x)), weights


@dataclass(frozen=True, kw_only=True)
class BackboneOutput:
    """The result of a pass through the backbone.

    Attributes:
        last_hidden_state: (B, Q, D), after the last layer norm; Q = L unless `queries` was given.
        hidden_states: n_layer + 1 tensors: the embeddings, then each block's output; the last one
            is `last_hidden_state`.
        attentions: n_layer tensors (B, H, L, P+L).
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CausalTransformer(nn.Module):
    """Maps embeddings to hidden states: the same function as `DecisionTransformerGPT2Model`."""

    wte: Tensor

    def __init__(self, config: DTModelConfig):
        super().__init__()
        self.wpe = None
        if config.n_positions is not None:
            self.wpe = nn.Embedding(config.n_positions, config.hidden_size)
            # never read: GPT-2's word embedding, kept for a bitwise export
            self.register_buffer("wte", torch.zeros(1, config.hidden_size))
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(
        self,
        inputs_embeds: Tensor,
        mask: Tensor,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        queries: slice | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        alike: Tensor | None = None,
    ) -> BackboneOutput:
        """Maps L new tokens, which follow the P tokens of a cache, to hidden states.

        Args:
            inputs_embeds: (B, L, D).
            mask: (B, 1, L, P+L), True where a token may attend; see `causal_mask`.
            position_ids: (B, L) or (1, L) int, rows of the position embedding if there is one.
            cache: keys and values of earlier tokens; those of the new tokens are added.
            queries: the tokens to compute in the last block; all by default.
            alike: (B, L) bool, True for tokens that attend alike to all that the mask allows; not
                together with `queries`.
        """
        x = inputs_embeds
        if self.wpe is not None:
            x = x + self.wpe(position_ids)
        x = self.drop(x)
        hidden, attentions = [x], []
        for i, block in enumerate(self.h):
            last = i == len(self.h) - 1 and queries is not None
            x, weights = block(
                x,
                mask[:, :, queries] if last else mask,
                queries if last else None,
                cache,
                output_attentions,
                alike,
            )
            hidden.append(x)
            attentions.append(weights)
        x = self.ln_f(x)
        return BackboneOutput(
            last_hidden_state=x,
            hidden_states=(*hidden[:-1], x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
