"""The name "DT" in Tune and in RLlib's registry."""

from rllib_dt.algorithm.dt import DT
from rllib_dt.compat import register_algorithm


def register() -> None:
    """Makes "DT" known to `tune.Tuner` and to RLlib's registry; may be called repeatedly.

    Importing `rllib_dt` does it. It holds across `ray.shutdown()` and `ray.init()`.
    """
    register_algorithm("DT", DT)
