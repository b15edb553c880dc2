"""Checks `evaluation_config`: which settings may differ in evaluation, and which are never read."""

import logging
from typing import TYPE_CHECKING

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_dt.algorithm.settings import DTSettings
from rllib_dt.algorithm.unused import REFUSED

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

logger = logging.getLogger(__name__)

_OF_EVALUATION = {
    "action_space",
    "add_default_connectors_to_env_to_module_pipeline",
    "add_default_connectors_to_module_to_env_pipeline",
    "callbacks_class",
    "callbacks_on_environment_created",
    "callbacks_on_episode_created",
    "callbacks_on_episode_end",
    "callbacks_on_episode_start",
    "callbacks_on_episode_step",
    "clip_actions",
    "create_local_env_runner",
    "custom_resources_per_env_runner",
    "delay_between_env_runner_restarts_s",
    "env",
    "env_config",
    "env_runner_cls",
    "env_runner_restore_timeout_s",
    "evaluation_duration",
    "evaluation_duration_unit",
    "evaluation_sample_timeout_s",
    "explore",
    "gym_env_vectorize_mode",
    "in_evaluation",
    "input_",
    "log_level",
    "max_num_env_runner_restarts",
    "num_cpus_per_env_runner",
    "num_env_runners",
    "num_envs_per_env_runner",
    "num_gpus_per_env_runner",
    "observation_space",
    "restart_failed_env_runners",
    "score_reference",
    "seed",
    "target_returns",
    "temperature",
    "validate_env_runners_after_construction",
    # shared with training: `DTConfig.get_evaluation_config_object` warns of other values
    "clip_rewards",
    "delayed_reward",
    "gamma",
    "model_config",
    "_model_config",
    "normalize_actions",
}
"""Settings that count, or are dealt with elsewhere, in `evaluation_config`."""


def check_overrides(config: "DTConfig") -> None:
    """Refuses names in `evaluation_config` that no setting has, or that would never be called.

    Other settings that only training reads are warned of.
    """
    overrides = config.evaluation_config
    if overrides is None or isinstance(overrides, AlgorithmConfig):
        return
    if not isinstance(overrides, dict):
        config.refuse(f"evaluation_config={overrides!r} must be a dict of settings")
        return
    known = vars(DTSettings())
    for name, value in overrides.items():
        try:
            config.check_name(name)
        except ValueError as error:
            config.refuse(f"evaluation_config: {error}")
        # RLlib's refused settings are refused here as well, once they are those of evaluation
        is_free = name in _OF_EVALUATION or name in REFUSED or name not in known
        if is_free or value == getattr(config, name):
            continue
        if name.startswith("callbacks_on_"):
            config.refuse(
                f"evaluation_config's {name} would never be called, since the algorithm calls it, "
                f"not its evaluation runners; set callbacks({name.removeprefix('callbacks_')}=…)"
            )
        logger.warning("evaluation_config's %s=%r has no effect on evaluation", name, value)
