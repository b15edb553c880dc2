"""Evaluation rollouts: exactly the requested episodes, each as if it ran alone."""

import math

import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_dt import DT, DTConfig, DTModelConfig, write_episodes
from rllib_dt.episodes.targets import target_name
from rllib_dt.episodes.windows import Window
from rllib_dt.rollout.connector import TARGET_RETURN
from rllib_dt.rollout.jobs import EpisodeFailure, EpisodeResult, Outcome, make_jobs
from rllib_dt.rollout.results import normalized_score, summarize
from tests.conftest import TINY, cartpole_config, make_episodes
from tests.environments import Lengths

K = TINY["context_length"]


@pytest.fixture
def lengths_data(tmp_path):
    episodes = make_episodes([7, 29, 1], action_space=Lengths.action_space)
    write_episodes(episodes, tmp_path / "d", Lengths.observation_space, Lengths.action_space)
    return str(tmp_path / "d")


def lengths_config(data, envs=1, runners=0, episodes=8):
    return (
        DTConfig()
        .environment(Lengths)
        .offline_data(input_=data, dataset_num_iters_per_learner=1)
        .rl_module(model_config=DTModelConfig(**TINY))
        .training(train_batch_size_per_learner=4, return_scale=40.0)
        .env_runners(num_envs_per_env_runner=envs)
        .evaluation(
            target_returns=[30, 3.5],
            evaluation_duration=episodes,
            evaluation_num_env_runners=runners,
        )
        .debugging(seed=11)
    )


def evaluate(config):
    algo = config.build_algo()
    try:
        return algo.evaluate()["env_runners"]
    finally:
        algo.stop()


def test_other_targets_need_no_new_algorithm(cluster, lengths_data):
    algo = lengths_config(lengths_data, episodes=2).build_algo()
    usual = algo.evaluate()["env_runners"]["by_target"]
    sweep = [float(target) for target in range(0, 100, 5)]
    swept = algo.evaluate(target_returns=sweep)["env_runners"]["by_target"]
    assert list(swept) == [target_name(target) for target in sweep]
    assert {result["num_episodes"] for result in swept.values()} == {2}
    one = algo.evaluate(target_returns=np.float64(30.0))["env_runners"]["by_target"]
    assert one == {"30": usual["30"]} == {"30": swept["30"]}
    assert algo.target_returns == [30.0, 3.5]  # those of the settings stay
    assert algo.evaluate()["env_runners"]["by_target"] == usual
    for bad, message in (([], "is empty"), ([1, 1.0], "twice"), ([math.nan], "finite numbers")):
        with pytest.raises(ValueError, match=message):
            algo.evaluate(target_returns=bad)
    algo.stop()


@pytest.mark.slow
@pytest.mark.semantics(24)
@pytest.mark.trap(7)
def test_every_layout_of_slots_and_runners_runs_exactly_the_same_episodes(cluster, lengths_data):
    """Exactly 8 per target, short and long ones, with any number of slots and runners."""
    want = evaluate(lengths_config(lengths_data))
    assert {r["num_episodes"] for r in want["by_target"].values()} == {8}
    assert list(want["by_target"]) == ["30", "3.5"]
    # both targets use the same reset seeds, so their episodes have the same lengths
    assert want["by_target"]["30"]["episode_len_mean"] == want["episode_len_mean"]
    assert Lengths.SHORT < want["episode_len_mean"] < Lengths.LONG
    for envs, runners in ((3, 0), (16, 0), (1, 2), (3, 2)):
        got = evaluate(lengths_config(lengths_data, envs, runners))
        assert got["by_target"] == want["by_target"], (envs, runners)


@pytest.mark.semantics(24)
def test_an_environment_gets_the_same_actions_beside_others_as_alone(cluster, lengths_data):
    logs = []
    for envs in (1, 5):
        Lengths.LOG.clear()
        evaluate(lengths_config(lengths_data, envs=envs))
        logs.append(sorted(Lengths.LOG))
    assert len(logs[0]) == len(logs[1]) == 16
    for (length, alone), (other, together) in zip(*logs, strict=True):
        assert length == other
        np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.semantics(2, 22, 23)
