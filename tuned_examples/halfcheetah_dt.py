"""Trains a Decision Transformer for HalfCheetah-v5 on mixed recordings in D4RL's layout.

`python tuned_examples/halfcheetah_dt.py --data halfcheetah-medium-replay.hdf5 [--as-test]
[--no-tune] [--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's examples).

The network and its settings are the paper's for gym (kzl/decision-transformer @ e2d82e6). The
learning rate is ten times as high, for a twentieth of the updates.
"""

from collections.abc import Sequence

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example


def make_config(data: Sequence[str]) -> DTConfig:
    """Returns the settings for training on recordings at the given paths."""
    return (
        DTConfig()
        .environment("HalfCheetah-v5")
        .offline_data(input_=list(data), dataset_num_iters_per_learner=100)
        .rl_module(
            model_config=DTModelConfig(
                context_length=20, hidden_size=128, n_layer=3, n_head=1, max_ep_len=1000
            )
        )
        .training(
            lr=1e-3,
            train_batch_size_per_learner=64,
            weight_decay=1e-4,
            grad_clip=0.25,
            warmup_steps=500,
            return_scale=1000.0,
        )
        .env_runners(num_envs_per_env_runner=10)
        .evaluation(
            target_returns=[2400.0, 1200.0],
            evaluation_duration=10,
            score_reference=(-280.178953, 12135.0),
        )
    )


if __name__ == "__main__":
    run_example(make_config, reward=2000.0, iters=50)
