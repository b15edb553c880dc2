"""`DTTorchRLModule`: the network as an RLModule."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import nn

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.averages import AveragedWeights
from rllib_dt.learning.distributions import distribution_of
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.context import ASKED_RETURNS, steps_from_columns
from rllib_dt.policy.policy import Policy
from rllib_dt.spaces.trees import flatten, unflatten
from rllib_dt.types import Batch, State

STATE_OUTPUTS, RETURN_OUTPUTS, MAX_RETURN_OUTPUTS = (
    "state_outputs",
    "return_outputs",
    "max_return_outputs",
)


class DTTorchRLModule(TorchRLModule):
    """The Decision Transformer as an RLModule that reads windows of K steps.

    `rllib_dt.episodes.windows` names the columns of a batch. `forward_train` returns
    `action_dist_inputs` (B, K, size), the action head's outputs, and with `predicts_next` also
    `state_outputs` and `return_outputs`; see `DTOutput`. `forward_inference` and
    `forward_exploration` return `actions` (B, …) for each window's last step, in the environment's
    units, nested like the action space; with `estimates_return` also `asked_returns` (B,), its
    return-to-go. Where actions have probabilities, both return `action_dist_inputs` (B, size) too.
    The first takes the likeliest action; the second draws one, and returns its `action_logp` (B,),
    the log-probability at temperature 1 (of numbers with `action_distribution="squashed_gaussian"`
    the log-density, of actions in [-1, 1]).

    With the columns of `NewSteps` in the batch, only new steps are computed (`attention="window"`)
    or only new images embedded ("context"): what is known of earlier ones stays in this module, by
    slot. It is not part of its state, and is dropped when it loads one.

    Attributes:
        network: the `DecisionTransformer`.
        temperature: what `forward_exploration` draws with; see `ActionHead.act`.
        generator: its draws; torch's global one by default.
        predicts_next: `forward_train` predicts the next states and returns as well.
        autocast_dtype: the dtype that `forward_train` computes in, or None for fp32.
        averages: the averaged weights, which its state then holds; None without an average.
    """

    temperature: float = 1.0
    generator: torch.Generator | None = None
    predicts_next: bool = False
    autocast_dtype: torch.dtype | None = None
    averages: AveragedWeights | None = None

    @override(RLModule)
    def setup(self) -> None:
        config = DTModelConfig.from_dict(self.model_config or {})
        self.network = DecisionTransformer(config, self.observation_space, self.action_space)
        # not part of the loss, unless the learner says so; DDP would wait for their gradients
        network = self.network
        for head in (network.predict_state, network.predict_return, network.estimate_return):
            if head is not None:
                head.requires_grad_(False)
        if network.action_head.has_log_probs:
            self.action_dist_cls = distribution_of(self.action_space)
        self._policy = Policy(self.network)
        self._train_outputs: Callable[[Window], Batch] = self._outputs

    @property
    def cache_version(self) -> int:
        """A number that changes when the memory of running episodes becomes invalid."""
        return self._policy.version

    @property
    def remembers_states(self) -> bool:
        """Whether it remembers embedded observations, and is to be given new ones only.

        A subclass that reads whole windows in evaluation returns False.
        """
        return self._policy.remembers

    @override(nn.Module)
    def train(self, mode: bool = True) -> "DTTorchRLModule":
        # RLlib sets the mode at every call, and torch would then walk through every submodule
        if self.training is mode and self.network.training is mode:
            return self
        super().train(mode)
        return self

    def compile_training(self, **settings: Any) -> None:
        """Compiles the computation of `forward_train` to one graph of static shapes.

        Args:
            settings: `torch.compile`'s `backend`, `mode`, …
        """
        self._train_outputs = torch.compile(
            self._outputs, fullgraph=True, dynamic=False, **settings
        )

    @override(TorchRLModule)
    def _forward_train(self, batch: Batch, **kwargs: Any) -> Batch:
        return self._train_outputs(Window.from_columns(batch))

    def _outputs(self, window: Window) -> Batch:
        if self.autocast_dtype is None:
            output = self.network.predict(window, only_actions=not self.predicts_next)
        else:
            with torch.autocast(window.mask.device.type, self.autocast_dtype):
                output = self.network.predict(window, only_actions=not self.predicts_next)
        outputs = {
            Columns.ACTION_DIST_INPUTS: output.action_outputs,
            STATE_OUTPUTS: output.state_outputs,
            RETURN_OUTPUTS: output.return_outputs,
            MAX_RETURN_OUTPUTS: output.max_return_outputs,
        }
        return {name: values for name, values in outputs.items() if values is not None}

    @override(TorchRLModule)
    def _forward_inference(self, batch: Batch, **kwargs: Any) -> Batch:
        return self._actions(batch, temperature=0.0)

    @override(TorchRLModule)
    def _forward_exploration(self, batch: Batch, **kwargs: Any) -> Batch:
        found = self._actions(batch, temperature=self.temperature)
        if Columns.ACTION_DIST_INPUTS in found:
            acted = flatten(self.action_space, found[Columns.ACTIONS])
            outputs = found[Columns.ACTION_DIST_INPUTS]
            found[Columns.ACTION_LOGP] = self.network.action_head.log_probs(outputs, acted)
        return found

    def _actions(self, batch: Batch, *, temperature: float) -> Batch:
        try:
            steps = steps_from_columns(batch)
        except KeyError as error:
            raise ValueError(
                f"the batch has {sorted(batch)} and no {error}: a Decision Transformer needs a "
                "window of the episode, its actions, returns-to-go, timesteps and mask as well as "
                "its observations. rllib_dt.load_policy(checkpoint).actor(target_return) remembers "
                "them for you; so does the env-to-module connector that DTConfig builds"
            ) from error
        actions = self._policy.act(steps, temperature=temperature, generator=self.generator)
        found: Batch = {Columns.ACTIONS: unflatten(self.action_space, actions)}
        if self.network.action_head.has_log_probs:
            found[Columns.ACTION_DIST_INPUTS] = self._policy.outputs
        if self._policy.asked is not None:
            found[ASKED_RETURNS] = self._policy.asked
        return found

    @override(TorchRLModule)
    def get_state(self, *args: Any, **kwargs: Any) -> State:
        """Returns the weights, averaged if they are: what evaluates, acts and is exported."""
        if self.averages is None:
            return super().get_state(*args, **kwargs)
        with self.averages.applied():
            return copy.deepcopy(super().get_state(*args, **kwargs))

    @override(TorchRLModule)
    def set_state(self, state: State) -> None:
        super().set_state(state)
        if self.averages is not None:
            self.averages.reset()
        self._policy.forget()
