"""What Ray 2.60 does where we work around it or lean on it.

A test that fails here after an upgrade says that a seam moved, or that a trap is gone and the
repair in `rllib_dt` can go as well.
"""

import inspect

import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune.registry import _global_registry

from tests.conftest import cartpole_config


def test_the_version_is_the_one_that_was_read():
    assert ray.__version__.startswith("2.60.")


@pytest.mark.trap(1)
def test_upstream_still_needs_training_runners_to_restore():
    """Ours: `DT.restore_from_path`, `set_state`, `get_module`."""
    for method in (Algorithm.restore_from_path, Algorithm.set_state, Algorithm.get_module):
        assert "self.env_runner_group." in inspect.getsource(method)
    assert BCConfig()._is_online is False or not BCConfig().is_online


@pytest.mark.trap(2)
def test_upstream_still_restores_evaluation_runners_for_online_algorithms_only():
    """Ours: `DT.restore_env_runners`."""
    assert "if self.config.is_online:" in inspect.getsource(Algorithm.restore_env_runners)


@pytest.mark.trap(3, 7, 8, 9)
def test_upstreams_evaluation_is_not_run(cluster, monkeypatch):
    """Ours: fixed jobs. None of the upstream loops may be reached."""
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
def test_an_offline_data_class_need_not_run_upstreams_constructor():
    """Ours: `DTOfflineData`. `validate` wants a subclass, `setup` calls it with the config."""
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
def test_tune_still_forgets_names_with_its_cluster():
    """Ours: `register_algorithm` repeats itself behind every `ray.init()`."""
    assert "self._to_flush.clear()" in inspect.getsource(type(_global_registry).flush_values)
    hooks = ray._private.worker._post_init_hooks
    assert [getattr(hook, "rllib_dt_name", None) for hook in hooks].count("DT") == 1


@pytest.mark.trap(14)
def test_a_mean_still_keeps_what_it_is_given():
    """Ours: only floats are logged from the learner."""
    import torch

    logger = MetricsLogger(root=True)
    value = torch.ones(1, requires_grad=True).sum()
    logger.log_value("x", value, reduce="mean", window=1)
    kept = logger.stats["x"].values[0]
    assert kept.requires_grad


@pytest.mark.trap(16)
def test_a_config_still_loses_attributes_that_are_minus_one():
    config = AlgorithmConfig()
    config.some_setting = -1
    assert "some_setting" not in config.get_state()


@pytest.mark.trap(20)
def test_module_states_are_still_loaded_leniently():
    from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

    assert "strict=False" in inspect.getsource(TorchRLModule.set_state)


def test_the_runners_parts_that_ours_leans_on():
    assert {"_make_on_episode_callback", "make_env", "make_module"} <= set(
        vars(SingleAgentEnvRunner)
    )
    source = inspect.getsource(SingleAgentEnvRunner.__init__)
    for attribute in ("_env_to_module", "_module_to_env", "_ongoing_episodes"):
        assert f"self.{attribute}" in source
    assert {"insert_before", "append"} <= set(dir(EnvToModulePipeline))


def test_gymnasium_steps_single_environments_without_autoreset():
    vector = SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.DISABLED
    )
    first, _ = vector.envs[0].reset(seed=5)
    alone, _ = gym.make("CartPole-v1").reset(seed=5)
    np.testing.assert_array_equal(first, alone)
    vector.close()
