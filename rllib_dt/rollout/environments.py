"""Environments that are reset and stepped slot by slot, each with its own seed.

If an environment raises or times out, its slot reports a `SlotFailure` and gets a new environment;
the other slots continue.
"""

import contextlib
import copy
import functools
import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import gymnasium as gym
import numpy as np
import tree
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from ray.rllib.utils.annotations import override

from rllib_dt.compat import first_info
from rllib_dt.rollout.time_limit import TimeLimit
from rllib_dt.spaces.composites import text_leaves
from rllib_dt.spaces.leaves import (
    as_array,
    is_image,
    out_of_space,
    step_layout_or_none,
)
from rllib_dt.spaces.trees import at, flatten, is_composite, known_leaves, leaves, unflatten
from rllib_dt.types import Array, Value

logger = logging.getLogger(__name__)

Makers = Sequence[Callable[[], gym.Env]]
A = TypeVar("A")
R = TypeVar("R")
SlotEnv = Any
"""A slot's environment: a `gym.Env`, or an `AsyncVectorEnv` of one."""
Info = dict[str, Any]
"""The `info` of gymnasium's `reset` and `step`."""


_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

_SHARE_SECONDS = 0.1
"""How long slots are stepped before the results so far are passed on."""


class ResetResult(NamedTuple):
    """The result of gymnasium's `reset`."""

    observation: Value
    info: Info


class StepResult(NamedTuple):
    """The result of gymnasium's `step`, for one environment."""

    observation: Value
    reward: float
    terminated: bool
    truncated: bool
    info: Info

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


_RESULTS = (ResetResult, StepResult)
_BOOLEANS = (bool, np.bool_)


@dataclass(frozen=True)
class SlotFailure:
    """The loss of a slot's episode.

    Attributes:
        error: the environment's error with its traceback.
        unmade: the slot has no environment, and none could be created.
    """

    error: str
    unmade: bool = False


class _ObservedLeaf(NamedTuple):
    """A leaf of the observation, with what is asked of it at every step."""

    space: gym.Space
    shape: tuple[int, ...]
    has_bounds: bool
    as_array: Callable[[gym.Space, Value], Array]


def _has_bounds(space: gym.Space) -> bool:
    """Returns whether numbers can lie outside a Box; an image's bytes can not."""
    if not isinstance(space, gym.spaces.Box) or is_image(space):
        return False
    return not (np.isneginf(space.low).all() and np.isposinf(space.high).all())


