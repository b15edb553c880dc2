"""Recordings made by RLlib's own recorder, and the shipped data, read back."""

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.offline.offline_env_runner import OfflineSingleAgentEnvRunner

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.formats.files import find_files, read_file
from rllib_dt.formats.fragments import ReadOptions
from tests.conftest import SHIPPED, TINY
from tests.recordings import assembled
from tuned_examples import record_cartpole


@pytest.fixture
def record(cluster, tmp_path):
    def run(env, **output):
        config = (
            PPOConfig()
            .environment(env)
            .env_runners(num_envs_per_env_runner=2, batch_mode="complete_episodes")
            .offline_data(output=str(tmp_path / "recorded"), **output)
            .debugging(seed=2)
        )
        runner = OfflineSingleAgentEnvRunner(config=config)
        episodes = runner.sample(num_episodes=5, random_actions=False)
        runner.stop()
        return str(tmp_path / "recorded"), episodes

    return run


@pytest.mark.trap(17)
@pytest.mark.parametrize(
    "output",
    [
        dict(output_write_episodes=True),
        dict(output_write_episodes=False),
        dict(output_write_episodes=False, output_compress_columns=["obs", "actions"]),
    ],
    ids=["episodes", "columns", "compressed"],
)
def test_recordings_of_ppos_module_read_back_exactly(record, output):
    folder, recorded = record("CartPole-v1", **output)
    fragments = [f for p, _ in find_files(folder) for f in read_file(p, ReadOptions())]
    episodes = {e.id: e for e in assembled(fragments).episodes}
    assert len(recorded) >= 5
    assert sorted(episodes) == sorted(e.id_ for e in recorded)
    for want in recorded:
        got = episodes[want.id_]
        np.testing.assert_array_equal(got.observations, np.stack(want.get_observations()))
        np.testing.assert_array_equal(got.actions, np.stack(want.get_actions()))
        np.testing.assert_array_equal(got.rewards, np.stack(want.get_rewards()))
        assert (got.terminated, got.truncated) == (want.is_terminated, want.is_truncated)


def test_a_recording_of_normalised_actions_can_be_trained_on(record):
    folder, recorded = record("Pendulum-v1", output_write_episodes=True)
    config = (
        DTConfig()
        .environment("Pendulum-v1")
        .offline_data(input_=folder, actions_in_input_normalized=True)
        .offline_data(dataset_num_iters_per_learner=1)
        .rl_module(model_config=DTModelConfig(**(TINY | dict(max_ep_len=200))))
    )
    algo = config.build_algo()
    assert algo.offline_data.summary.num_episodes == len(recorded)
    assert algo.train()["learners"]["default_policy"]["num_updates"] == 1
    algo.stop()


def test_the_shipped_data_is_what_its_script_records():
    """Records the first episodes again; a few suffice, since one generator draws all of them."""
    env = gym.make("CartPole-v1")
    rng = np.random.default_rng(0)
    path = SHIPPED / "part-00000.parquet"
    shipped = assembled(read_file(str(path), ReadOptions())).episodes
    assert len(shipped) == 300
    for number in range(5):
        want, got = record_cartpole.record(env, rng, seed=number), shipped[number]
        np.testing.assert_array_equal(got.actions, want["actions"])
        np.testing.assert_allclose(got.observations, want["obs"], atol=1e-6)
        assert got.terminated == want["terminated"]
    returns = [e.rewards.sum() for e in shipped]
    assert min(returns) < 20
    assert max(returns) > 450
