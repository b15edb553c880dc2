"""Trains a Decision Transformer for Hopper-v5 on mixed recordings in D4RL's layout.

`python tuned_examples/hopper_dt.py --data hopper-medium-replay.hdf5 [--as-test] [--no-tune]
[--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's examples).

The network's sizes are the paper's for gym (kzl/decision-transformer @ e2d82e6). For a twentieth of
the paper's updates, the learning rate is ten times as high and falls over the last two fifths.
Initial weights are three times as large, and activations are GELU; docs/log.md has the effect of
each change.
"""

from collections.abc import Sequence

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example


def make_config(data: Sequence[str]) -> DTConfig:
    """Returns the settings for training on recordings at the given paths."""
    return (
        DTConfig()
        .environment("Hopper-v5")
        .offline_data(input_=list(data), dataset_num_iters_per_learner=100)
        .rl_module(
            model_config=DTModelConfig(
                context_length=20,
                hidden_size=128,
                n_layer=3,
                n_head=1,
                max_ep_len=1000,
                activation_function="gelu",
                initializer_range=0.06,
            )
        )
        .training(
            # by steps trained: 5,000 updates of 64 windows have 6.2 million
            lr=[[0, 1e-3], [3_700_000, 1e-3], [6_200_000, 1e-5]],
            train_batch_size_per_learner=64,
            weight_decay=1e-4,
            grad_clip=0.25,
            warmup_steps=500,
            return_scale=1000.0,
        )
        .env_runners(num_envs_per_env_runner=10)
        .evaluation(
            target_returns=[3000.0, 1500.0, 500.0],
            evaluation_duration=10,
            score_reference=(-20.272305, 3234.3),
        )
    )


if __name__ == "__main__":
    run_example(make_config, reward=2750.0, iters=50)
