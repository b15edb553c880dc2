"""DTConfig: RLlib's settings, and the Decision Transformer's beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from rllib_dt.algorithm.checks import (
    check_evaluation,
    check_model,
    check_spaces,
    check_training,
)
from rllib_dt.algorithm.environment import needs_environment
from rllib_dt.algorithm.inputs import absolute_inputs, are_paths, check_inputs
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.formats.assembly import IncompletePolicy
from rllib_dt.formats.paths import absolute
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.rl_module import DTTorchRLModule
from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.folders import pretrained_settings
from rllib_dt.reading.credentials import Sealed
from rllib_dt.reading.offline_data import DTOfflineData
from rllib_dt.rollout.connector import DecisionTransformerContext
from rllib_dt.rollout.env_runner import DTEnvRunner


class DTConfig(AlgorithmConfig):
    """Builds a `DT`, the Decision Transformer as an offline algorithm.

    `train_batch_size_per_learner` counts windows of K steps (with `attention="window"` the same
    number of steps, in fewer and longer windows), `dataset_num_iters_per_learner` the updates of
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

    input_: Any
    input_filesystem: Any
    input_filesystem_kwargs: Any
    observation_space: gym.Space | None
    action_space: gym.Space | None

    def __init__(self, algo_class: type | None = None):
        if algo_class is None:
            from rllib_dt.algorithm.dt import DT as algo_class  # noqa: N811  DT needs DTConfig
        super().__init__(algo_class=algo_class)
        self._is_online = False
        self.offline_data_class = DTOfflineData
        self.env_runner_cls = DTEnvRunner
        self.dataset_num_iters_per_learner = 100
        # actions leave the module in the environment's units and within its bounds
        self.normalize_actions = False
        self.clip_actions = False
        self.explore = False
        self.gamma = 1.0
        self.lr: float | list[Any] = 1e-4
        self._train_batch_size_per_learner = 64
        self.grad_clip = 0.25
        self.grad_clip_by = "global_norm"
        self.evaluation_duration = 10
        # with RLlib's default of 60 s, an environment's first error would stall the run
        self.delay_between_env_runner_restarts_s = 1.0
        # ours; the methods' docstrings describe them
        self.warmup_steps = 0
        self.weight_decay = 1e-4
        self.adam_betas = [0.9, 0.999]
        self.return_scale: float | None = None
        self.delayed_reward = False
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.target_returns: list[float] | None = None
        self.score_reference: list[float] | None = None
        self.time_limit: int | None = None
        self.incomplete: IncompletePolicy = "error"
        self.top_fraction: float | None = None
        self.pool_capacity_steps: int | None = None
        self.pool_capacity_bytes: int | None = None
        self.pool_reuse = 1.0
        self.validation_fraction: float | None = None
        self.validation_input: Any = None
        self.validation_interval = 1
        self._paths_as_given: dict[str, Any] = {}
        self._settings_taken_from: str | None = None

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        warmup_steps: int = NotProvided,
        weight_decay: float = NotProvided,
        adam_betas: Sequence[float] = NotProvided,
        return_scale: float | None = NotProvided,
        delayed_reward: bool = NotProvided,
        precision: Literal["fp32", "bf16"] = NotProvided,
        **kwargs: Any,
    ) -> "DTConfig":
        """Sets how to train.

        Args:
            warmup_steps: updates over which the learning rate rises linearly.
            weight_decay: AdamW's, on every parameter, norms and biases included.
            adam_betas: AdamW's.
            return_scale: divides returns-to-go; None takes the largest absolute episode return of
                the data.
            delayed_reward: treat all reward as given at the episode's end, in training and
                in evaluation: the return-to-go stays constant.
            precision: "fp32", or "bf16" for mixed precision by autocast.
            kwargs: RLlib's: `lr` (a number, or a schedule [[0, lr], [steps, lr], …] over the
                steps trained on all learners), `train_batch_size_per_learner` (windows),
                `grad_clip`, `gamma` (1.0: undiscounted), …
        """
        super().training(**kwargs)
        if adam_betas is not NotProvided:
            self.adam_betas = _as_list(adam_betas)
        return self._set(
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            return_scale=return_scale,
            delayed_reward=delayed_reward,
            precision=precision,
        )

    @override(AlgorithmConfig)
    def offline_data(
        self,
        *,
        time_limit: int | None = NotProvided,
        incomplete: IncompletePolicy = NotProvided,
        top_fraction: float | None = NotProvided,
        pool_capacity_steps: int | None = NotProvided,
        pool_capacity_bytes: int | None = NotProvided,
        pool_reuse: float = NotProvided,
        validation_fraction: float | None = NotProvided,
        validation_input: Any = NotProvided,
        validation_interval: int = NotProvided,
        **kwargs: Any,
    ) -> "DTConfig":
        """Sets where the data is and how to read it.

        Args:
            time_limit: the environment's step limit, to split D4RL files without `timeouts`;
                by default that of the environment's registration, if it has one.
            incomplete: what to do with an episode that has no end, whose returns-to-go cannot be
                known: "error" (the default), "drop" it, or "keep" it as if it ended there.
            top_fraction: train on the best episodes only, up to this fraction of all steps (the
                data of %BC); None for all.
            pool_capacity_steps: the most steps to hold in memory at a time, on each node. Larger
                data is streamed: read again and again, with a part of it held.
            pool_capacity_bytes: the same in bytes; if neither is given, half of the smallest
                object store among the cluster's nodes.
            pool_reuse: for streamed data, how often a step is trained, on average, each time that
                it is read; larger values read less.
            validation_fraction: the share of episodes to keep back from training, to report the
                loss on them under `validation`. `seed` and the episodes' names decide which; at
                least one is kept back.
            validation_input: a path or a list of paths to validate on instead.
            validation_interval: the number of `train()` calls between two validations.
            kwargs: RLlib's: `input_` (a path or a list), `input_read_schema`,
                `actions_in_input_normalized`, `input_filesystem` and `input_filesystem_kwargs`
                (never written to checkpoints or results, see docs/cluster.md),
                `dataset_num_iters_per_learner` (updates in one `train()`), …
        """
        super().offline_data(**kwargs)
        self._set(
            time_limit=time_limit,
            incomplete=incomplete,
            top_fraction=top_fraction,
            pool_capacity_steps=pool_capacity_steps,
            pool_capacity_bytes=pool_capacity_bytes,
            pool_reuse=pool_reuse,
            validation_fraction=validation_fraction,
            validation_input=validation_input,
            validation_interval=validation_interval,
        )
        self._seal()
        given = {
            "input_": kwargs.get("input_", NotProvided),
            "validation_input": validation_input,
        }
        for name, paths in given.items():
            if paths is NotProvided:
                continue
            self._paths_as_given.pop(name, None)
            if are_paths(paths):
                check_inputs(paths)
                self._paths_as_given[name] = paths
        for name, paths in self._paths_as_given.items():
            # on a file system of its own, a path stays as it is
            own = self.input_filesystem is not None
            setattr(self, name, paths if own else absolute_inputs(paths))
        return self

    @override(AlgorithmConfig)
    def evaluation(
        self,
        *,
        target_returns: Sequence[float] | None = NotProvided,
        score_reference: Sequence[float] | None = NotProvided,
        **kwargs: Any,
    ) -> "DTConfig":
        """Sets how to evaluate.

        Args:
            target_returns: the returns to ask the policy for; None takes the data's best and
                median.
            score_reference: (random, expert) returns, to report the normalised score
                100 · (return - random) / (expert - random) as well.
            kwargs: RLlib's: `evaluation_interval`, `evaluation_duration` (episodes for each
                target), `evaluation_num_env_runners`, …
        """
        super().evaluation(**kwargs)
        for name, value in (
            ("target_returns", target_returns),
            ("score_reference", score_reference),
        ):
            if value is not NotProvided:
                setattr(self, name, _as_list(value))
        return self

    @override(AlgorithmConfig)
    def rl_module(
        self, *, model_config: DTModelConfig | Mapping[str, Any] = NotProvided, **kwargs: Any
    ) -> "DTConfig":
        """Sets the network; `model_config` is a `DTModelConfig` or a dict of its settings."""
        if model_config is not NotProvided:
            # a dict, since Tune finds grid searches in dicts only
            if isinstance(model_config, DTModelConfig):
                model_config = dataclasses.asdict(model_config)
            kwargs["model_config"] = dict(model_config)
            if model_config.get("pretrained"):
                kwargs["model_config"]["pretrained"] = absolute(model_config["pretrained"])
        super().rl_module(**kwargs)
        return self

    def _seal(self) -> None:
        self.input_filesystem = Sealed.seal(self.input_filesystem)
        self.input_filesystem_kwargs = Sealed.seal(self.input_filesystem_kwargs or None)

    def _set(self, **settings: Any) -> "DTConfig":
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @property
    def dt_model_config(self) -> DTModelConfig:
        """The network's settings, complete."""
        return DTModelConfig.from_dict(self.model_config)

    @property
    def windows_per_learner(self) -> int:
        """Windows that each learner draws for an update.

        `train_batch_size_per_learner`; with `attention="window"`, as many segments as hold the same
        number of steps.
        """
        model = self.dt_model_config
        steps: int = self.train_batch_size_per_learner * model.context_length
        return max(1, round(steps / model.window_length))

    @property
    def return_rule(self) -> ReturnRule:
        """How rewards become returns-to-go."""
        return ReturnRule(
            gamma=self.gamma, delayed=self.delayed_reward, clip_rewards=self.clip_rewards
        )

    def refuse(self, problem: str) -> None:
        """Raises a ValueError, unless the user has told RLlib not to."""
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
        context = DecisionTransformerContext(
            pipeline.observation_space,
            pipeline.action_space,
            model=self.dt_model_config,
            rule=self.return_rule,
            default_target=self.target_returns[0] if self.target_returns else None,
        )
        if self.add_default_connectors_to_env_to_module_pipeline:
            pipeline.insert_before("NumpyToTensor", context)
        else:
            pipeline.append(context)
        return pipeline

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Refuses settings that cannot work.

        Spaces that the environment is to give are checked by `DT.setup`, which makes it once.
        """
        self._seal()  # in case they came by `update_from_dict`
        if not needs_environment(self):
            check_spaces(self)
        super().validate()
        self._take_settings_from_pretrained()
        check_model(self)
        check_training(self)
        check_evaluation(self)

    @override(AlgorithmConfig)
    def _validate_offline_settings(self) -> None:
        # RLlib would refuse a config without spaces, even if there is an environment to give them
        if not needs_environment(self):
            super()._validate_offline_settings()

    def _take_settings_from_pretrained(self) -> None:
        given = self.dt_model_config
        # taken once and kept: a checkpoint restores without the folder
        if given.pretrained is None or given.pretrained == self._settings_taken_from:
            return
        settings = pretrained_settings(given.pretrained) | given.overrides()
        self._model_config = dataclasses.asdict(DTModelConfig.from_dict(settings))
        self._settings_taken_from = given.pretrained


def _as_list(value: Any) -> Any:
    """Tuples as lists, which compare equal after a checkpoint; anything else unchanged."""
    return list(value) if isinstance(value, tuple) else value
