"""Learning in RLlib: the learner, the RLModule, and what both are given.

supply ─▶ batches (one ahead, in a thread) ─▶ learner ─▶ rl_module ─▶ network ─▶ head's loss
                                                 └── metrics: born and ended with each call
"""
