"""Evaluation by rollouts: fixed lists of episodes, run to their ends by RLlib's env runners.

jobs ─▶ dispatch ─▶ env_runner ─▶ environments (by slot)        what survives which failure:
(target, seed)      connector ─▶ module ─▶ action               docs/design.md
results ◀── events ◀──┘
"""
