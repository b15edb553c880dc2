"""The scripts of `tuned_examples`: their settings, environments and recordings."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_dt import write_episodes
from rllib_dt.spaces.composites import check_spaces
from tests.training import learner_results
from tuned_examples import (
    atari_dt,
    cartpole_dt,
    demo,
    halfcheetah_dt,
    hopper_dt,
    minatar_dt,
    minigrid_dt,
    pendulum_dt,
    record_minatar,
)
from tuned_examples.key_to_door import key_to_door_dt
from tuned_examples.key_to_door import record as record_walks

SMALL = dict(hidden_size=16, n_layer=1, n_head=1, context_length=3)


def small(config):
    config.rl_module(model_config={**config.model_config, **SMALL})
    config.training(train_batch_size_per_learner=4)
    return config.offline_data(dataset_num_iters_per_learner=1)


def played(env, steps, seed=0):
    """An episode of random actions."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=seed)
    episode = {"obs": [observation], "actions": [], "rewards": []}
    over = False
    while not over and len(episode["actions"]) < steps:
        action = env.action_space.sample()
        observation, reward, over, cut, _ = env.step(action)
        over = over or cut
        episode["obs"].append(observation)
        episode["actions"].append(action)
        episode["rewards"].append(float(reward))
    return episode | {"terminated": True, "truncated": False}


@pytest.mark.parametrize("example", [cartpole_dt, halfcheetah_dt, hopper_dt, pendulum_dt])
def test_settings_are_valid(example):
    example.make_config(["nowhere"]).validate()


def test_the_demos_settings_are_valid():
    demo.make_config(str(demo.DATA)).validate()


@pytest.mark.parametrize("size", ["cpu", "paper"])
@pytest.mark.parametrize("game", list(atari_dt.TARGETS))
def test_ataris_settings_are_valid_for_each_game(game, size):
    config = atari_dt.make_config(["nowhere"], game=game, size=size)
    config.validate()
    env = atari_dt.make_env(config.env_config)
    check_spaces(env.observation_space, env.action_space)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4, 84, 84)
    assert (observation == observation[0]).all()  # an episode's first stack repeats its first frame


def test_ataris_paper_settings_are_the_papers():
    config = atari_dt.make_config(["nowhere"], game="Breakout", size="paper")
    model = config.dt_model_config
    assert (model.n_layer, model.n_head, model.hidden_size, model.context_length) == (6, 8, 128, 30)
    assert (model.activation_function, model.normalize_images) == ("gelu", False)
    assert config.train_batch_size_per_learner == 128
    assert (config.lr, config.weight_decay, config.weight_decay_on) == (6e-4, 0.1, "matrices")
    assert (config.adam_betas, config.grad_clip, config.lr_decay) == ([0.9, 0.95], 1.0, "cosine")
    assert (config.frame_stack, config.clip_rewards, config.temperature) == (4, False, 1.0)
    assert atari_dt.make_config(["nowhere"], clip="yes").clip_rewards


def test_atari_trains_on_single_frames(cluster, tmp_path):
    env = atari_dt.make_env({"game": "Breakout"})
    episode = played(env, 40)
    episode["obs"] = [stack[-1] for stack in episode["obs"]]
    frame = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    write_episodes([episode], tmp_path, frame, env.action_space)
    algo = small(atari_dt.make_config([str(tmp_path)], game="Breakout")).build_algo()
    assert algo.offline_data.summary.num_steps == 40
    assert np.isfinite(learner_results(algo)["action_loss"])
    algo.stop()


def test_minatar_is_recorded_and_trained_on(cluster, tmp_path):
    returns = record_minatar.record(tmp_path / "data", steps=600)
    assert list(returns) == list(record_minatar.ERROR_RATES)
    assert np.mean(returns[0.01]) > np.mean(returns[1.0])
    config = small(minatar_dt.make_config([str(tmp_path / "data")]))
    config.evaluation(evaluation_duration=2, target_returns=[5.0])
    algo = config.build_algo()
    assert np.isfinite(learner_results(algo)["action_loss"])
    assert algo.evaluate()["env_runners"]["num_episodes_failed"] == 0
    algo.stop()


def test_a_seed_decides_a_whole_episode_of_minatar():
    env = minatar_dt.make_env({})
    for seed in range(40):  # a tenth of all repeat an action in their first step
        seen = []
        for last_action in (1, 2):  # MinAtar would repeat it in the next episode
            env.reset(seed=6)
            env.step(last_action)
            seen.append(played(env, 3, seed)["obs"])
        np.testing.assert_array_equal(*seen)


def test_minigrid_is_trained_on_and_reports_successes(cluster, tmp_path):
    env = minigrid_dt.make_env({})
    episode = played(env, 30)
    read = {name: env.observation_space[name] for name in ("image", "direction")}
    episode["obs"] = [{name: seen[name] for name in read} for seen in episode["obs"]]
    write_episodes([episode], tmp_path / "data", gym.spaces.Dict(read), env.action_space)
    config = small(minigrid_dt.make_config([str(tmp_path / "data")]))
    config.environment(env_config={"max_steps": 10})
    config.evaluation(evaluation_duration=2, target_returns=[1.0])
    algo = config.build_algo()
    assert np.isfinite(learner_results(algo)["action_loss"])
    results = algo.evaluate()["env_runners"]
    assert results["num_episodes_failed"] == 0
    assert results["success"] == {"1": 0.0}  # nobody opens the door within ten random steps
    algo.stop()


@pytest.mark.parametrize("method", key_to_door_dt.METHODS)
def test_key_to_door_trains_by_each_method(cluster, tmp_path, method):
    record_walks.record(tmp_path / "walks", episodes=60, seed=1, as_vector=True)
    config = small(key_to_door_dt.make_config([str(tmp_path / "walks")], method=method))
    config.evaluation(evaluation_duration=2)
    algo = config.build_algo()
    good, walks = key_to_door_dt.successes([str(tmp_path / "walks")])
    assert (good > 0, walks) == (True, 60)
    chosen = algo.offline_data.summary
    assert chosen.num_episodes == (good if method == "percent-bc" else 60)
    assert np.isfinite(learner_results(algo)["action_loss"])
    assert algo.evaluate()["env_runners"]["num_episodes_failed"] == 0
    algo.stop()
