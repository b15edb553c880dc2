"""The name "DT" in Tune and in RLlib's registry."""

from rllib_dt.algorithm.dt import DT
from rllib_dt.runtime.compat import register_algorithm


def register() -> None:
    """Makes "DT" known to `tune.Tuner` and RLlib's registry; may be called any number of times.

    Importing `rllib_dt` does it. It holds across `ray.shutdown()` and `ray.init()`.
    """
    register_algorithm("DT", DT)
