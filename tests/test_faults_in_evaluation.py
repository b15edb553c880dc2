"""Evaluation when runners are killed and environments raise, hang or return invalid values."""

import contextlib
import logging
import os
import signal
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium.spaces import Box
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_dt import DTConfig, DTModelConfig, write_episodes
from rllib_dt.compat import runner_actors
from rllib_dt.rollout import dispatch, time_limit
from rllib_dt.rollout.jobs import make_jobs
from rllib_dt.rollout.time_limit import TimeLimit
from tests.conftest import TINY, make_episodes, tiny_config

EPISODES = 6


class Troubled(gym.Env):
    """Episodes of 12 steps; those with an unlucky seed fail.

    `trouble` is "raise", "hang", "exit" or None. `where` is "reset" or a step's number. `every` is
    the number of unlucky seeds in 8. `pause` is the time that each step sleeps, in seconds.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, config):
        self.config = config

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.unlucky = seed is not None and seed % 8 < self.config.get("every", 0)
        self.fail_if_unlucky("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        time.sleep(self.config.get("pause", 0))
        self.fail_if_unlucky(self.t)
        return np.full(3, self.t, np.float32), 1.0, self.t == 12, False, {}

    def fail_if_unlucky(self, where):
        if not self.unlucky or where != self.config["where"]:
            return
        if self.config["trouble"] == "raise":
            raise RuntimeError("the robot fell over")
        if self.config["trouble"] == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    episodes = make_episodes([7, 12, 3], action_space=Troubled.action_space)
    write_episodes(episodes, folder / "d", Troubled.observation_space, Troubled.action_space)
    return str(folder / "d")


def config_of(data, *, runners=2, envs=2, mode="sync", timeout=2.0, **env_config):
    return (
        DTConfig()
        .environment(Troubled, env_config=env_config)
        .offline_data(input_=data, dataset_num_iters_per_learner=1)
        .rl_module(model_config=DTModelConfig(**TINY))
        .training(train_batch_size_per_learner=4)
        .env_runners(num_envs_per_env_runner=envs, gym_env_vectorize_mode=mode)
        .evaluation(
            target_returns=[12.0, 5.0],
            evaluation_duration=EPISODES,
            evaluation_num_env_runners=runners,
            evaluation_interval=1,
            evaluation_sample_timeout_s=timeout,
        )
        .debugging(seed=3)
    )


def pids(algo):
    return algo.eval_env_runner_group.foreach_env_runner(
        lambda runner: os.getpid(), local_env_runner=False
    )


def check_no_episode_failed(result):
    assert result["num_episodes"] == 2 * EPISODES
    assert result["num_episodes_failed"] == 0
    for target in ("12", "5"):
        assert result["by_target"][target]["num_episodes"] == EPISODES
        assert result["by_target"][target]["episode_len_mean"] == 12


@pytest.mark.trap(2, 3, 11)
@pytest.mark.parametrize(
    ("runners", "moment"),
    [
        pytest.param(1, "during", marks=pytest.mark.slow),
        pytest.param(2, "before", marks=pytest.mark.slow),
        pytest.param(2, "during", marks=pytest.mark.slow),
    ],
)
def test_a_killed_runner_loses_no_episode_and_is_restarted(cluster, data, runners, moment):
    algo = config_of(data, runners=runners, pause=0.05).build_algo()
    want = algo.evaluate()["env_runners"]
    check_no_episode_failed(want)
    victim = pids(algo)[0]
    if moment == "before":
        os.kill(victim, signal.SIGKILL)
    else:
        threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
    result = algo.train()["evaluation"]["env_runners"]
    check_no_episode_failed(result)
    deadline = time.monotonic() + 60
    while len(alive := pids(algo)) < runners and time.monotonic() < deadline:
        algo.evaluate()
    assert len(alive) == runners
    assert victim not in alive
    check_no_episode_failed(algo.evaluate()["env_runners"])
    algo.stop()


def count_unlucky():
    jobs = make_jobs([12.0, 5.0], EPISODES, seed=3)
    unlucky = [job for job in jobs if job.seed % 8 < 2]
    assert 0 < len(unlucky) < len(jobs)
    return len(unlucky)


@pytest.mark.trap(11)
# gymnasium 1.2 (2026-11) reports failed workers in a warning
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium.*")
@pytest.mark.parametrize(
    ("trouble", "where", "runners", "mode"),
    [
        ("raise", "reset", 0, "sync"),
        ("hang", 5, 0, "sync"),
        pytest.param("raise", 5, 2, "sync", marks=pytest.mark.slow),
        pytest.param("hang", "reset", 2, "sync", marks=pytest.mark.slow),
        pytest.param("raise", 5, 0, "async", marks=pytest.mark.slow),
        ("hang", "reset", 0, "async"),
    ],
)
def test_a_failing_environment_loses_only_its_own_episodes(
    cluster, data, caplog, trouble, where, runners, mode
):
    settings = dict(runners=runners, mode=mode, every=2, trouble=trouble, where=where)
    algo = config_of(data, **settings, timeout=1.0).build_algo()
    logging.getLogger("rllib_dt").propagate = True
    with caplog.at_level(logging.ERROR, logger="rllib_dt"):
        result = algo.train()
    got = result["evaluation"]["env_runners"]
    failed = count_unlucky()
    assert got["num_episodes_failed"] == failed
    assert got["num_episodes"] == 2 * EPISODES - failed
    assert got["episode_len_mean"] == 12
    assert f"{failed} of 12 evaluation episodes could not be finished" in caplog.text
    error = "the robot fell over" if trouble == "raise" else "took more than 1 s|Timeout"
    assert any(part in caplog.text for part in error.split("|"))
    assert result["learners"]["default_policy"]["num_updates_lifetime"] == 1
    assert algo.train()["learners"]["default_policy"]["num_updates_lifetime"] == 2
    algo.stop()


@pytest.mark.slow
def test_an_episode_that_kills_its_runner_twice_counts_as_failed(cluster, data):
    algo = config_of(data, runners=2, every=2, trouble="exit", where=5).build_algo()
    got = algo.train()["evaluation"]["env_runners"]
    failed = count_unlucky()
    assert got["num_episodes_failed"] == failed
    assert got["num_episodes"] == 2 * EPISODES - failed
    algo.stop()


@pytest.mark.slow
def test_an_unresponsive_runner_is_killed_and_loses_no_episode(cluster, data, monkeypatch):
    """The runner's process is stopped with SIGSTOP, so no signal can interrupt its step."""
    monkeypatch.setattr(dispatch, "_GRACE_SECONDS", 0.0)
    algo = config_of(data, runners=2, pause=0.05, timeout=10.0).build_algo()
    algo.evaluate()
    victim = pids(algo)[0]
    threading.Timer(0.3, os.kill, (victim, signal.SIGSTOP)).start()
    check_no_episode_failed(algo.evaluate()["env_runners"])
    algo.stop()


