"""Initialises the learners' networks from the data's statistics or a pretrained folder."""

from collections.abc import Callable

import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.typing import RLModuleSpecType

from rllib_dt.compat import on_every_learner
from rllib_dt.episodes.statistics import Normalization
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.folders import has_normalization, load_pretrained
from rllib_dt.spaces.trees import map_tree
from rllib_dt.types import LearnerGroup


def change_networks(
    learner_group: LearnerGroup, change: Callable[[DecisionTransformer], None]
) -> None:
    """Applies `change` to every learner's network, and raises any error that it raises there."""
    on_every_learner(learner_group, lambda learner: change(learner.network))


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


class TakeOver:
    """Loads the weights of a Hugging Face folder, read on the driver, into a network.

    Args:
        folder: the folder.
        return_scale: for a folder without normalisation, what its returns-to-go were divided by.

    Raises:
        ValueError: the folder has a scale, and it is another.
    """

    def __init__(self, folder: str, return_scale: float | None = None):
        source = load_pretrained(folder)
        self._folder = folder
        self._state = {name: value.numpy() for name, value in source.state_dict().items()}
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
        state = {name: torch.as_tensor(value) for name, value in self._state.items()}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {self._folder} do not fit the environment's spaces or the "
                f"settings of model_config: {error}"
            ) from error
