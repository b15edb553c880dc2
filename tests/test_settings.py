"""Settings: what each may be, and what is refused by name before training."""

import dataclasses
import math

import numpy as np
import pytest
from gymnasium.spaces import Box
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

from rllib_dt import DTConfig, DTModelConfig, DTTorchRLModule
from rllib_dt.algorithm.rules import BOOLEANS, CHOICES, CLASSES, DICTS, NUMBERS
from tests.conftest import tiny_config

BAD = {
    "text": "3",
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "negative": -1,
    "list": [1],
    "True": True,
    "numpy nan": np.float32("nan"),
}

# RLlib's own checks come first, and are stricter; an interval needs an environment
CHECKED_BY_RLLIB = (
    "evaluation_duration",
    "evaluation_interval",
    "num_learners",
    "seed",
    "train_batch_size_per_learner",
)


def with_setting(name, value):
    """A config with a setting that has passed no setter: RLlib's setters check a few themselves."""
    config = tiny_config("nowhere")
    if name == "frame_stack":
        config.environment(observation_space=Box(-1.0, 1.0, (2, 3)))
    if name == "lr_decay_updates":
        config.training(lr_decay="cosine")
    if name == "rollouts_per_iteration":
        config.environment("CartPole-v1", observation_space=None, action_space=None)
    attribute = f"_{name}" if isinstance(getattr(type(config), name, None), property) else name
    setattr(config, attribute, value)
    return config


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_the_wrong_kind_is_refused(name, kind):
    if kind == "negative" and NUMBERS[name].test(-1):
        with_setting(name, BAD[kind]).validate()
        return
    with pytest.raises((ValueError, TypeError)):
        with_setting(name, BAD[kind]).validate()


@pytest.mark.parametrize("name", [n for n, rule in NUMBERS.items() if not rule.test(0)])
def test_zero_is_refused_where_it_means_nothing(name):
    with pytest.raises(ValueError, match=name):
        with_setting(name, 0).validate()


