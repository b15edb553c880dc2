"""Acting without RLlib: the same actions as RLlib's evaluation takes."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.policy.actor import Actor
from tests.conftest import cartpole_config, tiny_config
from tests.training import learner_results

WINDOW = dict(attention="window")


def played(env, actor, seed):
    """The return and the actions of one episode, with an actor of one environment."""
    observation, _ = env.reset(seed=seed)
    actor.reset()
    reward, total, actions, over = 0.0, 0.0, [], False
    while not over:
        (action,) = actor.predict(observation[None], reward)
        actions.append(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + reward, terminated or truncated
    return total, actions


@pytest.mark.semantics(2, 22, 24)
@pytest.mark.parametrize("model", [{}, WINDOW], ids=["context", "window"])
def test_an_actor_plays_the_episodes_of_rllibs_evaluation(cluster, model):
    algo = cartpole_config(**model).build_algo()
    learner_results(algo, 2)
    by_target = algo.evaluate()["env_runners"]["by_target"]
    network = algo.get_module().network
    algo.stop()
    seeds = [int(s) for s in np.random.SeedSequence(0).generate_state(4)]
    env = gym.make("CartPole-v1", max_episode_steps=40)
    for target in (20.0, 35.5):
        returns = [played(env, Actor(network, target), seed)[0] for seed in seeds]
        key = "20" if target == 20.0 else "35.5"
        assert np.mean(returns) == by_target[key]["episode_return_mean"]
        assert np.std(returns) == by_target[key]["episode_return_std"]


@pytest.mark.semantics(23, 24)
@pytest.mark.parametrize("model", [{}, WINDOW], ids=["context", "window"])
def test_episodes_side_by_side_do_not_influence_each_other(cluster, tiny_data, model):
    algo = tiny_config(tiny_data[0], **model).build_algo()
    network = algo.get_module().network
    algo.stop()
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((3, 12, 3)).astype(np.float32)
    rule = ReturnRule(clip_rewards=0.5)
    together = Actor(network, 7.0, num_envs=3, rule=rule)
    got = []
    for t in range(12):
        if t == 5:
            together.reset([1])
        got.append(together.predict(observations[:, t], [0.3 * t, 0.1, -2.0]))
    for slot, rewards in enumerate(([0.3 * t for t in range(12)], [0.1] * 12, [-2.0] * 12)):
        alone = Actor(network, 7.0, rule=rule)
        for t in range(12):
            if slot == 1 and t == 5:
                alone.reset()
            (action,) = alone.predict(observations[slot, t][None], rewards[t])
            np.testing.assert_allclose(got[t][slot], action, atol=1e-6)
