"""`DTConfig().online(…)`: training goes on with episodes of the policy's own."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text

from rllib_dt import DT, runs, write_episodes
from rllib_dt.episodes.episode import Episode
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.replay import Replay
from rllib_dt.episodes.returns import ReturnRule
from tests.conftest import cartpole_config, make_episodes, tiny_config
from tests.training import learner_results, same, weights

STOCHASTIC = dict(action_distribution="squashed_gaussian")


def pool_of(lengths, seed=0, stacked=()):
    episodes = [
        Episode(
            id=str(i), source="here", observations=e["obs"], actions=e["actions"],
            rewards=e["rewards"], terminated=e["terminated"], truncated=e["truncated"],
        )
        for i, e in enumerate(make_episodes(lengths, seed=seed))
    ]  # fmt: skip
    return EpisodePool.from_episodes(episodes, outcomes=True)


# --- the replay


def test_a_replay_begins_with_the_best_and_loses_the_worst_first():
    recorded = pool_of([4, 7, 1, 9, 3])
    replay = Replay(3)
    replay.begin(recorded)
    best = np.sort(recorded.targets)[-3:]
    np.testing.assert_array_equal(replay.pool().targets, best)
    new = pool_of([5, 2], seed=1)
    replay.extend(new.episodes())
    np.testing.assert_array_equal(replay.pool().targets, [best[-1], *new.targets])
    replay.extend(new.episodes())
    np.testing.assert_array_equal(replay.pool().targets, [new.targets[1], *new.targets])
    assert len(replay) == 3


def test_a_replay_shares_no_array_with_the_recording():
    recorded = pool_of([4, 7])
    before = {name: column.copy() for name, column in recorded.columns.items()}
    replay = Replay(2)
    replay.begin(recorded)
    for column in replay.pool().columns.values():
        column[:] = 0
    for one in replay._episodes:
        for column in one.columns.values():
            assert not any(np.shares_memory(column, c) for c in recorded.columns.values())
    assert all((recorded.columns[name] == column).all() for name, column in before.items())


@pytest.mark.parametrize("stacked", [False, True])
def test_a_replay_is_saved_whole(stacked):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 12, 2, 2)).astype(np.uint8)
    episodes = [
        Episode(
            id=str(i), source="here",
            observations=np.stack([f[t : t + 3] for t in range(10)]),
            actions=rng.normal(size=(10, 2)), rewards=rng.normal(size=10),
            terminated=True, truncated=False,
        )
        for i, f in enumerate(frames)
    ]  # fmt: skip
    pool = EpisodePool.from_episodes(episodes, stacked=[""] if stacked else [])
    replay, again = Replay(2), Replay(2)
    replay.begin(pool)
    again.set_state(replay.state())
    ours, theirs = (r.pool().windows(np.arange(20), 4).columns() for r in (replay, again))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    again.set_state({})
    assert len(again) == 0
    assert again.state() == {}


# --- in RLlib


class Steps(gym.Env):
    """Ends at step 3 if the first number of the action was ever above 0.9, else is cut at 5."""

    observation_space, action_space = Box(-9.0, 9.0, (3,)), Box(-1.0, 1.0, (2,))

    def __init__(self, config=None):
        self.most = (config or {}).get("steps", 5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.ends = 0, False
        self.state = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.t += 1
        self.ends |= bool(action[0] > 0.9)
        self.state = (self.state + float(action[1])).clip(-9, 9).astype(np.float32)
        return (
            self.state,
            float(action[0]) + self.t,
            self.ends and 3 <= self.t <= 5,
            self.t == self.most,
            {},
        )


def online_config(data, **model):
    config = tiny_config(data, **(STOCHASTIC | model))
    config.environment(Steps, observation_space=None, action_space=None)
    config.offline_data(actions_in_input_normalized=False)
    config.evaluation(target_returns=[3.0]).env_runners(num_envs_per_env_runner=2)
    return config.online(
        rollouts_per_iteration=4, updates_per_iteration=5, offline_updates=3, buffer_episodes=6
    )


def test_episodes_are_those_that_were_played(cluster, tiny_data):
    algo = online_config(tiny_data[0]).training(q_weight=1.0, critic_updates=10).build_algo()
    result = [algo.train() for _ in range(3)][-1]
    assert len(algo.replay) == 6
    assert result["learners"]["default_policy"]["num_updates_lifetime"] == 8
    played = result["env_runners"]
    assert (played["num_episodes"], played["num_episodes_lifetime"]) == (4, 4)
    pool = algo.replay.pool()
    offline = np.array([e["rewards"].sum() for e in tiny_data[1]])
    np.testing.assert_allclose(np.sort(pool.targets[:2]), np.sort(offline)[-2:], atol=1e-6)
    stops = np.cumsum(pool.lengths)
    for number in range(2, 6):
        rows = slice(stops[number] - pool.lengths[number], stops[number])
        actions, rewards = pool.columns["actions"][rows], pool.columns["rewards"][rows]
        n = len(rewards)
        np.testing.assert_allclose(rewards, actions[:, 0] + np.arange(1, n + 1), atol=1e-5)
        to_go = ReturnRule().to_go(rewards)
        np.testing.assert_allclose(pool.columns["returns_to_go"][rows][:, 0], to_go, atol=1e-5)
        observed = pool.columns["obs"][rows]
        np.testing.assert_allclose(
            np.diff(observed, axis=0), actions[:-1, 1:].repeat(3, 1), atol=1e-5
        )
        ended = bool((actions[:, 0] > 0.9).any())
        # a cut is no end: its last step has not terminated
        assert pool.columns["terminateds"][rows].tolist() == [False] * (n - 1) + [ended]
        assert n == 5 or ended
    assert len(np.unique(np.round(pool.columns["actions"], 5))) > 20  # they are drawn
    mean = np.mean(pool.returns[2:])
    np.testing.assert_allclose(played["episode_return_mean"], mean, atol=1e-5)
    algo.stop()


class Broken(Steps):
    """Every second episode has a reward that is no number."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.nan if self.is_odd else reward, *rest

    def reset(self, *, seed=None, options=None):
        self.is_odd = bool(seed % 2)
        return super().reset(seed=seed)


