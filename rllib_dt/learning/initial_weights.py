"""Initialises the learners' networks from the data's statistics or a pretrained folder."""

from collections.abc import Callable

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_dt.compat import on_every_learner
from rllib_dt.episodes.statistics import Normalization
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.folders import load_pretrained
from rllib_dt.types import LearnerGroup


def change_networks(
    learner_group: LearnerGroup, change: Callable[[DecisionTransformer], None]
) -> None:
    """Applies `change` to every learner's network, and raises any error that it raises there."""
    on_every_learner(learner_group, lambda learner: change(learner.network))


def module_state_paths(config: AlgorithmConfig) -> list[str]:
    """Lists the states that RLlib loads into the module (`RLModuleSpec(load_state_path=…)`)."""
    spec = config.rl_module_spec
    specs = getattr(spec, "rl_module_specs", None) or {}
    candidates = [spec, *(specs.values() if isinstance(specs, dict) else [specs])]
    found = [getattr(candidate, "load_state_path", None) for candidate in candidates]
    return [str(path) for path in found if path]


class Normalize:
    """Sets a network's normalisation from the data's statistics."""

    def __init__(self, normalization: Normalization):
        self._normalization = normalization

    def __call__(self, network: DecisionTransformer) -> None:
        network.set_normalization(
            torch.as_tensor(self._normalization.observation_mean),
            torch.as_tensor(self._normalization.observation_std),
            self._normalization.return_scale,
            torch.as_tensor(self._normalization.action_mean),
            torch.as_tensor(self._normalization.action_std),
        )


class TakeOver:
    """Loads the weights of a Hugging Face folder, read on the driver, into a network."""

    def __init__(self, folder: str):
        source = load_pretrained(folder)
        self._folder = folder
        self._state = {name: value.numpy() for name, value in source.state_dict().items()}

    def __call__(self, network: DecisionTransformer) -> None:
        state = {name: torch.as_tensor(value) for name, value in self._state.items()}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {self._folder} do not fit the environment's spaces or the "
                f"settings of model_config: {error}"
            ) from error
