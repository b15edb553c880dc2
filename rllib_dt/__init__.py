"""rllib_dt: the Decision Transformer for Ray RLlib's new API stack.

Layers, each importing from those above it only: `episodes` (numpy), `network` and `huggingface`
(torch), `runtime` (Ray), `algorithm`, and the edges `writer`, `plots`.
"""

import logging

from rllib_dt.algorithm import DT, DTConfig, register
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer

__version__ = "0.1.0"
__all__ = [
    "DT",
    "DTConfig",
    "DTModelConfig",
    "DecisionTransformer",
    "register",
]


def _show_progress() -> None:
    # as RLlib does for its own logger: what was read and derived is to be seen at the start
    logger = logging.getLogger("rllib_dt")
    if not logger.handlers and logger.level == logging.NOTSET:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("rllib_dt: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


_show_progress()
register()
