"""What results say of iterations that measured nothing, and how Tune copes with them."""

import math
import threading
import time

import pytest
from ray import tune
from ray.tune import CheckpointConfig
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.optuna import OptunaSearch

from rllib_dt import DT
from rllib_dt.algorithm.measurements import Latest
from tests.conftest import cartpole_config, tiny_config
from tests.test_tune import RETURN_AT_20, run_config

INTERVAL = 3
ITERATIONS = 5


def searched(tmp_path, scheduler=None, search=None, **space):
    """Searches with an evaluation every third iteration; the last of five measures nothing."""
    config = cartpole_config().evaluation(evaluation_interval=INTERVAL, evaluation_duration=2)
    config.training(**(space or {"lr": tune.grid_search([1e-3, 1e-2])}))
    results = tune.Tuner(
        "DT",
        param_space=config,
        run_config=run_config(
            tmp_path, ITERATIONS, checkpoint_config=CheckpointConfig(checkpoint_frequency=1)
        ),
        tune_config=tune.TuneConfig(
            metric=RETURN_AT_20,
            mode="max",
            scheduler=scheduler,
            search_alg=search,
            num_samples=2 if search is not None else 1,
            max_concurrent_trials=1,
        ),
    ).fit()
    assert not results.errors
    return results


def check_best(results):
    best = results.get_best_result(scope="last")
    measured = best.metrics["evaluation"]["env_runners"]
    assert math.isfinite(measured["by_target"]["20"]["episode_return_mean"])
    for scope in ("all", "last-5-avg"):
        assert results.get_best_result(scope=scope) is not None
    checkpoint = best.get_best_checkpoint(RETURN_AT_20, "max")
    algo = DT.from_checkpoint(checkpoint)
    assert algo.target_returns == [20.0, 35.5]
    algo.stop()
    return best


@pytest.mark.slow
@pytest.mark.trap(10)
def test_asha_finds_its_metric_in_every_result(cluster, tmp_path):
    results = searched(tmp_path, ASHAScheduler(grace_period=1, max_t=ITERATIONS))
    best = check_best(results)
    frame = best.metrics_dataframe
    ages = frame["evaluation/env_runners/age_in_iterations"].tolist()
    updates = frame["evaluation/env_runners/num_updates_lifetime"].tolist()
    # in a trial, the first iteration measures too, since Tune wants its metric in every result
    assert (ages, updates) == ([0, 1, 0, 1, 2], [3, 3, 9, 9, 9])


@pytest.mark.slow
def test_population_based_training_finds_its_metric_in_every_result(cluster, tmp_path):
    mutate = {"lr": [1e-3, 3e-3, 1e-2]}
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=2, hyperparam_mutations=mutate
    )
    check_best(searched(tmp_path, scheduler))


@pytest.mark.slow
def test_pb2_finds_its_metric_in_every_result(cluster, tmp_path):
    scheduler = PB2(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_bounds={"lr": [1e-4, 1e-2]},
    )
    check_best(searched(tmp_path, scheduler))


@pytest.mark.slow
def test_optuna_finds_its_metric_in_every_result(cluster, tmp_path):
    space = {"lr": tune.loguniform(1e-4, 1e-2)}
    check_best(searched(tmp_path, search=OptunaSearch(seed=0), **space))


@pytest.mark.trap(10)
def test_a_restored_run_repeats_the_evaluation_that_it_was_saved_with(cluster, tmp_path):
    algo = cartpole_config().evaluation(evaluation_interval=2).build_algo()
    algo.train()
    saved = algo.train()["evaluation"]["env_runners"]
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()
    algo = DT.from_checkpoint(path)
    third = algo.train()
    algo.stop()
    repeated = third["evaluation"]["env_runners"]
    assert repeated["by_target"] == saved["by_target"]
    assert (repeated["age_in_iterations"], repeated["age_in_updates"]) == (1, 3)
    assert third["learners"]["default_policy"]["num_updates"] == 3
    # other targets: what was measured for the former ones is no result
    algo = DT.from_checkpoint(path, evaluation=dict(target_returns=[7.0]))
    assert "evaluation" not in algo.train()
    assert list(algo.train()["evaluation"]["env_runners"]["by_target"]) == ["7"]
    algo.stop()


def test_counts_are_those_of_the_iteration_however_often_it_updates(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).reporting(min_time_s_per_iteration=0.5).build_algo()
    before = 0
    for _ in range(2):
        learned = algo.train()["learners"]["default_policy"]
        assert learned["num_updates"] == learned["num_updates_lifetime"] - before
        assert learned["num_updates"] > 3
        assert learned["num_windows_trained"] == 8 * learned["num_updates"]
        before = learned["num_updates_lifetime"]
    algo.stop()


def test_rllibs_counters_count_steps_not_windows(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    for number in (1, 2):
        learners = algo.train()["learners"]
        own, shared = learners["default_policy"], learners["__all_modules__"]
        assert 24 < own["num_steps_trained"] <= 24 * 5  # shorter episodes give fewer than K
        for name in ("num_env_steps_trained", "num_module_steps_trained"):
            assert shared[name] == own["num_steps_trained"]
            assert shared[f"{name}_lifetime"] == own["num_steps_trained_lifetime"]
        assert own["num_updates_lifetime"] == 3 * number
    algo.stop()


def test_tunes_table_shows_the_loss_and_the_first_targets_return():
    assert "learners/default_policy/action_loss" in DT._progress_metrics
    assert "evaluation/env_runners/episode_return_mean" in DT._progress_metrics


def test_what_is_attached_is_a_copy():
    latest = Latest()
    assert latest.get(1) == (None, 1)
    given = {"a": {"b": 1}}
    latest.set(given, 2)
    given["a"]["b"] = 7
    got, age = latest.get(5)
    assert (got, age) == ({"a": {"b": 1}}, 3)
    got["a"]["b"] = 8
    assert latest.get(5)[0] == {"a": {"b": 1}}


def test_an_evaluation_beside_an_iteration_waits_for_its_end(cluster):
    """Both use the same runners and metrics; RLlib fails with "agent is already done"."""
    algo = cartpole_config().evaluation(evaluation_interval=1).build_algo()
    spans = []

    def timed(function):
        started = time.monotonic()
        result = function()
        spans.append((started, time.monotonic(), result))

    threads = [threading.Thread(target=timed, args=[algo.evaluate]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        timed(algo.train)
    for thread in threads:
        thread.join()
    algo.stop()
    measured = [(r.get("evaluation", r))["env_runners"]["num_episodes"] for _, _, r in spans]
    assert measured == [8] * 5