@pytest.mark.parametrize("name", [n for n, rule in NUMBERS.items() if rule.whole])
def test_whole_numbers_may_be_floats_or_numpys_but_not_fractions(name):
    if name not in CHECKED_BY_RLLIB:
        for two in (2, 2.0, np.int64(2), np.float32(2.0)):
            config = with_setting(name, two)
            config.validate()
            assert type(getattr(config, name)) is int
    with pytest.raises((ValueError, TypeError)):
        with_setting(name, 1.5).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(lr=-1e-3), "lr=-0.001: a learning rate must be"),
        (lambda c: c.training(lr=math.nan), "lr=nan: a learning rate must be"),
        (lambda c: c.training(lr=[[0, 1e-3], [100, -1e-5]]), "a learning rate must be"),
        (lambda c: c.training(grad_clip=-0.5), "grad_clip=-0.5 must be positive"),
        (lambda c: c.training(adam_betas=(0.9, 1.0)), r"adam_betas=\[0.9, 1.0\] must be"),
        (lambda c: c.training(adam_betas=(0.9,)), r"adam_betas=\[0.9\] must be"),
        (lambda c: c.training(adam_betas=("0.9", 0.99)), "adam_betas=.* must be two numbers"),
        (lambda c: c.training(delayed_reward="False"), "delayed_reward='False' must be True or"),
        (
            lambda c: c.offline_data(actions_in_input_normalized="no"),
            "actions_in_input_normalized='no' must be True, False or",
        ),
        (lambda c: setattr(c, "clip_rewards", -1.0), "clip_rewards=-1.0 must be"),
        (lambda c: setattr(c, "clip_rewards", "yes"), "clip_rewards='yes' must be"),
        (lambda c: c.evaluation(target_returns=[5, 5.0]), "names a target twice"),
        (lambda c: c.evaluation(target_returns=[1e39]), "within float32"),
        (lambda c: c.evaluation(target_returns="high"), "target_returns"),
        (lambda c: c.evaluation(score_reference=3.0), "score_reference=3.0 must be two"),
        (lambda c: c.evaluation(score_reference=(0, math.nan)), "score_reference=.* must be two"),
        (lambda c: c.evaluation(evaluation_interval=1), "needs an environment"),
        (
            lambda c: c.evaluation(evaluation_sample_timeout_s=0),
            "evaluation_sample_timeout_s=0 must be positive",
        ),
        (lambda c: c.rl_module(model_config={"attn_pdrop": "0.1"}), "attn_pdrop='0.1' must"),
        (lambda c: c.rl_module(model_config={"action_tanh": "no"}), "action_tanh='no' must be"),
        (lambda c: c.rl_module(model_config={"layer_norm_epsilon": 0}), "layer_norm_epsilon=0"),
        (lambda c: c.rl_module(model_config={"initializer_range": -1}), "initializer_range=-1"),
        (lambda c: c.rl_module(model_config={"n_layer": 1.5}), "n_layer=1.5 must be an integer"),
    ],
)
def test_settings_that_would_train_wrongly_are_refused_by_name(change, message):
    config = tiny_config("nowhere")
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.learners(num_gpus_per_learner=1.5), "num_gpus_per_learner=1.5 must be 0, a"),
        (lambda c: c.learners(num_cpus_per_learner="many"), "num_cpus_per_learner='many' must"),
        (
            lambda c: c.learners(custom_resources_per_learner={"TPU": -1}),
            r"custom_resources_per_learner\['TPU'\]=-1 must be 0, a fraction",
        ),
        (lambda c: setattr(c, "env_config", [1]), r"env_config=\[1\] must be a dict"),
        (
            lambda c: setattr(c, "torch_ddp_kwargs", {1: 2}),
            "torch_ddp_kwargs={1: 2} must be a dict",
        ),
        (lambda c: setattr(c, "_learner_class", dict), "learner_class=<class 'dict'> is no subc"),
        (lambda c: setattr(c, "env_runner_cls", int), "env_runner_cls=<class 'int'> is no subcla"),
        (
            lambda c: setattr(c, "callbacks_class", [int]),
            "callbacks_class=<class 'int'> is no",
        ),
        (
            lambda c: setattr(c, "callbacks_on_train_result", "print"),
            "callbacks_on_train_result='print' must be a function, or a list of them",
        ),
        (
            lambda c: c.rl_module(rl_module_spec=RLModuleSpec(module_class=TorchRLModule)),
            "module_class=<class .*TorchRLModule'> is no subclass of rllib_dt.DTTorchRLModule",
        ),
        (lambda c: c.training(lr_decay="cosine"), "give both, or neither"),
        (lambda c: c.training(lr_decay_updates=9), "give both, or neither"),
        (
            lambda c: c.training(lr_decay="cosine", lr_decay_updates=9, warmup_steps=9),
            "lr_decay_updates=9 is not more than warmup_steps=9",
        ),
        (lambda c: setattr(c, "clip_rewards", 1e-300), "clip_rewards=1e-300 must be True, False"),
    ],
)
def test_settings_of_a_type_that_would_fail_later_are_refused_by_name(change, message):
    config = tiny_config("nowhere")
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_subclasses_and_fractions_pass():
    class Own(DTTorchRLModule):
        pass

    class Count(RLlibCallback):
        pass

    config = tiny_config("nowhere").learners(num_gpus_per_learner=0.5, num_cpus_per_learner=2)
    config.learners(custom_resources_per_learner={"TPU": 0.25}).callbacks([Count, RLlibCallback])
    config.callbacks(on_train_result=[print], on_episode_end=print)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=Own, model_config={}))
    config.rl_module(model_config={}).validate()
    assert config.num_gpus_per_learner == 0.5


