"""What the package needs to know about a whole space: the questions of `leaves`, leaf by leaf."""

from collections.abc import Collection
from dataclasses import replace

import gymnasium as gym
import numpy as np

from rllib_dt.spaces.leaves import (
    ImageEncoder,
    UnsupportedSpaceError,
    check_action_space,
    check_observation_space,
    choice_counts,
    is_image,
    looks_normalized,
    num_numbers,
    step_layout,
)
from rllib_dt.spaces.trees import (
    ACTION_MASK,
    EVERYTHING,
    LeafChoice,
    bad_names,
    by_leaf,
    is_below,
    is_composite,
    joined,
    leaves,
)
from rllib_dt.types import Tree

Layout = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of one step's value."""


def check_spaces(
    observation_space: gym.Space, action_space: gym.Space, choice: LeafChoice = EVERYTHING
) -> None:
    """Raises an `UnsupportedSpaceError` if the network cannot use the spaces.

    Args:
        observation_space, action_space: the spaces.
        choice: which leaves of observations are left out, or have encoders of their own.
    """
    for space in (observation_space, action_space):
        check_names(space)
    _check_paths(observation_space, choice)
    observed = leaves(observation_space, choice.ignore)
    if not set(observed) - {ACTION_MASK}:
        raise UnsupportedSpaceError(f"no leaf of {observation_space} is left to observe")
    for path, leaf in observed.items():
        try:
            if path in choice.own:
                step_layout(leaf)
            else:
                check_observation_space(leaf)
        except UnsupportedSpaceError as error:
            raise _at(path, error) from None
    acted = leaves(action_space)
    if not acted:
        raise UnsupportedSpaceError(f"{action_space} has no leaf to act in")
    for path, leaf in acted.items():
        try:
            check_action_space(leaf)
        except UnsupportedSpaceError as error:
            raise UnsupportedSpaceError(f"leaf {path!r}: {error}" if path else error) from None
    if ACTION_MASK in observed:
        _check_mask(observed[ACTION_MASK], action_space)
    for path in observed:
        if ACTION_MASK in path.split("/") and path != ACTION_MASK:
            raise UnsupportedSpaceError(
                f"leaf {path!r}: a mask of legal actions is honoured only as the observation's own "
                f"leaf {ACTION_MASK!r}; move or rename it in the environment and in the data, or "
                f"leave it out with DTModelConfig(ignore=[{path!r}])"
            )


def check_names(space: gym.Space) -> None:
    """Raises an `UnsupportedSpaceError` if a leaf's name cannot be part of a path."""
    names = bad_names(space)
    if names:
        raise UnsupportedSpaceError(
            f"the names {names} of leaves are no text, empty, or hold a slash, which separates the "
            "levels of a path; rename them in the environment and in the data"
        )


def _check_paths(space: gym.Space, choice: LeafChoice) -> None:
    """Refuses paths that the space does not have."""
    known = leaves(space)
    for path in choice.own:
        if path == ACTION_MASK:
            raise UnsupportedSpaceError(
                f"DTModelConfig(encoders=…): {ACTION_MASK!r} says which actions are legal, and is "
                "no input of the network"
            )
        if path not in leaves(space, choice.ignore):
            raise UnsupportedSpaceError(
                f"DTModelConfig(encoders=…): observations have no leaf {path!r} that is not "
                f"ignored; {space} has {sorted(known)}"
            )
    for path in choice.ignore:
        if not any(is_below(leaf, [path]) for leaf in known if leaf):
            has = sorted(known) if is_composite(space) else "no leaves"
            raise UnsupportedSpaceError(
                f"DTModelConfig(ignore={list(choice.ignore)}): observations have no leaf {path!r}; "
                f"{space} has {has}"
            )


def _at(path: str, error: UnsupportedSpaceError) -> UnsupportedSpaceError:
    if not path:
        return error
    return UnsupportedSpaceError(
        f"leaf {path!r}: {error}; or leave it out with DTModelConfig(ignore=[{path!r}]), or give "
        f"it an encoder of your own, DTModelConfig(encoders={{{path!r}: …}}) (docs/extending.md)"
    )