def test_an_episode_that_cannot_be_trained_on_is_left_out(cluster, tiny_data):
    config = online_config(tiny_data[0]).environment(Broken)
    config.online(rollouts_per_iteration=8, offline_updates=0, buffer_episodes=20)
    algo = config.build_algo()
    played = algo.train()["env_runners"]
    assert 0 < played["num_episodes_failed"] < 8
    assert played["num_episodes"] + played["num_episodes_failed"] == 8
    assert len(algo.replay) == 6 + played["num_episodes"]
    algo.stop()


def test_a_resumed_run_goes_on_bit_for_bit(cluster, tiny_data, tmp_path):
    algo = online_config(tiny_data[0]).build_algo()
    for _ in range(3):
        algo.train()
    path = algo.save_to_path(tmp_path / "ck")
    want = algo.train()
    final, replay = weights(algo), algo.replay.pool()
    algo.stop()
    for data in (tiny_data[0], None):  # the recording is not needed any more
        resumed = DT.from_checkpoint(path, input_=data)
        found = resumed.train()
        assert found["env_runners"]["num_episodes_lifetime"] == 12
        names = ("action_loss", "entropy", "num_updates_lifetime")
        for name in names:
            ours, theirs = (r["learners"]["default_policy"][name] for r in (found, want))
            assert ours == theirs
        assert same(weights(resumed), final)
        np.testing.assert_array_equal(resumed.replay.pool().targets, replay.targets)
        resumed.stop()


def test_a_checkpoint_of_an_offline_run_goes_on_online(cluster, tmp_path):
    algo = cartpole_config().build_algo()
    learner_results(algo, 2)
    path = algo.save_to_path(tmp_path / "ck")
    algo.stop()
    algo = DT.from_checkpoint(
        path, online=dict(rollouts_per_iteration=3, updates_per_iteration=2, buffer_episodes=10)
    )
    results = [algo.train() for _ in range(2)]
    assert [r["env_runners"]["num_episodes_lifetime"] for r in results] == [3, 6]
    assert results[-1]["learners"]["default_policy"]["num_updates_lifetime"] == 10
    assert results[-1]["env_runners"]["episode_len_mean"] > 1
    algo.stop()


@pytest.mark.slow
def test_runners_and_learners_may_be_several_and_a_runner_may_die(cluster, tiny_data):
    config = online_config(tiny_data[0]).learners(num_learners=2)
    config.evaluation(evaluation_num_env_runners=2)
    algo = config.build_algo()
    algo.train()
    algo.train()
    victim = algo.eval_env_runner_group._worker_manager.actors()[1]
    import ray

    ray.kill(victim, no_restart=False)
    result = algo.train()
    assert result["env_runners"]["num_episodes_lifetime"] == 8
    assert result["env_runners"]["num_episodes_failed"] == 0
    algo.stop()


