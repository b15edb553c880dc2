"""What `rllib-dt train` shows while it trains."""

import sys
from typing import Any

from ray.tune import Callback

from rllib_dt.types import JsonObject


class TrainingProgress(Callback):
    """Prints a line for each iteration of each trial.

    Args:
        last: the number of the last iteration, if it is known.
    """

    def __init__(self, last: int | None):
        self._last = last

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: JsonObject, **info: Any
    ) -> None:
        """Prints the result of an iteration."""
        learned = result.get("learners", {}).get("default_policy", {})
        of = "" if self._last is None else f"/{self._last}"
        parts = [f"iteration {result['training_iteration']}{of}"]
        if len(trials) > 1:
            parts.insert(0, str(trial.trial_id))
        if "critic_updates_lifetime" in learned and not learned.get("num_updates_lifetime"):
            parts.append(f"critic {learned['critic_updates_lifetime']:.0f} updates")
            parts.append(f"loss {learned['critic_q_loss']:.4g}")
        elif "action_loss" in learned:
            parts.append(f"loss {learned['action_loss']:.4f}")
        parts.append(f"{result.get('time_total_s', 0.0):.0f} s")
        print("  ".join(parts), file=sys.stderr, flush=True)