class SlotEnvs(ABC):
    """A vector of environments without autoreset.

    Args:
        makers: a function for each slot that creates its environment.
        timeout: seconds that one `reset` or `step` may take. In this process it is enforced by a
            signal, which works only in the main thread and only while Python code runs.
        observation_space: the environments' space, if it is known.

    Attributes:
        vector: a gymnasium vector environment, for its spaces and for users' callbacks.
    """

    vector: VectorEnv

    def __init__(
        self,
        makers: Makers,
        timeout: float | None = None,
        observation_space: gym.Space | None = None,
    ):
        self._makers = makers
        self._timeout = timeout
        self._limit = TimeLimit(timeout)
        self._envs: list[SlotEnv] = [None] * len(makers)
        self._space = observation_space
        self._warns_of_bounds = True
        self._create()

    def reset(self, seeds: Mapping[int, int]) -> Iterator[tuple[int, ResetResult | SlotFailure]]:
        """Resets the given slots with the given seeds one by one, and yields each slot's result."""
        for slot, seed in seeds.items():
            with self._limit:
                result = self._attempt(slot, "reset", self._reset, seed)
            yield slot, result

    @abstractmethod
    def step(self, actions: Mapping[int, Value]) -> Iterator[tuple[int, StepResult | SlotFailure]]:
        """Steps the given slots, and yields each slot's result."""

    @abstractmethod
    def _create(self) -> None:
        """Creates the environments and `vector`."""

    @abstractmethod
    def _make(self, slot: int) -> SlotEnv:
        """Creates the slot's environment."""

    @abstractmethod
    def _reset(self, env: SlotEnv, seed: int) -> ResetResult:
        """Resets an environment."""

    @abstractmethod
    def _close(self, env: SlotEnv) -> None:
        """Closes an environment in any state."""

    def _attempt(
        self, slot: int, name: str, function: Callable[[SlotEnv, A], R], argument: A
    ) -> R | SlotFailure:
        """Calls a function with the slot's environment; to be used in `with self._limit`."""
        try:
            with self._limit.call(name):
                if self._envs[slot] is None:  # it failed before
                    self._envs[slot] = self._make(slot)
                return self._checked(function(self._envs[slot], argument))
        except (Exception, SystemExit):  # neither may end this process
            failure = SlotFailure(traceback.format_exc(), unmade=self._envs[slot] is None)
        env, self._envs[slot] = self._envs[slot], None
        with contextlib.suppress(Exception), self._limit.call("close"):
            self._close(env)
        return failure

    def _checked(self, result: R) -> R:
        """Refuses a result that would spoil the other slots' results."""
        if isinstance(result, _RESULTS):
            space = self.vector.single_observation_space
            # leaves that are not in the space are left out, as gymnasium does between processes
            found = flatten(space, known_leaves(space, result.observation))
            # a list may stand for a tuple, which RLlib would take for something else
            if is_composite(space):
                result = cast(R, type(result)(unflatten(space, found), *result[1:]))
            for path, observed in self._observed.items():
                leaf = found[path] if path else found
                self._check_observation(observed.as_array(observed.space, leaf), observed)
        if isinstance(result, StepResult) and not abs(result.reward) <= _LARGEST_FLOAT32:
            raise ValueError(f"the reward is {result.reward}, not finite in 32 bits")
        return result

    @functools.cached_property
    def _observed(self) -> "dict[str, _ObservedLeaf]":
        """The leaves of observations that have a layout."""
        found = leaves(self.vector.single_observation_space)
        layouts = {path: step_layout_or_none(leaf) for path, leaf in found.items()}
        return {
            path: _ObservedLeaf(
                space=found[path],
                shape=layout[0],
                has_bounds=_has_bounds(found[path]),
                as_array=as_array.dispatch(type(found[path])),
            )
            for path, layout in layouts.items()
            if layout
        }

    def _check_observation(self, observation: Array, observed: "_ObservedLeaf") -> None:
        space = observed.space
        if observed.shape != observation.shape:
            raise ValueError(
                f"the observation has shape {observation.shape}, but the space has {observed.shape}"
            )
        kind = observation.dtype.kind
        if kind not in "biuf":
            raise ValueError(f"the observation holds {observation.dtype}, not numbers")
        # false for NaN as well
        if kind == "f" and not np.abs(observation).max(initial=0.0) <= _LARGEST_FLOAT32:
            raise ValueError(f"the observation is not finite in 32 bits: {observation}")
        if not isinstance(space, gym.spaces.Box):
            problem = out_of_space(space, observation[None], "observation")
            if problem:
                raise ValueError(problem)
        elif self._warns_of_bounds and observed.has_bounds:
            outside = (observation < space.low) | (observation > space.high)
            if outside.any():
                self._warns_of_bounds = False
                logger.warning(
                    "an observation lies outside the environment's space: %s, but the space is %s; "
                    "further ones are not reported",
                    observation,
                    space,
                )


def _copied(observation: Value) -> Value:
    """Copies an observation: some environments change one array, which callbacks still hold."""
    if isinstance(observation, np.ndarray):  # deepcopy takes several times as long
        return observation.copy()
    return copy.deepcopy(observation)


def _finite(action: Value) -> Value:
    """Returns an action; raises a ValueError if it is not finite, as after extreme observations."""
    for leaf in [action] if isinstance(action, np.ndarray) else tree.flatten(action):
        values = np.asarray(leaf)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"the policy's action is not finite: {action}; see the observations")
    return action


def _flag(name: str, value: Any) -> bool:
    """Returns an end flag; raises a ValueError for what is neither a boolean nor 0 or 1."""
    if isinstance(value, _BOOLEANS):
        return bool(value)
    is_number = isinstance(value, bool | int | float | np.generic | np.ndarray)
    if not is_number or np.size(value) != 1 or not np.isin(value, (0, 1)).all():
        raise ValueError(f"{name} is {value!r}, not a boolean")
    return bool(value)


def _step_checked(env: gym.Env, action: Value) -> tuple[Value, float, bool, bool, Info]:
    """Steps an environment; raises a ValueError if its reward or end flags are something else."""
    observation, reward, terminated, truncated, info = env.step(action)
    if isinstance(reward, str):
        raise ValueError(f"the reward is the text {reward!r}")
    flags = _flag("terminated", terminated), _flag("truncated", truncated)
    return observation, float(reward), *flags, info


class _Checked(gym.Wrapper):
    """Checks what an environment returns before gymnasium puts it into arrays."""

    def step(self, action: Value) -> tuple[Value, float, bool, bool, Info]:
        return _step_checked(self.env, action)


