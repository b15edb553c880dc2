"""Checks a `DTConfig` before anything is built."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from ray.rllib.utils.schedules.scheduler import Scheduler

from rllib_dt.algorithm.environment import awaits_spaces
from rllib_dt.algorithm.inputs import are_paths, check_inputs
from rllib_dt.algorithm.rules import LARGEST_FLOAT32, SMALLEST_FLOAT32, check_rules, is_number
from rllib_dt.compat import has_own_env_to_module
from rllib_dt.episodes.targets import MAX, target_value
from rllib_dt.formats import canonical, steps
from rllib_dt.spaces import composites
from rllib_dt.spaces.leaves import UnsupportedSpaceError
from rllib_dt.spaces.trees import leaves

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

_COLUMNS = {*steps.REQUIRED, *steps.OPTIONAL, *canonical.EPISODE_COLUMNS}
"""The columns that readers know by name; others are ignored."""

_UNFIT_FOR_EVALUATION = ("auto", "timesteps")


def check_spaces(config: "DTConfig") -> None:
    """Refuses missing spaces, and spaces that the network does not support."""
    if config.observation_space is None or config.action_space is None:
        config.refuse(
            "neither an environment nor spaces are given; set environment(env=…), or "
            "environment(observation_space=…, action_space=…) to train without one"
        )
        return
    frames = config.frame_stack
    if frames is not None and not composites.stacked_leaves(config.observation_space, frames):
        config.refuse(
            f"offline_data(frame_stack={frames}) needs observations with {frames} frames in the "
            f"first axis, but the space is {config.observation_space}; wrap the environment in "
            f"gymnasium.wrappers.FrameStackObservation(env, {frames})"
        )
    try:
        config.dt_model_config.check_leaves()
    except ValueError as error:
        config.refuse(f"rl_module(model_config=…): {error}")
        return
    try:
        composites.check_spaces(
            config.observation_space, config.action_space, config.dt_model_config.choice
        )
    except UnsupportedSpaceError as error:
        config.refuse(str(error))
        return
    model = config.dt_model_config
    acted = leaves(config.action_space).values()
    if model.action_distribution != "deterministic" and not any(
        isinstance(leaf, gym.spaces.Box) for leaf in acted
    ):
        config.refuse(
            f"DTModelConfig(action_distribution={model.action_distribution!r}) is of actions that "
            f"are numbers, and {config.action_space} has none; leave it out: categories and bits "
            "have probabilities in any case"
        )
    read = config.observation_space, model.image_encoder, model.choice
    if model.normalize_images and not composites.image_leaves(*read):
        config.refuse(
            f"DTModelConfig(normalize_images=True): {config.observation_space} has no images that "
            "pass through the network's convolutions; leave it out"
        )
    if config.state_loss_weight and not composites.number_leaves(*read):
        config.refuse(
            f"training(state_loss_weight={config.state_loss_weight}) predicts observations that "
            f"are numbers, and {config.observation_space} has none; leave it at 0"
        )


def check_model(config: "DTConfig") -> None:
    """Refuses network settings that no network can be built from."""
    try:
        config.dt_model_config.validate()
    except (TypeError, ValueError) as error:
        config.refuse(f"rl_module(model_config=…): {error}")


def check_training(config: "DTConfig") -> None:
    """Refuses invalid settings of data and training."""
    if not config.is_offline:
        config.refuse("offline_data(input_=…) must be a path or a list of paths")
    for name in config.input_read_schema or {}:
        if name not in _COLUMNS:
            config.refuse(
                f"offline_data(input_read_schema=…) has no column {name!r}; its keys are RLlib's "
                f"names, its values yours: {sorted(_COLUMNS)}"
            )
    if config.normalize_actions:
        config.refuse(
            "normalize_actions=True would scale actions twice: this module already returns them in "
            "the environment's units. For recorded actions in [-1, 1] set "
            "offline_data(actions_in_input_normalized=True)"
        )
    normalized = config.actions_in_input_normalized
    if not (normalized is None or isinstance(normalized, bool | np.bool_)):
        config.refuse(f"actions_in_input_normalized={normalized!r} must be True, False or None")
    betas = config.adam_betas
    if not isinstance(betas, list) or len(betas) != 2 or not all(map(_is_share, betas)):
        config.refuse(f"adam_betas={betas!r} must be two numbers in [0, 1)")
    clip = config.clip_rewards
    _check_decay(config)
    _check_statistics(config)
    _check_next_step(config)
    _check_critic(config)
    is_bound = is_number(clip) and clip >= SMALLEST_FLOAT32
    if not (clip is None or isinstance(clip, bool) or is_bound):
        config.refuse(
            f"clip_rewards={clip!r} must be True, False, None or a number, at least "
            f"{SMALLEST_FLOAT32:g}"
        )
    if config.validation_fraction is not None and config.validation_input is not None:
        config.refuse("give either validation_fraction or validation_input, not both")
    if config.torch_compile_learner and (
        config.torch_compile_learner_what_to_compile == "complete_update"
    ):
        config.refuse(
            "torch_compile_learner_what_to_compile='complete_update' would compile RLlib's loop "
            "as well; leave it at 'forward_train'"
        )


def _check_critic(config: "DTConfig") -> None:
    if config.q_weight and config.delayed_reward:
        config.refuse(
            f"q_weight={config.q_weight} and delayed_reward=True: the critic would see no reward "
            "of a truncated episode, whose last step is followed by nothing; leave one of them out"
        )


def _check_next_step(config: "DTConfig") -> None:
    weights = {
        f"{name}={getattr(config, name)}": getattr(config, name)
        for name in ("state_loss_weight", "return_loss_weight")
    }
    given = [text for text, weight in weights.items() if weight]
    if given and config.dt_model_config.window_length == 1:
        config.refuse(
            f"training({', '.join(given)}) predicts the next step of a window, and windows have "
            "one step; raise context_length, or leave it at 0"
        )
    if config.return_loss_weight and not config.dt_model_config.condition_on_return:
        config.refuse(
            f"training(return_loss_weight={config.return_loss_weight}) predicts returns-to-go, "
            "which the network is not given with condition_on_return=False; leave it at 0"
        )


def _check_statistics(config: "DTConfig") -> None:
    for name in ("observation_mean", "observation_std"):
        values = getattr(config, name)
        is_scale = name == "observation_std"
        if values is None:
            continue
        if not isinstance(values, list) or not all(map(is_number, values)):
            config.refuse(f"{name}={values!r} must be a list of numbers, or None")
        elif is_scale and not all(SMALLEST_FLOAT32 <= value <= LARGEST_FLOAT32 for value in values):
            config.refuse(f"{name}={values!r} must be positive numbers, within float32")
        elif not awaits_spaces(config):
            _check_size_of_statistics(config, name, len(values))


def _check_size_of_statistics(config: "DTConfig", name: str, size: int) -> None:
    model = config.dt_model_config
    space = config.observation_space
    counts = composites.number_leaves(space, model.image_encoder, model.choice)
    if list(counts.values()) != [size] or list(counts) != [""]:
        config.refuse(
            f"{name} has {size} numbers, but the observation space is {space}; give a number for "
            "each component of a space that is one vector, or leave it out"
        )


def _check_decay(config: "DTConfig") -> None:
    if config.lr_decay not in (None, "cosine"):
        config.refuse(f"lr_decay={config.lr_decay!r} must be 'cosine' or None")
    if (config.lr_decay is None) != (config.lr_decay_updates is None):
        config.refuse(
            f"lr_decay={config.lr_decay!r} and lr_decay_updates={config.lr_decay_updates!r}: give "
            "both, or neither"
        )
    elif config.lr_decay and (config.lr_decay_updates or 0) <= config.warmup_steps:
        config.refuse(
            f"lr_decay_updates={config.lr_decay_updates} is not more than "
            f"warmup_steps={config.warmup_steps}, after which the decay begins"
        )


def check_values(config: "DTConfig") -> None:
    """Refuses settings of the wrong type, sign or size; RLlib's own checks expect right ones."""
    check_rules(config)
    _check_lr(config)
    schema = config.input_read_schema
    if not (schema is None or isinstance(schema, Mapping)):
        config.refuse(f"input_read_schema={schema!r} must be a dict of columns' names")
        return
    for name, value in (schema or {}).items():
        if not isinstance(value, str):
            config.refuse(f"input_read_schema[{name!r}]={value!r} must be the name of a column")
    if config.validation_input is not None:
        if not are_paths(config.validation_input):
            config.refuse(f"validation_input={config.validation_input!r} must be a path or a list")
        else:
            check_inputs("validation_input", config.validation_input)