@pytest.mark.slow
def test_an_evaluation_with_no_runner_left_raises(cluster, data):
    algo = config_of(data, runners=2).build_algo()
    group = algo.eval_env_runner_group
    for actor in runner_actors(group).values():
        ray.kill(actor, no_restart=True)
    with pytest.raises(RuntimeError, match="no evaluation runner is left"):
        algo.evaluate()
    algo.stop()


def test_an_error_in_a_user_callback_is_raised(cluster, data):
    def fail(**kwargs):
        raise ZeroDivisionError("my callback")

    config = config_of(data, runners=1).callbacks(on_episode_end=fail)
    algo = config.build_algo()
    with pytest.raises(ZeroDivisionError, match="my callback"):
        algo.evaluate()
    algo.stop()


class Awkward(Troubled):
    """Fails in less ordinary ways, such as SystemExit or invalid values; `trouble` says how."""

    def __init__(self, config):
        super().__init__(config)
        gone = config.get("gone")
        if gone and os.path.exists(gone):
            raise RuntimeError("no licence is left")

    def fail_if_unlucky(self, where):
        if not self.unlucky or where != self.config["where"]:
            return
        if self.config["trouble"] == "quit":
            raise SystemExit(3)
        if self.config["trouble"] == "unmade" and not os.path.exists(self.config["gone"]):
            open(self.config["gone"], "w").close()
            raise RuntimeError("the robot fell over, and takes its licence along")

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.unlucky and self.t == self.config["where"]:
            if self.config["trouble"] == "shape":
                observation = np.zeros(4, np.float32)
            if self.config["trouble"] == "nothing":
                observation = None
            if self.config["trouble"] == "nan":
                reward = float("nan")
            if self.config["trouble"] == "nan observation":
                observation = np.full_like(observation, np.nan)
            if self.config["trouble"] == "text observation":
                observation = np.array(["a", "b", "c"])[: len(observation)]
            if self.config["trouble"] == "text reward":
                reward = "much"
            if self.config["trouble"] == "number as text":
                reward = "1"
            if self.config["trouble"] == "large reward":
                reward = 1e39
            if self.config["trouble"] == "large observation":
                observation = np.full(observation.shape, 1e39)
            if self.config["trouble"] == "text flag":
                rest[0] = "False"
            if self.config["trouble"] == "nan flag":
                rest[1] = float("nan")
        return observation, reward, *rest


