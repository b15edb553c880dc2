"""Takes from the environment what a config does not set, and compares what it does set."""

import logging
from typing import TYPE_CHECKING

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_dt.compat import env_creator
from rllib_dt.spaces.leaves import same_space

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

logger = logging.getLogger(__name__)

_SPACES = ("observation_space", "action_space")


def needs_environment(config: "DTConfig") -> bool:
    """Returns whether spaces must be taken from the environment."""
    return config.env is not None and any(getattr(config, name) is None for name in _SPACES)


def complete_from_environment(config: "DTConfig") -> "DTConfig":
    """Returns a copy with the settings that the environment provides; creates it to read them.

    Raises:
        ValueError: spaces are given as well, and are not the environment's.
    """
    completed: DTConfig = config.copy(copy_frozen=False)
    try:
        env = env_creator(config)(EnvContext(config.env_config, worker_index=0))
    except Exception:
        if needs_environment(config):
            raise
        # it may exist only where it is evaluated in
        logger.warning(
            "the environment cannot be created in this process, so the given spaces are not "
            "compared with its own",
            exc_info=True,
        )
        return completed
    try:
        if isinstance(env, MultiAgentEnv):
            config.refuse("the environment is a MultiAgentEnv; DT is single-agent")
        for name in _SPACES:
            given, own = getattr(config, name), getattr(env, name)
            if given is not None and not same_space(given, own):
                config.refuse(_difference(name, given, own))
            setattr(completed, name, own if given is None else given)
        if config.time_limit is None:
            # the step limit that the environment was registered with, if any
            completed.time_limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    finally:
        env.close()
    return completed


def _difference(name: str, given: gym.Space, own: gym.Space) -> str:
    return (
        f"environment({name}={given}) is not the space of the environment, {own}; leave it out, or "
        "wrap the environment so that both agree (gymnasium.wrappers)"
    )
