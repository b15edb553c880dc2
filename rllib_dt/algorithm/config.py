"""`DTConfig`: the Decision Transformer's settings as an RLlib `AlgorithmConfig`."""

import dataclasses
import logging
import math
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from rllib_dt.algorithm.checks import (
    check_evaluation,
    check_model,
    check_online,
    check_spaces,
    check_training,
    check_values,
)
from rllib_dt.algorithm.connectors import check_connectors
from rllib_dt.algorithm.environment import awaits_spaces
from rllib_dt.algorithm.inputs import has_inputs
from rllib_dt.algorithm.overrides import check_overrides
from rllib_dt.algorithm.settings import DTSettings
from rllib_dt.algorithm.unused import check_unused
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.objectives import objectives_in
from rllib_dt.learning.rl_module import DTTorchRLModule
from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.folders import pretrained_settings
from rllib_dt.reading.offline_data import DTOfflineData
from rllib_dt.rollout.connector import DecisionTransformerContext, LeaveOut
from rllib_dt.rollout.env_runner import DTEnvRunner
from rllib_dt.types import State

logger = logging.getLogger(__name__)

_SHARED_WITH_TRAINING = (
    "gamma",
    "delayed_reward",
    "clip_rewards",
    "normalize_actions",
    "max_return_expectile",
    "_model_config",
)


