"""Trains a Decision Transformer for Pendulum-v1 on RLlib's old JSON recordings.

`python tuned_examples/pendulum_dt.py --data pendulum_expert_sac_50eps.zip [--as-test]
[--no-tune] [--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's
examples). Pass `--units` if the recorded actions are in the environment's units, as in RLlib's
`pendulum_replay_v1.1.0.zip`; in its expert and medium recordings they are normalised to [-1, 1].
"""

import sys
from collections.abc import Sequence

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example


def make_config(data: Sequence[str], normalized: bool = True) -> DTConfig:
    """Returns the settings for training on recordings at the given paths."""
    return (
        DTConfig()
        .environment("Pendulum-v1")
        .offline_data(
            input_=list(data),
            actions_in_input_normalized=normalized,
            dataset_num_iters_per_learner=100,
        )
        .rl_module(
            model_config=DTModelConfig(
                context_length=20, hidden_size=64, n_layer=3, n_head=1, max_ep_len=200
            )
        )
        .training(lr=1e-3, train_batch_size_per_learner=64, weight_decay=1e-4, grad_clip=0.25)
        .env_runners(num_envs_per_env_runner=10)
        .evaluation(target_returns=[-120.0], evaluation_duration=20)
    )


if __name__ == "__main__":
    in_units = "--units" in sys.argv
    if in_units:
        sys.argv.remove("--units")
    run_example(lambda data: make_config(data, normalized=not in_units), reward=-300.0, iters=30)
