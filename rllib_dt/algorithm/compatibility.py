"""Refuses to restore a checkpoint into another network, before anything is changed.

RLlib would load whatever weights fit, and say nothing of a setting that changes no weight's shape,
such as the number of heads or the context length.
"""

import dataclasses
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pyarrow.fs as pafs
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.checkpoints import Checkpointable, try_import_msgpack

from rllib_dt.compat import repair_msgpack
from rllib_dt.formats.paths import locate
from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.manifest import CheckpointError
from rllib_dt.spaces.descriptions import same_space
from rllib_dt.types import State

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

MODULE = "learner_group/learner/rl_module/default_policy"
_SCALE = "network.return_scale"
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
    if saved is not None:
        check_same_settings(saved, config, path)
    if config.return_scale is not None:
        check_same_scale(_saved_module_state(path, filesystem, component), config, path)


def check_same_scale(module_state: State, config: "DTConfig", what: str = "the state") -> None:
    """Raises a CheckpointError if a module was trained with another scale than is asked for.

    Args:
        module_state: the module's state, or None if it is unknown.
        config: the settings of the algorithm to restore.
        what: what it was saved in, for the message.
    """
    if config.return_scale is None or not isinstance(module_state, Mapping):
        return
    saved = module_state.get(_SCALE)
    if saved is not None and np.float32(saved) != np.float32(config.return_scale):
        raise CheckpointError(
            f"{what} was trained with return_scale={float(saved):g}, which its weights rely on, "
            f"but training(return_scale={config.return_scale:g}) is set; leave that out, or set "
            "the same; nothing was restored"
        )


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
            f"{what} was saved with another network: {'; '.join(differing)}. Leave these "
            "settings as they were saved (DT.from_checkpoint does, unless it is given others), or "
            "train anew; nothing was restored"
        )


def _saved_arguments(
    path: str, filesystem: pafs.FileSystem | None, component: str | None
) -> dict[str, Any] | None:
    """Returns what the saved module was built with, or None if that is not there."""
    name = Checkpointable.CLASS_AND_CTOR_ARGS_FILE_NAME
    content = _read_of_module(path, filesystem, component, name)
    if content is None:
        return None
    try:
        arguments, named = pickle.loads(content)["ctor_args_and_kwargs"]
    except (ValueError, AttributeError, ImportError, TypeError, KeyError):
        return None  # of another version of Python or of the package, as RLlib allows
    return None if arguments else dict(named)


def _saved_module_state(
    path: str, filesystem: pafs.FileSystem | None, component: str | None
) -> State:
    """Returns the saved module's state, or None if that is not there."""
    packed = _read_of_module(path, filesystem, component, f"{RLModule.STATE_FILE_NAME}.msgpack")
    if packed is not None:
        try:
            return try_import_msgpack(error=True).unpackb(packed, strict_map_key=False)
        finally:
            repair_msgpack()
    pickled = _read_of_module(path, filesystem, component, f"{RLModule.STATE_FILE_NAME}.pkl")
    return None if pickled is None else pickle.loads(pickled)


def _read_of_module(
    path: str, filesystem: pafs.FileSystem | None, component: str | None, name: str
) -> bytes | None:
    """Reads a file of the module's folder in a checkpoint, or returns None if it is not there."""
    system, folder = locate(path, filesystem)
    within = MODULE
    if component is not None:
        if not f"{MODULE}/".startswith(f"{component}/"):
            return None
        within = MODULE.removeprefix(component).lstrip("/")
    file = "/".join(part for part in (folder.rstrip("/"), within, name) if part)
    if system.get_file_info(file).type != pafs.FileType.File:
        return None
    with system.open_input_stream(file) as stream:
        content: bytes = stream.read()
    return content


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