class DTConfig(DTSettings):
    """Configures and builds `DT`, the Decision Transformer as an offline algorithm.

    `train_batch_size_per_learner` counts windows of K steps (with `attention="window"`, the same
    number of steps in fewer, longer windows), `dataset_num_iters_per_learner` counts the updates of
    one `train()`, and `evaluation_duration` the episodes for each target return.

    ```python
    config = (
        DTConfig()
        .environment("Hopper-v5")
        .offline_data(input_="data/hopper-medium-replay")
        .rl_module(model_config=DTModelConfig(context_length=20))
        .training(lr=1e-4, warmup_steps=10_000, return_scale=1000.0)
        .evaluation(target_returns=[3600, 1800], evaluation_interval=10)
    )
    algo = config.build_algo()
    ```
    """

    observation_space: gym.Space | None
    action_space: gym.Space | None

    def __init__(self, algo_class: type | None = None):
        if algo_class is None:
            from rllib_dt.algorithm.dt import DT as algo_class  # noqa: N811  DT needs DTConfig
        super().__init__(algo_class=algo_class)
        self._is_online = False
        self.offline_data_class = DTOfflineData
        self.env_runner_cls = DTEnvRunner

    def __setstate__(self, state: State) -> None:
        """Restores pickled settings; those that their version did not have get their defaults."""
        self.__dict__.update({**type(self)().__dict__, **state})

    @property
    def dt_model_config(self) -> DTModelConfig:
        """The network's settings, with defaults filled in."""
        return DTModelConfig.from_dict(self.model_config)

    @property
    def is_without_data(self) -> bool:
        """Whether there is no data, since pretrained weights are only evaluated."""
        return not has_inputs(self.input_) and self.dt_model_config.pretrained is not None

    @property
    @override(AlgorithmConfig)
    def is_offline(self) -> bool:
        """Whether the algorithm reads data, or needs none; RLlib then collects none itself."""
        return bool(super().is_offline) or self.is_without_data

    @property
    def windows_per_learner(self) -> int:
        """The number of windows that each learner draws for one update.

        It is `train_batch_size_per_learner`, or with `attention="window"` the number of segments
        that hold as many steps.
        """
        return self._drawn(self.train_batch_size_per_learner)

    @property
    def windows_at_a_time(self) -> int | None:
        """The number of those windows that are computed at a time; None for all of them."""
        return None if self.micro_batch_size is None else self._drawn(self.micro_batch_size)

    def _drawn(self, windows: int) -> int:
        """Returns how many windows, or segments, hold the steps of windows of K steps."""
        model = self.dt_model_config
        return max(1, round(windows * model.context_length / model.window_length))

    @property
    def reads_outcomes(self) -> bool:
        """Whether an objective reads rewards, terminations and episode returns."""
        return any(kind.reads_outcomes for kind in objectives_in(self))

    @property
    def critic_updates_per_iteration(self) -> int:
        """The critic's updates in one `train()`; each takes far less time than a policy's."""
        return 10 * self.dataset_num_iters_per_learner

    @property
    def critic_iterations(self) -> int:
        """How many of the first iterations learn a critic, and no policy yet."""
        updates = self.critic_updates / self.critic_updates_per_iteration
        return math.ceil(updates) if self.q_weight else 0

    @property
    def return_rule(self) -> ReturnRule:
        """The rule by which rewards become returns-to-go."""
        return ReturnRule(
            gamma=self.gamma, delayed=self.delayed_reward, clip_rewards=self.clip_rewards
        )

    def refuse(self, problem: str) -> None:
        """Raises a ValueError, or logs a warning if the user turned RLlib's validation off."""
        self._value_error(problem)

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=DTTorchRLModule)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type[DTTorchLearner]:
        return DTTorchLearner

    @override(AlgorithmConfig)
    def build_env_to_module_connector(
        self, env: Any = None, spaces: Any = None, device: Any = None
    ) -> ConnectorV2:
        pipeline = super().build_env_to_module_connector(env=env, spaces=spaces, device=device)
        check_connectors(self, pipeline)
        context = DecisionTransformerContext(
            pipeline.observation_space,
            pipeline.action_space,
            model=self.dt_model_config,
            rule=self.return_rule,
            default_target=self.target_returns[0] if self.target_returns else None,
        )
        if self.add_default_connectors_to_env_to_module_pipeline:
            pipeline.insert_before("NumpyToTensor", context)
            if self.dt_model_config.ignore:
                leave_out = LeaveOut(
                    pipeline.observation_space,
                    pipeline.action_space,
                    ignore=self.dt_model_config.ignore,
                )
                pipeline.insert_after("AddObservationsFromEpisodesToBatch", leave_out)
        else:
            pipeline.append(context)
        return pipeline

    @override(AlgorithmConfig)
    def get_evaluation_config_object(self) -> "DTConfig | None":
        """Returns the settings of evaluation; those that training and acting share stay shared."""
        evaluation: DTConfig | None = super().get_evaluation_config_object()
        if evaluation is None:
            return None
        for name in _SHARED_WITH_TRAINING:
            ours, theirs = getattr(self, name), getattr(evaluation, name)
            if ours != theirs:
                logger.warning(
                    "evaluation_config's %s=%r has no effect: the network is asked for what it was "
                    "trained on, %s=%r",
                    name,
                    theirs,
                    name,
                    ours,
                )
                setattr(evaluation, name, ours)
        return evaluation

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Refuses settings that cannot work.

        Spaces that come from the environment are checked in `DT.setup`, which creates it once.
        """
        self.seal()  # in case they were set by `update_from_dict`
        self.make_plain()
        self._take_settings_from_spec()
        check_unused(self)
        if not self.in_evaluation:
            check_overrides(self)
        check_values(self)
        if not awaits_spaces(self):
            check_spaces(self)
        super().validate()
        self._take_settings_from_pretrained()
        self._set_estimate()
        check_model(self)
        if not self.in_evaluation:  # whose `input_` RLlib's users set to "sampler"
            check_training(self)
            check_online(self)
        check_evaluation(self)

    @override(AlgorithmConfig)
    def _validate_offline_settings(self) -> None:
        # RLlib would refuse a config without spaces, even one with an environment that has them
        checked = self
        if awaits_spaces(self):
            checked = self.copy(copy_frozen=False)
            checked.observation_space = checked.action_space = gym.spaces.Discrete(1)
        super(DTConfig, checked)._validate_offline_settings()

    def _take_settings_from_spec(self) -> None:
        """Takes the network's settings from `RLModuleSpec(model_config=…)`, if it has them."""
        given = getattr(self._rl_module_spec, "model_config", None)
        if isinstance(given, DTModelConfig):
            given = given.settings()
        if not given:
            return
        if not isinstance(given, dict):
            self.refuse(f"RLModuleSpec(model_config={given!r}) must be a dict or a DTModelConfig")
        if not self.model_config:
            self._model_config: Any = dict(given)
        elif DTModelConfig.from_dict(given) != self.dt_model_config:
            self.refuse(
                f"RLModuleSpec(model_config={given!r}) differs from rl_module(model_config=…); "
                "give one of them"
            )

    def _set_estimate(self) -> None:
        """Gives the network its estimate of returns if there is an objective for it."""
        if self.max_return_expectile is not None:
            self._model_config = {**self.model_config, "estimates_return": True}

    def _take_settings_from_pretrained(self) -> None:
        given = self.dt_model_config
        explicit = {name: self.model_config[name] for name in given.given}
        # taken once and kept: a checkpoint restores without the folder
        if given.pretrained is None or given.pretrained == self._settings_taken_from:
            return
        if not isinstance(given.pretrained, str):
            self.refuse(f"model_config's pretrained={given.pretrained!r} must be a folder's path")
        try:
            settings = pretrained_settings(given.pretrained) | explicit
        except FileNotFoundError as error:
            raise FileNotFoundError(f"model_config's pretrained: {error}") from error
        self._model_config = dataclasses.asdict(DTModelConfig.from_dict(settings))
        self._settings_taken_from = given.pretrained
