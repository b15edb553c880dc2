"""Environments that are reset and stepped one by one, by slot, each with its own seed.

Whatever an environment raises, and its not coming back in time, is a `SlotFailure` of its slot;
the environment is made anew, and the others go on.
"""

import contextlib
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.utils.annotations import override

Makers = Sequence[Callable[[], gym.Env]]


class EnvironmentHangsError(TimeoutError):
    """An environment did not come back from `reset` or `step` in time."""


class ResetResult(NamedTuple):
    """What gymnasium's `reset` returns."""

    observation: Any
    info: dict[str, Any]


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


@dataclass(frozen=True)
class SlotFailure:
    """A slot's episode is lost.

    Attributes:
        error: the environment's, with its traceback.
        is_certain: it was this slot's environment, and not perhaps another's.
    """

    error: str
    is_certain: bool


class SlotEnvs(ABC):
    """A vector of environments without autoreset.

    Attributes:
        vector: the gymnasium vector, for its spaces and for users' callbacks.
    """

    vector: VectorEnv

    @abstractmethod
    def reset(self, seeds: Mapping[int, int]) -> Iterator[tuple[int, ResetResult | SlotFailure]]:
        """Resets the given slots with the given seeds, one after another."""

    @abstractmethod
    def step(self, actions: Mapping[int, Any]) -> Iterator[tuple[int, StepResult | SlotFailure]]:
        """Steps the given slots, one after another."""


class InProcessEnvs(SlotEnvs):
    """Steps the environments one after another; slots without a job rest.

    Args:
        makers: one for each slot.
        timeout: seconds that one `reset` or `step` may take. It is held by a signal, so only
            in a process's main thread, and once Python code is reached.
    """

    def __init__(self, makers: Makers, timeout: float | None = None):
        self.vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        self._envs = list(self.vector.envs)
        self._makers = makers
        self._timeout = timeout

    @override(SlotEnvs)
    def reset(self, seeds: Mapping[int, int]) -> Iterator[tuple[int, ResetResult | SlotFailure]]:
        for slot, seed in seeds.items():
            yield slot, self._call(slot, "reset", _reset, seed)

    @override(SlotEnvs)
    def step(self, actions: Mapping[int, Any]) -> Iterator[tuple[int, StepResult | SlotFailure]]:
        for slot, action in actions.items():
            yield slot, self._call(slot, "step", _step, action)

    def _call(self, slot: int, name: str, function: Callable[..., Any], argument: Any) -> Any:
        try:
            with _time_limit(self._timeout, name):
                return function(self._envs[slot], argument)
        except Exception:
            failure = SlotFailure(traceback.format_exc(), is_certain=True)
        with contextlib.suppress(Exception):
            self._envs[slot].close()
        # an environment that cannot even be made again is none that can be evaluated in
        self._envs[slot] = self._makers[slot]()
        self.vector.envs = tuple(self._envs)
        return failure


def _reset(env: gym.Env, seed: int) -> ResetResult:
    return ResetResult(*env.reset(seed=seed))


def _step(env: gym.Env, action: Any) -> StepResult:
    observation, reward, terminated, truncated, info = env.step(action)
    return StepResult(observation, float(reward), bool(terminated), bool(truncated), info)


@contextlib.contextmanager
def _time_limit(seconds: float | None, name: str) -> Iterator[None]:
    """Raises an EnvironmentHangsError within, when the time is over."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise EnvironmentHangsError(f"the environment's {name} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class SubprocessEnvs(SlotEnvs):
    """Steps the environments at the same time, each in its process.

    The vector steps all of them or none: a slot without a job takes some legal action, and what
    it gives is thrown away. Where one fails, all running episodes are lost, and all is made anew.

    Args:
        makers: one for each slot.
        timeout: seconds that a `reset` or `step` of all of them may take.
    """

    def __init__(self, makers: Makers, timeout: float | None = None):
        self._makers, self._timeout = makers, timeout
        self._make()

    def _make(self) -> None:
        self.vector = AsyncVectorEnv(self._makers, autoreset_mode=AutoresetMode.DISABLED)
        self._infos = DictInfoToList(self.vector)
        self._to_reset = np.ones(len(self._makers), bool)

    @override(SlotEnvs)
    def reset(self, seeds: Mapping[int, int]) -> Iterator[tuple[int, ResetResult | SlotFailure]]:
        self._to_reset[list(seeds)] = True
        try:
            observations, infos = self._reset(seeds)
        except Exception:
            yield from self._all_failed(seeds)
            return
        for slot in seeds:
            yield slot, ResetResult(observations[slot], infos[slot] if infos else {})

    def _reset(self, seeds: Mapping[int, int]) -> tuple[Any, Any]:
        listed = [seeds.get(slot) for slot in range(self.vector.num_envs)]
        mask, self._to_reset = self._to_reset, np.zeros(self.vector.num_envs, bool)
        self.vector.reset_async(seed=listed, options={"reset_mask": mask})
        observations, infos = self.vector.reset_wait(timeout=self._timeout)
        return observations, self._infos._convert_info_to_list(infos) if infos else None

    @override(SlotEnvs)
    def step(self, actions: Mapping[int, Any]) -> Iterator[tuple[int, StepResult | SlotFailure]]:
        idle = self._some_action()
        everyone = np.stack([actions.get(slot, idle) for slot in range(self.vector.num_envs)])
        try:
            if self._to_reset.any():  # slots without a job whose last episode has ended
                self._reset({})
            self.vector.step_async(everyone)
            observations, rewards, terminateds, truncateds, infos = self.vector.step_wait(
                timeout=self._timeout
            )
        except Exception:
            yield from self._all_failed(actions)
            return
        listed = self._infos._convert_info_to_list(infos) if infos else None
        self._to_reset = np.logical_or(terminateds, truncateds)
        for slot in actions:
            yield (
                slot,
                StepResult(
                    observations[slot],
                    float(rewards[slot]),
                    bool(terminateds[slot]),
                    bool(truncateds[slot]),
                    listed[slot] if listed else {},
                ),
            )

    def _all_failed(self, slots: Mapping[int, Any]) -> Iterator[tuple[int, SlotFailure]]:
        failure = SlotFailure(traceback.format_exc(), is_certain=len(slots) == 1)
        with contextlib.suppress(Exception):
            self.vector.close(terminate=True)
        self._make()
        for slot in slots:
            yield slot, failure

    def _some_action(self) -> Any:
        space = self.vector.single_action_space
        return space.start if isinstance(space, gym.spaces.Discrete) else space.low


SLOT_ENVS: dict[str, type[InProcessEnvs] | type[SubprocessEnvs]] = {
    "sync": InProcessEnvs,
    "async": SubprocessEnvs,
}
"""By `config.gym_env_vectorize_mode`."""
