"""Checks observations and actions that come from outside, before a network reads them."""

from collections.abc import Mapping

import gymnasium as gym
import numpy as np

from rllib_dt.spaces.composites import Layout
from rllib_dt.spaces.leaves import out_of_space
from rllib_dt.spaces.trees import by_leaf
from rllib_dt.types import Array, Tree


def check_values(
    value: Tree, layouts: Mapping[str, Layout], leaves: Mapping[str, gym.Space], what: str
) -> None:
    """Refuses a value that the network would read as another one.

    Args:
        value: one step's value, of the right shapes; a tree.
        layouts: shape and dtype of each leaf, as it is stored.
        leaves: the space of each leaf.
        what: "observation" or "action", for the message.

    Raises:
        ValueError: a leaf holds no numbers, none that its dtype can hold, or no legal category.
    """
    found = by_leaf(value)
    for path, (shape, dtype) in layouts.items():
        values = np.asarray(found[path])
        problem = None if values.dtype.kind in "US" else _misread(values, dtype)
        leaf = leaves[path]
        if problem is None and not isinstance(leaf, gym.spaces.Box | gym.spaces.Text):
            problem = out_of_space(leaf, values.reshape(1, *shape), what)
        if problem is not None:
            raise ValueError(f"leaf {path!r}: {problem}" if path else problem)


def _misread(values: Array, dtype: np.dtype) -> str | None:
    """Says why values would change when they are stored; None if they would not."""
    if values.dtype.kind not in "biuf":
        return f"it holds {values.dtype}, not numbers"
    if dtype.kind == "f":
        is_finite = np.abs(values.astype(np.float64)).max(initial=0.0) <= np.finfo(dtype).max
        return None if is_finite else f"it is not finite in {8 * dtype.itemsize} bits: {values}"
    with np.errstate(invalid="ignore"):
        is_same = (values.astype(dtype) == values).all()
    return None if is_same else f"it holds values that are no {dtype}: {values}"
