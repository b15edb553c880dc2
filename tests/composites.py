"""Composite spaces, and values, windows and settings for them."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import strategies as st

from rllib_dt import DT, DTConfig, DTModelConfig, Window
from rllib_dt.spaces.trees import (
    by_leaf,
    flatten,
    map_tree,
)
from tests.conftest import TINY
from tests.environments import Sampled
from tests.training import same, weights

K = 4
ROBOT = gym.spaces.Dict(
    camera=Box(0, 255, (6, 5, 3), np.uint8),
    joints=gym.spaces.Dict(position=Box(-2.0, 2.0, (3,)), grip=Discrete(3, start=1)),
    pair=gym.spaces.Tuple([MultiBinary(2), Box(-1.0, 1.0, ())]),
)
ARM = gym.spaces.Dict(
    move=Box(-2.0, 2.0, (2,)),
    rest=gym.spaces.Tuple([Discrete(3, start=2), gym.spaces.Dict(push=MultiDiscrete([2, 4]))]),
)
OBSERVED = ["camera", "joints/grip", "joints/position", "pair/0", "pair/1"]


def nested(inner):
    def inside(spaces):
        names = st.sampled_from(["a", "b", "items", "x.y", "type", "%", "Ünï"])
        return st.one_of(
            st.dictionaries(names, spaces, min_size=1, max_size=3).map(gym.spaces.Dict),
            st.lists(spaces, min_size=1, max_size=3).map(gym.spaces.Tuple),
        )

    return inside(st.recursive(inner, inside, max_leaves=4))


def batched(space, seed, steps):
    """`steps` values of a space as nested arrays, the way that gymnasium batches them."""
    space.seed(seed)
    values = [space.sample() for _ in range(steps)]
    return concatenate(space, values, create_empty_array(space, steps)), values


def equal(one, other):
    return all(by_leaf(map_tree(np.array_equal, one, other)).values())


def make(observation_space, action_space, lengths=(7, 5, 3, 6)):
    return [
        dict(
            obs=batched(observation_space, length, length + 1)[0],
            actions=batched(action_space, length + 100, length)[0],
            rewards=np.ones(length),
            terminated=True,
            truncated=False,
        )
        for length in lengths
    ]


def windows(observation_space, action_space, seed, batch=3):
    """Windows whose first row is padded by 2 steps."""

    def column(space, seed):
        tree = flatten(space, batched(space, seed, batch * K)[0])
        return map_tree(lambda a: torch.from_numpy(a).reshape(batch, K, *a.shape[1:]), tree)

    mask = torch.ones(batch, K, dtype=torch.bool)
    mask[0, :2] = False
    return Window(
        observations=column(observation_space, seed),
        actions=column(action_space, seed + 1),
        returns_to_go=torch.randn(batch, K, 1, generator=torch.Generator().manual_seed(seed)),
        timesteps=torch.arange(K).expand(batch, K) * mask,
        mask=mask,
    )


def check_the_whole_way(config, folder):
    """Trains, validates, evaluates, saves and restores; returns the results of both."""
    algo = config.build_algo()
    result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["action_loss"])
    assert np.isfinite(result["validation"]["action_loss"])
    evaluated = algo.evaluate()["env_runners"]
    assert (evaluated["num_episodes"], evaluated["num_episodes_failed"]) == (3, 0)
    assert evaluated["episode_return_mean"] == Sampled.STEPS
    path, kept = algo.save_to_path(folder / "checkpoint"), weights(algo)
    summary = algo.offline_data.summary
    algo.stop()
    restored = DT.from_checkpoint(path)
    assert same(weights(restored), kept)
    restored.train()
    restored.stop()
    return result, summary


def config_of(env, spaces, data, **model):
    return (
        DTConfig()
        .environment(env, env_config=spaces)
        .offline_data(input_=str(data), dataset_num_iters_per_learner=2)
        .rl_module(model_config=DTModelConfig(**(TINY | model)))
        .training(train_batch_size_per_learner=4, lr=1e-3)
        .env_runners(num_envs_per_env_runner=2)
        .evaluation(target_returns=[7.0], evaluation_duration=3)
        .debugging(seed=0)
    )
