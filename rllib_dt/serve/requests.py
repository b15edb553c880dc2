"""What clients send, checked before it reaches a network: no torch, no Ray, nothing unpickled.

A window, after which the server remembers nothing:

    {"observations": [[…], …], "actions": [[…], …], "returns_to_go": [3600.0, …], "timestep": 7}

A step of a session that the server remembers:

    {"session": "robot-7", "step": 7, "observation": […], "reward": 1.0}

A value of a Dict space is an object, one of a Tuple an array of its parts, and all else numbers or
nested arrays of them.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_dt.episodes.targets import MAX
from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.context import Contexts
from rllib_dt.policy.observed import check_values
from rllib_dt.spaces.composites import Layout, layouts, text_leaves
from rllib_dt.spaces.leaves import as_array
from rllib_dt.spaces.trees import by_leaf, from_leaves, leaves
from rllib_dt.types import Array, JsonObject, Tree, Value

_LONGEST_NAME = 200
_LAST_TIMESTEP = 2**31 - 1
_LARGEST = float(np.finfo(np.float32).max)


class BadRequestError(ValueError):
    """A request that cannot be answered; the message says what is wrong with it."""


class LostSessionError(BadRequestError):
    """A step of a session that the server does not remember."""


@dataclass(frozen=True, kw_only=True)
class WindowRequest:
    """The last n steps of an episode.

    Attributes:
        observations, actions: n and n or n - 1 values, as trees; texts are bytes.
        returns_to_go: n numbers, in reward units.
        timestep: that of the last step, from 0.
    """

    observations: list[Tree]
    actions: list[Tree]
    returns_to_go: list[float]
    timestep: int


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """The newest step of a session.

    Attributes:
        session: the session's name.
        step: the step's number, from 0, which begins an episode.
        observation: a tree.
        reward: of the step before.
        target_return: what to ask for, at step 0; infinite for "max", and None takes the server's
            default.
        digest: of the request as a whole, by which a repeated one is known.
    """

    session: str
    step: int
    observation: Tree
    reward: float
    target_return: float | None
    digest: str = field(compare=False)


class Requests:
    """Turns JSON values into requests to one policy.

    Args:
        config: the network's settings.
        observation_space, action_space: its spaces.
    """

    def __init__(
        self, config: DTModelConfig, observation_space: gym.Space, action_space: gym.Space
    ):
        self.longest = config.receptive_steps
        self._spaces = observation_space, action_space
        self._contexts = Contexts(1, config, observation_space, action_space)
        self._layouts = self._contexts.layouts, layouts(action_space)
        self._leaves = leaves(observation_space), leaves(action_space)
        self._estimates = config.estimates_return
        self._texts = list(text_leaves(observation_space, config.ignore).items())

    def window(self, given: Any) -> WindowRequest:
        """Checks a window.

        Raises:
            BadRequestError: it is none.
        """
        found = _fields(given, ("observations", "returns_to_go"), ("actions", "timestep"))
        observations = _listed(found, "observations")
        n = len(observations)
        if not 1 <= n <= self.longest:
            raise BadRequestError(
                f"observations holds {n} steps, wanted 1 to {self.longest}: the last ones, which "
                "are all that the policy sees"
            )
        actions = _listed(found, "actions", [])
        if len(actions) not in (n - 1, n):
            raise BadRequestError(
                f"actions holds {len(actions)} actions, wanted {n - 1}: one for each step before "
                "the last"
            )
        returns_to_go = _listed(found, "returns_to_go")
        if len(returns_to_go) != n:
            raise BadRequestError(f"returns_to_go holds {len(returns_to_go)} numbers, wanted {n}")
        return WindowRequest(
            observations=[
                self._observation(value, f"observations[{i}]", as_stored=True)
                for i, value in enumerate(observations)
            ],
            actions=[
                self._action(value, f"actions[{i}]") for i, value in enumerate(actions[: n - 1])
            ],
            returns_to_go=[
                _number(value, f"returns_to_go[{i}]") for i, value in enumerate(returns_to_go)
            ],
            timestep=_whole(found.get("timestep", n - 1), "timestep", n - 1, _LAST_TIMESTEP),
        )

    def step(self, given: Any) -> StepRequest:
        """Checks a step of a session.

        Raises:
            BadRequestError: it is none.
        """
        found = _fields(given, ("session", "step", "observation"), ("reward", "target_return"))
        name = found["session"]
        if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or "/" in name:
            raise BadRequestError(
                f"session must be a text of 1 to {_LONGEST_NAME} characters, without a slash"
            )
        step = _whole(found["step"], "step", 0, _LAST_TIMESTEP)
        target = found.get("target_return")
        if target is not None and step:
            raise BadRequestError("target_return is asked for at step 0 only")
        if step and "reward" not in found:
            raise BadRequestError("reward is missing: that of the step before")
        observation = self._observation(found["observation"], "observation", as_stored=False)
        reward = _number(found.get("reward", 0.0), "reward")
        if target == MAX and not self._estimates:
            raise BadRequestError('this policy cannot be asked for "max"; give a number')
        if target is not None:
            target = math.inf if target == MAX else _number(target, "target_return")
        return StepRequest(
            session=name,
            step=step,
            observation=observation,
            reward=reward,
            target_return=target,
            digest=_digest(observation, reward, target),
        )

    def _observation(self, value: Any, what: str, *, as_stored: bool) -> Tree:
        """Returns an observation as a tree; `as_stored`, its texts are bytes."""
        try:
            tree = self._contexts.observed(_arrays(self._spaces[0], value))
            _check_shapes(tree, self._contexts.shapes)
            check_values(tree, self._layouts[0], self._leaves[0], "observation")
            # where only its own request can fail
            encoded = {path: as_array(leaf, by_leaf(tree)[path]) for path, leaf in self._texts}
            if as_stored:
                tree = from_leaves(by_leaf(tree) | encoded)
        except (ValueError, TypeError, OverflowError, UnicodeError) as error:
            raise BadRequestError(f"{what}: {error}") from error
        return tree

    def _action(self, value: Any, what: str) -> Tree:
        try:
            tree = self._contexts.acted(_arrays(self._spaces[1], value))
            _check_shapes(tree, {path: shape for path, (shape, _) in self._layouts[1].items()})
            check_values(tree, self._layouts[1], self._leaves[1], "action")
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRequestError(f"{what}: {error}") from error
        return tree


def decoded(body: bytes) -> Any:
    """Reads a request's JSON.

    Raises:
        BadRequestError: it is none.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise BadRequestError(f"the body is no JSON ({error})") from None


