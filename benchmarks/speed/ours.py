"""Contender: this package, bare and through RLlib."""

from benchmarks.speed import contender as c  # isort: skip  redirects standard output

import functools
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from gymnasium.spaces import Box, Discrete

from benchmarks.parts.steps import action_loss, in_training, make_update
from rllib_dt import DecisionTransformer, DTConfig, DTModelConfig, __version__, write_episodes
from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.episodes.samplers import Draws, FixedSampler
from rllib_dt.episodes.windows import Window
from rllib_dt.learning.batches import PrefetchedBatches
from tuned_examples import cartpole_dt, demo

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
rng = np.random.default_rng(0)
SPACES = Box(-np.inf, np.inf, (c.OBSERVATIONS,)), Box(-1.0, 1.0, (c.ACTIONS,))
UPDATES_A_CALL, ENVS = 10, 16
MODEL: dict[str, Any] = dict(
    context_length=c.CONTEXT, hidden_size=c.WIDTH, n_layer=c.LAYERS, n_head=c.HEADS,
    max_ep_len=c.MAX_STEPS, resid_pdrop=c.DROPOUT, embd_pdrop=c.DROPOUT, attn_pdrop=c.DROPOUT,
)  # fmt: skip


def steps(n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns columns of n steps in episodes of 1,000, and their timesteps."""
    columns = {
        "obs": rng.standard_normal((n, c.OBSERVATIONS), np.float32),
        "actions": rng.uniform(-1, 1, (n, c.ACTIONS)).astype(np.float32),
        "returns_to_go": rng.uniform(0, 3000, (n, 1)).astype(np.float32),
    }
    return columns, (np.arange(n) % 1000).astype(np.int32)


def sampler(n: int, window: int = c.CONTEXT, windows: int = c.WINDOWS) -> FixedSampler:
    """Returns a sampler over n random steps."""
    columns, timesteps = steps(n)
    return FixedSampler(columns, timesteps, Draws(window_length=window, batch_size=windows, seed=0))


# --- the bare step


def bare(precision: str, **model: Any) -> c.Task:
    """Returns a task that trains the network on one batch, without RLlib."""
    config = DTModelConfig(**(MODEL | model))
    network = DecisionTransformer(config, *SPACES)
    network.set_normalization(torch.zeros(c.OBSERVATIONS), torch.ones(c.OBSERVATIONS), 1000.0)
    windows = c.WINDOWS * c.CONTEXT // config.window_length
    drawn = sampler(100_000, config.window_length, windows).sample(0)
    # full windows, like those in the peers' batches
    rows = drawn.timesteps[:, -1] >= config.window_length - 1
    window = drawn.map(lambda column: torch.from_numpy(column[rows].repeat(2, 0)[:windows]))
    return training(network, window, precision)


def images() -> c.Task:
    """Returns a task that trains the network on one batch of stacked frames, without RLlib."""
    layers = dict(n_layer=c.IMAGE_LAYERS, n_head=c.IMAGE_HEADS, context_length=c.IMAGE_CONTEXT)
    observed = Box(0, 255, c.IMAGE, np.uint8)
    config = DTModelConfig(**(MODEL | layers))
    network = DecisionTransformer(config, observed, Discrete(c.IMAGE_ACTIONS))
    shape = c.IMAGE_WINDOWS, c.IMAGE_CONTEXT
    window = Window(
        observations=torch.from_numpy(rng.integers(0, 255, (*shape, *c.IMAGE), dtype=np.uint8)),
        actions=torch.from_numpy(rng.integers(0, c.IMAGE_ACTIONS, shape)),
        returns_to_go=torch.from_numpy(rng.uniform(0, 1, (*shape, 1)).astype(np.float32)),
        timesteps=torch.arange(c.IMAGE_CONTEXT).expand(shape),
        mask=torch.ones(shape, dtype=torch.bool),
    )
    return training(network, window, "fp32")


def training(network: DecisionTransformer, window: Window, precision: str) -> c.Task:
    """Returns a task that trains a network on one batch."""
    dtype = torch.bfloat16 if precision == "bf16" else None
    step = make_update(
        in_training(network),
        lambda: action_loss(network, window, dtype),
        lr=c.LEARNING_RATE,
        weight_decay=c.WEIGHT_DECAY,
        clip=c.CLIP,
    )

    def train(n: int) -> None:
        for _ in range(n):
            step()

    return train


# --- through RLlib


def write_data() -> str:
    """Writes random episodes to a temporary folder and returns its path."""
    folder = tempfile.mkdtemp(prefix="bench-")
    columns, _ = steps(20_000)
    episodes = (
        dict(
            obs=columns["obs"][i : i + 1000],
            actions=columns["actions"][i : i + 1000],
            rewards=np.ones(1000),
            terminated=True,
            truncated=False,
        )
        for i in range(0, 20_000, 1000)
    )
    write_episodes(episodes, Path(folder) / "data", *SPACES)
    return str(Path(folder) / "data")


@functools.cache
def data() -> str:
    """Returns the path of the random episodes; writes them on first use."""
    return write_data()


def config(**model: Any) -> DTConfig:
    """Returns the benchmark's settings with changes to the network."""
    return (
        DTConfig()
        .environment(observation_space=SPACES[0], action_space=SPACES[1])
        .offline_data(input_=data(), dataset_num_iters_per_learner=UPDATES_A_CALL)
        .rl_module(model_config=DTModelConfig(**(MODEL | model)))
        .training(
            lr=c.LEARNING_RATE,
            train_batch_size_per_learner=c.WINDOWS,
            weight_decay=c.WEIGHT_DECAY,
            grad_clip=c.CLIP,
            return_scale=c.RETURN_SCALE,
        )
        .debugging(seed=0, log_level="ERROR")
    )


@functools.cache
def algorithm() -> Any:
    """Returns the algorithm that trains through RLlib; builds it on first use."""
    return config().build_algo()


def through_rllib(n: int) -> None:
    """Runs n updates through RLlib."""
    assert n % UPDATES_A_CALL == 0
    for _ in range(n // UPDATES_A_CALL):
        algorithm().train()


@functools.cache
def two_learners() -> Any:
    """Returns an algorithm with two learners, of one thread each; builds it on first use."""
    return config().learners(num_learners=2).build_algo()


def windows_by(make: Callable[[], Any], learners: int) -> c.Task:
    """Returns a task that trains on n windows, 64 a learner and update, through RLlib."""
    a_call = UPDATES_A_CALL * c.WINDOWS * learners

    def train(n: int) -> None:
        assert n % a_call == 0
        for _ in range(n // a_call):
            make().train()

    return train


def growth(size: int) -> c.Task:
    """Returns a task that trains through RLlib on a pool of `size` steps."""
    source = sampler(size)

    def train(n: int) -> None:
        learner = algorithm().learner_group._learner
        if getattr(learner._batches, "_sampler", None) is not source:
            algorithm().train()  # so that the learner has an iterator to replace
            learner._batches = PrefetchedBatches(source, learner.progress.updates, learner._device)
        through_rllib(n)

    return train


@functools.cache
def evaluator(**model: Any) -> Any:
    """Returns an algorithm that evaluates in Hopper-v5; builds it on first use."""
    from rllib_dt.algorithm.dt import DT

    env = dict(terminate_when_unhealthy=False, max_episode_steps=c.EPISODE_STEPS)
    settings = config(**model).environment(
        "Hopper-v5", env_config=env, observation_space=None, action_space=None
    )
    settings.observation_space = settings.action_space = None
    settings.env_runners(num_envs_per_env_runner=ENVS)
    algo: DT = settings.evaluation(target_returns=[c.TARGET], evaluation_duration=ENVS).build_algo()
    return algo


def evaluation(**model: Any) -> c.Task:
    """Returns a task that takes n evaluation steps."""

    def evaluate(n: int) -> None:
        assert n % (ENVS * c.EPISODE_STEPS) == 0
        for _ in range(n // (ENVS * c.EPISODE_STEPS)):
            evaluator(**model).evaluate()

    return evaluate


def set_up(n: int) -> None:
    """Builds the CartPole example and runs its first update, with Ray already running."""
    for _ in range(n):
        settings = cartpole_dt.make_config([str(demo.DATA)])
        # the example's recording is not shipped, so it gets the demo's data and episode lengths
        settings.environment("CartPole-v1", env_config={})
        model = {**settings.model_config, "max_ep_len": 500}
        settings.rl_module(model_config=model).offline_data(dataset_num_iters_per_learner=1)
        algo = settings.debugging(log_level="ERROR").build_algo()
        algo.train()
        algo.stop()


# --- batches


def batches(n: int, source: FixedSampler) -> None:
    """Draws n batches."""
    for update in range(n):
        source.sample(update)


def frame_sampler() -> FixedSampler:
    """Returns a sampler of 128 × 30 stacks of four 84 × 84 frames, from episodes of 500 steps."""
    episodes, length, size = 30, 500, 4
    frames = rng.integers(0, 255, (episodes * (length + size - 1), 84, 84), dtype=np.uint8)
    first = np.concatenate([e * (length + size - 1) + np.arange(length) for e in range(episodes)])
    return FixedSampler(
        {
            "obs": FrameStacks(frames, first, size),
            "actions": np.zeros(len(first), np.int64),
            "returns_to_go": np.zeros((len(first), 1), np.float32),
        },
        np.tile(np.arange(length, dtype=np.int32), episodes),
        Draws(window_length=30, batch_size=128, seed=0),
    )


class Copy:
    """Copies as many bytes as a batch of stacked frames has, to memory that was used before."""

    def __init__(self) -> None:
        self.source = rng.integers(0, 255, (128, 30, 4, 84, 84), dtype=np.uint8)
        self.target = np.zeros_like(self.source)

    def __call__(self, n: int) -> None:
        for _ in range(n):
            np.copyto(self.target, self.source)


def lazily(make: Callable[[], c.Task]) -> c.Task:
    """Makes a task on its first use, so that unmeasured tasks need neither memory nor Ray."""
    made = functools.cache(make)
    return lambda n: made()(n)


TASKS: dict[str, c.Task] = {
    "train_fp32": lazily(lambda: bare("fp32")),
    "train_bf16": lazily(lambda: bare("bf16")),
    "train_window_fp32": lazily(lambda: bare("fp32", attention="window")),
    "train_window_bf16": lazily(lambda: bare("bf16", attention="window")),
    "train_images": lazily(images),
    "train_rllib": through_rllib,
    "one_learner": windows_by(algorithm, 1),
    "two_learners": windows_by(two_learners, 2),
    "growth_10k": lazily(lambda: growth(10_000)),
    "growth_1m": lazily(lambda: growth(1_000_000)),
    "growth_10m": lazily(lambda: growth(10_000_000)),
    "batch": lazily(lambda: functools.partial(batches, source=sampler(1_000_000))),
    "frames": lazily(lambda: functools.partial(batches, source=frame_sampler())),
    "copy": lazily(Copy),
    "evaluate": evaluation(),
    "evaluate_window": evaluation(attention="window"),
    "evaluate_window_100": evaluation(attention="window", context_length=100),
    "set_up": set_up,
}

if __name__ == "__main__":
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    for name in ("rllib_dt", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    c.serve(
        TASKS,
        dict(
            rllib_dt=__version__,
            ray=ray.__version__,
            torch=torch.__version__,
            gymnasium=gym.__version__,
            numpy=np.__version__,
        ),
    )
