"""Shared fixtures and helpers: a Ray cluster, small data sets and configs, the recordings."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# by default Ray's workers run at a low priority, and starve on a busy machine
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import torch
from gymnasium.spaces import Box, Discrete

from rllib_dt import DTConfig, DTModelConfig, write_episodes

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "cartpole-mixed"
TINY = dict(context_length=5, hidden_size=16, n_layer=2, n_head=1, max_ep_len=64)


@pytest.fixture(scope="session")
def cluster():
    """A local Ray cluster with more logical CPUs than cores; all tests share it."""
    torch.set_num_threads(1)
    ray.init(
        "local", num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=True
    )
    logging.getLogger("ray").setLevel(logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def shared_data():
    if not SHARED.is_dir():
        pytest.skip("the recordings for trying are not here")
    return SHARED


def make_episodes(lengths, observation_shape=(3,), action_space=None, seed=0):
    """Random episodes in the form that `write_episodes` takes; every second one is truncated."""
    rng = np.random.default_rng(seed)
    action_space = action_space or Box(-1.0, 1.0, (2,))
    episodes = []
    for number, length in enumerate(lengths):
        obs = rng.standard_normal((length + 1, *observation_shape)).astype(np.float32)
        if isinstance(action_space, Discrete):
            actions = rng.integers(action_space.n, size=length) + action_space.start
        else:
            shape = (length, *action_space.shape)
            actions = rng.uniform(action_space.low, action_space.high, shape)
        episodes.append(
            dict(
                obs=obs,
                actions=actions,
                rewards=rng.standard_normal(length),
                terminated=number % 2 == 0,
                truncated=number % 2 == 1,
            )
        )
    return episodes


@pytest.fixture
def tiny_data(tmp_path):
    """A data folder and its episodes: 1 to 29 steps, observations of size 3, actions of size 2."""
    episodes = make_episodes([7, 29, 1, 13, 2, 19])
    write_episodes(episodes, tmp_path / "tiny", Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)))
    return str(tmp_path / "tiny"), episodes


def tiny_config(data, **model):
    """A config without an environment, with the spaces of `tiny_data`."""
    return (
        DTConfig()
        .environment(
            observation_space=Box(-np.inf, np.inf, (3,)), action_space=Box(-1.0, 1.0, (2,))
        )
        .offline_data(input_=data, dataset_num_iters_per_learner=3)
        .rl_module(model_config=DTModelConfig(**(TINY | model)))
        .training(train_batch_size_per_learner=8, lr=1e-3)
        .debugging(seed=0)
    )


def cartpole_config(data=None, **model):
    """A config for CartPole on the shipped data, small enough to run in seconds."""
    settings = TINY | dict(max_ep_len=500) | model
    return (
        DTConfig()
        .environment("CartPole-v1", env_config={"max_episode_steps": 40})
        .offline_data(input_=str(data or SHIPPED), dataset_num_iters_per_learner=3)
        .rl_module(model_config=DTModelConfig(**settings))
        .training(train_batch_size_per_learner=8, lr=1e-3)
        .env_runners(num_envs_per_env_runner=3)
        .evaluation(target_returns=[20, 35.5], evaluation_duration=4)
        .debugging(seed=0)
    )