@pytest.mark.slow
def test_streamed_data_gives_its_best_episodes(cluster, tiny_data):
    config = online_config(tiny_data[0]).online(buffer_episodes=3)
    algo = config.offline_data(pool_capacity_steps=60).build_algo()
    assert algo.offline_data.is_streamed
    best = algo.offline_data.best_episodes(3)
    offline = np.sort([e["rewards"].sum() for e in tiny_data[1]])
    np.testing.assert_allclose(np.sort(best.targets), offline[-3:], atol=1e-6)
    for _ in range(3):
        result = algo.train()
    assert result["learners"]["default_policy"]["action_loss"] < 1e3
    algo.stop()


def test_the_best_of_streamed_data_is_found_among_many_that_are_equal(cluster, tmp_path):
    episodes = make_episodes([8] * 40)
    for number, e in enumerate(episodes):
        e["rewards"] = np.full(8, 100.0 * (number == 39))
    write_episodes(episodes, tmp_path / "d", Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)))
    algo = tiny_config(str(tmp_path / "d")).offline_data(pool_capacity_steps=100).build_algo()
    assert algo.offline_data.is_streamed
    best = algo.offline_data.best_episodes(5)
    assert sorted(best.targets) == [0, 0, 0, 0, 800]
    assert len(algo.offline_data.best_episodes(1000)) <= 100  # what fits
    algo.stop()


def test_the_best_of_a_pool_fit_a_number_of_steps():
    pool = pool_of([4, 7, 1, 9, 3])
    order = np.argsort(-pool.targets)
    for count, steps in ((2, 100), (5, 12), (5, 1), (1, 1)):
        best = pool.best(count, steps)
        fits = [n for i, n in enumerate(order[:count])
                if i == 0 or pool.lengths[order[: i + 1]].sum() <= steps]  # fmt: skip
        assert set(best.targets) == set(pool.targets[fits])


def test_restoring_in_place_takes_back_the_replay(cluster, tiny_data, tmp_path):
    algo = online_config(tiny_data[0]).build_algo()
    algo.train()
    path = algo.save_to_path(tmp_path / "ck")

    def rest():
        return [algo.train()["learners"]["default_policy"]["action_loss"] for _ in range(3)]

    want = rest()
    algo.restore_from_path(path)
    assert len(algo.replay) == 0
    assert rest() == want
    algo.stop()


@pytest.mark.slow
def test_the_critics_columns_come_and_go_with_it(cluster, tiny_data, tmp_path):
    config = online_config(tiny_data[0]).training(critic_updates=5)
    for before, after in ((1.0, 0.0), (0.0, 1.0)):
        algo = config.copy(copy_frozen=False).training(q_weight=before).build_algo()
        for _ in range(4):
            algo.train()
        path = algo.save_to_path(tmp_path / f"ck{before}")
        algo.stop()
        again = DT.from_checkpoint(path, training=dict(q_weight=after))
        for _ in range(2):
            again.train()
        assert ("rewards" in again.replay.pool().columns) is bool(after)
        again.stop()


def test_every_result_has_the_metrics_of_every_phase(cluster, tiny_data):
    config = online_config(tiny_data[0]).training(
        q_weight=1.0, critic_updates=5, max_return_expectile=0.9
    )
    algo = config.build_algo()
    names = ("action_loss", "entropy_loss", "max_return_loss", "q_loss")
    for phase in range(3):
        result = algo.train()
        learned, played = result["learners"]["default_policy"], result["env_runners"]
        assert [bool(np.isnan(learned[name])) for name in names] == [phase == 0] * 4
        assert np.isnan(played["episode_return_mean"]) == (phase < 2)
    algo.stop()


@pytest.mark.slow
def test_a_folder_of_weights_may_go_on_without_a_recording(cluster, tiny_data, tmp_path):
    from rllib_dt.huggingface import save_pretrained

    algo = online_config(tiny_data[0]).build_algo()
    save_pretrained(algo.get_module().network, tmp_path / "folder")
    algo.stop()
    config = online_config(tiny_data[0], pretrained=str(tmp_path / "folder"))
    algo = config.offline_data(input_=None).online(offline_updates=0).build_algo()
    results = [algo.train() for _ in range(2)]
    assert len(algo.replay) == 6
    assert results[-1]["learners"]["default_policy"]["num_updates_lifetime"] == 10
    algo.stop()


def test_episodes_longer_than_the_network_reads_are_left_out(cluster, tiny_data, caplog):
    config = online_config(tiny_data[0], max_ep_len=30).online(offline_updates=0)
    config.environment(env_config={"steps": 40})
    algo = config.build_algo()
    with pytest.raises(RuntimeError, match="no episode of the round could be finished and trained"):
        algo.train()
    assert "it has 40 steps, max_ep_len is 30; set a time limit" in caplog.text
    algo.stop()


