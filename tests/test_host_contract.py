"""Behaviour of Ray 2.60 that `rllib_dt` works around or relies on.

If a test fails here after an upgrade, either an interface that we use has moved, or upstream has
fixed a problem and the workaround in `rllib_dt` can go.
"""

import inspect

import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ray.rllib.algorithms import registry as rllib_registry
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.checkpoints import try_import_msgpack
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune.registry import _global_registry

from rllib_dt import DT
from rllib_dt.compat import repair_msgpack
from tests.conftest import cartpole_config, tiny_config
from tests.training import same, weights


def test_the_ray_version_is_the_one_that_the_workarounds_target():
    assert ray.__version__.startswith("2.60.")


@pytest.mark.trap(1)
def test_upstream_still_needs_training_runners_to_restore():
    """Our workaround: `DT.restore_from_path`, `set_state`, `get_module`."""
    for method in (Algorithm.restore_from_path, Algorithm.set_state, Algorithm.get_module):
        assert "self.env_runner_group." in inspect.getsource(method)
    assert BCConfig()._is_online is False or not BCConfig().is_online


@pytest.mark.trap(2)
def test_upstream_still_restores_evaluation_runners_for_online_algorithms_only():
    """Our workaround: `DT.restore_env_runners`."""
    assert "if self.config.is_online:" in inspect.getsource(Algorithm.restore_env_runners)


@pytest.mark.trap(3, 7, 8, 9)
def test_upstream_evaluation_loops_are_not_run(cluster, monkeypatch):
    """Our evaluation runs fixed jobs and must reach none of the upstream loops."""
    for name in (
        "_evaluate_with_fixed_duration",
        "_evaluate_with_auto_duration",
        "_evaluate_on_local_env_runner",
        "_evaluate_with_custom_eval_function",
    ):
        assert hasattr(Algorithm, name)
        monkeypatch.setattr(Algorithm, name, None)
    algo = cartpole_config().build_algo()
    assert algo.evaluate()["env_runners"]["num_episodes"] == 8
    algo.stop()


@pytest.mark.trap(5)
def test_an_offline_data_class_need_not_call_the_upstream_constructor():
    """Ours is `DTOfflineData`: `validate` requires a subclass, `setup` passes it the config."""
    assert "self.offline_data = offline_data_class(self.config)" in inspect.getsource(
        Algorithm.setup
    )
    assert list(inspect.signature(OfflineData.__init__).parameters) == ["self", "config"]


@pytest.mark.trap(6)
def test_learners_still_refuse_to_run_without_a_number_of_updates():
    source = inspect.getsource(Learner._create_iterator_if_necessary)
    assert "requires `num_iters` kwarg" in source
    assert "data_iterators" in inspect.signature(TrainingData).parameters


@pytest.mark.trap(12)
def test_tune_still_forgets_registered_names_when_its_cluster_stops():
    """Our workaround: `register_algorithm` registers again after every `ray.init()`."""
    assert "self._to_flush.clear()" in inspect.getsource(type(_global_registry).flush_values)
    hooks = ray._private.worker._post_init_hooks
    assert [getattr(hook, "rllib_dt_name", None) for hook in hooks].count("DT") == 1


@pytest.mark.trap(14)
def test_a_mean_metric_still_keeps_the_tensors_it_is_given():
    """Our workaround: the learner logs only floats."""
    import torch

    logger = MetricsLogger(root=True)
    value = torch.ones(1, requires_grad=True).sum()
    logger.log_value("x", value, reduce="mean", window=1)
    kept = logger.stats["x"].values[0]
    assert kept.requires_grad


@pytest.mark.trap(16)
def test_a_configs_state_still_loses_attributes_that_are_minus_one():
    config = AlgorithmConfig()
    config.some_setting = -1
    assert "some_setting" not in config.get_state()


@pytest.mark.trap(20)
def test_module_states_are_still_loaded_without_strict_checks():
    from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

    assert "strict=False" in inspect.getsource(TorchRLModule.set_state)


def test_the_env_runner_still_has_the_members_that_ours_relies_on():
    assert {"_make_on_episode_callback", "make_env", "make_module"} <= set(
        vars(SingleAgentEnvRunner)
    )
    source = inspect.getsource(SingleAgentEnvRunner.__init__)
    for attribute in ("_env_to_module", "_module_to_env", "_ongoing_episodes"):
        assert f"self.{attribute}" in source
    assert {"insert_before", "append"} <= set(dir(EnvToModulePipeline))


def test_a_single_environment_of_a_gymnasium_vector_can_be_reset_alone():
    vector = SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.DISABLED
    )
    first, _ = vector.envs[0].reset(seed=5)
    alone, _ = gym.make("CartPole-v1").reset(seed=5)
    np.testing.assert_array_equal(first, alone)
    _, _, terminated, truncated, _ = vector.envs[0].step(0)  # stepped alone, and not reset by it
    assert not terminated
    assert not truncated
    vector.close()


def test_the_private_names_that_compat_uses_exist():
    from gymnasium.wrappers.vector import DictInfoToList
    from ray.experimental import internal_kv
    from ray.rllib.callbacks import utils as callbacks
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager
    from ray.tune import registry as tune_registry

    names = {
        Algorithm: ["_get_env_id_and_creator"],
        FaultTolerantActorManager: ["actors", "num_healthy_actors", "set_actor_state"],
        DictInfoToList: ["_convert_info_to_list"],
        internal_kv: ["_internal_kv_get", "_internal_kv_put"],
        callbacks: ["make_callback"],
        tune_registry: ["register_trainable"],
        rllib_registry: ["ALGORITHMS", "ALGORITHMS_CLASS_TO_NAME"],
        ray._private.worker: ["_post_init_hooks", "global_worker", "WORKER_MODE"],
    }
    for owner, private in names.items():
        for name in private:
            assert hasattr(owner, name), f"{owner} has no {name}"
    for owner, attribute in (
        (EnvRunnerGroup, "self._worker_manager"),
        (LearnerGroup, "self._worker_manager"),
        (SingleAgentEnvRunner, "self._callbacks"),
    ):
        assert attribute in inspect.getsource(owner), f"{owner} has no {attribute}"


def test_upstream_still_spoils_arrays_when_rllib_uses_msgpack(cluster):
    """Our workaround: `compat.repair_msgpack`, around checkpoints and before training."""
    kind = ray.remote(num_cpus=0)(lambda value: type(value))
    try_import_msgpack(error=True)
    assert ray.get(kind.remote(np.ones(2))) is dict
    repair_msgpack()
    assert ray.get(kind.remote(np.ones(2))) is np.ndarray


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_checkpoints_in_msgpack_leave_ray_as_it_was(cluster, tiny_data, tmp_path, num_learners):
    kind = ray.remote(num_cpus=0)(lambda value: type(value))
    algo = tiny_config(tiny_data[0]).learners(num_learners=num_learners).build_algo()
    algo.train()
    path, kept = algo.save_to_path(tmp_path / "checkpoint", use_msgpack=True), weights(algo)
    assert ray.get(kind.remote(np.ones(2))) is np.ndarray
    algo.stop()
    try_import_msgpack(error=True)
    algo = DT.from_checkpoint(path)
    assert ray.get(kind.remote(np.ones(2))) is np.ndarray
    assert same(weights(algo), kept)
    algo.train()
    algo.stop()