def test_numpys_numbers_and_arrays_are_as_good_as_pythons():
    config = tiny_config("nowhere").training(
        lr=np.float64(1e-3), adam_betas=np.array([0.9, 0.99]), return_scale=np.float32(2.0)
    )
    config.evaluation(target_returns=np.array([3.0, 1.0]), score_reference=np.array([0, 9]))
    config.rl_module(model_config={"context_length": np.int64(4), "n_layer": 2.0})
    config.validate()
    assert config.adam_betas == [0.9, 0.99]
    assert config.target_returns == [3.0, 1.0]
    assert type(config.return_scale) is float
    assert (config.dt_model_config.context_length, config.dt_model_config.n_layer) == (4, 2)
    assert type(config.dt_model_config.n_layer) is int
    assert DTConfig.from_state(config.get_state()).target_returns == [3.0, 1.0]


def test_a_single_target_is_a_list_of_one():
    assert DTConfig().evaluation(target_returns=3600).target_returns == [3600.0]
    assert DTModelConfig(context_length=np.int32(3)).context_length == 3


# ---- every setting with every kind of value

KINDS = {
    "None": None,
    "text": "some text",
    "dict": {"a": 1},
    "list": [1, "a"],
    "negative": -1,
    "zero": 0,
    "nan": math.nan,
    "inf": math.inf,
    "huge": 1e300,
    "integer beyond floats": 10**400,
    "True": True,
    "object": object(),
}
ACCEPTED = {
    "actions_in_input_normalized": {"None", "True"},
    "adam_betas": set(),
    "add_default_connectors_to_env_to_module_pipeline": {"True"},
    "add_default_connectors_to_module_to_env_pipeline": {"True"},
    "alpha_lr": {"zero"},
    "buffer_episodes": set(),
    "callbacks_class": set(),
    "callbacks_on_episode_end": {"None"},
    "clip_actions": {"True"},
    "clip_rewards": {"None", "True", "huge"},
    "critic_expectile": set(),
    "critic_gamma": {"zero"},
    "critic_updates": set(),
    "custom_resources_for_main_process": {"dict"},
    "custom_resources_per_env_runner": {"dict"},
    "custom_resources_per_learner": {"dict"},
    "dataset_num_iters_per_learner": set(),
    "delay_between_env_runner_restarts_s": {"zero"},
    "delayed_reward": {"True"},
    "duplicates": set(),
    "ema_decay": {"None"},
    "env_config": {"dict"},
    "env_runner_cls": set(),
    "env_runner_health_probe_timeout_s": set(),
    "env_runner_restore_timeout_s": set(),
    "evaluation_config": {"None", "dict"},  # names of a user's own are free
    "evaluation_duration": set(),
    "evaluation_interval": {"None", "zero"},
    "evaluation_num_env_runners": {"zero"},
    "evaluation_parallel_to_training": set(),
    "evaluation_sample_timeout_s": {"None"},
    "exploration_target": {"None", "negative", "zero"},
    "exploration_temperature": set(),
    "explore": {"True"},
    "extra_python_environs_for_driver": {"dict"},
    "extra_python_environs_for_worker": {"dict"},
    "frame_stack": {"None"},
    "gamma": set(),
    "grad_clip": {"None"},
    "grad_clip_by": set(),
    "incomplete": set(),
    "initial_alpha": set(),
    "input_read_schema": {"None"},
    "join_files": {"True"},
    "learner_class": {"None", "zero"},  # RLlib then takes the default
    "learner_config_dict": {"dict"},
    "local_gpu_idx": {"zero"},
    "log_level": set(),
    "log_sys_usage": {"True"},
    "lr": {"zero"},
    "lr_decay": {"None"},
    "lr_decay_updates": set(),
    "last_row": {"None"},
    "max_expansion": {"huge"},
    "max_num_env_runner_restarts": {"zero"},
    "max_return_expectile": {"None"},
    "missing_ends": {"None"},
    "missing_rewards": {"None", "negative", "zero"},
    "micro_batch_size": {"None"},
    "min_time_s_per_iteration": {"None", "zero"},
    "num_cpus_for_main_process": {"zero"},
    "num_cpus_per_env_runner": {"zero"},
    "num_cpus_per_learner": {"zero"},
    "num_envs_per_env_runner": set(),
    "num_gpus_per_env_runner": {"zero"},
    "num_gpus_per_learner": {"zero"},
    "num_learners": {"zero"},
    "observation_mean": {"None"},
    "observation_std": {"None"},
    "offline_data_class": set(),
    "offline_updates": {"zero"},
    "placement_strategy": set(),
    "pool_capacity_bytes": {"None"},
    "pool_capacity_steps": {"None"},
    "pool_reuse": set(),
    "precision": set(),
    "q_best_return": {"None", "negative", "zero"},
    "q_weight": {"zero"},
    "restart_failed_env_runners": {"True"},
    "return_loss_weight": {"zero"},
    "return_scale": {"None"},
    "rollouts_per_iteration": {"None"},
    "score_reference": {"None"},
    "seed": {"None", "zero"},
    "state_loss_weight": {"zero"},
    "target_entropy": {"None", "negative", "zero"},
    "target_returns": {"None", "negative", "zero"},
    "temperature": {"None", "zero"},
    "time_limit": {"None"},
    "top_fraction": {"None"},
    "torch_compile_learner": {"True"},
    "torch_ddp_kwargs": {"dict"},
    "train_batch_size_per_learner": {"None"},  # RLlib then takes train_batch_size
    "updates_per_iteration": set(),
    "validate_env_runners_after_construction": {"True"},
    "validation_fraction": {"None"},
    "validation_input": {"None", "text"},
    "validation_interval": set(),
    "warmup_steps": {"zero"},
    "weight_decay": {"zero"},
    "weight_decay_on": set(),
}
"""The kinds of value that each setting takes; all others are refused."""