class Spoken(gym.Env):
    """An observation with a text that is left out."""

    observation_space = Dict(obs=Box(-1.0, 1.0, (3,)), mission=Text(10))
    action_space = Discrete(2)

    def __init__(self, config=None):
        pass

    def _seen(self):
        return {"obs": self.np_random.uniform(-1, 1, 3).astype(np.float32), "mission": "go"}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        return self._seen(), float(action), self.t == 4, False, {}


def test_leaves_that_are_left_out_are_not_recorded(cluster, tmp_path):
    rng = np.random.default_rng(0)
    episodes = [
        dict(
            obs={"obs": rng.uniform(-1, 1, (4, 3)).astype(np.float32)},
            actions=rng.integers(2, size=4), rewards=np.ones(4), terminated=True, truncated=False,
        )
        for _ in range(4)
    ]  # fmt: skip
    space = Dict(obs=Spoken.observation_space["obs"])
    write_episodes(episodes, tmp_path / "d", space, Spoken.action_space)
    config = tiny_config(str(tmp_path / "d"), ignore=("mission",))
    config.environment(Spoken, observation_space=None, action_space=None)
    config.evaluation(target_returns=[4.0]).online(rollouts_per_iteration=2)
    algo = config.online(updates_per_iteration=2).build_algo()
    assert algo.train()["env_runners"]["num_episodes_failed"] == 0
    assert set(algo.replay.pool().columns) == {"obs/obs", "actions", "returns_to_go"}
    algo.stop()


class Composite(gym.Env):
    """Observations and actions of several leaves."""

    observation_space = Dict(joints=Box(-1.0, 1.0, (2,)), mode=Discrete(3))
    action_space = Dict(arm=Box(-1.0, 1.0, (2,)), grip=Discrete(2))

    def __init__(self, config=None):
        pass

    def _seen(self):
        return {"joints": self.np_random.uniform(-1, 1, 2).astype(np.float32), "mode": self.t % 3}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        return self._seen(), float(action["grip"]), self.t == 4, False, {}


@pytest.mark.slow
def test_composite_spaces_are_recorded_by_leaf(cluster, tmp_path):
    rng = np.random.default_rng(0)
    episodes = [
        dict(
            obs={"joints": rng.uniform(-1, 1, (4, 2)).astype(np.float32), "mode": np.arange(4) % 3},
            actions={"arm": rng.uniform(-1, 1, (4, 2)), "grip": rng.integers(2, size=4)},
            rewards=rng.integers(2, size=4).astype(float), terminated=True, truncated=False,
        )
        for _ in range(4)
    ]  # fmt: skip
    write_episodes(episodes, tmp_path / "d", Composite.observation_space, Composite.action_space)
    config = tiny_config(str(tmp_path / "d"), **STOCHASTIC)
    config.environment(Composite, observation_space=None, action_space=None)
    config.offline_data(actions_in_input_normalized=False).evaluation(target_returns=[4.0])
    config.online(rollouts_per_iteration=3, updates_per_iteration=2)
    algo = config.build_algo()
    algo.train()
    pool = algo.replay.pool()
    assert pool.lengths.tolist() == [4] * 7
    assert (pool.columns["obs/mode"][-4:] == [0, 1, 2, 0]).all()
    np.testing.assert_allclose(pool.columns["actions/grip"][-4:].sum(), pool.returns[-1])
    algo.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.rl_module(model_config={"action_distribution": "deterministic"}), "drawing"),
        (lambda c: c.environment(None, observation_space=Steps.observation_space), "environment"),
        (
            lambda c: c.evaluation(
                evaluation_parallel_to_training=True, evaluation_num_env_runners=1
            ),
            "keeps busy",
        ),
        (lambda c: c.online(exploration_target="max"), "exploration_target="),
        (lambda c: c.env_runners(env_to_module_connector=lambda *a: None), "as a wrapper"),
        (lambda c: c.training(gamma=0.9), "gamma"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(tiny_data, change, message):
    config = online_config(tiny_data[0])
    config.environment(observation_space=Steps.observation_space, action_space=Steps.action_space)
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_a_file_of_settings_may_have_an_online_phase():
    given = {"environment": {"env": "CartPole-v1"}, "online": {"rollouts_per_iteration": 2}}
    run = runs.make_run(given)
    assert run.config.rollouts_per_iteration == 2
