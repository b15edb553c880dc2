"""Evaluation in parallel with training."""

import os
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from rllib_dt import DTConfig, DTModelConfig, write_episodes
from rllib_dt.learning.learner import DTTorchLearner
from tests.conftest import TINY, make_episodes
from tests.training import same, weights


def meet(folder, mine, theirs):
    """Signals that one side is running, and waits for the other."""
    Path(folder, mine).touch()
    deadline = time.monotonic() + 60
    while not Path(folder, theirs).exists():
        assert time.monotonic() < deadline, f"{theirs} did not run meanwhile"
        time.sleep(0.02)


class MeetingEnv(gym.Env):
    """Waits for an update in its first step, if a meeting is arranged."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, config):
        self.folder = config["folder"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.standard_normal(3).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        if Path(self.folder, "arranged").exists():
            meet(self.folder, "evaluating", "training")
        return np.full(3, action[0], np.float32), float(action[0]), self.t == 5, False, {}


class MeetingLearner(DTTorchLearner):
    """Waits for an environment's step before an update, if a meeting is arranged."""

    def before_gradient_based_update(self, *, timesteps):
        super().before_gradient_based_update(timesteps=timesteps)
        folder = self.config.env_config["folder"]
        if Path(folder, "arranged").exists():
            meet(folder, "training", "evaluating")


@pytest.mark.trap(8)
@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_overlaps_training_and_uses_the_weights_from_before_it(
    cluster, tmp_path, num_learners
):
    episodes = make_episodes([7, 12, 3], action_space=MeetingEnv.action_space)
    write_episodes(episodes, tmp_path / "d", MeetingEnv.observation_space, MeetingEnv.action_space)
    config = (
        DTConfig()
        .environment(MeetingEnv, env_config={"folder": str(tmp_path)})
        .offline_data(input_=str(tmp_path / "d"), dataset_num_iters_per_learner=5)
        .rl_module(model_config=DTModelConfig(**TINY))
        .training(train_batch_size_per_learner=4, lr=1e-2, learner_class=MeetingLearner)
        .learners(num_learners=num_learners)
        .evaluation(
            target_returns=[3.0, -3.0],
            evaluation_duration=2,
            evaluation_num_env_runners=1,
            evaluation_interval=1,
            evaluation_parallel_to_training=True,
        )
        .debugging(seed=3)
    )
    algo = config.build_algo()
    algo.train()
    want, before = algo.evaluate()["env_runners"], weights(algo)
    (tmp_path / "arranged").touch()
    result = algo.train()
    os.remove(tmp_path / "arranged")
    got = result["evaluation"]["env_runners"]
    assert (got.pop("age_in_iterations"), got.pop("age_in_updates")) == (0, 5)
    assert got == want
    assert got["num_updates_lifetime"] == 5
    assert result["learners"]["default_policy"]["num_updates_lifetime"] == 10
    assert not same(weights(algo), before)
    assert algo.evaluate()["env_runners"]["num_updates_lifetime"] == 10
    algo.stop()
