"""Aliases for the former modules of classes in checkpoints of 0.1; nothing else imports this.

Unpickling such a checkpoint imports `rllib_dt.runtime.<module>`, and therefore this module first,
which registers the current modules under the former names.
"""

import importlib
import sys

_HOMES = {
    "env_runner": "rllib_dt.rollout.env_runner",
    "learner": "rllib_dt.learning.learner",
    "remote_files": "rllib_dt.reading.credentials",
    "rl_module": "rllib_dt.learning.rl_module",
    "source": "rllib_dt.reading.offline_data",
}

for _name, _home in _HOMES.items():
    sys.modules[f"{__name__}.{_name}"] = importlib.import_module(_home)
