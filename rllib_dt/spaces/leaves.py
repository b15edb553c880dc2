"""What the package needs to know about a leaf space in numpy: one function per question.

Composite spaces are asked leaf by leaf; see `composites`. To support a new leaf space, register it
with each function here and in `descriptions`, with `encoders.state_encoder` (if it can be observed)
and with `heads.action_head` (if it can be acted in). Unregistered spaces are refused by name.
"""

from functools import singledispatch
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_dt.types import Array, Value

BOUND_TOLERANCE = 1e-5
"""Relative to a Box's range; float32 recordings of float64 bounds differ in the last digits."""

ImageEncoder = Literal["auto", "nature", "small", "linear"]
IMAGE_ENCODERS: tuple[ImageEncoder, ...] = ("auto", "nature", "small", "linear")
"""What `DTModelConfig.image_encoder` may be; "auto" chooses by the image's size."""


class UnsupportedSpaceError(ValueError):
    """A space that the Decision Transformer cannot use; names the space and the reason."""


def unsupported(space: gym.Space, use: str, wanted: str) -> UnsupportedSpaceError:
    """Returns the error for a space that cannot be used as observations, actions or data."""
    return UnsupportedSpaceError(
        f"{type(space).__name__} spaces are not supported as {use}: got {space}; "
        f"wanted {wanted}. Wrap the environment (gymnasium.wrappers) and convert the "
        "recorded data accordingly"
    )


_LEAVES = "a Box, Discrete, MultiDiscrete or MultiBinary space"


@singledispatch
def check_observation_space(space: gym.Space) -> None:
    """Raises `UnsupportedSpaceError` if the network has no encoder for the space."""
    raise unsupported(space, "observations", _LEAVES)


@check_observation_space.register
def _(space: gym.spaces.Box) -> None:
    if not np.prod(space.shape):
        raise unsupported(space, "observations", "a Box with at least one number")


@check_observation_space.register(gym.spaces.Discrete)
@check_observation_space.register(gym.spaces.MultiDiscrete)
@check_observation_space.register(gym.spaces.MultiBinary)
def _(space: gym.Space) -> None:
    pass


@singledispatch
def check_action_space(space: gym.Space) -> None:
    """Raises `UnsupportedSpaceError` if the network has no action head for the space."""
    raise unsupported(space, "actions", _LEAVES)


@check_action_space.register
def _(space: gym.spaces.Box) -> None:
    if not np.prod(space.shape):
        raise unsupported(space, "actions", "a Box with at least one number")
    if not np.issubdtype(space.dtype, np.floating):
        raise unsupported(space, "actions", f"a floating-point Box, not {space.dtype}")


@check_action_space.register(gym.spaces.Discrete)
@check_action_space.register(gym.spaces.MultiDiscrete)
@check_action_space.register(gym.spaces.MultiBinary)
def _(space: gym.Space) -> None:
    pass


@singledispatch
def step_layout(space: gym.Space) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and dtype of one step's value, as the pool stores it."""
    raise unsupported(space, "data", _LEAVES)


@step_layout.register
def _(space: gym.spaces.Box) -> tuple[tuple[int, ...], np.dtype]:
    is_small = space.dtype in (np.uint8, np.bool_)  # images
    return space.shape, np.dtype(space.dtype if is_small else np.float32)


@step_layout.register
def _(space: gym.spaces.Discrete) -> tuple[tuple[int, ...], np.dtype]:
    return (), np.dtype(np.int64)


@step_layout.register
def _(space: gym.spaces.MultiDiscrete) -> tuple[tuple[int, ...], np.dtype]:
    return space.nvec.shape, np.dtype(np.int64)


@step_layout.register
def _(space: gym.spaces.MultiBinary) -> tuple[tuple[int, ...], np.dtype]:
    return space.shape, np.dtype(np.int8)


def num_numbers(space: gym.Space, image_encoder: ImageEncoder = "auto") -> int:
    """Returns how many numbers of an observation leaf the network normalises; 0 for other spaces.

    Images are scaled by a constant instead, and categories have no order.
    """
    check_observation_space(space)
    if not isinstance(space, gym.spaces.Box) or (is_image(space) and image_encoder != "linear"):
        return 0
    return int(np.prod(space.shape))


def is_image(space: gym.Space) -> bool:
    """Returns whether a Box holds pixels: bytes or bits with height and width."""
    return (
        isinstance(space, gym.spaces.Box)
        and space.dtype in (np.uint8, np.bool_)
        and 2 <= len(space.shape) <= 4
    )


@step_layout.register
def _(space: gym.spaces.Text) -> tuple[tuple[int, ...], np.dtype]:
    return (space.max_length * max(len(c.encode()) for c in space.character_set),), np.dtype("u1")


@singledispatch
def as_array(space: gym.Space, value: Value) -> Array:
    """Turns an environment's value of a leaf into an array of its `step_layout`."""
    return np.asarray(value)


@as_array.register
def _(space: gym.spaces.Text, value: Value) -> Array:
    """Returns UTF-8, padded with zeros."""
    texts = np.asarray([str(value).encode()], np.bytes_)
    padded: Array = text_to_bytes(space, texts)[0]
    return padded


