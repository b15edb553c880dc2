"""Trains a Decision Transformer for CartPole-v1 on RLlib's old JSON recordings.

`python tuned_examples/cartpole_dt.py --data cartpole-large.json [--as-test] [--no-tune]
[--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's examples).

Evaluation episodes are capped at 200 steps, like those in the recording.
"""

from collections.abc import Sequence

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example


def make_config(data: Sequence[str]) -> DTConfig:
    """Returns the settings for training on recordings at the given paths."""
    return (
        DTConfig()
        .environment("CartPole-v1", env_config={"max_episode_steps": 200})
        .offline_data(input_=list(data), dataset_num_iters_per_learner=50)
        .rl_module(
            model_config=DTModelConfig(
                context_length=20, hidden_size=64, n_layer=2, n_head=1, max_ep_len=200
            )
        )
        .training(lr=1e-3, train_batch_size_per_learner=64, weight_decay=1e-4, grad_clip=1.0)
        .env_runners(num_envs_per_env_runner=10)
        .evaluation(target_returns=[200.0], evaluation_duration=20)
    )


if __name__ == "__main__":
    run_example(make_config, reward=190.0, iters=20)
