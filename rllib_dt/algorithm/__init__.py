"""`DT` and `DTConfig`; importing this package registers `DT` with RLlib and Tune."""

from rllib_dt.algorithm.config import DTConfig
from rllib_dt.algorithm.dt import DT
from rllib_dt.algorithm.registry import register
from rllib_dt.compat import silence_notices

__all__ = ["DT", "DTConfig", "register"]

register()
silence_notices()
