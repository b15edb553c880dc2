"""Each setting of RLlib's is used, refused by name, or said to have no effect."""

import logging
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import MeanStdFilter, PrevActionsPrevRewards
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.policy.policy import PolicySpec

from rllib_dt import DTConfig, write_episodes
from rllib_dt.algorithm.settings import DTSettings
from rllib_dt.algorithm.unused import NO_EFFECT, REFUSED, USED
from tests.conftest import cartpole_config, make_episodes, tiny_config
from tests.environments import Lengths

OTHERS = {
    "action_mask_key": "mask",
    "count_steps_by": "agent_steps",
    "exploration_config": {"type": "EpsilonGreedy"},
    "input_config": {"a": 1},
    "input_read_method": "read_json",
    "model": {"fcnet_hiddens": [3]},
    "num_gpus": 1,
    "observation_filter": "MeanStdFilter",
    "off_policy_estimation_methods": {"is": {}},
    "optimizer": {"lr": 1},
    "policies_to_train": [],
    "num_epochs": 2,
    "offline_evaluation_interval": 1,
    "minibatch_size": 3,
}
"""A value other than the default for settings where `not default` is none."""


def other_value(name):
    default = vars(AlgorithmConfig())[name]
    return OTHERS.get(name, not default)


def test_no_setting_of_rllibs_is_overlooked():
    names = {
        name
        for name, value in vars(AlgorithmConfig()).items()
        # -1 marks what RLlib itself has abandoned; names with _ have no setter, but for a few
        if not (name.startswith("_") or (type(value) is int and value == -1))
    }
    listed = set(REFUSED) | NO_EFFECT | USED
    assert names - listed == set()
    assert listed - names == {
        "_learner_connector",
        "_torch_grad_scaler_class",
        "_torch_lr_scheduler_classes",
    }
    assert len(listed) == len(REFUSED) + len(NO_EFFECT) + len(USED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_settings_that_would_be_ignored_are_refused_by_name(name):
    config = tiny_config("nowhere")
    setattr(config, name, other_value(name))
    shown = re.escape(name.removeprefix("_"))
    with pytest.raises(ValueError, match=rf"^{shown}=.* would have no effect: "):
        config.validate()


def test_settings_that_only_tune_rllibs_pipeline_are_named_in_a_warning(caplog):
    config = tiny_config("nowhere").offline_data(
        map_batches_kwargs={"concurrency": 2}, materialize_data=True, input_read_episodes=True
    )
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        config.validate()
    (record,) = caplog.records
    message = record.getMessage()
    assert "map_batches_kwargs={'concurrency': 2}, materialize_data=True: without" in message
    assert "input_read_episodes=True" in message


def test_defaults_given_explicitly_are_no_settings(caplog):
    config = tiny_config("nowhere").training(num_epochs=1, minibatch_size=8)
    config.env_runners(num_env_runners=0).multi_agent(policies_to_train=["default_policy"])
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        config.validate()
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.multi_agent(policies={"a", "b"}), "DT is single-agent, but the policies are"),
        (lambda c: c.multi_agent(policies={"a": PolicySpec()}), "DT is single-agent"),
        (
            lambda c: c.api_stack(
                enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
            ),
            "DT needs RLlib's new API stack",
        ),
        (lambda c: setattr(c, "framework_str", "tf2"), "framework='tf2': DT is written in torch"),
        (
            lambda c: c.offline_data(offline_data_class=OfflineData),
            "offline_data_class=.* is no subclass of rllib_dt",
        ),
        (lambda c: c.training(model={"fcnet_hiddens": [3]}), r"set rl_module\(model_config="),
        (
            lambda c: c.evaluation(offline_evaluation_interval=1),
            r"offline_evaluation_interval=1 .*set offline_data\(validation_fraction=",
        ),
    ],
)
def test_what_dt_is_not_is_said_by_name(change, message):
    config = tiny_config("nowhere")
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_the_message_for_another_networks_settings_names_the_type():
    with pytest.raises(TypeError, match="DTModelConfig or a dict of its settings, not a DefaultM"):
        tiny_config("nowhere").rl_module(model_config=DefaultModelConfig())


@pytest.mark.parametrize("paths", ["", [], [""], ["a", None], [7]])
def test_inputs_that_are_no_paths_are_refused(paths):
    with pytest.raises(ValueError, match=r"is no path|must be a path or a list of paths"):
        tiny_config(paths).validate()


# ---- environments


class Two(MultiAgentEnv):
    possible_agents = ["a", "b"]
    observation_spaces = action_spaces = {"a": Discrete(2), "b": Discrete(2)}
    observation_space = action_space = Discrete(2)

    def __init__(self, config=None):
        super().__init__()


def test_multi_agent_environments_are_refused(cluster, tiny_data):
    config = tiny_config(tiny_data[0]).environment(Two)
    config.observation_space = config.action_space = None
    with pytest.raises(ValueError, match="is a MultiAgentEnv; DT is single-agent"):
        config.build_algo()


@pytest.fixture
def lengths_data(tmp_path):
    """A recording that fits `Lengths`."""
    episodes = make_episodes([5, 9], action_space=Lengths.action_space)
    write_episodes(episodes, tmp_path, Lengths.observation_space, Lengths.action_space)
    return str(tmp_path)


def lengths_config(data, **spaces):
    config = tiny_config(data).environment(Lengths)
    config.observation_space = config.action_space = None
    return config.environment(**spaces)