class InProcessEnvs(SlotEnvs):
    """Environments in this process, stepped one after another."""

    @override(SlotEnvs)
    def _create(self) -> None:
        self.vector = SyncVectorEnv(self._makers, autoreset_mode=AutoresetMode.DISABLED)
        self._envs = list(self.vector.envs)

    @override(SlotEnvs)
    def step(self, actions: Mapping[int, Value]) -> Iterator[tuple[int, StepResult | SlotFailure]]:
        waiting = deque(actions.items())
        while waiting:
            found: list[tuple[int, StepResult | SlotFailure]] = []
            until = time.monotonic() + _SHARE_SECONDS
            with self._limit:
                while waiting and (not found or time.monotonic() < until):
                    slot, action = waiting.popleft()
                    found.append((slot, self._attempt(slot, "step", self._step, action)))
            yield from found

    def _step(self, env: gym.Env, action: Value) -> StepResult:
        observation, reward, terminated, truncated, info = _step_checked(env, _finite(action))
        return StepResult(_copied(observation), reward, terminated, truncated, info)

    @override(SlotEnvs)
    def _make(self, slot: int) -> gym.Env:
        env = self._makers[slot]()
        envs = list(self.vector.envs)
        envs[slot] = env
        self.vector.envs = tuple(envs)
        return env

    @override(SlotEnvs)
    def _reset(self, env: gym.Env, seed: int) -> ResetResult:
        observation, info = env.reset(seed=seed)
        return ResetResult(_copied(observation), info)

    @override(SlotEnvs)
    def _close(self, env: gym.Env) -> None:
        env.close()


class SubprocessEnvs(SlotEnvs):
    """Environments in separate processes, stepped at the same time.

    Each slot is an `AsyncVectorEnv` of one environment; a vector of several would step all of them
    or none, and fail as a whole.
    """

    @override(SlotEnvs)
    def _create(self) -> None:
        self._envs = [self._make(slot) for slot in range(len(self._makers))]
        self.vector = _SlotsAsVector(self._envs)

    @override(SlotEnvs)
    def step(self, actions: Mapping[int, Value]) -> Iterator[tuple[int, StepResult | SlotFailure]]:
        failures = {}
        with self._limit:
            for slot, action in actions.items():
                started = self._attempt(slot, "step", self._begin_step, action)
                if isinstance(started, SlotFailure):
                    failures[slot] = started
        for slot in actions:
            if slot in failures:
                yield slot, failures[slot]
                continue
            with self._limit:
                result = self._attempt(slot, "step", self._end_step, None)
            yield slot, result

    def _begin_step(self, env: AsyncVectorEnv, action: Value) -> None:
        env.step_async(tree.map_structure(lambda leaf: np.asarray(leaf)[None], _finite(action)))

    def _end_step(self, env: AsyncVectorEnv, _: None) -> StepResult:
        observations, rewards, terminateds, truncateds, infos = env.step_wait(self._timeout)
        return StepResult(
            _first(env, observations),
            float(rewards[0]),
            bool(terminateds[0]),
            bool(truncateds[0]),
            first_info(env, infos),
        )

    @override(SlotEnvs)
    def _make(self, slot: int) -> AsyncVectorEnv:
        make = self._makers[slot]
        return AsyncVectorEnv(
            [lambda: _Checked(make())],
            autoreset_mode=AutoresetMode.DISABLED,
            shared_memory=_has_fixed_size(self._space),
        )

    @override(SlotEnvs)
    def _reset(self, env: AsyncVectorEnv, seed: int) -> ResetResult:
        env.reset_async(seed=[seed], options={"reset_mask": np.ones(1, bool)})
        observations, infos = env.reset_wait(self._timeout)
        return ResetResult(_first(env, observations), first_info(env, infos))

    @override(SlotEnvs)
    def _close(self, env: AsyncVectorEnv) -> None:
        env.close(terminate=True)


def _first(env: AsyncVectorEnv, observations: Value) -> Value:
    """Returns the observation of a vector's only environment, nested like its space."""
    space = env.single_observation_space
    return unflatten(space, at(flatten(space, observations), 0))


def _has_fixed_size(space: gym.Space | None) -> bool:
    """Returns whether observations may be in memory that processes share.

    gymnasium 1.2 frees the memory of a text while another process still writes to it, and has none
    for graphs and sequences.
    """
    if space is None:
        return True
    has_layout = all(step_layout_or_none(leaf) is not None for leaf in leaves(space).values())
    return has_layout and not text_leaves(space)


class _SlotsAsVector(VectorEnv):
    """Presents slots, vectors of one environment each, as one vector that can be closed."""

    def __init__(self, envs: list[SlotEnv]):
        self._slots = envs
        self.num_envs = len(envs)
        self.single_observation_space = envs[0].single_observation_space
        self.single_action_space = envs[0].single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = envs[0].metadata
        self.spec = envs[0].spec

    def close_extras(self, **kwargs: Any) -> None:
        for env in self._slots:
            if env is not None:
                env.close(**kwargs)


SLOT_ENVS: dict[str, type[InProcessEnvs] | type[SubprocessEnvs]] = {
    "sync": InProcessEnvs,
    "async": SubprocessEnvs,
}
"""The class for each value of `config.gym_env_vectorize_mode`."""
