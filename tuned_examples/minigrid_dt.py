"""Trains a Decision Transformer for MiniGrid's DoorKey: a Dict observation and a sparse reward.

`python -m tuned_examples.minigrid_dt --data doorkey-5x5.hdf5 [--as-test] [--no-tune]
[--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's examples). Needs the
`minigrid` extra.

An observation is {"image", "direction", "mission"}. The image holds codes of objects, colours and
states, no brightness, so it has an encoder of its own here. The mission is always the same text,
and is left out. The return is 1 - 0.9 · steps / 250 at the goal, and 0 without.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from torch import nn

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example
from rllib_dt.rollout.connector import TARGET_RETURN

MAX_STEPS = 250
CODES = 16
"""More than MiniGrid has of objects (11), colours (6) or states (3)."""


class Codes(nn.Module):
    """Embeds each cell's object, colour and state, and maps all cells to one vector.

    Args:
        space: (7, 7, 3) uint8.
        width: D.
    """

    def __init__(self, space: gym.Space, width: int, cell_width: int = 8):
        super().__init__()
        rows, columns, channels = space.shape or ()
        self.table = nn.Embedding(channels * CODES, cell_width)
        self.linear = nn.Linear(rows * columns * cell_width, width)
        self.register_buffer("first", torch.arange(channels) * CODES, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (B, K, 7, 7, 3) codes to (B, K, D)."""
        cells = self.table(images.long().clamp(max=CODES - 1) + self.first).sum(dim=-2)
        embedded: torch.Tensor = self.linear(cells.flatten(2))  # (B, K, 7, 7, 8) -> (B, K, D)
        return embedded


class Successes(RLlibCallback):
    """Reports the share of episodes that reach the goal, as `env_runners/success/TARGET`."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        """Counts an episode under the return that was asked for."""
        target = f"{episode.custom_data[TARGET_RETURN]:g}"
        reached = float(episode.get_return() > 0)
        metrics_logger.log_value(("success", target), reached, reduce="mean")


def make_env(env_config: dict[str, Any]) -> gym.Env:
    """Makes DoorKey on a grid of 5 × 5."""
    import minigrid  # noqa: F401  registers it

    return gym.make("MiniGrid-DoorKey-5x5-v0", **env_config)


def make_config(data: Sequence[str]) -> DTConfig:
    """Returns the settings for training on recordings at the given paths."""
    tune.register_env("minigrid", make_env)
    return (
        DTConfig()
        .environment("minigrid")
        .offline_data(input_=list(data), dataset_num_iters_per_learner=100)
        .rl_module(
            model_config=DTModelConfig(
                context_length=20,
                hidden_size=64,
                n_layer=2,
                n_head=2,
                activation_function="gelu",
                max_ep_len=MAX_STEPS,
                ignore=("mission",),
                encoders={"image": "tuned_examples.minigrid_dt.Codes"},
            )
        )
        .training(
            lr=1e-3,
            lr_decay="cosine",
            lr_decay_updates=2000,
            warmup_steps=100,
            train_batch_size_per_learner=64,
            weight_decay=0.1,
            weight_decay_on="matrices",
            grad_clip=1.0,
            return_scale=1.0,
        )
        .callbacks(Successes)
        .env_runners(num_envs_per_env_runner=20)
        .evaluation(target_returns=[0.97, 0.8, 0.4], evaluation_duration=100, temperature=1.0)
    )


if __name__ == "__main__":
    run_example(make_config, reward=0.9, iters=20)
