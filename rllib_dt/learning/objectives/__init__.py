"""Objectives: the summands of the loss, one file each, and the table of them.

A new one is a subclass of `Objective` in a file of its own, and a line of `OBJECTIVES`.
"""

from typing import Any

from rllib_dt.learning.objectives.action import ActionObjective
from rllib_dt.learning.objectives.base import Objective, Term
from rllib_dt.learning.objectives.entropy import EntropyObjective
from rllib_dt.learning.objectives.max_return import MaxReturnObjective
from rllib_dt.learning.objectives.next_step import ReturnObjective, StateObjective
from rllib_dt.learning.objectives.q_value import QValueObjective

__all__ = ["OBJECTIVES", "Objective", "Term", "objectives_in"]

OBJECTIVES: tuple[type[Objective], ...] = (
    ActionObjective,
    StateObjective,
    ReturnObjective,
    EntropyObjective,
    MaxReturnObjective,
    QValueObjective,
)
"""All objectives; the first is the Decision Transformer's own, which is always on."""


def objectives_in(config: Any) -> list[type[Objective]]:
    """Returns the objectives that settings turn on."""
    return [kind for kind in OBJECTIVES if kind.weight_in(config)]