def evaluate(config):
    algo = config.environment(Awkward).build_algo()
    try:
        return algo.evaluate()["env_runners"]
    finally:
        algo.stop()


INVALID = [
    "shape",
    "nothing",
    "nan",
    "nan observation",
    "text observation",
    "text reward",
    "number as text",
    "large reward",
    "large observation",
    "text flag",
    "nan flag",
    "quit",
]
ALIKE = ["text observation", "number as text", "large observation", "nan flag"]
"""Those that take the same way as others."""


@pytest.mark.parametrize(
    ("trouble", "mode"),
    [
        *((trouble, "sync") for trouble in INVALID if trouble not in ALIKE),
        *(pytest.param(trouble, "sync", marks=pytest.mark.slow) for trouble in ALIKE),
        ("number as text", "async"),
        pytest.param("text flag", "async", marks=pytest.mark.slow),
    ],
)
def test_an_environment_that_returns_invalid_values_or_exits_loses_only_its_own_episodes(
    cluster, data, trouble, mode
):
    settings = dict(mode=mode, timeout=30.0, trouble=trouble, where=5, every=3)
    result = evaluate(config_of(data, runners=0, envs=3, **settings))
    seeds = [job.seed for job in make_jobs([12.0, 5.0], EPISODES, 3)]
    unlucky = sum(seed % 8 < 3 for seed in seeds)
    assert 0 < unlucky < len(seeds)
    assert result["num_episodes_failed"] == unlucky
    assert result["num_episodes"] == len(seeds) - unlucky
    assert result["episode_return_mean"] == 12


def test_a_slot_whose_environment_cannot_be_recreated_takes_no_further_jobs(
    cluster, data, tmp_path
):
    gone = str(tmp_path / "gone")
    result = evaluate(
        config_of(data, runners=0, envs=2, trouble="unmade", where=5, every=3, gone=gone)
    )
    # only the episode in which it happened fails; the other slot runs all the rest
    assert result["num_episodes_failed"] == 1
    assert result["num_episodes"] == 2 * EPISODES - 1


@pytest.mark.slow
def test_a_restarted_runner_waits_until_its_environment_can_be_created(cluster, data, tmp_path):
    gone = tmp_path / "gone"
    config = config_of(data, runners=1, gone=str(gone)).environment(Awkward)
    algo = config.build_algo()
    algo.evaluate()
    gone.touch()
    os.kill(pids(algo)[0], signal.SIGKILL)
    threading.Timer(8.0, gone.unlink).start()
    check_no_episode_failed(algo.evaluate()["env_runners"])
    algo.stop()


