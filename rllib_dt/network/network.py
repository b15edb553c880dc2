"""The Decision Transformer (Chen et al. 2021, arXiv:2106.01345); its backbone is `transformer.py`.

Each step has three tokens. A token is a linear embedding of its value plus an embedding of its
timestep. The action a_t is predicted from the token of s_t, which attends to itself and to
everything before it:

    R1  s1  a1  R2  s2  a2  R3  s3  a3      a3 is not taken yet; no predicted action sees it
        │           │           │
        ▼           ▼           ▼
        a1          a2          a3          predicted

Values enter and leave in the environment's units: normalisation, action bounds and return scale
are buffers of the network, so they are part of every checkpoint, weight sync and export.

Letters: B batch, K context steps, L = 3K tokens, Q queries, D width, H heads, A action features,
S observation size, P cached tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_dt.episodes.windows import Window
from rllib_dt.network.cache import GrowingCache, RollingCache
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.transformer import CausalTransformer, causal_mask
from rllib_dt.spaces.composites import check_spaces, encoded_leaves, image_leaves, number_leaves
from rllib_dt.spaces.encoders import Convolutions, OwnEncoder, encoder_of_space, leaf_encoder
from rllib_dt.spaces.exact import ExactBuffers, at_least_float32
from rllib_dt.spaces.heads import head_of_space
from rllib_dt.spaces.trees import ACTION_MASK, by_leaf, leaves
from rllib_dt.types import Tree

LAST_TOKEN = LAST_STEP = slice(-1, None)


@dataclass(frozen=True, kw_only=True)
class DTOutput:
    """Predictions in the environment's units, under Hugging Face's names.

    Attributes:
        action_preds: (B, K, A) for a Box; (B, K, n) logits for a Discrete space. (B, 1, …)
            with `last_only`.
        action_outputs: (B, K, size), the same predictions as outputs of the action head, which
            its `losses` and `act` take.
        state_preds: (B, K, S), the next observation's numbers; None if only actions were asked
            for, or if observations are not numbers.
        return_preds: (B, K, 1), the next return-to-go; None if only actions were asked for, or if
            the network is not given returns.
        state_outputs, return_outputs: the same two, normalised.
        max_return_outputs: (B, K, 1), the largest return-to-go that the data show from each step,
            divided by `return_scale`; None if the network does not estimate it.
        last_hidden_state: (B, Q, D), of the tokens that were computed.
        hidden_states: see `BackboneOutput`.
        attentions: see `BackboneOutput`.
    """

    action_preds: Tensor
    action_outputs: Tensor
    state_preds: Tensor | None
    return_preds: Tensor | None
    state_outputs: Tensor | None
    return_outputs: Tensor | None
    max_return_outputs: Tensor | None
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ReturnEstimate(nn.Module):
    """Estimates a return from what precedes a step's return-to-go, and from its state.

    Its inputs are the hidden state of a_{t-1}, which has seen everything before R_t, and the token
    of s_t, which has not been through the blocks.
    """

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, before: Tensor, state: Tensor) -> Tensor:
        """Maps two (B, K, D) to (B, K, 1), in returns divided by `return_scale`."""
        estimate: Tensor = self.out(F.gelu(self.hidden(torch.cat([before, state], dim=-1))))
        return estimate


class DecisionTransformer(ExactBuffers):
    """Predicts actions from returns-to-go, observations and past actions.

    Args:
        config: the network's settings.
        observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict or Tuple
            of them. A leaf `action_mask` says which actions are legal; others get no probability.
        action_space: the same.

    Attributes:
        action_head: the `ActionHead` of the action space.
        foreign_settings: settings of the Hugging Face folder that the network came from which
            only their model reads; exports keep them.

    Raises:
        UnsupportedSpaceError: on any other space.
        ValueError: on settings that no network can be built from.
    """

    exact = ("observation_mean", "observation_std", "return_scale")
    observation_mean: Tensor
    observation_std: Tensor
    return_scale: Tensor

    def __init__(
        self, config: DTModelConfig, observation_space: gym.Space, action_space: gym.Space
    ):
        super().__init__()
        config.validate()
        self.config = config
        self.observation_space, self.action_space = observation_space, action_space
        check_spaces(observation_space, action_space, config.choice)
        D, S = config.hidden_size, 0
        # of each leaf that is normalised, its numbers among all S
        self._numbers: dict[str, slice] = {}
        counts = number_leaves(observation_space, config.image_encoder, config.choice)
        for path, count in counts.items():
            self._numbers[path] = slice(S, S + count)
            S += count
        self._has_mask = ACTION_MASK in leaves(observation_space, config.ignore)
        self.action_head = head_of_space(
            action_space, tanh=config.action_tanh, distribution=config.action_distribution
        )
        self.embed_timestep = nn.Embedding(config.max_ep_len, D)
        self.embed_return = nn.Linear(1, D) if config.condition_on_return else None
        self.embed_state = encoder_of_space(
            encoded_leaves(observation_space, config.ignore),
            D,
            config.image_encoder,
            config.encoders,
            config.normalize_images,
        )
        self._images: list[str] = []  # those that are normalised
        if config.normalize_images:
            self._images = image_leaves(observation_space, config.image_encoder, config.choice)
        self.embed_action = nn.Linear(self.action_head.size, D)
        self.embed_ln = nn.LayerNorm(D) if config.embed_layer_norm else nn.Identity()
        self.backbone = CausalTransformer(config)
        self.predict_state = nn.Linear(D, S) if S else None
        self.predict_action = nn.Linear(D, self.action_head.size)
        self.predict_return = nn.Linear(D, 1) if config.condition_on_return else None
        T = config.tokens_per_step
        self._state_tokens, self._action_tokens = slice(T - 2, None, T), slice(T - 1, None, T)
        self.estimate_return = None
        if config.estimates_return:
            with torch.random.fork_rng(devices=[]):  # the other initial weights stay the same
                self.estimate_return = ReturnEstimate(D)
        self.predict_log_std = None
        if self.action_head.spread_size:
            with torch.random.fork_rng(devices=[]):
                self.predict_log_std = nn.Linear(D, self.action_head.spread_size)
        # the number of tokens that a token attends to, itself included; None for all
        self.band = T * config.context_length if config.attention == "window" else None
        self.register_buffer("observation_mean", torch.zeros(S))
        self.register_buffer("observation_std", torch.ones(S))
        self.register_buffer("return_scale", torch.ones(()))
        self.foreign_settings: dict[str, Any] = {}
        self.register_load_state_dict_pre_hook(_accept_former_names)  # type: ignore[no-untyped-call]
        self._initialize()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; statistics and bounds are never less than float32."""
        return self.embed_timestep.weight.dtype

    def _initialize(self) -> None:
        # normal weights, zero biases; projections into the residual stream shrink with depth
        # (Radford et al. 2019, §2.3), as in transformers' `_init_weights`
        std, depth = self.config.initializer_range, self.config.n_layer
        own = {id(m) for e in self.modules() if isinstance(e, OwnEncoder) for m in e.modules()}
        for name, module in self.named_modules():
            if id(module) in own:  # a user's encoder begins as its constructor leaves it
                continue
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith("c_proj")
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * depth) if residual else std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def set_normalization(
        self,
        observation_mean: Tree,
        observation_std: Tree,
        return_scale: float,
        action_mean: Tree = None,
        action_std: Tree = None,
    ) -> None:
        """Sets the normalisation of inputs.

        Args:
            observation_mean, observation_std: of an observation's shape, a tree of the leaves that
                are normalised (of an image, a number is its deviation); ignored if none are.
            return_scale: positive.
            action_mean, action_std: of an action's shape, the unit of unbounded components.
        """
        for path, numbers in self._numbers.items():
            for unit, given in (
                (self.observation_mean, observation_mean),
                (self.observation_std, observation_std),
            ):
                unit[numbers] = torch.as_tensor(by_leaf(given)[path]).reshape(-1)
        for path in self._images:
            mean, std = (by_leaf(given)[path] for given in (observation_mean, observation_std))
            encoder = leaf_encoder(self.embed_state, path)
            assert isinstance(encoder, Convolutions)
            encoder.set_statistics(torch.as_tensor(mean), torch.as_tensor(std))
        self.return_scale.fill_(return_scale)
        if action_mean is not None and action_std is not None:
            self.action_head.set_statistics(action_mean, action_std)

    def embed_observations(self, observations: Tree) -> Tensor:
        """Embeds (B, K, …) observations as (B, K, D), without their timesteps."""
        embedded: Tensor = self.embed_state(self.encoder_inputs(observations))
        return embedded

    def embed(self, window: Window, states: Tensor | None = None) -> Tensor:
        """Embeds (B, K, …) values as (B, L, D) tokens; without returns, L = 2K.

        Args:
            window: (B, K) steps.
            states: (B, K, D), its embedded observations, if they are known.

        Raises:
            ValueError: the window holds observations of fewer steps, and no `states` are given.
        """
        # every step past the table uses its last row, in training as in evaluation
        time = self.embed_timestep(window.timesteps.clamp(0, self.config.max_ep_len - 1))
        states = self.embed_observations(window.observations) if states is None else states
        if not torch.compiler.is_compiling() and states.shape[1] != window.timesteps.shape[1]:
            raise ValueError(
                f"the window has {window.timesteps.shape[1]} steps, but observations of "
                f"{states.shape[1]}. A module of your own that reads whole windows when it acts "
                "returns False as `remembers_states`"
            )
        parts = []  # in this order, in which gradients are added up
        if self.embed_return is not None:
            parts.append(self._embedded_returns(window.returns_to_go) + time)
        parts.append(states + time)
        actions = self.action_head.features(window.actions)
        parts.append(self.embed_action(actions.to(self.dtype)) + time)
        tokens = torch.stack(parts, dim=2).flatten(1, 2)  # 3 × (B, K, D) -> (B, L, D)
        embedded: Tensor = self.embed_ln(tokens)
        return embedded

    def _embedded_returns(self, returns_to_go: Tensor) -> Tensor:
        """Embeds (B, K, 1) returns, in reward units, without their timesteps."""
        assert self.embed_return is not None
        returns = returns_to_go.to(self.return_scale.dtype) / self.return_scale
        if self.estimate_return is not None:  # what is estimated is put in its place later
            returns = torch.where(returns.isfinite(), returns, 0.0)
        embedded: Tensor = self.embed_return(returns.to(self.dtype))
        return embedded

    def encoder_inputs(self, observations: Tree) -> Tree:
        """Returns (B, K, …) observations as `embed_state` reads them.

        Leaves that are numbers are replaced by normalised ones, (B, K, S).
        """
        if not self._numbers:
            return observations
        if not isinstance(observations, Mapping):
            return self._unitless(observations, slice(None))
        normalized = dict(observations)
        for path, part in self._numbers.items():
            normalized[path] = self._unitless(normalized[path], part)
        return normalized

    def _unitless(self, numbers: Tensor, part: slice) -> Tensor:
        mean, std = self.observation_mean[part], self.observation_std[part]
        numbers = numbers.to(mean.dtype)
        numbers = numbers if numbers.ndim == 3 else numbers.reshape(*numbers.shape[:2], -1)
        return ((numbers - mean) / std).to(self.dtype)

    def normalized_numbers(self, observations: Tree) -> Tensor:
        """Returns the numbers of (B, K, …) observations as the network reads them: (B, K, S)."""
        normalized = by_leaf(self.encoder_inputs(observations))
        return torch.cat([normalized[path] for path in self._numbers], dim=-1)

    @property
    def reads_only_numbers(self) -> bool:
        """Whether an observation is nothing but numbers that are normalised."""
        read = encoded_leaves(self.observation_space, self.config.ignore)
        return set(read) == set(self._numbers)

    def action_outputs(self, tokens: Tensor, window: Window, steps: slice) -> Tensor:
        """Computes the head's outputs; forbidden actions get no probability.

        Args:
            tokens: (B, Q, D), the state tokens of Q of the window's steps.
            window: (B, K) steps.
            steps: which Q steps.
        """
        outputs = self.action_head.squash(self.predict_action(tokens))
        if self.predict_log_std is not None:
            spread = self.action_head.log_std(self.predict_log_std(tokens))
            outputs = torch.cat([outputs, spread], dim=-1)
        if not self._has_mask:
            return outputs
        legal = window.observations[ACTION_MASK][:, steps] != 0
        # where a mask allows nothing, as in padding, it is disregarded
        forbidden = ~legal & legal.any(dim=-1, keepdim=True)
        return outputs.masked_fill(forbidden, torch.finfo(outputs.dtype).min)

    def forward(
        self,
        observations: Tree,
        actions: Tree,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
        **options: Any,
    ) -> DTOutput:
        """Predicts every step's action: `predict` for separate tensors.

        Args:
            observations: (B, K, …), in the environment's units.
            actions: (B, K, A) or, Discrete, (B, K) int, in the environment's units.
            returns_to_go: (B, K, 1), in reward units.
            timesteps: (B, K) int, 0 where padded.
            mask: (B, K), True or 1 where real; padding may be on either side; all real by default.
            options: those of `predict`.
        """
        if mask is None:
            mask = torch.ones(timesteps.shape, dtype=torch.bool, device=timesteps.device)
        window = Window(
            observations=observations,
            actions=actions,
            returns_to_go=returns_to_go,
            timesteps=timesteps,
            mask=mask,
        )
        return self.predict(window, **options)

    def predict(
        self,
        window: Window,
        *,
        only_actions: bool = False,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        states: Tensor | None = None,
    ) -> DTOutput:
        """Predicts every step's action from its observation and everything before it.

        Args:
            window: (B, K) steps.
            only_actions: skip states and returns, and with them two thirds of the last block.
            last_only: predict the last step's action only.
            output_hidden_states, output_attentions: return them too.
            states: (B, K, D), the embedded observations, if they are known; with `last_only`, the
                window may then lack those of earlier steps.
        """
        tokens = self.embed(window, states)
        real = window.mask.bool().repeat_interleave(
            self.config.tokens_per_step, dim=1
        )  # (B, K) -> (B, L)
        queries = LAST_TOKEN if last_only else self._state_tokens if only_actions else None
        if queries is not None:  # no state attends to the last step's action
            tokens, real = tokens[:, :-1], real[:, :-1]
        out = self.backbone(
            tokens,
            causal_mask(real, tokens.shape[1], self.band),
            self._position_ids(tokens),
            queries=queries,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        x = out.last_hidden_state
        state_preds = return_preds = states = returns = estimates = None
        action_tokens = x
        if queries is None:
            action_tokens = x[:, self._state_tokens]
            if self.predict_state is not None:
                states = at_least_float32(self.predict_state(x[:, self._action_tokens]))
                state_preds = states * self.observation_std + self.observation_mean
            if self.predict_return is not None:
                returns = at_least_float32(self.predict_return(x[:, self._action_tokens]))
                return_preds = returns * self.return_scale
            if self.estimate_return is not None:
                estimates = self._estimates(x, tokens, window.mask)
        steps = LAST_STEP if last_only else slice(None)
        outputs = self.action_outputs(action_tokens, window, steps)
        return DTOutput(
            action_preds=self.action_head.decode(outputs),
            action_outputs=outputs,
            state_preds=state_preds,
            return_preds=return_preds,
            state_outputs=states,
            return_outputs=returns,
            max_return_outputs=estimates,
            last_hidden_state=x,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    @torch.no_grad()
    def act(
        self,
        window: Window,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tree:
        """Picks the action of each window's last step: (B, A) or, Discrete, (B,); a tree.

        That step's value in `window.actions` has no effect. Dropout is on in train mode only.
        `ActionHead.act` documents `temperature` and `generator`.
        """
        return self.act_and_ask(window, temperature=temperature, generator=generator)[0]

    @torch.no_grad()
    def act_and_ask(
        self,
        window: Window,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tree, Tensor]:
        """Picks actions as `act` does; also returns what was asked for.

        Where the last step's return-to-go is infinite, the largest return that the data show takes
        its place (`DTModelConfig.estimates_return`).

        Returns:
            The actions, and (B,) the last step's returns-to-go, in reward units.
        """
        outputs, asked = self.last_outputs(window)
        actions = self.action_head.act(outputs[:, 0], temperature=temperature, generator=generator)
        return actions, asked

    @torch.no_grad()
    def last_outputs(self, window: Window, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the head's outputs at the last step, (B, 1, size), and its (B,) return-to-go.

        With an estimate of returns, the tokens before R_t are computed first and kept, so that no
        token is computed twice. `states` are those of `predict`.
        """
        asked = window.returns_to_go[:, -1, 0]
        if self.estimate_return is None:
            return self.predict(window, last_only=True, states=states).action_outputs, asked
        T = self.config.tokens_per_step
        tokens = self.embed(window, states)[:, :-1]
        real = window.mask.bool().repeat_interleave(T, dim=1)[:, :-1]
        before, cache = tokens[:, : 1 - T], GrowingCache()
        hidden = torch.zeros_like(tokens[:, :1])
        if before.shape[1]:
            mask = causal_mask(real[:, : 1 - T], before.shape[1], self.band)
            out = self.backbone(before, mask, self._position_ids(before), cache, queries=LAST_TOKEN)
            hidden = out.last_hidden_state * window.mask[:, -2:-1, None]
        asked = self._asked(asked, hidden, tokens[:, -1:])
        rest = self._with_return(tokens[:, 1 - T :], asked, window.timesteps[:, -1:])
        out = self.backbone(
            rest,
            causal_mask(real, T - 1, self.band),
            self._position_ids(rest),
            cache,
            queries=LAST_TOKEN,
        )
        return self.action_outputs(out.last_hidden_state, window, LAST_STEP), asked

    def _estimates(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Estimates (B, K, 1) returns of a whole window, from (B, L, D) hidden states and tokens.

        The trunk is not trained by them: fixed targets get the same policy with and without.
        """
        assert self.estimate_return is not None
        T = self.config.tokens_per_step
        hidden = x[:, self._action_tokens].detach()  # a_1 … a_K
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        is_known = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        estimates: Tensor = self.estimate_return(
            before * is_known[..., None], tokens[:, T - 2 :: T].detach()
        )
        return at_least_float32(estimates)

    def _asked(self, given: Tensor, hidden: Tensor, state: Tensor) -> Tensor:
        """Returns (B,) returns-to-go: those given, or estimated where they are infinite."""
        assert self.estimate_return is not None
        estimated = at_least_float32(self.estimate_return(hidden, state))[:, 0, 0]
        return torch.where(given.isinf(), estimated * self.return_scale, given)

    def _with_return(self, tokens: Tensor, returns: Tensor, timesteps: Tensor) -> Tensor:
        """Puts (B,) returns-to-go in place of the first of a step's (B, Q, D) tokens."""
        time = self.embed_timestep(timesteps.clamp(0, self.config.max_ep_len - 1))
        token = self.embed_ln(self._embedded_returns(returns[:, None, None]) + time)
        return torch.cat([token, tokens[:, 1:]], dim=1)

    @torch.no_grad()
    def step(
        self,
        cache: RollingCache,
        slots: Tensor,
        window: Window,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tree:
        """Picks the next action of B running episodes, computing 3 new tokens for each.

        Needs `attention="window"`; the actions are those predicted from the whole episodes.

        Args:
            cache: this network's cache, which holds the episodes' earlier steps.
            slots: (B,) int, each episode's slot in the cache.
            window: (B, 2), the previous step and the current one. The previous step is masked where
                an episode begins, which clears the slot. The current step's action is never read.
            temperature, generator: see `ActionHead.act`.

        Returns:
            (B, A) or, Discrete, (B,); a tree.
        """
        return self.step_and_ask(
            cache, slots, window, temperature=temperature, generator=generator
        )[0]

    @torch.no_grad()
    def step_and_ask(
        self,
        cache: RollingCache,
        slots: Tensor,
        window: Window,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tree, Tensor]:
        """Picks actions as `step` does; also returns what was asked for, as `act_and_ask`."""
        outputs, asked = self.step_outputs(cache, slots, window)
        actions = self.action_head.act(outputs[:, 0], temperature=temperature, generator=generator)
        return actions, asked

    @torch.no_grad()
    def step_outputs(
        self, cache: RollingCache, slots: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Returns what `last_outputs` does, from new steps of B running episodes; see `step`."""
        # the new tokens: a of the previous step, R and s of the current one
        T = self.config.tokens_per_step
        tokens = self.embed(window)[:, T - 1 : 2 * T - 1]
        asked = window.returns_to_go[:, -1, 0]
        mask = cache.begin_step(slots, window.timesteps[:, 1], begins=~window.mask[:, 0])
        if self.estimate_return is not None:
            cache.take(slice(0, 1))
            before = tokens[:, :1]
            out = self.backbone(before, mask[:, :, :1], self._position_ids(before), cache)
            hidden = out.last_hidden_state * window.mask[:, :1, None]
            asked = self._asked(asked, hidden, tokens[:, -1:])
            tokens = self._with_return(tokens[:, 1:], asked, window.timesteps[:, 1:])
            mask = mask[:, :, 1:]
            cache.take(slice(1, None))
        out = self.backbone(tokens, mask, self._position_ids(tokens), cache, queries=LAST_TOKEN)
        return self.action_outputs(out.last_hidden_state, window, LAST_STEP), asked

    def _position_ids(self, tokens: Tensor) -> Tensor:
        # row 0 for every token, as in Hugging Face's model
        return torch.zeros(1, tokens.shape[1], dtype=torch.long, device=tokens.device)


def current_names(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Renames weights saved before 0.2.0, when the action head was called `codec`."""
    former = f"{prefix}codec."
    return {
        f"{prefix}action_head.{name.removeprefix(former)}" if name.startswith(former) else name: v
        for name, v in state.items()
    }


def _accept_former_names(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    renamed = current_names(state, prefix)
    state.clear()
    state.update(renamed)
