"""Composite spaces: their leaves by path, and values as trees.

A tree is one array for a leaf space. For a Dict or Tuple space it is a flat mapping from the path
of each leaf ("joints/position", or "0" in a Tuple) to its array; so a column, a window and a batch
have the same names everywhere.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tree

from rllib_dt.types import Tree, Value

ACTION_MASK = "action_mask"
"""The leaf of an observation that says which actions are legal, as RLlib's examples have it."""


@dataclass(frozen=True, kw_only=True)
class LeafChoice:
    """What is read of a composite observation, and how.

    Attributes:
        ignore: paths of leaves that are left out, each with all below it.
        own: paths of leaves that a user's own encoder reads.
        texts: paths of leaves that hold text; "" is an observation without leaves.
        only: the paths of all leaves that are wanted, or None for whatever there is.
    """

    ignore: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None

    def skips(self, path: str) -> bool:
        """Returns whether a leaf is left out, or everything below a path."""
        if not path or self.only is None:
            return bool(path) and is_below(path, self.ignore)
        # a path below a wanted leaf is kept, so that it is named as what does not fit
        return is_below(path, self.ignore) or not any(
            is_below(wanted, [path]) or is_below(path, [wanted]) for wanted in self.only
        )


EVERYTHING = LeafChoice()


def is_composite(space: gym.Space) -> bool:
    """Returns whether a space is made of others."""
    kind: Any = type(space)
    return _is_composite(kind)


@functools.cache
def _is_composite(kind: Any) -> bool:
    # asked several times a step, and gymnasium's Dict is an abstract mapping, which is slow to ask
    return issubclass(kind, gym.spaces.Dict | gym.spaces.Tuple)


def leaves(space: gym.Space, ignore: Collection[str] = ()) -> dict[str, gym.Space]:
    """Returns a space's leaves by path, in a fixed order; a leaf space is its own, under "".

    Args:
        space: any space.
        ignore: paths to leave out, each with everything below it.
    """
    if not is_composite(space):
        return {"": space}
    found = tree.flatten_with_path(_structure(space))
    named = (("/".join(map(str, path)), leaf) for path, leaf in found)
    return {path: leaf for path, leaf in named if not is_below(path, ignore)}


def joined(*parts: str) -> str:
    """Joins names and paths by slashes; empty ones, such as the path of a leaf space, count not."""
    return "/".join(part for part in parts if part)


def is_below(path: str, paths: Collection[str]) -> bool:
    """Returns whether a path is one of the others, or below one."""
    return any(path == other or path.startswith(f"{other}/") for other in paths)


def flatten(space: gym.Space, value: Value, ignore: Collection[str] = ()) -> Tree:
    """Turns a value of a space, or a batch of them, into a tree.

    Raises:
        ValueError: the value lacks a leaf of the space, or has others.
    """
    if not is_composite(space):
        return value
    structure = _structure(space)
    try:
        found = tree.flatten_up_to(structure, value, check_types=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the value does not have the leaves {list(leaves(space))}") from error
    paths = leaves(space)
    pairs = zip(paths, found, strict=True)
    return {path: leaf for path, leaf in pairs if not is_below(path, ignore)}


def known_leaves(space: gym.Space, value: Value) -> Value:
    """Returns a value without the keys that a Dict space lacks, at any level."""
    if not is_composite(space):
        return value
    if isinstance(space, gym.spaces.Dict) and isinstance(value, Mapping):
        inner = space.spaces
        return {k: known_leaves(inner[k], v) for k, v in value.items() if k in inner}
    is_tuple = isinstance(space, gym.spaces.Tuple) and isinstance(value, tuple | list)
    if is_tuple and len(value) == len(space.spaces):
        return tuple(known_leaves(s, v) for s, v in zip(space.spaces, value, strict=True))
    return value


def unflatten(space: gym.Space, value: Tree) -> Value:
    """Turns a tree back into a value of the space: dicts and tuples."""
    if not is_composite(space):
        return value
    return tree.unflatten_as(_structure(space), [value[path] for path in leaves(space)])


def by_leaf(value: Tree) -> dict[str, Any]:
    """Returns a tree's arrays by path; a single array is under ""."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


def from_leaves(arrays: Mapping[str, Any]) -> Tree:
    """Builds a tree; the inverse of `by_leaf`."""
    return arrays[""] if list(arrays) == [""] else dict(arrays)


def map_tree(function: Callable[..., Any], value: Tree, *others: Tree) -> Tree:
    """Applies a function to the arrays of trees that have the same leaves.

    Raises:
        ValueError: the leaves differ.
    """
    if not isinstance(value, Mapping):
        if any(isinstance(other, Mapping) for other in others):
            raise ValueError("one has leaves, the other is a single array")
        return function(value, *others)
    for other in others:
        theirs = set(other) if isinstance(other, Mapping) else {"(a single array)"}
        if theirs != set(value):
            raise ValueError(f"the leaves {sorted(value)} and {sorted(theirs)} differ")
    return {
        path: function(array, *(other[path] for other in others)) for path, array in value.items()
    }


def at(value: Tree, index: Any) -> Tree:
    """Indexes the first axes of every array of a tree."""
    return map_tree(lambda array: array[index], value)


def stacked(values: Sequence[Tree]) -> Tree:
    """Stacks the arrays of several trees of the same leaves: T of (…) become one of (T, …)."""
    return map_tree(lambda *arrays: np.stack(arrays), *values)


def rows(space: gym.Space, batch: Value, count: int, ignore: Collection[str] = ()) -> list[Tree]:
    """Splits a batch of values, nested like the space, into a tree for each.

    Raises:
        ValueError: an array has another length than the batch.
    """
    arrays = map_tree(np.asarray, flatten(space, batch, ignore))
    for path, array in by_leaf(arrays).items():
        if len(np.shape(array)) == 0 or len(array) != count:
            name = f"leaf {path!r} of the batch" if path else "the batch"
            raise ValueError(f"{name} has the shape {np.shape(array)}, wanted ({count}, …)")
    return [at(arrays, i) for i in range(count)] if isinstance(arrays, Mapping) else list(arrays)


def column_names(name: str, value: Tree) -> Iterator[tuple[str, Any]]:
    """Yields a tree's arrays with the names of their columns: "obs", or "obs/camera", …"""
    for path, array in by_leaf(value).items():
        yield joined(name, path), array


def columns_of(name: str, columns: Mapping[str, Any]) -> Tree:
    """Picks a tree out of named columns; the inverse of `column_names`.

    Raises:
        KeyError: there is no such column.
    """
    if name in columns:
        return columns[name]
    prefix = f"{name}/"
    found = {k.removeprefix(prefix): v for k, v in columns.items() if k.startswith(prefix)}
    if not found:
        raise KeyError(name)
    return found


def length(value: Tree) -> int:
    """Returns the number of steps in a tree, that of its first array; 0 if it has no leaves."""
    return len(next(iter(by_leaf(value).values()), ()))


def _structure(space: gym.Space) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: _structure(inner) for key, inner in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_structure(inner) for inner in space.spaces)
    return space


def bad_names(space: gym.Space) -> list[Any]:
    """Lists keys of Dict spaces that no path can hold: no text, empty, or with a "/"."""
    if isinstance(space, gym.spaces.Dict):
        own = [key for key in space.spaces if not isinstance(key, str) or not key or "/" in key]
        return own + [name for inner in space.spaces.values() for name in bad_names(inner)]
    if isinstance(space, gym.spaces.Tuple):
        return [name for inner in space.spaces for name in bad_names(inner)]
    return []