def test_rollouts_feed_the_network_the_same_windows_as_training(cluster, lengths_data):
    """Replays each evaluation episode by hand from its start and compares the actions."""
    Lengths.LOG.clear()
    algo = lengths_config(lengths_data, envs=4).build_algo()
    algo.evaluate()
    network = algo.get_module().network
    algo.stop()
    targets = {30.0: [], 3.5: []}
    assert len(Lengths.LOG) == 16
    for length, actions in Lengths.LOG:
        errors = {t: replay_error(network, length, actions, t) for t in targets}
        best = min(errors, key=errors.get)
        assert errors[best] < 1e-5, "no target explains the episode's actions"
        targets[best].append(length)
    assert len(targets[30.0]) == len(targets[3.5]) == 8
    assert sorted(targets[30.0]) == sorted(targets[3.5])


def replay_error(network, length, actions, target):
    worst = 0.0
    observations = [np.array([0, length, 0], np.float32)]
    for t, action in enumerate(actions):
        first = max(0, t - K + 1)
        n = t - first + 1
        taken = torch.tensor([*actions[first:t], 0.0])[None, :, None]
        window = Window(
            observations=torch.as_tensor(np.stack(observations[first:]))[None],
            actions=taken,
            returns_to_go=(target - torch.arange(first, t + 1).float())[None, :, None],
            timesteps=torch.arange(first, t + 1)[None],
            mask=torch.ones(1, n, dtype=torch.bool),
        )
        out = network.act(window)
        worst = max(worst, abs(float(out[0, 0]) - action))
        observations.append(np.array([t + 1, length, action], np.float32))
    return worst


@pytest.mark.trap(23)
def test_a_seed_repeats_the_episodes_and_no_seed_draws_new_ones(cluster):
    algo = cartpole_config().build_algo()
    first, second = algo.evaluate(), algo.evaluate()
    assert first == second
    algo.stop()
    assert make_jobs([1.0], 4, seed=None) != make_jobs([1.0], 4, seed=None)
    jobs = make_jobs([7.0, 9.0], 3, seed=5)
    assert jobs == make_jobs([7.0, 9.0], 3, seed=5)
    assert [job.target for job in jobs] == [7.0] * 3 + [9.0] * 3
    assert [job.seed for job in jobs[:3]] == [job.seed for job in jobs[3:]]


@pytest.mark.semantics(27)
def test_results_are_reported_per_target():
    jobs = make_jobs([100.0, -2.5], 2, seed=0)
    results = [
        EpisodeResult(job=job, episode_return=r, length=n)
        for job, r, n in zip(jobs, [10.0, 20.0, -1.0, -4.0], [1, 2, 3, 8], strict=True)
    ]
    outcome = Outcome(results=results, failures=[EpisodeFailure(job=jobs[0], error="fell over")])
    got = summarize(outcome, [100.0, -2.5], score_reference=(0.0, 50.0))
    assert got["episode_return_mean"] == 15.0
    assert got["by_target"]["100"] == {
        "episode_return_mean": 15.0,
        "episode_return_std": 5.0,
        "episode_return_min": 10.0,
        "episode_return_max": 20.0,
        "episode_len_mean": 1.5,
        "num_episodes": 2,
        "num_episodes_failed": 1,
        "normalized_score": 30.0,
    }
    assert got["by_target"]["-2.5"]["episode_return_mean"] == -2.5
    assert got["by_target"]["-2.5"]["num_episodes_failed"] == 0
    assert got["num_episodes"] == 4
    assert got["num_episodes_failed"] == 1
    assert got["num_env_steps_sampled"] == 14


def test_without_episodes_the_results_are_nan_and_the_counts_are_zero():
    got = summarize(Outcome(results=[], failures=[]), [5.0])
    assert math.isnan(got["episode_return_mean"])
    assert math.isnan(got["by_target"]["5"]["episode_return_mean"])
    assert got["by_target"]["5"]["num_episodes"] == got["num_episodes"] == 0


def test_targets_are_named_by_number_and_scores_are_normalized():
    names = [target_name(t) for t in (3600, 3600.0, -120, 0.5, 1e6)]
    assert names == ["3600", "3600", "-120", "0.5", "1000000"]
    # Hopper's reference in D4RL: random -20.272305, expert 3234.3
    assert normalized_score(3234.3, (-20.272305, 3234.3)) == 100.0
    assert normalized_score(1607.013848, (-20.272305, 3234.3)) == pytest.approx(50.0, abs=1e-4)


