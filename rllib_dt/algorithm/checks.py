"""Checks a `DTConfig` before anything is built."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from ray.rllib.utils.schedules.scheduler import Scheduler

from rllib_dt.algorithm.inputs import are_paths, check_inputs
from rllib_dt.formats import canonical, steps
from rllib_dt.reading.offline_data import DTOfflineData
from rllib_dt.spaces.leaves import (
    UnsupportedSpaceError,
    check_action_space,
    check_observation_space,
)

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

_COLUMNS = {*steps.REQUIRED, *steps.OPTIONAL, *canonical.EPISODE_COLUMNS}
"""The columns that readers know by name; others are ignored."""

_UNFIT_FOR_EVALUATION = ("auto", "timesteps")
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_SMALLEST_FLOAT32 = float(np.finfo(np.float32).tiny)


def check_spaces(config: "DTConfig") -> None:
    """Refuses missing spaces, and spaces that the network does not support."""
    if config.observation_space is None or config.action_space is None:
        config.refuse(
            "neither an environment nor spaces are given; set environment(env=…), or "
            "environment(observation_space=…, action_space=…) to train without one"
        )
        return
    frames = config.frame_stack
    if frames is not None and (
        not isinstance(config.observation_space, gym.spaces.Box)
        or config.observation_space.shape[:1] != (frames,)
    ):
        config.refuse(
            f"offline_data(frame_stack={frames}) needs observations with {frames} frames in the "
            f"first axis, but the space is {config.observation_space}; wrap the environment in "
            f"gymnasium.wrappers.FrameStackObservation(env, {frames})"
        )
    try:
        check_observation_space(config.observation_space)
        check_action_space(config.action_space)
    except UnsupportedSpaceError as error:
        config.refuse(str(error))


def check_model(config: "DTConfig") -> None:
    """Refuses network settings that no network can be built from."""
    try:
        config.dt_model_config.validate()
    except (TypeError, ValueError) as error:
        config.refuse(f"rl_module(model_config=…): {error}")


def check_training(config: "DTConfig") -> None:
    """Refuses invalid settings of data and training."""
    if not config.is_offline:
        config.refuse("offline_data(input_=…) must be a path or a list of paths")
    if not _is_subclass(config.offline_data_class, DTOfflineData):
        config.refuse(
            f"offline_data_class={config.offline_data_class!r} is no subclass of "
            "rllib_dt.reading.offline_data.DTOfflineData, which DT draws its windows from"
        )
    for name in config.input_read_schema or {}:
        if name not in _COLUMNS:
            config.refuse(
                f"offline_data(input_read_schema=…) has no column {name!r}; its keys are RLlib's "
                f"names, its values yours: {sorted(_COLUMNS)}"
            )
    if config.normalize_actions:
        config.refuse(
            "normalize_actions=True would scale actions twice: this module already returns them in "
            "the environment's units. For recorded actions in [-1, 1] set "
            "offline_data(actions_in_input_normalized=True)"
        )
    normalized = config.actions_in_input_normalized
    if not (normalized is None or isinstance(normalized, bool | np.bool_)):
        config.refuse(f"actions_in_input_normalized={normalized!r} must be True, False or None")
    betas = config.adam_betas
    if not isinstance(betas, list) or len(betas) != 2 or not all(map(_is_share, betas)):
        config.refuse(f"adam_betas={betas!r} must be two numbers in [0, 1)")
    clip = config.clip_rewards
    if not (clip is None or isinstance(clip, bool) or (_is_number(clip) and clip > 0)):
        config.refuse(f"clip_rewards={clip!r} must be True, False, None or a positive number")
    if config.validation_fraction is not None and config.validation_input is not None:
        config.refuse("give either validation_fraction or validation_input, not both")
    if config.torch_compile_learner and (
        config.torch_compile_learner_what_to_compile == "complete_update"
    ):
        config.refuse(
            "torch_compile_learner_what_to_compile='complete_update' would compile RLlib's loop "
            "as well; leave it at 'forward_train'"
        )
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            config.refuse(f"{name}={getattr(config, name)!r} is not one of {allowed}")


def check_numbers(config: "DTConfig") -> None:
    """Refuses numbers of the wrong type, sign or size; RLlib's own checks expect numbers."""
    _check_all(config, RULES)
    for name in BOOLEANS:
        if not isinstance(getattr(config, name), bool | np.bool_):
            config.refuse(f"{name}={getattr(config, name)!r} must be True or False")
    _check_lr(config)
    for name, value in (config.input_read_schema or {}).items():
        if not isinstance(value, str):
            config.refuse(f"input_read_schema[{name!r}]={value!r} must be the name of a column")
    if config.validation_input is not None:
        if not are_paths(config.validation_input):
            config.refuse(f"validation_input={config.validation_input!r} must be a path or a list")
        else:
            check_inputs("validation_input", config.validation_input)


