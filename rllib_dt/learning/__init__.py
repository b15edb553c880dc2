"""Learning in RLlib: the learner, the RLModule, batches, initial weights and validation.

supply ─▶ batches (one ahead, in a thread) ─▶ learner ─▶ rl_module ─▶ network ─▶ head's loss
                                                 └── metrics (a new object for each `update` call)
"""

from rllib_dt import hook

# an import of RLlib from within this room would register the algorithm, which imports the room
hook.register_first()
