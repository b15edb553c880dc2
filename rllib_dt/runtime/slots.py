"""Environments that are reset and stepped one by one, by slot, each with its own seed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.utils.annotations import override


class StepResult(NamedTuple):
    """What gymnasium's `step` returns, of one environment."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


class SlotEnvs(ABC):
    """A vector of environments without autoreset.

    Attributes:
        vector: the gymnasium vector, for its spaces and for users' callbacks.
    """

    vector: VectorEnv

    @abstractmethod
    def reset(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, dict[str, Any]]]:
        """Resets the given slots with the given seeds; (observation, info) of each."""

    @abstractmethod
    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Steps the given slots."""


class InProcessEnvs(SlotEnvs):
    """Steps the environments one after another; slots without a job rest."""

    def __init__(self, makers: Sequence[Callable[[], gym.Env]]):
        self.vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        self._envs = self.vector.envs

    @override(SlotEnvs)
    def reset(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, dict[str, Any]]]:
        return {slot: self._envs[slot].reset(seed=seed) for slot, seed in seeds.items()}

    @override(SlotEnvs)
    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        results = {slot: self._envs[slot].step(action) for slot, action in actions.items()}
        return {
            slot: StepResult(o, float(r), bool(te), bool(tr), i)
            for slot, (o, r, te, tr, i) in results.items()
        }


class SubprocessEnvs(SlotEnvs):
    """Steps the environments at the same time, each in its process.

    The vector steps all of them or none: a slot without a job takes some legal action, and what
    it gives is thrown away.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env]]):
        self.vector = AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        self._infos = DictInfoToList(self.vector)
        self._to_reset = np.ones(len(makers), bool)

    @override(SlotEnvs)
    def reset(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, dict[str, Any]]]:
        self._to_reset[list(seeds)] = True
        listed = [seeds.get(slot) for slot in range(self.vector.num_envs)]
        mask, self._to_reset = self._to_reset, np.zeros(self.vector.num_envs, bool)
        observations, infos = self._infos.reset(seed=listed, options={"reset_mask": mask})
        return {slot: (observations[slot], infos[slot] if infos else {}) for slot in seeds}

    @override(SlotEnvs)
    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        if self._to_reset.any():  # slots without a job whose last episode has ended
            self.reset({})
        idle = self._some_action()
        everyone = np.stack([actions.get(slot, idle) for slot in range(self.vector.num_envs)])
        observations, rewards, terminateds, truncateds, infos = self._infos.step(everyone)
        self._to_reset = np.logical_or(terminateds, truncateds)
        return {
            slot: StepResult(
                observations[slot],
                float(rewards[slot]),
                bool(terminateds[slot]),
                bool(truncateds[slot]),
                infos[slot] if infos else {},
            )
            for slot in actions
        }

    def _some_action(self) -> Any:
        space = self.vector.single_action_space
        return space.start if isinstance(space, gym.spaces.Discrete) else space.low


SLOT_ENVS: dict[str, type[InProcessEnvs] | type[SubprocessEnvs]] = {
    "sync": InProcessEnvs,
    "async": SubprocessEnvs,
}
"""By `config.gym_env_vectorize_mode`."""