def check_evaluation(config: "DTConfig") -> None:
    """Refuses invalid settings of evaluation."""
    _check_targets(config)
    reference = config.score_reference
    if reference is not None and not (
        isinstance(reference, list)
        and len(reference) == 2
        and all(map(_is_number, reference))
        and reference[0] != reference[1]
    ):
        config.refuse(
            f"score_reference={reference!r} must be two different numbers, the returns of a random "
            "policy and of an expert"
        )
    asked = (config.evaluation_duration, config.evaluation_duration_unit)
    if any(value in _UNFIT_FOR_EVALUATION for value in asked):
        config.refuse(
            f"evaluation_duration={asked[0]!r} {asked[1]}: only a number of episodes for each "
            "target is supported, since a cut episode has no return"
        )
    if config.evaluation_interval:
        try:
            config.return_rule.check_acting()
        except ValueError as error:
            config.refuse(str(error))
    if config.evaluation_interval and evaluation_env(config) is None:
        config.refuse(
            f"evaluation_interval={config.evaluation_interval} needs an environment; set "
            "environment(env=…), or offline_data(validation_fraction=…) to validate without one"
        )
    if str(config.gym_env_vectorize_mode).lower() not in ("sync", "async"):
        config.refuse(
            f"gym_env_vectorize_mode={config.gym_env_vectorize_mode!r}: wanted 'sync' or 'async'"
        )


def evaluation_env(config: "DTConfig") -> Any:
    """Returns the environment of evaluations: `evaluation_config` may name another."""
    overrides = config.evaluation_config
    if isinstance(overrides, Mapping):
        return overrides.get("env", config.env)
    return config.env if overrides is None else overrides.env


@dataclass(frozen=True)
class _Rule:
    """A number that a setting must be.

    Attributes:
        wanted: what to say if it is not.
        test: whether a finite number is right.
        whole: only whole numbers are; 2.0 becomes 2.
        optional: None is right too.
    """

    wanted: str
    test: Callable[[float], bool]
    whole: bool = False
    optional: bool = False


_POSITIVE = _Rule("positive, within float32", lambda v: 0 < v <= _LARGEST_FLOAT32)
_AT_LEAST_0 = _Rule("at least 0, within float32", lambda v: 0 <= v <= _LARGEST_FLOAT32)
_SCALE = _Rule(
    f"positive, from {_SMALLEST_FLOAT32:g} to {_LARGEST_FLOAT32:g}",
    lambda v: _SMALLEST_FLOAT32 <= v <= _LARGEST_FLOAT32,
)
_SECONDS = _Rule("positive, at most 1e9 seconds", lambda v: 0 < v <= 1e9)
_SHARE = _Rule("in (0, 1]", lambda v: 0 < v <= 1)
_COUNT = _Rule("a whole number from 1 to 2^31 - 1", lambda v: 1 <= v < 2**31, whole=True)
_COUNT_OR_0 = _Rule("a whole number from 0 to 2^31 - 1", lambda v: 0 <= v < 2**31, whole=True)
_CAPACITY = _Rule("a whole number from 1 to 2^63 - 1", lambda v: 1 <= v < 2**63, whole=True)
_SEED = _Rule("a whole number from 0 to 2^32 - 1", lambda v: 0 <= v < 2**32, whole=True)


def _or_none(rule: _Rule) -> _Rule:
    return replace(rule, wanted=f"{rule.wanted}, or None", optional=True)


