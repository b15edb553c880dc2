"""Takes from the environment what a config does not set: spaces and the time limit."""

from typing import TYPE_CHECKING

from ray.rllib.env.env_context import EnvContext

from rllib_dt.compat import env_creator

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig


def needs_environment(config: "DTConfig") -> bool:
    """Returns whether spaces must be taken from the environment."""
    has_spaces = config.observation_space is not None and config.action_space is not None
    return config.env is not None and not has_spaces


def complete_from_environment(config: "DTConfig") -> "DTConfig":
    """Returns a copy with the settings that the environment provides; creates it to read them."""
    completed: DTConfig = config.copy(copy_frozen=False)
    env = env_creator(config)(EnvContext(config.env_config, worker_index=0))
    try:
        completed.observation_space = config.observation_space or env.observation_space
        completed.action_space = config.action_space or env.action_space
        if config.time_limit is None:
            # the step limit that the environment was registered with, if any
            completed.time_limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    finally:
        env.close()
    return completed
