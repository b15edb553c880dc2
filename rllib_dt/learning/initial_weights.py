"""Initialises the learners' networks from the data's statistics or a pretrained folder."""

import logging
from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.typing import RLModuleSpecType

from rllib_dt.compat import on_every_learner
from rllib_dt.episodes.statistics import Normalization
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.folders import has_normalization, load_pretrained
from rllib_dt.policy.weight_values import ESTIMATE, SPREAD, normalize_by
from rllib_dt.spaces.descriptions import same_space
from rllib_dt.spaces.trees import map_tree
from rllib_dt.types import LearnerGroup

logger = logging.getLogger(__name__)


def change_networks(
    learner_group: LearnerGroup, change: Callable[[DecisionTransformer], None]
) -> None:
    """Applies `change` to every learner's network, and raises any error that it raises there."""

    def changed(learner: DTTorchLearner) -> None:
        change(learner.network)
        if learner.averages is not None:
            learner.averages.reset()

    on_every_learner(learner_group, changed)


def specs_with_state(spec: RLModuleSpecType) -> list[RLModuleSpec]:
    """Lists the specs, of one or several modules, whose state RLlib loads (`load_state_path`)."""
    specs = getattr(spec, "rl_module_specs", None) or {}
    candidates = [spec, *(specs.values() if isinstance(specs, dict) else [specs])]
    return [each for each in candidates if getattr(each, "load_state_path", None)]


class Normalize:
    """Sets a network's normalisation from the data's statistics."""

    def __init__(self, normalization: Normalization):
        self._normalization = normalization

    def __call__(self, network: DecisionTransformer) -> None:
        network.set_normalization(
            map_tree(torch.as_tensor, self._normalization.observation_mean),
            map_tree(torch.as_tensor, self._normalization.observation_std),
            self._normalization.return_scale,
            map_tree(torch.as_tensor, self._normalization.action_mean),
            map_tree(torch.as_tensor, self._normalization.action_std),
        )


class SetStatistics:
    """Sets what observations are normalised with: (S,) mean and deviation; None keeps one."""

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None):
        self._mean, self._std = mean, std

    def __call__(self, network: DecisionTransformer) -> None:
        normalize_by(network, self._mean, self._std, None)


class TakeOver:
    """Loads the weights of a Hugging Face folder, read on the driver, into a network.

    Where the folder holds no spaces, the network keeps its own bounds of actions: an output of 1 is
    the upper bound.

    Args:
        folder: the folder.
        return_scale: for a folder without normalisation, what its returns-to-go were divided by.
        action_space: the network's.

    Raises:
        ValueError: the folder has a scale, and it is another.
    """

    def __init__(self, folder: str, return_scale: float | None, action_space: gym.Space):
        source = load_pretrained(folder)
        self._folder = folder
        self._state = {name: value.numpy() for name, value in source.state_dict().items()}
        if not has_normalization(folder):
            for name in source.action_head.state_dict():
                del self._state[f"action_head.{name}"]
            if not same_space(action_space, source.action_space):
                logger.warning(
                    "%s does not say which actions its outputs of -1 and 1 stand for; they are "
                    "taken for the bounds of %s",
                    folder,
                    action_space,
                )
        if return_scale is None:
            return
        own = float(self._state["return_scale"])
        if has_normalization(folder) and np.float32(own) != np.float32(return_scale):
            raise ValueError(
                f"the weights of {folder} rely on return_scale={own:g}, but "
                f"training(return_scale={return_scale:g}) is set; leave that out, or set the same"
            )
        self._state["return_scale"] = np.asarray(return_scale, np.float32)

    def __call__(self, network: DecisionTransformer) -> None:
        own = network.state_dict()
        state = {name: torch.as_tensor(value) for name, value in self._state.items()}
        # an estimate of returns, or a spread of actions, may be new, and learned from here on
        parts = ("action_head.", ESTIMATE, SPREAD)
        kept = {name for name in own if name.startswith(parts)} - state.keys()
        if "backbone.wte" in own:  # never read, and of another size with another `vocab_size`
            kept.add("backbone.wte")
        try:
            network.load_state_dict(state | {name: own[name] for name in kept})
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {self._folder} do not fit the environment's spaces or the "
                f"settings of model_config: {error}"
            ) from error