def check_evaluation(config: "DTConfig") -> None:
    """Refuses invalid settings of evaluation."""
    _check_targets(config)
    reference = config.score_reference
    if reference is not None and not (
        isinstance(reference, list)
        and len(reference) == 2
        and all(map(is_number, reference))
        and reference[0] != reference[1]
    ):
        config.refuse(
            f"score_reference={reference!r} must be two different numbers, the returns of a random "
            "policy and of an expert"
        )
    asked = (config.evaluation_duration, config.evaluation_duration_unit)
    if any(value in _UNFIT_FOR_EVALUATION for value in asked):
        config.refuse(
            f"evaluation_duration={asked[0]!r} {asked[1]}: only a number of episodes for each "
            "target is supported, since a cut episode has no return"
        )
    if config.evaluation_interval:
        try:
            config.return_rule.check_acting()
        except ValueError as error:
            config.refuse(str(error))
    if config.evaluation_interval and evaluation_env(config) is None:
        config.refuse(
            f"evaluation_interval={config.evaluation_interval} needs an environment; set "
            "environment(env=…), or offline_data(validation_fraction=…) to validate without one"
        )
    if str(config.gym_env_vectorize_mode).lower() not in ("sync", "async"):
        config.refuse(
            f"gym_env_vectorize_mode={config.gym_env_vectorize_mode!r}: wanted 'sync' or 'async'"
        )


