"""Trains a Decision Transformer for MinAtar's Breakout: images of 10 × 10 pixels.

`python tuned_examples/minatar_dt.py --data breakout.hdf5 [--as-test] [--no-tune]
[--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's examples). Needs the
`minatar` extra. `python -m tuned_examples.record_minatar --folder FOLDER` records data.

Pixels are bits, in four channels: paddle, ball, its trail, bricks. Actions are drawn, so that a low
target is met with the errors of those who scored it.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from ray import tune

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example

MAX_STEPS = 1000


class _Seeded(gym.Wrapper):
    """Makes a seed decide the whole episode: MinAtar may repeat the last action of the former."""

    def reset(self, **kwargs: Any) -> Any:
        self.unwrapped.game.last_action = 0
        return super().reset(**kwargs)


def make_env(env_config: dict[str, Any]) -> gym.Env:
    """Makes Breakout with its three actions, of which a tenth are replaced by the last one."""
    import minatar.gym

    if "MinAtar/Breakout-v1" not in gym.registry:
        minatar.gym.register_envs()
    return _Seeded(gym.make("MinAtar/Breakout-v1", max_episode_steps=MAX_STEPS))


def make_config(data: Sequence[str]) -> DTConfig:
    """Returns the settings for training on recordings at the given paths."""
    tune.register_env("minatar", make_env)
    return (
        DTConfig()
        .environment("minatar")
        .offline_data(input_=list(data), dataset_num_iters_per_learner=100)
        .rl_module(
            model_config=DTModelConfig(
                context_length=10,
                hidden_size=64,
                n_layer=2,
                n_head=2,
                activation_function="gelu",
                max_ep_len=MAX_STEPS,
            )
        )
        .training(
            lr=1e-3,
            lr_decay="cosine",
            lr_decay_updates=3000,
            warmup_steps=100,
            train_batch_size_per_learner=64,
            weight_decay=0.1,
            weight_decay_on="matrices",
            adam_betas=(0.9, 0.95),
            grad_clip=1.0,
            return_scale=20.0,
        )
        .env_runners(num_envs_per_env_runner=20)
        .evaluation(target_returns=[60.0, 20.0, 5.0], evaluation_duration=20, temperature=1.0)
    )


if __name__ == "__main__":
    run_example(make_config, reward=10.0, iters=30)
