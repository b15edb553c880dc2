"""DT under Ray Tune, and its registration by name."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ray import tune
from ray.rllib.algorithms import registry as rllib_registry
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune import CheckpointConfig, FailureConfig, RunConfig
from ray.tune.registry import get_trainable_cls

import rllib_dt
from rllib_dt import DT, DTConfig, register
from tests.conftest import TINY, cartpole_config, tiny_config

RETURN_AT_20 = "evaluation/env_runners/by_target/20/episode_return_mean"


def run_config(tmp_path, iterations, **kwargs):
    return RunConfig(
        name="experiment",
        storage_path=str(tmp_path / "tune"),
        stop={"training_iteration": iterations},
        verbose=0,
        **kwargs,
    )


def test_both_registries_know_dt(cluster):
    register()
    register()
    assert get_trainable_cls("DT") is DT
    algorithm, config = rllib_registry.ALGORITHMS["DT"]()
    assert algorithm is DT
    assert isinstance(config, DTConfig)
    assert isinstance(DT.get_default_config(), DTConfig)
    assert rllib_registry._get_algorithm_class("DT") is DT


@pytest.mark.slow
def test_a_grid_search_covers_algorithm_and_model_settings(cluster, tiny_data, tmp_path):
    config = tiny_config(tiny_data[0]).training(lr=tune.grid_search([1e-3, 2e-3]))
    config.rl_module(model_config=TINY | {"hidden_size": tune.grid_search([16, 24])})
    results = tune.Tuner("DT", param_space=config, run_config=run_config(tmp_path, 1)).fit()
    assert not results.errors
    seen = {
        (
            r.metrics["learners"]["default_policy"]["learning_rate"],
            r.config["_model_config"]["hidden_size"],
        )
        for r in results
    }
    assert seen == {(1e-3, 16), (1e-3, 24), (2e-3, 16), (2e-3, 24)}


@pytest.mark.slow
@pytest.mark.semantics(27)
@pytest.mark.trap(10)
def test_the_best_checkpoint_is_kept_beside_the_last(cluster, tmp_path):
    """The best is chosen by a target's return, which only every second iteration measures."""
    config = cartpole_config().evaluation(evaluation_interval=2, evaluation_duration=2)
    keep = CheckpointConfig(
        num_to_keep=2, checkpoint_score_attribute=RETURN_AT_20, checkpoint_frequency=1
    )
    result = tune.Tuner(
        "DT", param_space=config, run_config=run_config(tmp_path, 5, checkpoint_config=keep)
    ).fit()[0]
    kept = {m["training_iteration"]: m for _, m in result.best_checkpoints}
    assert len(kept) == 2
    last = max(kept)
    assert last == 5
    by_iteration = {n: m["evaluation"]["env_runners"] for n, m in kept.items()}
    # the last one's score is that of iteration 4, and its age says so
    assert by_iteration[last]["age_in_iterations"] == 1
    assert by_iteration[last]["num_updates_lifetime"] == 12
    scores = [m["by_target"]["20"]["episode_return_mean"] for m in by_iteration.values()]
    assert all(map(math.isfinite, scores))


class FailOnce(RLlibCallback):
    """Raises the first time that a run reaches the third iteration."""

    def on_train_result(self, *, algorithm, result, **kwargs):
        mark = Path(algorithm.config.callbacks_mark)
        if result["training_iteration"] == 3 and not mark.exists():
            mark.touch()
            raise RuntimeError("as planned")


def failing_config(data, tmp_path):
    config = tiny_config(data).callbacks(FailOnce)
    config.callbacks_mark = str(tmp_path / "failed")
    return config


@pytest.mark.slow
@pytest.mark.trap(1)
def test_a_trial_resumes_from_its_checkpoint_within_a_run(cluster, tiny_data, tmp_path):
    results = tune.Tuner(
        "DT",
        param_space=failing_config(tiny_data[0], tmp_path),
        run_config=run_config(
            tmp_path,
            4,
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1),
        ),
    ).fit()
    assert (tmp_path / "failed").exists()
    assert not results.errors
    assert results[0].metrics["learners"]["default_policy"]["num_updates_lifetime"] == 12


@pytest.mark.slow
@pytest.mark.trap(1)
def test_a_restored_tuner_finishes_a_failed_experiment(cluster, tiny_data, tmp_path):
    first = tune.Tuner(
        "DT",
        param_space=failing_config(tiny_data[0], tmp_path),
        run_config=run_config(
            tmp_path, 4, checkpoint_config=CheckpointConfig(checkpoint_frequency=1)
        ),
    ).fit()
    assert len(first.errors) == 1
    path = tmp_path / "tune" / "experiment"
    second = tune.Tuner.restore(str(path), trainable="DT", resume_errored=True).fit()
    assert not second.errors
    assert second[0].metrics["training_iteration"] == 4
    assert second[0].metrics["learners"]["default_policy"]["num_updates_lifetime"] == 12
    from_checkpoint = DT.from_checkpoint(second[0].checkpoint.path)
    assert from_checkpoint.iteration == 4
    from_checkpoint.stop()


@pytest.mark.slow
@pytest.mark.trap(4, 12)
def test_dt_trains_by_name_on_one_cpu_after_a_new_init_and_without_pillow(tiny_data, tmp_path):
    """Runs in its own process, since it starts and stops clusters."""
    script = f"""
        import sys
        sys.modules["PIL"] = None  # as if Pillow were not installed
        import ray
        from ray import tune
        import rllib_dt
        from tests.conftest import tiny_config
        for cpus in (2, 1):
            ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
            results = tune.Tuner(
                "DT",
                param_space=tiny_config({tiny_data[0]!r}),
                run_config=tune.RunConfig(
                    storage_path={str(tmp_path / "tune")!r}, verbose=0,
                    stop={{"training_iteration": 1}},
                ),
            ).fit()
            assert not results.errors, results.errors
            print("updates", int(results[0].metrics["learners"]["default_policy"]["num_updates"]))
            ray.shutdown()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.stdout.count("updates 3") == 2, done.stderr[-3000:]


def test_the_package_exports_exactly_its_public_names():
    assert sorted(rllib_dt.__all__) == [
        "DT",
        "DTConfig",
        "DTModelConfig",
        "DTTorchLearner",
        "DTTorchRLModule",
        "DecisionTransformer",
        "TrainedPolicy",
        "Window",
        "convert",
        "import_checkpoint",
        "load_policy",
        "register",
        "report",
        "write_episodes",
    ]
    for name in rllib_dt.__all__:
        assert callable(getattr(rllib_dt, name))
    with pytest.raises(AttributeError, match="no attribute 'Dt'"):
        _ = rllib_dt.Dt
