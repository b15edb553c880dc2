"""Describes spaces as JSON values, rebuilds and compares them."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_dt.spaces.leaves import BOUND_TOLERANCE, unsupported
from rllib_dt.types import Array


@singledispatch
def describe_space(space: gym.Space) -> dict[str, object]:
    """Describes a space as JSON values; `space_from_description` restores it exactly."""
    raise unsupported(space, "data", "a Box, Discrete, MultiDiscrete or MultiBinary space")


@describe_space.register
def _(space: gym.spaces.Box) -> dict[str, object]:
    # str() because JSON has no infinity
    bounds = {k: [str(float(v)) for v in getattr(space, k).ravel()] for k in ("low", "high")}
    return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}


@describe_space.register
def _(space: gym.spaces.Discrete) -> dict[str, object]:
    return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}


@describe_space.register
def _(space: gym.spaces.MultiDiscrete) -> dict[str, object]:
    start = np.asarray(space.start)
    return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start.tolist()}


@describe_space.register
def _(space: gym.spaces.MultiBinary) -> dict[str, object]:
    n = space.n if isinstance(space.n, int) else list(space.shape)
    return {"type": "MultiBinary", "n": n}


@describe_space.register
def _(space: gym.spaces.Dict) -> dict[str, object]:
    return {
        "type": "Dict",
        "spaces": {str(name): describe_space(inner) for name, inner in space.spaces.items()},
    }


@describe_space.register
def _(space: gym.spaces.Tuple) -> dict[str, object]:
    return {"type": "Tuple", "spaces": [describe_space(inner) for inner in space.spaces]}


@describe_space.register
def _(space: gym.spaces.Text) -> dict[str, object]:
    return {
        "type": "Text",
        "min_length": space.min_length,
        "max_length": space.max_length,
        "charset": "".join(sorted(space.character_set)),
    }


def space_from_description(description: Mapping[str, Any]) -> gym.Space:
    """Rebuilds a space from `describe_space`'s output; raises a ValueError for any other dict."""
    kind = description.get("type")
    if kind == "Discrete":
        return gym.spaces.Discrete(description["n"], start=description["start"])
    if kind == "MultiDiscrete":
        return gym.spaces.MultiDiscrete(description["nvec"], start=description["start"])
    if kind == "MultiBinary":
        return gym.spaces.MultiBinary(description["n"])
    if kind == "Box":
        shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
        low, high = (_bounds(description[k], shape, dtype) for k in ("low", "high"))
        return gym.spaces.Box(low, high, shape, dtype.type)
    if kind == "Dict":
        inner = description["spaces"]
        return gym.spaces.Dict({name: space_from_description(inner[name]) for name in inner})
    if kind == "Tuple":
        return gym.spaces.Tuple([space_from_description(each) for each in description["spaces"]])
    if kind == "Text":
        return gym.spaces.Text(
            description["max_length"],
            min_length=description["min_length"],
            charset=description["charset"],
        )
    raise ValueError(
        f"{description} does not describe a space; wanted type Box, Discrete, MultiDiscrete, "
        "MultiBinary, Dict, Tuple or Text"
    )


def _bounds(values: list[str], shape: tuple[int, ...], dtype: np.dtype) -> Array:
    bounds = np.array([float(v) for v in values]).reshape(shape)
    # through float, 64-bit bounds would leave their range
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        whole = [min(max(int(v), int(limits.min)), int(limits.max)) for v in bounds.ravel()]
        return np.array(whole, dtype).reshape(shape)
    return bounds.astype(dtype)


@singledispatch
def same_space(space: gym.Space, other: gym.Space) -> bool:
    """Returns whether two spaces hold the same values, whatever floating-point dtype they have."""
    return bool(space == other)


@same_space.register
def _(space: gym.spaces.Box, other: gym.Space) -> bool:
    if not isinstance(other, gym.spaces.Box) or space.shape != other.shape:
        return False
    kinds = [np.dtype(s.dtype).kind for s in (space, other)]
    if kinds[0] != kinds[1] or (kinds[0] != "f" and space.dtype != other.dtype):
        return False
    bounds = ((space.low, other.low), (space.high, other.high))
    return all(np.allclose(a, b, rtol=BOUND_TOLERANCE, atol=BOUND_TOLERANCE) for a, b in bounds)


@same_space.register
def _(space: gym.spaces.Dict, other: gym.Space) -> bool:
    if not isinstance(other, gym.spaces.Dict) or space.spaces.keys() != other.spaces.keys():
        return False
    return all(same_space(inner, other.spaces[name]) for name, inner in space.spaces.items())


@same_space.register
def _(space: gym.spaces.Tuple, other: gym.Space) -> bool:
    if not isinstance(other, gym.spaces.Tuple) or len(space.spaces) != len(other.spaces):
        return False
    return all(map(same_space, space.spaces, other.spaces))
