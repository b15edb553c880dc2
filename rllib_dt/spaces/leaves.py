"""What the package needs to know about a leaf space in numpy: one function per question.

To support a new space, register it with each function here, with `encoders.observation_size` (if
it can be observed) and with `heads.action_head` (if it can be acted in). Unregistered spaces are
refused by name.
"""

from functools import singledispatch

import gymnasium as gym
import numpy as np

from rllib_dt.types import Array

_BOUND_TOLERANCE = 1e-5
"""Relative to a Box's range; float32 recordings of float64 bounds differ in the last digits."""


class UnsupportedSpaceError(ValueError):
    """A space that the Decision Transformer cannot use; names the space and the reason."""


def _unsupported(space: gym.Space, use: str, wanted: str) -> UnsupportedSpaceError:
    return UnsupportedSpaceError(
        f"{type(space).__name__} spaces are not supported as {use}: got {space}; "
        f"wanted {wanted}. Wrap the environment (gymnasium.wrappers) and convert the "
        "recorded data accordingly"
    )


@singledispatch
def check_observation_space(space: gym.Space) -> None:
    """Raises `UnsupportedSpaceError` if the network has no encoder for the space."""
    raise _unsupported(space, "observations", "a Box of rank 1")


@check_observation_space.register
def _(space: gym.spaces.Box) -> None:
    if len(space.shape) != 1:
        raise _unsupported(space, "observations", f"a Box of rank 1, not of shape {space.shape}")


@singledispatch
def check_action_space(space: gym.Space) -> None:
    """Raises `UnsupportedSpaceError` if the network has no action head for the space."""
    raise _unsupported(space, "actions", "a Box with finite bounds or a Discrete space")


@check_action_space.register
def _(space: gym.spaces.Box) -> None:
    if len(space.shape) != 1:
        raise _unsupported(space, "actions", f"a Box of rank 1, not of shape {space.shape}")
    if not space.is_bounded():
        raise UnsupportedSpaceError(
            f"Box spaces without finite bounds are not supported as actions: got {space}; wrap the "
            "environment in gymnasium.wrappers.TransformAction(env, lambda action: action, "
            "Box(low, high, …)) with the range that actions should keep to"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise _unsupported(space, "actions", f"a floating-point Box, not {space.dtype}")


@check_action_space.register
def _(space: gym.spaces.Discrete) -> None:
    pass


@singledispatch
def step_layout(space: gym.Space) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and dtype of one step's value, as the pool stores it."""
    raise _unsupported(space, "data", "a Box or a Discrete space")


@step_layout.register
def _(space: gym.spaces.Box) -> tuple[tuple[int, ...], np.dtype]:
    dtype = space.dtype if space.dtype == np.uint8 else np.dtype(np.float32)
    return space.shape, np.dtype(dtype)


@step_layout.register
def _(space: gym.spaces.Discrete) -> tuple[tuple[int, ...], np.dtype]:
    return (), np.dtype(np.int64)


@singledispatch
def out_of_space(space: gym.Space, actions: Array) -> str | None:
    """Describes the first of the `actions`, (T, …), outside the space; None if all are inside."""
    raise _unsupported(space, "actions", "a Box with finite bounds or a Discrete space")


@out_of_space.register
def _(space: gym.spaces.Box, actions: Array) -> str | None:
    slack = _BOUND_TOLERANCE * np.maximum(1.0, np.abs(space.high - space.low))
    bad = (actions < space.low - slack) | (actions > space.high + slack)
    if not bad.any():
        return None
    step = int(np.argwhere(bad)[0][0])
    return f"the action {actions[step]} at step {step} lies outside {space}"


@out_of_space.register
def _(space: gym.spaces.Discrete, actions: Array) -> str | None:
    rounded = np.asarray(actions).astype(np.int64)
    bad = (rounded != actions) | (rounded < space.start) | (rounded >= space.start + space.n)
    if not bad.any():
        return None
    step = int(np.argwhere(bad)[0][0])
    return f"the action {actions[step]} at step {step} lies outside {space}"


@singledispatch
def unsquash_actions(space: gym.Space, actions: Array) -> Array:
    """Converts actions in RLlib's normalised form to the environment's units.

    For a Box, [-1, 1] is mapped to [low, high] and clipped to it, as RLlib's `unsquash_action`
    does before it steps the environment. Other spaces have no normalised form.
    """
    return actions


@unsquash_actions.register
def _(space: gym.spaces.Box, actions: Array) -> Array:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    scaled = low + (np.asarray(actions, np.float64) + 1.0) * (high - low) / 2.0
    clipped: Array = np.clip(scaled, low, high).astype(np.float32)
    return clipped


@singledispatch
def action_remedy(space: gym.Space, *, normalized: bool) -> str:
    """Says what to do about recorded actions outside of the space.

    Args:
        space: the action space.
        normalized: whether they were taken as normalised to [-1, 1].
    """
    return "check that the environment (or the given space) belongs to this data"


@action_remedy.register
def _(space: gym.spaces.Box, *, normalized: bool) -> str:
    unit = "in the environment's units" if normalized else "normalised to [-1, 1]"
    return (
        f"clip the recorded actions, or set offline_data(actions_in_input_normalized="
        f"{not normalized}) if they are {unit}"
    )


@singledispatch
def looks_normalized(space: gym.Space, largest: Array) -> bool:
    """Returns whether recorded actions could be normalised ones.

    Args:
        space: the action space.
        largest: of an action's shape, the largest absolute value recorded in each component.
    """
    return False


@looks_normalized.register
def _(space: gym.spaces.Box, largest: Array) -> bool:
    is_wider = (space.high > 1) | (space.low < -1)
    return bool(is_wider.any() and (largest[is_wider] <= 1 + _BOUND_TOLERANCE).all())


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
    return all(np.allclose(a, b, rtol=_BOUND_TOLERANCE, atol=_BOUND_TOLERANCE) for a, b in bounds)


@singledispatch
def describe_space(space: gym.Space) -> dict[str, object]:
    """Describes a space as JSON values; `space_from_description` restores it exactly."""
    raise _unsupported(space, "data", "a Box or a Discrete space")


@describe_space.register
def _(space: gym.spaces.Box) -> dict[str, object]:
    # str() because JSON has no infinity
    bounds = {k: [str(float(v)) for v in getattr(space, k).ravel()] for k in ("low", "high")}
    return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}


@describe_space.register
def _(space: gym.spaces.Discrete) -> dict[str, object]:
    return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}


def space_from_description(description: dict) -> gym.Space:
    """Rebuilds a space from `describe_space`'s output; raises a ValueError for any other dict."""
    kind = description.get("type")
    if kind == "Discrete":
        return gym.spaces.Discrete(description["n"], start=description["start"])
    if kind == "Box":
        shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
        low, high = (
            np.array([float(v) for v in description[k]]).reshape(shape).astype(dtype)
            for k in ("low", "high")
        )
        return gym.spaces.Box(low, high, shape, dtype.type)
    raise ValueError(f"{description} does not describe a space; wanted type Box or Discrete")
