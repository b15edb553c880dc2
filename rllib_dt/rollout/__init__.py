"""Evaluation by rollouts: a fixed list of episodes, run to their ends by RLlib's env runners.

jobs ─▶ dispatch ─▶ env_runner ─▶ connector ─▶ module ─▶ action ─▶ environments (by slot)
(target, seed)           │
results ◀─── events ◀────┘

docs/design.md says how failures are contained.
"""

from rllib_dt import hook

# an import of RLlib from within this room would register the algorithm, which imports the room
hook.register_first()