@pytest.mark.trap(10)
def test_iterations_without_evaluation_repeat_the_last_one_with_its_age(cluster, tmp_path):
    config = cartpole_config().evaluation(evaluation_interval=2)
    algo = config.build_algo()
    first, second, third, fourth, fifth = (algo.train() for _ in range(5))
    assert "evaluation" not in first
    measured = [r["evaluation"]["env_runners"] for r in (second, third, fourth, fifth)]
    assert [m["age_in_iterations"] for m in measured] == [0, 1, 0, 1]
    assert [m["num_updates_lifetime"] for m in measured] == [6, 6, 12, 12]
    assert [m["age_in_updates"] for m in measured] == [0, 3, 0, 3]
    for new, repeated in (measured[:2], measured[2:]):
        assert all(math.isfinite(t["episode_return_mean"]) for t in new["by_target"].values())
        assert repeated["by_target"] == new["by_target"]
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()
    restored = DT.from_checkpoint(path)
    sixth = restored.train()["evaluation"]["env_runners"]
    assert (sixth["age_in_iterations"], sixth["num_updates_lifetime"]) == (0, 18)
    restored.stop()
    without = cartpole_config().build_algo()
    assert "evaluation" not in without.train()
    without.stop()


class CountEpisodes(RLlibCallback):
    def on_episode_end(self, *, metrics_logger, **kwargs):
        metrics_logger.log_value("my_count", 1, reduce="sum")


@pytest.mark.trap(9, 10)
@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_user_callbacks_run_and_their_metrics_arrive_once(cluster, runners):
    config = cartpole_config().callbacks(CountEpisodes)
    config.evaluation(evaluation_num_env_runners=runners)
    algo = config.build_algo()
    assert [algo.evaluate()["env_runners"]["my_count"] for _ in range(2)] == [8, 8]
    algo.stop()


@pytest.mark.semantics(24)
def test_asynchronous_vector_environments_yield_the_same_results(cluster):
    want = evaluate(cartpole_config())
    assert evaluate(cartpole_config().env_runners(gym_env_vectorize_mode="async")) == want


def test_the_connector_tracks_an_episode_and_rebuilds_its_context_if_it_joins_late(
    cluster, lengths_data
):
    """Serves a policy as an RLlib user would: an episode goes through the pipeline step by step."""
    config = lengths_config(lengths_data)
    config.validate()
    spaces = (Lengths.observation_space, Lengths.action_space)
    pipelines = [
        config.build_env_to_module_connector(spaces={"__env_single__": spaces}) for _ in range(3)
    ]
    episode = SingleAgentEpisode(observation_space=spaces[0], action_space=spaces[1])
    episode.custom_data[TARGET_RETURN] = 12.0
    episode.add_env_reset(np.array([0, 9, 0], np.float32))
    for t in range(9):
        tracked = run(pipelines[0], episode)
        again = run(pipelines[0], episode)
        for name, value in tracked.items():
            np.testing.assert_array_equal(value, again[name])
        n = min(t + 1, K)
        assert tracked["loss_mask"][0].tolist() == [False] * (K - n) + [True] * n
        want = [12.0 - 0.5 * s for s in range(t + 1)][-n:]
        np.testing.assert_allclose(tracked["returns_to_go"][0, -n:, 0], want)
        episode.add_env_step(
            np.array([t + 1, 9, t], np.float32), np.array([t / 9], np.float32), 0.5
        )
    late = run(pipelines[1], episode)
    for name, value in run(pipelines[0], episode).items():
        np.testing.assert_array_equal(value, late[name])
    cut = episode.cut()
    with pytest.raises(RuntimeError, match="sample whole episodes"):
        run(pipelines[2], cut)


def run(pipeline, episode):
    return pipeline(rl_module=None, episodes=[episode], batch={}, explore=False, shared_data={})


def test_evaluation_without_an_environment_is_refused(cluster, tiny_data):
    from tests.conftest import tiny_config

    algo = tiny_config(tiny_data[0]).build_algo()
    with pytest.raises(ValueError, match="no environment to evaluate in"):
        algo.evaluate()
    algo.stop()


def test_discounted_training_is_not_evaluated(cluster):
    config = cartpole_config().training(gamma=0.9)
    algo = config.build_algo()
    assert max(algo.offline_data.derived_targets) < 10.01  # 1 + 0.9 + 0.81 + …
    algo.train()
    with pytest.raises(ValueError, match=r"gamma=0.9 cannot be used to act"):
        algo.evaluate()
    algo.stop()
    with pytest.raises(ValueError, match=r"gamma=0.9 cannot be used to act"):
        config.evaluation(evaluation_interval=1).validate()