def text_to_bytes(space: gym.spaces.Text, texts: Array) -> Array:
    """Turns (T,) bytes of UTF-8 into (T, W) uint8, padded with zeros.

    Raises:
        ValueError: a text is longer than the space allows.
    """
    width = step_layout(space)[0][0]
    if texts.dtype.itemsize > width:
        longest = max(texts.tolist(), key=len)
        raise ValueError(f"the text {longest!r} is longer than {space} allows")
    padded = np.zeros((len(texts), width), np.uint8)
    padded[:, : texts.dtype.itemsize] = texts.view(np.uint8).reshape(len(texts), -1)
    return padded


def step_layout_or_none(space: gym.Space) -> tuple[tuple[int, ...], np.dtype] | None:
    """Returns the `step_layout`, or None of a leaf that has none and can only be left out."""
    try:
        return step_layout(space)
    except UnsupportedSpaceError:
        return None


@singledispatch
def choice_counts(space: gym.Space) -> tuple[int, ...] | None:
    """Returns how many values each category of an action has, if a mask can forbid some."""
    return None


@choice_counts.register
def _(space: gym.spaces.Discrete) -> tuple[int, ...] | None:
    return (int(space.n),)


@choice_counts.register
def _(space: gym.spaces.MultiDiscrete) -> tuple[int, ...] | None:
    return tuple(int(n) for n in space.nvec.ravel())


def forbidden(space: gym.Space, actions: Array, masks: Array) -> int | None:
    """Returns the first step whose action its mask forbids, or None.

    Args:
        space: a space with `choice_counts`.
        actions: (T, …).
        masks: (T, Σn), 0 where a value is forbidden; of several categories one after another.
    """
    counts = choice_counts(space)
    assert counts is not None
    first = np.cumsum(counts) - counts
    start: Any = space.start
    index = np.asarray(actions).reshape(len(actions), -1) - np.asarray(start).ravel() + first
    legal = np.take_along_axis(masks.reshape(len(masks), -1), index.astype(np.int64), axis=1) != 0
    bad = np.flatnonzero(~legal.all(axis=1))
    return int(bad[0]) if len(bad) else None


@singledispatch
def out_of_space(space: gym.Space, values: Array, name: str = "action") -> str | None:
    """Describes the first of the `values`, (T, …), outside the space; None if all are inside.

    Args:
        space: a leaf space.
        values: recorded actions, or observations of a space of categories.
        name: what they are, for the message.
    """
    raise unsupported(space, "data", _LEAVES)


def _describe_first(space: gym.Space, values: Array, bad: NDArray[np.bool_], name: str) -> str:
    step = int(np.argwhere(bad)[0][0])
    return f"the {name} {values[step]} at step {step} lies outside {space}"


@out_of_space.register
def _(space: gym.spaces.Box, values: Array, name: str = "action") -> str | None:
    low, high = space.low, space.high
    if space.dtype.kind != "f":
        low, high = low.astype(np.float64), high.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        span = np.abs(high - low)
    slack = BOUND_TOLERANCE * np.maximum(1.0, np.where(np.isfinite(span), span, 1.0))
    bad = (values < low - slack) | (values > high + slack)
    return _describe_first(space, values, bad, name) if bad.any() else None


def _out_of_range(values: Array, start: Array, count: Array) -> NDArray[np.bool_]:
    """Returns where values are not one of the whole numbers start … start + count - 1."""
    numbers = np.asarray(values)
    whole = numbers if numbers.dtype.kind in "iub" else np.floor(numbers)
    bad: NDArray[np.bool_] = (whole != numbers) | (whole < start) | (whole >= start + count)
    return bad


@out_of_space.register
def _(space: gym.spaces.Discrete, values: Array, name: str = "action") -> str | None:
    bad = _out_of_range(values, np.asarray(space.start), np.asarray(space.n))
    return _describe_first(space, values, bad, name) if bad.any() else None


@out_of_space.register
def _(space: gym.spaces.MultiDiscrete, values: Array, name: str = "action") -> str | None:
    bad = _out_of_range(values, np.asarray(space.start), space.nvec)
    return _describe_first(space, values, bad, name) if bad.any() else None


@out_of_space.register
def _(space: gym.spaces.Text, values: Array, name: str = "action") -> str | None:
    return None  # bytes


@out_of_space.register
def _(space: gym.spaces.MultiBinary, values: Array, name: str = "action") -> str | None:
    bad = _out_of_range(values, np.zeros(space.shape, int), np.full(space.shape, 2))
    return _describe_first(space, values, bad, name) if bad.any() else None


@singledispatch
def unsquash_actions(space: gym.Space, actions: Array) -> Array:
    """Converts actions in RLlib's normalised form to the environment's units.

    For a bounded Box, [-1, 1] is mapped to [low, high] and clipped to it, as RLlib's
    `unsquash_action` does before it steps the environment. Other spaces have no normalised form.
    """
    return actions


@unsquash_actions.register
def _(space: gym.spaces.Box, actions: Array) -> Array:
    if not space.is_bounded():
        return actions
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
    is_wider = np.isfinite(space.low) & np.isfinite(space.high)
    is_wider &= (space.high > 1) | (space.low < -1)
    return bool(is_wider.any() and (largest[is_wider] <= 1 + BOUND_TOLERANCE).all())