def plain(value: Value) -> Any:
    """Turns a value of a space into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _arrays(space: gym.Space, value: Any) -> Value:
    """Turns JSON's lists into arrays, as a space has them."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"it is {_kind(value)}, wanted an object with {list(space.spaces)}")
        known = space.spaces
        return {key: _arrays(known[key], v) if key in known else v for key, v in value.items()}
    if isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ValueError(f"it is {_kind(value)}, wanted {len(space.spaces)} parts")
        if len(value) != len(space.spaces):
            raise ValueError(f"it has {len(value)} parts, wanted {len(space.spaces)}")
        return tuple(_arrays(inner, v) for inner, v in zip(space.spaces, value, strict=True))
    if isinstance(space, gym.spaces.Text):
        if not isinstance(value, str):
            raise ValueError(f"it is {_kind(value)}, wanted a text")
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("its arrays have different lengths") from None
    if array.dtype.kind not in "biuf":
        raise ValueError("it holds something else than numbers, or numbers of too many digits")
    return array


def _check_shapes(tree: Tree, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for path, array in by_leaf(tree).items():
        if np.shape(array) != shapes[path]:
            name = f"leaf {path!r}" if path else "it"
            raise ValueError(f"{name} has the shape {np.shape(array)}, wanted {shapes[path]}")


def _fields(given: Any, needed: Sequence[str], optional: Sequence[str]) -> JsonObject:
    if not isinstance(given, Mapping):
        raise BadRequestError(f"the request is {_kind(given)}, wanted an object")
    unknown = sorted(str(name) for name in given if name not in (*needed, *optional))
    missing = [name for name in needed if name not in given]
    if unknown or missing:
        raise BadRequestError(
            f"missing fields {missing}, unknown fields {unknown}; there are {list(needed)}, and "
            f"optional ones {list(optional)}"
        )
    return dict(given)


def _listed(found: JsonObject, name: str, default: Any = None) -> Sequence[Any]:
    value = found.get(name, default)
    if isinstance(value, np.ndarray) and value.ndim:
        return list(value)
    if not isinstance(value, list | tuple):
        raise BadRequestError(f"{name} is {_kind(value)}, wanted an array")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _LARGEST:
        raise BadRequestError(f"{what} is {_kind(value, shown=True)}, wanted a finite number")
    return float(value)


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequestError(
            f"{what} is {_kind(value, shown=True)}, wanted a whole number from {least} to {most}"
        )
    return value


def _kind(value: Any, *, shown: bool = False) -> str:
    """Names what JSON calls a value; with `shown`, a number is shown."""
    if shown and isinstance(value, Real):
        is_long = isinstance(value, int) and value.bit_length() > 128
        return "a number of too many digits" if is_long else repr(value)[:40]
    if isinstance(value, Real) and not isinstance(value, bool):
        return "a number"
    names = {dict: "an object", list: "an array", str: "a text", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _digest(observation: Tree, reward: float, target: float | None) -> str:
    content = hashlib.blake2b(digest_size=16)
    for path, value in sorted(by_leaf(observation).items()):
        array: Array = np.asarray(value)
        content.update(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    content.update(f"{reward!r} {target!r}".encode())
    return content.hexdigest()


def stacked(trees: Sequence[Tree], shapes: Mapping[str, Layout], rows: int) -> Tree:
    """Stacks values at the end of arrays of `rows` steps, with zeros before them."""
    arrays = {path: np.zeros((rows, *shape), dtype) for path, (shape, dtype) in shapes.items()}
    for row, tree in enumerate(trees, rows - len(trees)):
        for path, value in by_leaf(tree).items():
            arrays[path][row] = value
    return from_leaves(arrays)
