"""Registers the name "DT" with Tune and RLlib."""

from rllib_dt.algorithm.dt import DT
from rllib_dt.compat import register_algorithm


def register() -> None:
    """Registers "DT" with `tune.Tuner` and RLlib's registry; may be called repeatedly.

    Importing `rllib_dt` calls this, except in Ray's workers. The registration survives
    `ray.shutdown()` and `ray.init()`.
    """
    register_algorithm("DT", DT)
