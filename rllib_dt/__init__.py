"""rllib_dt: the Decision Transformer for Ray RLlib's new API stack.

Layers, each importing from those above it only: `episodes` (numpy), `network` and `huggingface`
(torch), `runtime` (Ray), `algorithm`, and the edges `writer`, `plots` and `examples`.
"""

import importlib
import importlib.util
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_dt.algorithm import DT, DTConfig, register
    from rllib_dt.network.config import DTModelConfig
    from rllib_dt.network.network import DecisionTransformer
    from rllib_dt.writer import write_episodes

__version__ = "0.1.0"
__all__ = [
    "DT",
    "DTConfig",
    "DTModelConfig",
    "DecisionTransformer",
    "register",
    "write_episodes",
]

_HOMES = {
    "DT": "rllib_dt.algorithm",
    "DTConfig": "rllib_dt.algorithm",
    "DTModelConfig": "rllib_dt.network.config",
    "DecisionTransformer": "rllib_dt.network.network",
    "register": "rllib_dt.algorithm",
    "write_episodes": "rllib_dt.writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _show_progress() -> None:
    # as RLlib does for its own logger: what was read and derived is to be seen at the start
    logger = logging.getLogger("rllib_dt")
    if not logger.handlers and logger.level == logging.NOTSET:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("rllib_dt: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _in_ray_task() -> bool:
    worker = sys.modules.get("ray._private.worker")
    return worker is not None and worker.global_worker.mode == worker.WORKER_MODE


_show_progress()
# registers "DT". Not where Ray runs our functions: a reader needs neither torch nor RLlib;
# there the algorithm is imported, and registered, at first use
if importlib.util.find_spec("ray") is not None and not _in_ray_task():
    importlib.import_module("rllib_dt.algorithm")