class InPlace(gym.Env):
    """Returns one array every time, and changes it in place; sometimes outside of its space."""

    observation_space = Box(0.0, 3.0, (3,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, config=None):
        self.array = np.zeros(3, np.float32)

    def reset(self, *, seed=None, options=None):
        self.array[:] = 0
        return self.array, {}

    def step(self, action):
        self.array += 1
        return self.array, 1.0, bool(self.array[0] == 5), False, {}


class KeepObservations(RLlibCallback):
    SEEN = []

    def on_episode_end(self, *, episode, **kwargs):
        self.SEEN.append([float(o[0]) for o in episode.get_observations()])


def test_observations_are_copied_and_those_outside_of_the_space_reported_once(
    cluster, tiny_data, caplog
):
    KeepObservations.SEEN.clear()
    config = tiny_config(tiny_data[0]).callbacks(KeepObservations)
    config.environment(InPlace, observation_space=InPlace.observation_space)
    config.evaluation(target_returns=[5.0], evaluation_duration=2)
    algo = config.build_algo()
    with caplog.at_level("WARNING", logger="rllib_dt"):
        result = algo.evaluate()["env_runners"]
    algo.stop()
    assert result["num_episodes_failed"] == 0
    assert KeepObservations.SEEN == [[0, 1, 2, 3, 4, 5]] * 2
    assert caplog.text.count("an observation lies outside the environment's space") == 1


def test_one_alarm_gives_each_of_several_calls_its_own_time():
    before = signal.getsignal(signal.SIGALRM)
    limit = TimeLimit(0.4)

    def swallow_an_alarm_and_sleep_on():
        with contextlib.suppress(TimeoutError):
            time.sleep(60)
        time.sleep(60)

    with limit:
        for _ in range(4):
            with limit.call("step"):
                time.sleep(0.15)
        time.sleep(0.5)  # between two calls nothing is overdue
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"step took more than 0\.4 s"), limit.call("step"):
            time.sleep(60)
        assert time.monotonic() - started >= 0.4
        with pytest.raises(TimeoutError, match="close took more"), limit.call("close"):
            swallow_an_alarm_and_sleep_on()
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("puts_back", [False, True])
def test_a_call_that_sets_an_alarm_of_its_own_leaves_the_others_their_limit(monkeypatch, puts_back):
    monkeypatch.setattr(time_limit, "_EVERY_SECONDS", 40.0)  # until it would ring otherwise
    limit = TimeLimit(0.4)

    def timed_like_a_decorator():
        before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.alarm(5)
        signal.alarm(0)
        if puts_back:
            signal.signal(signal.SIGALRM, before)

    before = signal.getsignal(signal.SIGALRM)
    with limit:
        with limit.call("step"):
            timed_like_a_decorator()
        for _ in range(2):  # the second one as punctually as the first
            started = time.monotonic()
            with pytest.raises(TimeoutError), limit.call("step"):
                time.sleep(60)
            assert 0.4 <= time.monotonic() - started < 20
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_alarm_of_the_users_own_keeps_its_time(monkeypatch):
    rung = []

    def ring(signum, frame):
        rung.append(time.monotonic())

    before = signal.signal(signal.SIGALRM, ring)
    try:
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.6, 5.0)
        for _ in range(3):
            with TimeLimit(10.0) as limit, limit.call("step"):
                time.sleep(0.05)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 0.6
        assert interval == 5.0
        assert signal.getsignal(signal.SIGALRM) is ring
        with TimeLimit(10.0) as limit, limit.call("step"):
            time.sleep(0.7)  # it falls due meanwhile, and rings afterwards
        time.sleep(0.1)
        assert len(rung) == 1
        assert rung[0] - started >= 0.6
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
