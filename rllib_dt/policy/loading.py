"""`load_policy`: a trained policy from a checkpoint or a Hugging Face folder, without Ray."""

import logging
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.targets import target_value
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer, current_names
from rllib_dt.policy.actor import Actor
from rllib_dt.policy.fetched import fetch, is_remote
from rllib_dt.policy.folders import load_pretrained
from rllib_dt.policy.manifest import MANIFEST, CheckpointError, read_listed
from rllib_dt.policy.states import read_arguments, read_state

logger = logging.getLogger(__name__)

_MODULE = "learner_group/learner/rl_module/default_policy"
_ARGUMENTS, _STATE, _ALGORITHM_STATE = (
    "class_and_ctor_args.pkl",
    "module_state",
    "algorithm_state",
)
_STATE_SUFFIXES = (".pkl", ".msgpack")
_RLLIB = "rllib_checkpoint.json"
_OF_TUNE = re.compile(r"checkpoint_\d+")
_NETWORK = "network."


@dataclass(frozen=True, kw_only=True)
class TrainedPolicy:
    """A trained network with what acting needs besides: the rule of its returns.

    Attributes:
        network: the network, in eval mode.
        rule: how rewards reduce the return-to-go, as in training.
        target_returns: the targets of the settings, or else those that were derived from the data;
            empty where the checkpoint holds neither.
    """

    network: DecisionTransformer
    rule: ReturnRule = field(default_factory=ReturnRule)
    target_returns: tuple[float, ...] = ()

    @property
    def observation_space(self) -> gym.Space:
        """The space of one observation."""
        return self.network.observation_space

    @property
    def action_space(self) -> gym.Space:
        """The space of one action."""
        return self.network.action_space

    def actor(self, target_return: Any = None, num_envs: int = 1, **settings: Any) -> Actor:
        """Returns an actor for N environments at a time.

        Args:
            target_return: the return to ask for, in reward units: a number, or one for each
                environment. The first of `target_returns` by default.
            num_envs: N.
            settings: `temperature` and `generator`; see `Actor`.

        Raises:
            ValueError: neither a target is given nor the checkpoint names one.
        """
        if target_return is None:
            if not self.target_returns:
                raise ValueError("give a target_return; the checkpoint names none")
            target_return = self.target_returns[0]
        return Actor(self.network, target_return, num_envs, rule=self.rule, **settings)

    def export_onnx(self, path: str | os.PathLike[str]) -> Path:
        """Writes the policy as an ONNX graph; see `rllib_dt.policy.onnx.export_onnx`.

        Raises:
            ImportError: the extra `rllib_dt[onnx]` is missing.
        """
        from rllib_dt.policy.onnx import export_onnx

        return export_onnx(self.network, path, rule=self.rule, target_returns=self.target_returns)


def load_policy(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    encoders: Collection[str] = (),
) -> TrainedPolicy:
    """Loads a trained policy; imports torch and numpy, and no Ray.

    No code in the checkpoint runs: of its pickles only arrays, spaces and plain values are loaded,
    and code outside it that it names, a user's own encoders, only if `encoders` names it too.

    Args:
        path: a checkpoint of a `DT` (`save_to_path`), a checkpoint of its RLModule, a folder of a
            Tune trial (its last checkpoint is taken), or a Hugging Face folder; also as a URI of
            S3 or another storage that pyarrow knows.
        device: where the network goes.
        encoders: the classes of `DTModelConfig(encoders=…)` that may be imported.

    Raises:
        FileNotFoundError: there is no such folder, or it holds none of these.
        CheckpointError: the checkpoint is incomplete or damaged, or has an encoder that
            `encoders` does not name.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as local:
            fetch(os.fspath(path), Path(local))
            return load_policy(local, device=device, encoders=encoders)
    folder = checkpoint_in(Path(path).expanduser())
    if (folder / _RLLIB).is_file() and (folder / _MODULE).is_dir():
        policy = _from_algorithm(folder, encoders)
    elif (folder / _ARGUMENTS).is_file() and (folder / _state_name(folder, _STATE)).is_file():
        arguments, state = (
            (folder / name).read_bytes() for name in (_ARGUMENTS, _state_name(folder, _STATE))
        )
        policy = TrainedPolicy(network=_network(arguments, state, folder, encoders))
    elif (folder / "config.json").is_file():
        policy = TrainedPolicy(network=load_pretrained(folder))
    else:
        raise FileNotFoundError(
            f"{folder} is neither a checkpoint of a DT or its RLModule, nor a trial's folder, nor "
            "a Hugging Face folder (config.json)"
        )
    policy.network.to(device)
    return policy


def checkpoint_in(folder: Path) -> Path:
    """Returns the last complete checkpoint of a Tune trial, or the folder itself.

    Raises:
        FileNotFoundError: there is no such folder, or it holds several trials.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    of_trial = _checkpoints(folder)
    if of_trial:
        return of_trial[-1]
    trials = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and _checkpoints(inner)]
    if len(trials) > 1:
        names = ", ".join(trial.name for trial in trials[:5])
        raise FileNotFoundError(
            f"{folder} holds {len(trials)} trials with checkpoints; give one of them: {names}"
        )
    return _checkpoints(trials[0])[-1] if trials else folder


