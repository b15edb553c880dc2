"""Attaches the latest measurement to the results of iterations that made none.

Tune's schedulers, stoppers and checkpoint scores look for their metric in every result, so a result
without it, or with NaN in it, would end a search or choose at random. RLlib attaches the last
evaluation again; here its age stands beside it, so that nothing old passes for new.
"""

import copy

from ray.rllib.utils.typing import ResultDict

from rllib_dt.types import State

AGE_IN_ITERATIONS = "age_in_iterations"
"""How many iterations ago a measurement was made; 0 for one of this iteration."""

AGE_IN_UPDATES = "age_in_updates"
"""How many updates the weights have gone through since those that were measured."""


class Latest:
    """The latest measurement of one kind, such as an evaluation.

    Attributes:
        results: the measurement as it was reported, or None before the first.
        iteration: the iteration that made it.
    """

    def __init__(self) -> None:
        self.results: ResultDict | None = None
        self.iteration = 0

    def set(self, results: ResultDict, iteration: int) -> None:
        """Records a new measurement."""
        self.results, self.iteration = copy.deepcopy(results), iteration

    def get(self, iteration: int) -> tuple[ResultDict | None, int]:
        """Returns a copy of the measurement, and its age in iterations."""
        return copy.deepcopy(self.results), iteration - self.iteration

    def state(self) -> State:
        """Returns plain values for a checkpoint."""
        return {"results": self.results, "iteration": self.iteration}

    def set_state(self, state: State) -> None:
        """Restores `state()`."""
        self.results, self.iteration = state["results"], state["iteration"]
