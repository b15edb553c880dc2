"""Trains a Decision Transformer for an Atari game on recorded frames of 84 × 84.

`python tuned_examples/atari_dt.py --data pong.parquet [--game Pong] [--size cpu] [--as-test]
[--no-tune] [--num-learners=N] [--evaluation-num-env-runners=R] …` (the flags of RLlib's examples).
Needs the `atari` extra; ale-py brings the ROMs.

The recordings hold single frames, as gymnasium's `AtariPreprocessing` makes them; four of them are
stacked when windows are drawn. `--size paper` is the network of Chen et al. 2021 (§A.1;
kzl/decision-transformer @ e2d82e6, atari), with 5 passes over 500,000 steps, for a GPU. `--size
cpu`, the default, has a context of 10 steps, 3 layers, batches of 64 windows, images that are
centred by the data's mean image, and 2,000 updates: about half an hour on one core.

Differs from the authors' code, on purpose: there, returns-to-go count clipped rewards in training
and the game's own in evaluation. Here both count the game's own, so targets are the game's scores,
or with `--clip yes` both count signs, so targets are numbers of rewards. Returns-to-go are scaled,
and may be fractions; every step has its true timestep; windows do not reach into the episode
before, but are padded. Actions are drawn, as there; to take the likeliest, set
`evaluation(temperature=0)`.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from ray import tune

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.examples import run_example

FRAMES = 4
TARGETS = {
    "Breakout": [90.0, 45.0, 10.0],
    "Pong": [20.0, 0.0, -20.0],
    "Qbert": [2500.0, 1250.0, 300.0],
    "Seaquest": [1450.0, 700.0, 200.0],
}
"""The first are those that the authors call the right ones (Chen et al. 2021, table 8)."""


def make_env(env_config: dict[str, Any]) -> gym.Env:
    """Makes a game as it was recorded: no sticky actions, up to 30 no-ops, lives are no ends."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make(
        f"ALE/{env_config['game']}-v5",
        frameskip=1,
        repeat_action_probability=0.0,
        max_episode_steps=108_000,
    )
    env = AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)
    return FrameStackObservation(env, FRAMES)


def make_config(
    data: Sequence[str], *, game: str = "Pong", size: str = "cpu", clip: str = "no"
) -> DTConfig:
    """Returns the settings for training on recordings at the given paths.

    Args:
        data: the recordings.
        game: ALE's name of the game.
        size: "paper" or "cpu".
        clip: "yes" clips rewards to their sign, in training and in evaluation.
    """
    tune.register_env("atari", make_env)
    in_paper = size == "paper"
    # the paper has more of both for Pong
    context, windows = (50, 512) if game == "Pong" else (30, 128)
    updates = 5 * 500_000 // windows if in_paper else 2_000
    return (
        DTConfig()
        .environment("atari", env_config={"game": game}, clip_rewards=clip == "yes")
        .offline_data(
            input_=list(data), frame_stack=FRAMES, dataset_num_iters_per_learner=updates // 20
        )
        .rl_module(
            model_config=DTModelConfig(
                context_length=context if in_paper else 10,
                hidden_size=128,
                n_layer=6 if in_paper else 3,
                n_head=8,
                activation_function="gelu",
                normalize_images=not in_paper,
                initializer_range=0.02 if in_paper else 0.06,
                max_ep_len=27_000,  # 108,000 frames, in steps of four
            )
        )
        .training(
            lr=6e-4 if in_paper else 1e-3,
            lr_decay="cosine",
            lr_decay_updates=updates,
            # the paper's 10,240 steps
            warmup_steps=10_240 // (context * windows) + 1 if in_paper else 100,
            train_batch_size_per_learner=windows if in_paper else 64,
            weight_decay=0.1,
            weight_decay_on="matrices",
            adam_betas=(0.9, 0.95),
            grad_clip=1.0,
            return_scale=max(TARGETS[game]),
        )
        .env_runners(num_envs_per_env_runner=5)
        .evaluation(target_returns=TARGETS[game], evaluation_duration=10, temperature=1.0)
    )


if __name__ == "__main__":
    run_example(
        make_config,
        reward=9.65,
        iters=20,
        options={"game": list(TARGETS), "size": ["cpu", "paper"], "clip": ["no", "yes"]},
    )