_TRAINING = {
    "return_scale": _or_none(_SCALE),
    "warmup_steps": _COUNT_OR_0,
    "weight_decay": _AT_LEAST_0,
    "grad_clip": _or_none(_POSITIVE),
    "gamma": _SHARE,
    "train_batch_size_per_learner": _COUNT,
    "dataset_num_iters_per_learner": _COUNT,
    "num_learners": _COUNT_OR_0,
    "seed": _or_none(_SEED),
    "time_limit": _or_none(_COUNT),
    "top_fraction": _or_none(_SHARE),
    "pool_reuse": _POSITIVE,
    "max_expansion": _Rule("at least 1", lambda v: v >= 1),
    "frame_stack": _or_none(_COUNT),
    "pool_capacity_steps": _or_none(_CAPACITY),
    "pool_capacity_bytes": _or_none(_CAPACITY),
    "validation_fraction": _or_none(_Rule("between 0 and 1", lambda v: 0 < v < 1)),
    "validation_interval": _COUNT,
    "min_time_s_per_iteration": _or_none(
        _Rule("at least 0, at most 1e9 seconds", lambda v: 0 <= v <= 1e9)
    ),
}
_EVALUATION = {
    "evaluation_interval": _or_none(_COUNT_OR_0),
    "evaluation_duration": _COUNT,
    "evaluation_num_env_runners": _COUNT_OR_0,
    "evaluation_sample_timeout_s": _or_none(_SECONDS),
    "num_envs_per_env_runner": _COUNT,
}
RULES = _TRAINING | _EVALUATION
"""What each number among the settings must be."""

BOOLEANS = (
    "clip_actions",
    "delayed_reward",
    "evaluation_parallel_to_training",
    "explore",
    "join_files",
    "restart_failed_env_runners",
    "torch_compile_learner",
    "validate_env_runners_after_construction",
)
CHOICES: dict[str, tuple[Any, ...]] = {
    "weight_decay_on": ("all", "matrices"),
    "grad_clip_by": ("global_norm", "norm", "value"),
    "precision": ("fp32", "bf16"),
    "incomplete": ("error", "drop", "keep"),
    "duplicates": ("keep", "drop", "error"),
}
"""The words that each of these settings may be."""


def _check_all(config: "DTConfig", rules: Mapping[str, _Rule]) -> None:
    for name, rule in rules.items():
        value = getattr(config, name)
        if value is None and rule.optional:
            continue
        is_right = _is_number(value) and rule.test(value)
        if not is_right or (rule.whole and value != int(value)):
            config.refuse(f"{name}={value!r} must be {rule.wanted}")
        elif rule.whole and not isinstance(value, int):
            setattr(config, name, int(value))


def _check_lr(config: "DTConfig") -> None:
    """A learning rate, or a schedule of them, must not be negative: that would be ascent."""
    if isinstance(config.lr, list) and not all(isinstance(p, list) for p in config.lr):
        config.refuse(f"lr={config.lr!r}: a schedule is a list of [steps, rate]")
    if isinstance(config.lr, list):
        steps: list[Any] = [pair[0] if pair else None for pair in config.lr]
        if not all(map(_is_number, steps)) or steps[0] != 0 or sorted(set(steps)) != steps:
            config.refuse(f"lr={config.lr!r}: a schedule's steps must be numbers that rise from 0")
            return
    Scheduler.validate(
        fixed_value_or_schedule=config.lr, setting_name="lr", description="learning rate"
    )
    rates = [pair[1] for pair in config.lr] if isinstance(config.lr, list) else [config.lr]
    for rate in rates:
        if not _is_number(rate) or not 0 <= rate <= _LARGEST_FLOAT32:
            config.refuse(
                f"lr={config.lr!r}: a learning rate must be a number, at least 0, within float32"
            )


def _check_targets(config: "DTConfig") -> None:
    targets = config.target_returns
    if targets is None:
        return
    if not isinstance(targets, list) or not targets:
        config.refuse("target_returns is empty; give at least one number, or None")
        return
    for target in targets:
        if not _is_number(target) or abs(target) > _LARGEST_FLOAT32:
            config.refuse(f"target_returns={target!r} must be finite numbers, within float32")
            return
    if len({float(target) for target in targets}) < len(targets):
        config.refuse(f"target_returns={targets} names a target twice")


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_subclass(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)


def _is_share(value: float) -> bool:
    return _is_number(value) and 0 <= value < 1
