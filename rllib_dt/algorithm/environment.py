"""Takes from the environment, or else from the data, what a config does not set.

What the config does set is compared with the environment.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_dt.algorithm.inputs import has_inputs
from rllib_dt.compat import env_creator
from rllib_dt.formats.recorded_spaces import recorded_spaces
from rllib_dt.reading.credentials import resolve_filesystem
from rllib_dt.spaces.descriptions import same_space

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

logger = logging.getLogger(__name__)

_SPACES = ("observation_space", "action_space")


def awaits_spaces(config: "DTConfig") -> bool:
    """Returns whether spaces must be taken from the environment or the data."""
    is_open = any(getattr(config, name) is None for name in _SPACES)
    return is_open and (config.env is not None or has_inputs(config.input_))


def completed_config(config: "DTConfig") -> "DTConfig":
    """Returns a copy with the settings that the environment provides; creates it to read them.

    Without an environment, spaces that are not given are those that the data describes.

    Raises:
        ValueError: spaces are given as well, and are not the environment's; or evaluation has an
            environment of its own, whose spaces differ; or the data describes none.
    """
    completed: DTConfig = config.copy(copy_frozen=False)
    if config.env is not None:
        with _created(config, config) as env:
            _complete(completed, env)
    elif awaits_spaces(config):
        _complete_from_data(completed)
    evaluation = config.get_evaluation_config_object()
    own = config.env, config.env_config
    if evaluation is None or evaluation.env is None:
        return completed
    if (evaluation.env, evaluation.env_config) != own:
        with _created(completed, evaluation) as env:
            _compare(completed, env)
    return completed


def _complete(config: "DTConfig", env: gym.Env | None) -> None:
    _compare(config, env)
    for name in _SPACES:
        if getattr(config, name) is None:
            setattr(config, name, getattr(env, name))
    if config.time_limit is None:
        # the step limit that the environment was registered with, if any
        config.time_limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)


def _complete_from_data(config: "DTConfig") -> None:
    filesystem = resolve_filesystem(config.input_filesystem, config.input_filesystem_kwargs)
    found = recorded_spaces(config.input_, filesystem)
    if found is None:
        config.refuse(
            "neither an environment nor spaces are given, and the data does not describe its "
            "spaces (Minari's does, and that of write_episodes); set environment(env=…), or "
            "environment(observation_space=…, action_space=…) to train without one"
        )
        return
    for name, space in zip(_SPACES, found, strict=True):
        if getattr(config, name) is None:
            setattr(config, name, space)
    logger.info("the spaces are those of the data: %s, %s", *found)


@contextlib.contextmanager
def _created(config: "DTConfig", named: "DTConfig") -> Iterator[gym.Env | None]:
    """Creates the environment that `named` names; None if it cannot be, and spaces are known."""
    env = _create(config, named)
    try:
        yield env
    finally:
        if env is not None:
            env.close()


def _create(config: "DTConfig", named: "DTConfig") -> gym.Env | None:
    try:
        return env_creator(named)(EnvContext(named.env_config, worker_index=0))
    except Exception:
        if any(getattr(config, name) is None for name in _SPACES):
            raise
        # it may exist only where it is evaluated in
        logger.warning(
            "the environment cannot be created in this process, so the given spaces are not "
            "compared with its own",
            exc_info=True,
        )
        return None


def _compare(config: "DTConfig", env: gym.Env | None) -> None:
    """Refuses an environment whose spaces are not those that are given."""
    if env is None:
        return
    if isinstance(env, MultiAgentEnv):
        config.refuse("the environment is a MultiAgentEnv; DT is single-agent")
    for name in _SPACES:
        given, own = getattr(config, name), getattr(env, name)
        if given is not None and not same_space(given, own):
            config.refuse(_difference(name, given, own))


def _difference(name: str, given: gym.Space, own: gym.Space) -> str:
    return (
        f"environment({name}={given}) is not the space of the environment, {own}; leave it out, or "
        "wrap the environment so that both agree (gymnasium.wrappers)"
    )