def _check_mask(mask: gym.Space, action_space: gym.Space) -> None:
    counts = choice_counts(action_space)
    if counts is None:
        problem = f"the actions are {action_space}, of which no single ones can be forbidden"
    elif int(np.prod(mask.shape or ())) != sum(counts) or len(mask.shape or ()) != 1:
        problem = f"it is {mask}, but the actions are {action_space}, of {sum(counts)} values"
    else:
        return
    raise UnsupportedSpaceError(
        f"leaf {ACTION_MASK!r} says which actions are legal, but {problem}; give one number for "
        f"each value, or leave it out with DTModelConfig(ignore=[{ACTION_MASK!r}])"
    )


def text_leaves(space: gym.Space, ignore: Collection[str] = ()) -> dict[str, gym.spaces.Text]:
    """Returns the leaves that are text, by path."""
    found = leaves(space, ignore).items()
    return {path: leaf for path, leaf in found if isinstance(leaf, gym.spaces.Text)}


def wanted(space: gym.Space, choice: LeafChoice = EVERYTHING) -> LeafChoice:
    """Returns what to read of recorded values of a space: its leaves only, some of them as text."""
    only = tuple(leaves(space, choice.ignore)) if is_composite(space) else None
    return replace(choice, texts=tuple(text_leaves(space, choice.ignore)), only=only)


def layouts(space: gym.Space, ignore: Collection[str] = ()) -> dict[str, Layout]:
    """Returns each leaf's `step_layout`, by path."""
    return {path: step_layout(leaf) for path, leaf in leaves(space, ignore).items()}


def column_shapes(
    observation_space: gym.Space, action_space: gym.Space, ignore: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of a step's value by column: "obs", or "obs/camera", and "actions"."""
    found = {"obs": layouts(observation_space, ignore), "actions": layouts(action_space)}
    return {
        joined(column, path): shape
        for column, of_leaves in found.items()
        for path, (shape, _) in of_leaves.items()
    }


def step_bytes(
    space: gym.Space, ignore: Collection[str] = (), frame_stack: int | None = None
) -> int:
    """Returns the bytes of one step's value in the pool, where each frame is held once."""
    stacked = stacked_leaves(space, frame_stack, ignore)
    return sum(
        int(np.prod(shape[1:] if path in stacked else shape)) * dtype.itemsize
        for path, (shape, dtype) in layouts(space, ignore).items()
    )


def stacked_leaves(
    space: gym.Space, frame_stack: int | None, ignore: Collection[str] = ()
) -> list[str]:
    """Returns the paths of observations' leaves that are stacks of frames: Boxes with F of them.

    The first axis is the frames'. Among other leaves a stack needs a second one, so that a vector
    of F numbers is none.
    """
    if frame_stack is None:
        return []
    return [
        path
        for path, leaf in encoded_leaves(space, ignore).items()
        if isinstance(leaf, gym.spaces.Box)
        and leaf.shape[:1] == (frame_stack,)
        and (not path or len(leaf.shape) > 1)
    ]


def encoded_leaves(space: gym.Space, ignore: Collection[str] = ()) -> dict[str, gym.Space]:
    """Returns the observations' leaves that the network reads as such: all but the action mask."""
    return {path: leaf for path, leaf in leaves(space, ignore).items() if path != ACTION_MASK}


def number_leaves(
    space: gym.Space, image_encoder: ImageEncoder = "auto", choice: LeafChoice = EVERYTHING
) -> dict[str, int]:
    """Returns how many numbers the network normalises, of each leaf that has any."""
    counts = {
        path: num_numbers(leaf, image_encoder)
        for path, leaf in encoded_leaves(space, choice.ignore).items()
        if path not in choice.own
    }
    return {path: count for path, count in counts.items() if count}


def image_leaves(
    space: gym.Space, image_encoder: ImageEncoder = "auto", choice: LeafChoice = EVERYTHING
) -> list[str]:
    """Returns the paths of the images that pass through the network's convolutions."""
    return [
        path
        for path, leaf in encoded_leaves(space, choice.ignore).items()
        if path not in choice.own and is_image(leaf) and image_encoder != "linear"
    ]


def look_normalized(space: gym.Space, largest: Tree) -> bool:
    """Returns whether recorded actions could be normalised ones; see `looks_normalized`.

    Args:
        space: the action space.
        largest: the largest absolute value recorded in each component.
    """
    found = by_leaf(largest)
    # a leaf that is wider than [-1, 1] could be told apart, whatever was recorded
    wider = [
        path
        for path, leaf in leaves(space).items()
        if looks_normalized(leaf, np.zeros_like(found[path]))
    ]
    return bool(wider) and all(looks_normalized(leaves(space)[path], found[path]) for path in wider)
