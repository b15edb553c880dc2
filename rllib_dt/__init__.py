"""rllib_dt: the Decision Transformer for Ray RLlib's new API stack.

The layers, each importing only from itself and from those above it in this list:

    types       type aliases
    spaces      gymnasium spaces: checks and layout; encoders and action heads
    episodes    checked episodes, returns-to-go, pools, windows and samplers (numpy)
    network     the Decision Transformer (torch)
    policy      acting without Ray: contexts, caches, actors, Hugging Face folders
    formats     recorded formats, one module each (no Ray, no torch)
    compat      all uses of private parts of Ray and gymnasium
    reading     Ray Data: passes over the input, hold-out, streaming, `OfflineData`
    rollout     evaluation: jobs, dispatch, env runner, connector, results
    learning    the learner, the RLModule, batches, validation
    algorithm   DT, DTConfig, checks, checkpoints, registration

and above them `huggingface`, `plots` and `examples`.
"""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from rllib_dt import compat, hook

if TYPE_CHECKING:
    from rllib_dt.algorithm import DT, DTConfig, register
    from rllib_dt.cards import report
    from rllib_dt.conversion import convert
    from rllib_dt.episodes.windows import Window
    from rllib_dt.formats.canonical import write_episodes
    from rllib_dt.learning.learner import DTTorchLearner
    from rllib_dt.learning.rl_module import DTTorchRLModule
    from rllib_dt.network.config import DTModelConfig
    from rllib_dt.network.network import DecisionTransformer
    from rllib_dt.policy.importers import import_checkpoint
    from rllib_dt.policy.loading import TrainedPolicy, load_policy

__version__ = "0.2.0.dev0"
__all__ = [
    "DT",
    "DTConfig",
    "DTModelConfig",
    "DTTorchLearner",
    "DTTorchRLModule",
    "DecisionTransformer",
    "TrainedPolicy",
    "Window",
    "convert",
    "import_checkpoint",
    "load_policy",
    "register",
    "report",
    "write_episodes",
]

_HOMES = {
    "DT": "rllib_dt.algorithm",
    "DTConfig": "rllib_dt.algorithm",
    "DTModelConfig": "rllib_dt.network.config",
    "DTTorchLearner": "rllib_dt.learning.learner",
    "DTTorchRLModule": "rllib_dt.learning.rl_module",
    "DecisionTransformer": "rllib_dt.network.network",
    "TrainedPolicy": "rllib_dt.policy.loading",
    "Window": "rllib_dt.episodes.windows",
    "convert": "rllib_dt.conversion",
    "import_checkpoint": "rllib_dt.policy.importers",
    "load_policy": "rllib_dt.policy.loading",
    "report": "rllib_dt.cards",
    "register": "rllib_dt.algorithm",
    "write_episodes": "rllib_dt.formats.canonical",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _show_progress() -> None:
    # as RLlib does for its own logger, so that a run shows what it read and derived from the data
    logger = logging.getLogger("rllib_dt")
    if not logger.handlers and logger.level == logging.NOTSET:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("rllib_dt: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


_show_progress()
# Registers "DT", except in Ray's workers: reading tasks need neither torch nor RLlib. There the
# algorithm is imported, and registered, on first use.
if importlib.util.find_spec("ray") is not None and not compat.in_ray_task():
    hook.register_with_ray()
