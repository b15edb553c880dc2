"""What each setting may be: numbers, words, booleans, dicts and classes, in one table a kind."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_dt.formats.fragments import LastRow, MissingEnds
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.precision import PRECISIONS
from rllib_dt.learning.rl_module import DTTorchRLModule
from rllib_dt.reading.offline_data import DTOfflineData
from rllib_dt.rollout.env_runner import DTEnvRunner

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
SMALLEST_FLOAT32 = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class _Rule:
    """A number that a setting must be.

    Attributes:
        wanted: what to say if it is not.
        test: whether a finite number is right.
        whole: only whole numbers are; 2.0 becomes 2.
        others: what is right too and no number.
    """

    wanted: str
    test: Callable[[float], bool]
    whole: bool = False
    others: tuple[Any, ...] = ()


_POSITIVE = _Rule("positive, within float32", lambda v: 0 < v <= LARGEST_FLOAT32)
_AT_LEAST_0 = _Rule("at least 0, within float32", lambda v: 0 <= v <= LARGEST_FLOAT32)
_SCALE = _Rule(
    f"positive, from {SMALLEST_FLOAT32:g} to {LARGEST_FLOAT32:g}",
    lambda v: SMALLEST_FLOAT32 <= v <= LARGEST_FLOAT32,
)
_FINITE = _Rule("within float32", lambda v: abs(v) <= LARGEST_FLOAT32)
_SECONDS = _Rule("positive, at most 1e9 seconds", lambda v: 0 < v <= 1e9)
_SECONDS_OR_0 = _Rule("at least 0, at most 1e9 seconds", lambda v: 0 <= v <= 1e9)
_SHARE = _Rule("in (0, 1]", lambda v: 0 < v <= 1)
_COUNT = _Rule("a whole number from 1 to 2^31 - 1", lambda v: 1 <= v < 2**31, whole=True)
_COUNT_OR_0 = _Rule("a whole number from 0 to 2^31 - 1", lambda v: 0 <= v < 2**31, whole=True)
_CAPACITY = _Rule("a whole number from 1 to 2^63 - 1", lambda v: 1 <= v < 2**63, whole=True)
_SEED = _Rule("a whole number from 0 to 2^32 - 1", lambda v: 0 <= v < 2**32, whole=True)
# of a device or a core there may be a fraction, of several only whole ones (Ray's rule)
_RESOURCE = _Rule(
    "0, a fraction below 1 or a whole number, at most 1e6",
    lambda v: 0 <= v <= 1e6 and (v < 1 or v == int(v)),
)


def _or(rule: _Rule, other: Any) -> _Rule:
    return replace(rule, wanted=f"{rule.wanted}, or {other!r}", others=(*rule.others, other))


NUMBERS = {
    "return_scale": _or(_SCALE, None),
    "warmup_steps": _COUNT_OR_0,
    "lr_decay_updates": _or(_COUNT, None),
    "weight_decay": _AT_LEAST_0,
    "ema_decay": _or(_Rule("in (0, 1)", lambda v: 0 < v < 1), None),
    "max_return_expectile": _or(_Rule("in [0.5, 1)", lambda v: 0.5 <= v < 1), None),
    "rollouts_per_iteration": _or(_COUNT, None),
    "updates_per_iteration": _COUNT,
    "buffer_episodes": _COUNT,
    "exploration_temperature": _Rule("from 1e-3 to 1e3", lambda v: 1e-3 <= v <= 1e3),
    "offline_updates": _COUNT_OR_0,
    "initial_alpha": _POSITIVE,
    "target_entropy": _or(_FINITE, None),
    "alpha_lr": _AT_LEAST_0,
    "q_weight": _AT_LEAST_0,
    "q_best_return": _or(_FINITE, None),
    "critic_updates": _COUNT,
    "critic_expectile": _Rule("in [0.5, 1)", lambda v: 0.5 <= v < 1),
    "critic_gamma": _Rule("in [0, 1)", lambda v: 0 <= v < 1),
    "state_loss_weight": _AT_LEAST_0,
    "return_loss_weight": _AT_LEAST_0,
    "grad_clip": _or(_POSITIVE, None),
    "gamma": _SHARE,
    "train_batch_size_per_learner": _COUNT,
    "micro_batch_size": _or(_COUNT, None),
    "dataset_num_iters_per_learner": _COUNT,
    "num_learners": _COUNT_OR_0,
    "seed": _or(_SEED, None),
    "time_limit": _or(_COUNT, None),
    "top_fraction": _or(_SHARE, None),
    "pool_reuse": _POSITIVE,
    "max_expansion": _Rule("at least 1", lambda v: v >= 1),
    "frame_stack": _or(_COUNT, None),
    "missing_rewards": _or(_or(_FINITE, None), "success"),
    "pool_capacity_steps": _or(_CAPACITY, None),
    "pool_capacity_bytes": _or(_CAPACITY, None),
    "validation_fraction": _or(_Rule("between 0 and 1", lambda v: 0 < v < 1), None),
    "validation_interval": _COUNT,
    "min_time_s_per_iteration": _or(_SECONDS_OR_0, None),
    "evaluation_interval": _or(_COUNT_OR_0, None),
    "evaluation_duration": _COUNT,
    "evaluation_num_env_runners": _COUNT_OR_0,
    "evaluation_sample_timeout_s": _or(_SECONDS, None),
    "num_envs_per_env_runner": _COUNT,
    "temperature": _or(_Rule("0, or from 1e-3 to 1e3", lambda v: v == 0 or 1e-3 <= v <= 1e3), None),
    # resources
    "num_cpus_per_learner": _or(_RESOURCE, "auto"),
    "num_gpus_per_learner": _RESOURCE,
    "num_cpus_per_env_runner": _RESOURCE,
    "num_gpus_per_env_runner": _RESOURCE,
    "num_cpus_for_main_process": _RESOURCE,
    "local_gpu_idx": _COUNT_OR_0,
    # faults
    "max_num_env_runner_restarts": _COUNT_OR_0,
    "delay_between_env_runner_restarts_s": _SECONDS_OR_0,
    "env_runner_health_probe_timeout_s": _SECONDS,
    "env_runner_restore_timeout_s": _SECONDS,
}
"""What each number among the settings must be."""

RESOURCE_DICTS = (
    "custom_resources_for_main_process",
    "custom_resources_per_env_runner",
    "custom_resources_per_learner",
)
"""Settings that are dicts from a resource's name to its amount."""

