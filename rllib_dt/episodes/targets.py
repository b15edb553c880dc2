"""Targets: returns to ask for, or "max", the most that the data show from each step.

Within the package "max" is an infinite return-to-go, which the network replaces by its estimate
(`DTModelConfig.estimates_return`).
"""

import math
from numbers import Real
from typing import Any

MAX = "max"
"""What users write for as much as possible."""


def target_value(target: Any) -> float:
    """Returns a target as a number, infinite for "max".

    Raises:
        ValueError: it is neither a number nor "max".
    """
    if isinstance(target, str) and target == MAX:
        return math.inf
    if not isinstance(target, Real) or isinstance(target, bool):
        raise ValueError(f'the target {target!r} is neither a number nor "max"')
    return float(target)


def target_name(target: float) -> str:
    """Returns a target's key in results: "3600", "-120", "0.5", "max"."""
    if math.isinf(target):
        return MAX
    return str(int(target)) if float(target).is_integer() else repr(float(target))