def test_spaces_beside_an_environment_must_be_its_own(cluster, lengths_data):
    own = {"observation_space": Lengths.observation_space, "action_space": Lengths.action_space}
    lengths_config(lengths_data, **own).build_algo().stop()
    other = Box(-1.0, 1.0, (1,))
    with pytest.raises(ValueError, match="is not the space of the environment") as refused:
        lengths_config(lengths_data, action_space=other).build_algo()
    for space in (other, Lengths.action_space):
        assert str(space) in str(refused.value)
    low, high = (
        b.astype(np.float64) for b in (Lengths.action_space.low, Lengths.action_space.high)
    )
    same = Box(low, high, dtype=np.float64)
    lengths_config(lengths_data, action_space=same).build_algo().stop()  # only the dtype differs


# ---- connectors


class Passing(ConnectorV2):
    def __call__(self, *, batch, **kwargs):
        return batch


@pytest.mark.parametrize("piece", [MeanStdFilter, PrevActionsPrevRewards])
def test_connectors_that_change_observations_are_refused(cluster, piece):
    config = cartpole_config().env_runners(
        env_to_module_connector=lambda env, spaces, device: piece()
    )
    with pytest.raises(ValueError, match="changes what the network sees in evaluation, but not"):
        config.build_algo()


def test_other_connectors_are_warned_of(cluster, caplog):
    config = cartpole_config().env_runners(
        env_to_module_connector=lambda env, spaces, device: Passing()
    )
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        algo = config.build_algo()
    algo.stop()
    assert "the connector Passing acts in evaluation only" in caplog.text


# ---- what evaluation overrides


def test_evaluation_config_may_override_targets(cluster):
    config = cartpole_config().evaluation(evaluation_config={"target_returns": [7.0, 9.0]})
    algo = config.build_algo()
    assert algo.target_returns == [7.0, 9.0]
    assert list(algo.evaluate()["env_runners"]["by_target"]) == ["7", "9"]
    algo.stop()


def test_reprs_show_what_was_set(cluster, tiny_data):
    config = tiny_config(tiny_data[0]).evaluation(target_returns=[3.0])
    text = repr(config)
    for line in ("lr=0.001,", "target_returns=[3.0],", "model_config={'context_length': 5,"):
        assert f"    {line}" in text
    assert "weight_decay" not in text
    assert repr(DTConfig()) == "DTConfig()"
    assert isinstance(config, DTSettings)
    algo = config.build_algo()
    assert repr(algo.offline_data).startswith("DTOfflineData(in memory: 6 episodes, 71 steps")
    assert repr(algo.offline_data.summary).startswith("DataSummary(6 episodes, 71 steps")
    algo.stop()


def test_only_evaluation_may_have_an_environment(cluster, caplog):
    """As RLlib's own tests of offline algorithms have it."""
    env = gym.make("CartPole-v1")
    config = cartpole_config().environment(None)
    config.environment(observation_space=env.observation_space, action_space=env.action_space)
    config.evaluation(
        evaluation_interval=2,
        evaluation_config=DTConfig.overrides(
            env="CartPole-v1",
            input_="sampler",
            observation_space=None,
            action_space=None,
            gamma=0.98,
        ),
    )
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        algo = config.build_algo()
    assert "evaluation_config's gamma=0.98 has no effect" in caplog.text
    first, second, third = algo.train(), algo.train(), algo.train()
    assert "evaluation" not in first
    assert second["evaluation"]["env_runners"]["num_episodes"] == 8
    assert third["evaluation"]["env_runners"]["age_in_iterations"] == 1
    algo.stop()


def test_an_environment_of_evaluations_own_must_have_the_same_spaces(cluster):
    config = cartpole_config().evaluation(evaluation_config={"env": Lengths})
    with pytest.raises(ValueError, match="is not the space of the environment, Box"):
        config.build_algo()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_retuns": [3.0]}, "no setting 'target_retuns'; did you mean 'target_returns'"),
        ([("explore", False)], r"evaluation_config=.* must be a dict of settings"),
    ],
)
def test_misspelt_settings_of_evaluation_are_refused(given, message):
    config = cartpole_config()
    config.evaluation_config = given
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_what_evaluation_never_reads_is_refused_or_said(caplog):
    config = cartpole_config()
    config.evaluation(evaluation_config={"callbacks_on_evaluate_end": print})
    with pytest.raises(ValueError, match=r"callbacks_on_evaluate_end would never be called.*; set"):
        config.validate()
    config = cartpole_config()
    config.evaluation(evaluation_config={"callbacks_on_episode_end": print, "explore": False})
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        config.validate()
    assert "no effect" not in caplog.text
    config.evaluation(evaluation_config={"grad_clip": 3.0, "lr": config.lr, "mine": 1})
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        config.validate()
    assert caplog.text.count("no effect on evaluation") == 1
    assert "evaluation_config's grad_clip=3.0 has no effect on evaluation" in caplog.text


def test_misspelt_settings_in_a_dict_are_refused():
    config = cartpole_config()
    config.update_from_dict({"trouble": "none"})  # a user's own, for a learner of theirs
    assert config.trouble == "none"
    with pytest.raises(ValueError, match="no setting 'grad_clp'; did you mean 'grad_clip'"):
        DTConfig.from_dict({"grad_clp": 1.0})
    with pytest.raises(ValueError, match="'training' is a method, no setting"):
        config.update_from_dict({"training": {"lr": 1.0}})
    assert config.training(lr=0.5).lr == 0.5


def test_a_dict_may_hold_the_networks_settings():
    config = cartpole_config().update_from_dict({"model_config": {"n_layer": 3}, "lambda": 0.5})
    assert config.dt_model_config.n_layer == 3
    with pytest.raises(ValueError, match="did you mean 'n_layer'"):
        config.update_from_dict({"model_config": {"n_layers": 3}}).validate()


def test_a_config_survives_its_own_dict():
    config = cartpole_config()
    again = DTConfig.from_dict(config.to_dict())
    assert again.dt_model_config == config.dt_model_config
    assert again.target_returns == config.target_returns
