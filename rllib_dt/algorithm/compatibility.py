"""Refuses to restore a checkpoint into another network, before anything is changed.

RLlib would load whatever weights fit, and say nothing of a setting that changes no weight's shape,
such as the number of heads or the context length.
"""

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import pyarrow.fs as pafs
from ray.rllib.utils.checkpoints import Checkpointable

from rllib_dt.algorithm.checkpoints import CheckpointError
from rllib_dt.formats.paths import locate
from rllib_dt.network.config import DTModelConfig
from rllib_dt.spaces.descriptions import same_space

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

MODULE = "learner_group/learner/rl_module/default_policy"
_MAY_DIFFER = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "pretrained")
"""Settings of the network that trained weights do not depend on."""


def check_same_network(
    path: str, filesystem: pafs.FileSystem | None, component: str | None, config: "DTConfig"
) -> None:
    """Raises a CheckpointError if a checkpoint's network is not the one that a config describes.

    Args:
        path: the checkpoint, or that of a component.
        filesystem: its file system; derived from the path by default.
        component: the component, as RLlib names it.
        config: the settings of the algorithm to restore.
    """
    saved = _saved_arguments(path, filesystem, component)
    if saved is None:
        return
    check_same_settings(saved, config, path)


def check_same_settings(saved: dict[str, Any], config: "DTConfig", what: str = "the state") -> None:
    """Raises a CheckpointError if settings are of another network; see `check_same_network`.

    Args:
        saved: `model_config`, and possibly the spaces.
        config: the settings of the algorithm to restore.
        what: what they were saved in, for the message.
    """
    differing = [
        f"{name} is {theirs} there and {ours} here"
        for name, theirs, ours in _differences(saved, config)
    ]
    if differing:
        raise CheckpointError(
            f"{what} was saved with another network: {'; '.join(differing)}. Build the algorithm "
            "with the same settings, or use DT.from_checkpoint; nothing was restored"
        )


def _saved_arguments(
    path: str, filesystem: pafs.FileSystem | None, component: str | None
) -> dict[str, Any] | None:
    """Returns what the saved module was built with, or None if that is not there."""
    system, folder = locate(path, filesystem)
    within = MODULE
    if component is not None:
        if not f"{MODULE}/".startswith(f"{component}/"):
            return None
        within = MODULE.removeprefix(component).lstrip("/")
    file = "/".join(
        part
        for part in (folder.rstrip("/"), within, Checkpointable.CLASS_AND_CTOR_ARGS_FILE_NAME)
        if part
    )
    if system.get_file_info(file).type != pafs.FileType.File:
        return None
    with system.open_input_stream(file) as stream:
        try:
            arguments, named = pickle.loads(stream.read())["ctor_args_and_kwargs"]
        except (ValueError, AttributeError, ImportError, TypeError, KeyError):
            return None  # of another version of Python or of the package, as RLlib allows
    return None if arguments else dict(named)


def _differences(saved: dict[str, Any], config: "DTConfig") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    try:
        model = DTModelConfig.from_dict(saved.get("model_config") or {})
    except (TypeError, ValueError):
        return found  # a module of the user's own
    ours = config.dt_model_config
    for field in dataclasses.fields(DTModelConfig):
        pair = getattr(model, field.name), getattr(ours, field.name)
        if field.name not in _MAY_DIFFER and pair[0] != pair[1]:
            found.append((field.name, *pair))
    for name in ("observation_space", "action_space"):
        pair = saved.get(name), getattr(config, name)
        if all(isinstance(space, gym.Space) for space in pair) and not same_space(*pair):
            found.append((name, *pair))
    return found
