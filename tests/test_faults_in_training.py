"""Training under Tune: killed learners, drivers and nodes, population-based training, trials."""

import os
import signal
from pathlib import Path

import pytest
import ray
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune import CheckpointConfig, FailureConfig, RunConfig
from ray.tune.schedulers import PopulationBasedTraining

from rllib_dt.learning.learner import DTTorchLearner
from tests.conftest import tiny_config
from tests.scripts import run_script


class DyingLearner(DTTorchLearner):
    """Kills the second of two learners during an update, once."""

    def compute_loss_for_module(self, **kwargs):
        mark = Path(self.config.mark)
        if self.rank == 1 and self.progress.updates == 7 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss_for_module(**kwargs)


def run_config(folder, iterations=4, frequency=1, **kwargs):
    return RunConfig(
        name="experiment",
        storage_path=str(folder / "tune"),
        stop={"training_iteration": iterations},
        checkpoint_config=CheckpointConfig(checkpoint_frequency=frequency),
        verbose=0,
        **kwargs,
    )


@pytest.mark.slow
def test_a_killed_learner_loses_only_the_updates_since_the_last_checkpoint(
    cluster, tiny_data, tmp_path
):
    config = tiny_config(tiny_data[0]).learners(num_learners=2)
    config.training(learner_class=DyingLearner)
    config.mark = str(tmp_path / "died")
    results = tune.Tuner(
        "DT",
        param_space=config,
        run_config=run_config(tmp_path, failure_config=FailureConfig(max_failures=2)),
    ).fit()
    assert (tmp_path / "died").exists()
    assert not results.errors
    learned = results[0].metrics["learners"]["default_policy"]
    assert learned["num_updates_lifetime"] == 12
    # restored from the checkpoint after update 6
    assert results[0].metrics["training_iteration"] == 4


class KillDriver(RLlibCallback):
    """Kills the script that runs the experiment, once, in the third iteration."""

    def on_train_result(self, *, algorithm, result, **kwargs):
        mark = Path(algorithm.config.mark)
        if result["training_iteration"] == 3 and not mark.exists():
            mark.touch()
            os.kill(algorithm.config.driver, signal.SIGKILL)


DRIVER = """
import os, sys, ray
from ray import tune
from tests.test_faults_in_training import KillDriver, Path, run_config, tiny_config

data, folder = sys.argv[1], Path(sys.argv[2])
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
config = tiny_config(data).callbacks(KillDriver)
config.mark, config.driver = str(folder / "killed"), os.getpid()
tune.Tuner("DT", param_space=config, run_config=run_config(folder)).fit()
print("not killed")
"""


@pytest.mark.slow
def test_a_tuner_restores_after_its_driver_was_killed(cluster, tiny_data, tmp_path):
    assert "not killed" not in run_script(DRIVER, tiny_data[0], tmp_path, check=False)
    assert (tmp_path / "killed").exists()
    path = tmp_path / "tune" / "experiment"
    results = tune.Tuner.restore(str(path), trainable="DT", resume_unfinished=True).fit()
    assert not results.errors
    assert results[0].metrics["training_iteration"] == 4
    assert results[0].metrics["learners"]["default_policy"]["num_updates_lifetime"] == 12


NODES = """
import sys, time, ray
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ray import tune
from ray.cluster_utils import Cluster
from ray.rllib.callbacks.callbacks import RLlibCallback
from tests.test_faults_in_training import run_config, tiny_config

class Mark(RLlibCallback):
    def on_train_result(self, *, algorithm, result, **kwargs):
        if result["training_iteration"] == 2:
            Path(algorithm.config.mark).touch()

data, folder = sys.argv[1], Path(sys.argv[2])
node = dict(num_cpus=1, object_store_memory=100 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
nodes = [cluster.add_node(**node) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
config = tiny_config(data).learners(num_learners=2).callbacks(Mark)
# every process on a node of its own
config.resources(placement_strategy="STRICT_SPREAD")
config.mark = str(folder / "second iteration")
tuner = tune.Tuner(
    "DT",
    param_space=config,
    run_config=run_config(folder, 40, failure_config=tune.FailureConfig(max_failures=2)),
)
with ThreadPoolExecutor() as thread:  # nodes can be started in the main thread only
    fit = thread.submit(tuner.fit)
    while not Path(config.mark).exists() and not fit.done():
        time.sleep(0.1)
    cluster.remove_node(nodes[1], allow_graceful=False)
    print("removed", flush=True)
    time.sleep(2)
    cluster.add_node(**node)
    results = fit.result()
assert not results.errors, results.errors
metrics = results[0].metrics
print("updates", int(metrics["learners"]["default_policy"]["num_updates_lifetime"]))
print("since restore", metrics["iterations_since_restore"])
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_removed_node_loses_only_the_updates_since_the_last_checkpoint(tiny_data, tmp_path):
    out = run_script(NODES, tiny_data[0], tmp_path)
    assert "removed" in out
    assert "updates 120" in out
    assert int(out.split("since restore ")[1].split()[0]) < 40


@pytest.mark.slow
def test_population_based_training_changes_the_learning_rate(cluster, tiny_data, tmp_path):
    config = tiny_config(tiny_data[0]).training(lr=tune.grid_search([1e-3, 1e-12]))
    # a trial takes all CPUs, so they take turns: Tune 2.60 ends a trial early that is to take over
    # another's weights while it is saving (ray-project/ray#57906)
    config.resources(num_cpus_for_main_process=int(ray.cluster_resources()["CPU"]))
    schedule = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="learners/default_policy/action_loss",
        mode="min",
        perturbation_interval=2,
        quantile_fraction=0.5,
        hyperparam_mutations={"lr": [1e-3, 2e-3, 5e-4]},
        synch=True,
    )
    results = tune.Tuner(
        "DT",
        param_space=config,
        tune_config=tune.TuneConfig(scheduler=schedule),
        run_config=run_config(tmp_path, 6, frequency=0),
    ).fit()
    assert not results.errors
    for result in results:
        learned = result.metrics["learners"]["default_policy"]
        assert learned["num_updates_lifetime"] == 18
        assert learned["learning_rate"] == result.config["lr"]
    # the trial that did not learn took the other's weights, and a rate close to the other's
    assert min(result.config["lr"] for result in results) >= 5e-4


TRIALS = """
import sys, ray
from ray import tune
from tests.conftest import tiny_config

ray.init("local", num_cpus=int(sys.argv[3]), include_dashboard=False, log_to_driver=False)
config = tiny_config(sys.argv[1]).training(lr=tune.grid_search([1e-3, 2e-3]))
config.learners(num_learners=int(sys.argv[4]))
config.offline_data(pool_capacity_steps=30)
results = tune.Tuner(
    "DT",
    param_space=config,
    run_config=tune.RunConfig(
        storage_path=sys.argv[2], verbose=0, stop={"training_iteration": 3}
    ),
).fit()
assert not results.errors, results.errors
print("done", len(results))
"""


@pytest.mark.slow
@pytest.mark.trap(4)
@pytest.mark.parametrize(("cpus", "learners"), [(4, 1), (1, 0)])
def test_trials_share_a_small_cluster_without_deadlock(tiny_data, tmp_path, cpus, learners):
    """Two trials run in parallel on 4 CPUs and one after the other on 1; the data is streamed."""
    assert "done 2" in run_script(TRIALS, tiny_data[0], tmp_path / "tune", cpus, learners)