def check_online(config: "DTConfig") -> None:
    """Refuses settings with which a policy cannot play episodes to train on."""
    target = config.exploration_target
    if target is not None:
        try:
            check_targets([target], config.dt_model_config.estimates_return)
        except ValueError as error:
            config.refuse(str(error).replace("target_returns", "exploration_target"))
    if config.rollouts_per_iteration is None:
        return
    asked = f"online(rollouts_per_iteration={config.rollouts_per_iteration})"
    if evaluation_env(config) is None:
        config.refuse(f"{asked} needs an environment to play in; set environment(env=…)")
    if config.evaluation_parallel_to_training:
        config.refuse(
            f"{asked} plays on the evaluation runners, which evaluation_parallel_to_training=True "
            "keeps busy; leave one of them out"
        )
    if has_own_env_to_module(config):
        config.refuse(
            f"{asked} records observations as the environment gives them, before the pieces of "
            "env_to_module_connector change them; put them into the environment, as a wrapper"
        )
    try:
        config.return_rule.check_acting()
    except ValueError as error:
        config.refuse(str(error))
    if awaits_spaces(config) or config.action_space is None:
        return
    boxes = [v for v in leaves(config.action_space).values() if isinstance(v, gym.spaces.Box)]
    if boxes and config.dt_model_config.action_distribution == "deterministic":
        config.refuse(
            f"{asked} explores by drawing actions, and these are deterministic; set "
            'rl_module(model_config=DTModelConfig(action_distribution="squashed_gaussian"))'
        )


def evaluation_env(config: "DTConfig") -> Any:
    """Returns the environment of evaluations: `evaluation_config` may name another."""
    overrides = config.evaluation_config
    if isinstance(overrides, Mapping):
        return overrides.get("env", config.env)
    return config.env if overrides is None else overrides.env


def _check_lr(config: "DTConfig") -> None:
    """A learning rate, or a schedule of them, must not be negative: that would be ascent."""
    if isinstance(config.lr, list) and not all(isinstance(p, list) for p in config.lr):
        config.refuse(f"lr={config.lr!r}: a schedule is a list of [steps, rate]")
    if isinstance(config.lr, list):
        steps: list[Any] = [pair[0] if pair else None for pair in config.lr]
        if not all(map(is_number, steps)) or steps[0] != 0 or sorted(set(steps)) != steps:
            config.refuse(f"lr={config.lr!r}: a schedule's steps must be numbers that rise from 0")
            return
    Scheduler.validate(
        fixed_value_or_schedule=config.lr, setting_name="lr", description="learning rate"
    )
    rates = [pair[1] for pair in config.lr] if isinstance(config.lr, list) else [config.lr]
    for rate in rates:
        if not is_number(rate) or not 0 <= rate <= LARGEST_FLOAT32:
            config.refuse(
                f"lr={config.lr!r}: a learning rate must be a number, at least 0, within float32"
            )


def _check_targets(config: "DTConfig") -> None:
    try:
        check_targets(config.target_returns, config.dt_model_config.estimates_return)
    except ValueError as error:
        config.refuse(str(error))


def check_targets(targets: Any, may_be_max: bool) -> None:
    """Raises a ValueError unless targets are None, or a list of different finite numbers.

    Args:
        targets: the targets.
        may_be_max: "max" may be among them.
    """
    if targets is None:
        return
    if not isinstance(targets, list) or not targets:
        raise ValueError("target_returns is empty; give at least one number, or None")
    if MAX in [target for target in targets if isinstance(target, str)] and not may_be_max:
        raise ValueError(
            f"target_returns={targets!r} asks for the most, which nothing estimates; set "
            "training(max_return_expectile=0.99)"
        )
    numbers = [t for t in targets if not (isinstance(t, str) and t == MAX)]
    for target in numbers:
        if not is_number(target) or abs(target) > LARGEST_FLOAT32:
            raise ValueError(f"target_returns={target!r} must be finite numbers, within float32")
    if len(set(map(target_value, targets))) < len(targets):
        raise ValueError(f"target_returns={targets} names a target twice")


def _is_share(value: float) -> bool:
    return is_number(value) and 0 <= value < 1
