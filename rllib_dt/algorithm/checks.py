"""Checks a `DTConfig` before anything is built."""

import math
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

from ray.rllib.utils.schedules.scheduler import Scheduler

from rllib_dt.formats import canonical, steps
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


def check_spaces(config: "DTConfig") -> None:
    """Refuses missing spaces, and spaces that the network does not support."""
    if config.observation_space is None or config.action_space is None:
        config.refuse(
            "neither an environment nor spaces are given; set environment(env=…), or "
            "environment(observation_space=…, action_space=…) to train without one"
        )
        return
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
    _check_number(config, "return_scale", lambda v: v > 0, "positive", optional=True)
    _check_number(config, "warmup_steps", lambda v: v >= 0, "at least 0")
    _check_number(config, "weight_decay", lambda v: v >= 0, "at least 0")
    _check_number(config, "top_fraction", lambda v: 0 < v <= 1, "in (0, 1]", optional=True)
    _check_number(config, "gamma", lambda v: 0 < v <= 1, "in (0, 1]")
    _check_number(config, "pool_reuse", lambda v: v > 0, "positive")
    _check_number(
        config, "validation_fraction", lambda v: 0 < v < 1, "between 0 and 1", optional=True
    )
    for name in ("pool_capacity_steps", "pool_capacity_bytes"):
        _check_number(
            config,
            name,
            lambda v: v >= 1 and v == int(v),
            "a whole number of at least 1",
            optional=True,
        )
    if config.validation_fraction is not None and config.validation_input is not None:
        config.refuse("give either validation_fraction or validation_input, not both")
    for name in ("dataset_num_iters_per_learner", "validation_interval"):
        _check_number(config, name, lambda v: v >= 1 and v == int(v), "a whole number, at least 1")
    if config.torch_compile_learner and (
        config.torch_compile_learner_what_to_compile == "complete_update"
    ):
        config.refuse(
            "torch_compile_learner_what_to_compile='complete_update' would compile RLlib's loop "
            "as well; leave it at 'forward_train'"
        )
    Scheduler.validate(
        fixed_value_or_schedule=config.lr, setting_name="lr", description="learning rate"
    )
    for name, allowed in (
        ("precision", ("fp32", "bf16")),
        ("incomplete", ("error", "drop", "keep")),
    ):
        if getattr(config, name) not in allowed:
            config.refuse(f"{name}={getattr(config, name)!r} is not one of {allowed}")


def check_evaluation(config: "DTConfig") -> None:
    """Refuses invalid settings of evaluation."""
    for target in config.target_returns if config.target_returns is not None else ():
        _check_number(config, "target_returns", lambda v: True, "finite numbers", value=target)
    if config.target_returns is not None and not config.target_returns:
        config.refuse("target_returns is empty; give at least one, or None")
    if config.score_reference is not None:
        finite = all(isinstance(v, Real) and math.isfinite(v) for v in config.score_reference)
        if len(config.score_reference) != 2 or not finite or len(set(config.score_reference)) < 2:
            config.refuse(
                f"score_reference={config.score_reference} must be two different numbers, the "
                "returns of a random policy and of an expert"
            )
    asked = (config.evaluation_duration, config.evaluation_duration_unit)
    if any(value in _UNFIT_FOR_EVALUATION for value in asked):
        config.refuse(
            f"evaluation_duration={asked[0]!r} {asked[1]}: only a number of episodes for each "
            "target is supported, since a cut episode has no return"
        )
    if str(config.gym_env_vectorize_mode).lower() not in ("sync", "async"):
        config.refuse(
            f"gym_env_vectorize_mode={config.gym_env_vectorize_mode!r}: wanted 'sync' or 'async'"
        )


def _check_number(
    config: "DTConfig",
    name: str,
    test: Callable[[Any], bool],
    wanted: str,
    *,
    value: Any = None,
    optional: bool = False,
) -> None:
    """Refuses `value`, by default the setting `name`, unless it is a finite number that passes."""
    value = getattr(config, name) if value is None else value
    if optional and value is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not test(value):
        config.refuse(f"{name}={value!r} must be {wanted}")