DICTS = (
    "env_config",
    "extra_python_environs_for_driver",
    "extra_python_environs_for_worker",
    "learner_config_dict",
    "torch_ddp_kwargs",
    *RESOURCE_DICTS,
)

BOOLEANS = (
    "add_default_connectors_to_env_to_module_pipeline",
    "add_default_connectors_to_module_to_env_pipeline",
    "clip_actions",
    "delayed_reward",
    "evaluation_parallel_to_training",
    "explore",
    "join_files",
    "log_sys_usage",
    "restart_failed_env_runners",
    "torch_compile_learner",
    "validate_env_runners_after_construction",
)

CHOICES: dict[str, tuple[Any, ...]] = {
    "weight_decay_on": ("all", "matrices"),
    "grad_clip_by": ("global_norm", "norm", "value"),
    "precision": PRECISIONS,
    "incomplete": ("error", "drop", "keep"),
    "duplicates": ("keep", "drop", "error"),
    "missing_ends": (None, *get_args(MissingEnds)),
    "last_row": (None, *get_args(LastRow)),
    "placement_strategy": ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
    "log_level": ("DEBUG", "INFO", "WARN", "WARNING", "ERROR"),
}
"""The words that each of these settings may be."""

CLASSES: dict[str, type] = {
    "learner_class": DTTorchLearner,
    "offline_data_class": DTOfflineData,
    "env_runner_cls": DTEnvRunner,
}
"""Settings that are classes, and what each must be a subclass of."""


def check_rules(config: "DTConfig") -> None:
    """Refuses settings of the wrong type, sign or size; RLlib's own checks expect right ones."""
    for name, rule in NUMBERS.items():
        _check_number(config, name, rule)
    for name in BOOLEANS:
        if not isinstance(getattr(config, name), bool | np.bool_):
            config.refuse(f"{name}={getattr(config, name)!r} must be True or False")
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if not isinstance(value, str | None) or value not in allowed:
            config.refuse(f"{name}={value!r} is not one of {allowed}")
    for name in DICTS:
        _check_dict(config, name)
    for name, parent in CLASSES.items():
        value = getattr(config, name)
        if not _is_subclass(value, parent):
            config.refuse(
                f"{name}={value!r} is no subclass of {parent.__module__}.{parent.__name__}, which "
                "DT relies on (docs/extending.md)"
            )
    _check_module_class(config)
    _check_callbacks(config)


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, and no boolean."""
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _check_number(config: "DTConfig", name: str, rule: _Rule) -> None:
    value = getattr(config, name)
    if any(value is other or (isinstance(value, str) and value == other) for other in rule.others):
        return
    is_right = is_number(value) and rule.test(value)
    if not is_right or (rule.whole and value != int(value)):
        config.refuse(f"{name}={value!r} must be {rule.wanted}")
    elif rule.whole and not isinstance(value, int):
        setattr(config, name, int(value))


def _check_dict(config: "DTConfig", name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        config.refuse(f"{name}={value!r} must be a dict with names as keys")
        return
    if name not in RESOURCE_DICTS:
        return
    for resource, amount in value.items():
        if not (is_number(amount) and _RESOURCE.test(amount)):
            config.refuse(f"{name}[{resource!r}]={amount!r} must be {_RESOURCE.wanted}")


def _check_module_class(config: "DTConfig") -> None:
    spec = config.rl_module_spec
    inner = getattr(spec, "rl_module_specs", None)
    for one in inner.values() if isinstance(inner, Mapping) else [spec]:
        module_class = getattr(one, "module_class", None)
        if module_class is not None and not _is_subclass(module_class, DTTorchRLModule):
            config.refuse(
                f"rl_module(rl_module_spec=…): module_class={module_class!r} is no subclass of "
                "rllib_dt.DTTorchRLModule, which DT relies on (docs/extending.md)"
            )


def _check_callbacks(config: "DTConfig") -> None:
    classes = config.callbacks_class
    for value in classes if isinstance(classes, list | tuple) else [classes]:
        is_made_by_call = callable(value) and not isinstance(value, type)  # a partial, say
        if not (is_made_by_call or _is_subclass(value, RLlibCallback)):
            config.refuse(
                f"callbacks_class={value!r} is no subclass of "
                "ray.rllib.callbacks.callbacks.RLlibCallback"
            )
    for name in vars(config):
        if not name.startswith("callbacks_on_"):
            continue
        functions = getattr(config, name)
        for value in functions if isinstance(functions, list | tuple) else [functions]:
            if value is not None and not callable(value):
                config.refuse(f"{name}={value!r} must be a function, or a list of them")


def _is_subclass(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)