def _checkpoints(folder: Path) -> list[Path]:
    """Lists a trial's complete checkpoints, in their order."""
    found = [inner for inner in folder.iterdir() if _OF_TUNE.fullmatch(inner.name)]
    return sorted(inner for inner in found if (inner / MANIFEST).is_file())


def _from_algorithm(folder: Path, encoders: Collection[str]) -> TrainedPolicy:
    names = (
        _ARGUMENTS,
        _state_name(folder, _ALGORITHM_STATE),
        f"{_MODULE}/{_ARGUMENTS}",
        f"{_MODULE}/{_state_name(folder / _MODULE, _STATE)}",
    )
    of_algorithm, own_state, arguments, state = read_listed(folder, names).values()
    settings = read_arguments(of_algorithm, folder)[0]
    needed = {"gamma", "delayed_reward", "clip_rewards"}
    if not settings or not isinstance(settings[0], Mapping) or not needed <= set(settings[0]):
        raise CheckpointError(f"{folder}/{_ARGUMENTS} holds no settings of a DT")
    settings = settings[0]
    if settings.get("_env_to_module_connector") is not None:
        logger.warning(
            "the checkpoint was trained with connectors of its own (env_to_module_connector), "
            "which do not run here: give the actor what they made of the observations"
        )
    # those that were derived from the data are not among the settings
    measured = read_state(own_state, folder).get("dt_measured") or {}
    targets = settings.get("target_returns") or measured.get("target_returns") or ()
    return TrainedPolicy(
        network=_network(arguments, state, folder, encoders),
        rule=ReturnRule(
            gamma=settings["gamma"],
            delayed=settings["delayed_reward"],
            clip_rewards=settings["clip_rewards"],
        ),
        target_returns=tuple(map(target_value, targets)),
    )


def _state_name(folder: Path, stem: str) -> str:
    """Returns the name of a state's file: a pickle, or msgpack (RLlib's `use_msgpack`)."""
    first, *others = (stem + suffix for suffix in _STATE_SUFFIXES)
    return next((name for name in (first, *others) if (folder / name).is_file()), first)


def _network(
    arguments: bytes, state: bytes, folder: Path, encoders: Collection[str]
) -> DecisionTransformer:
    """Builds the network that an RLModule's checkpoint holds."""
    given = read_arguments(arguments, folder)[1]
    spaces = given.get("observation_space"), given.get("action_space")
    if not all(isinstance(space, gym.Space) for space in spaces):
        raise CheckpointError(
            f"{folder}/{_ARGUMENTS} holds spaces that are no gymnasium spaces: {spaces}"
        )
    config = DTModelConfig.from_dict(given.get("model_config") or {})
    unnamed = sorted(set(config.encoders.values()) - set(encoders))
    if unnamed:
        raise CheckpointError(
            f"the checkpoint {folder} has encoders of its own, which are code: {unnamed}; if you "
            f"trust them, load_policy(…, encoders={unnamed})"
        )
    network = DecisionTransformer(config, *spaces)
    weights = {
        # a copy: what a remote learner saved cannot be written to
        name.removeprefix(_NETWORK): torch.tensor(value)
        for name, value in read_state(state, folder).items()
        if name.startswith(_NETWORK) and _is_number(value)
    }
    try:
        network.load_state_dict(current_names(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {folder} do not fit its settings: {error}"
        ) from error
    return network.eval()


def _is_number(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"
    return is_array or isinstance(value, float | int)