MODEL_ACCEPTED = {
    "context_length": set(),
    "attention": set(),
    "segment_length": {"None"},
    "hidden_size": set(),
    "n_layer": set(),
    "n_head": set(),
    "n_inner": {"None"},
    "activation_function": set(),
    "resid_pdrop": {"zero"},
    "embd_pdrop": {"zero"},
    "attn_pdrop": {"zero"},
    "layer_norm_epsilon": set(),
    "initializer_range": {"zero"},
    "max_ep_len": set(),
    "action_tanh": {"True"},
    "scale_attn_weights": {"True"},
    "scale_attn_by_inverse_layer_idx": {"True"},
    "n_positions": {"None"},
    "pretrained": {"None"},
    "image_encoder": set(),
    "normalize_images": {"True"},
    "condition_on_return": {"True"},
    "embed_layer_norm": {"True"},
    "estimates_return": {"True"},
    "action_distribution": set(),
    "ignore": set(),
    "encoders": set(),
}


def is_refused(config, name):
    """Whether a config is refused, which must be by the setting's name."""
    message = None
    try:
        config.validate()
    except (ValueError, TypeError, FileNotFoundError) as error:
        message = str(error)
    assert message is None or name in message
    return message is not None


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_setting_takes_what_has_a_meaning_and_refuses_the_rest(name):
    accepted = {kind for kind, v in KINDS.items() if not is_refused(with_setting(name, v), name)}
    assert accepted == ACCEPTED[name]


@pytest.mark.parametrize("name", MODEL_ACCEPTED)
def test_a_setting_of_the_network_takes_what_has_a_meaning(name):
    accepted = set()
    for kind, value in KINDS.items():
        config = tiny_config("nowhere").rl_module(model_config={name: value})
        if name == "normalize_images":
            config.environment(observation_space=Box(0, 255, (3, 3), np.uint8))
        if not is_refused(config, name):
            accepted.add(kind)
    assert accepted == MODEL_ACCEPTED[name]


def test_every_setting_has_a_rule():
    ours = {n for n in vars(DTConfig()) if not n.startswith("_")} - set(vars(AlgorithmConfig()))
    assert ours <= set(ACCEPTED)
    assert set(NUMBERS) | set(BOOLEANS) | set(CHOICES) | set(DICTS) | set(CLASSES) <= set(ACCEPTED)
    assert {field.name for field in dataclasses.fields(DTModelConfig)} == set(MODEL_ACCEPTED)
