"""RLlib's settings that mean nothing to `DT`: refused by name, or said to have no effect.

A setting that is accepted and ignored is worse than an error, since the run looks like what was
asked for. Every setting of RLlib's 2.60 is either used, or listed here with what to do instead;
a test compares the lists with RLlib's own, so that a new one cannot be overlooked.
"""

import copy
import logging
from typing import TYPE_CHECKING, Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

logger = logging.getLogger(__name__)

_VALIDATE = "set offline_data(validation_fraction=…) for the loss on held-out episodes"
_LEARNER = "override a method of DTTorchLearner instead (docs/extending.md)"
_DT_IS_OFFLINE = "DT does not collect data while it trains"
_NO_CONNECTORS = "data goes from the pool to the learners without connectors; " + _LEARNER
_READS_ITSELF = "DT reads with its own readers"

REFUSED = {
    "action_mask_key": "action masks are not supported",
    "algorithm_config_overrides_per_module": "DT has a single module",
    "callbacks_on_evaluate_offline_end": _VALIDATE,
    "callbacks_on_evaluate_offline_start": _VALIDATE,
    "callbacks_on_offline_eval_runners_recreated": _VALIDATE,
    "callbacks_on_sample_end": _DT_IS_OFFLINE,
    "checkpoint_trainable_policies_only": "DT has a single module",
    "compress_observations": _DT_IS_OFFLINE,
    "count_steps_by": "DT is single-agent",
    "custom_evaluation_function": (
        "evaluation runs whole episodes for each target; use callbacks_on_evaluate_end, or "
        "override DT.evaluate"
    ),
    "exploration_config": "set env_runners(explore=True) to draw Discrete actions in evaluation",
    "fake_sampler": _DT_IS_OFFLINE,
    "ignore_final_observation": "what follows the last action is never trained on",
    "input_read_method": _READS_ITSELF + "; write_episodes writes a format that it reads",
    "input_config": _READS_ITSELF,
    "merge_env_runner_states": _DT_IS_OFFLINE,
    "min_sample_timesteps_per_iteration": (
        _DT_IS_OFFLINE + "; set offline_data(dataset_num_iters_per_learner=…) to the updates of "
        "one iteration"
    ),
    "min_train_timesteps_per_iteration": (
        "set offline_data(dataset_num_iters_per_learner=…) to the updates of one iteration"
    ),
    "minibatch_size": "each update draws its own windows; set train_batch_size_per_learner, or "
    "micro_batch_size to compute a part of them at a time",
    "model": (
        "set rl_module(model_config=DTModelConfig(…)) instead of the old stack's training(model=…)"
    ),
    "num_aggregator_actors_per_learner": _DT_IS_OFFLINE,
    "num_env_runners": (
        _DT_IS_OFFLINE + "; set evaluation(evaluation_num_env_runners=…), which online(…) uses too"
    ),
    "num_epochs": "set offline_data(dataset_num_iters_per_learner=…) to the updates of a train()",
    "num_gpus": "set learners(num_gpus_per_learner=…)",
    "num_offline_eval_runners": _VALIDATE,
    "observation_filter": "data would not be filtered alike; see docs/extending.md",
    "observation_fn": "DT is single-agent",
    "off_policy_estimation_methods": _VALIDATE,
    "offline_eval_runner_class": _VALIDATE,
    "offline_evaluation_interval": _VALIDATE,
    "offline_evaluation_parallel_to_training": _VALIDATE,
    "offline_loss_for_module_fn": _VALIDATE,
    "offline_sampling": _DT_IS_OFFLINE,
    "optimizer": _LEARNER,
    "output": _DT_IS_OFFLINE + "; record with an online algorithm, or with write_episodes",
    "policies_to_train": "DT trains its single module",
    "policy_mapping_fn": "DT is single-agent",
    "postprocess_inputs": _READS_ITSELF,
    "prelearner_buffer_class": _NO_CONNECTORS,
    "prelearner_class": _NO_CONNECTORS,
    "prelearner_use_recorded_module_states": _NO_CONNECTORS,
    "remote_worker_envs": 'set env_runners(gym_env_vectorize_mode="async")',
    "render_env": "record videos in the environment (gymnasium.wrappers.RecordVideo)",
    "sample_collector": _DT_IS_OFFLINE,
    "shuffle_batch_per_epoch": "every batch is drawn at random",
    "use_env_runner_state_server": _DT_IS_OFFLINE,
    "torch_compile_worker": "evaluation runs the network uncompiled",
    "torch_skip_nan_gradients": "a loss that is not finite ends the run (NonFiniteLossError)",
    "_learner_connector": _NO_CONNECTORS,
    "_torch_grad_scaler_class": 'set training(precision="bf16"), which needs no scaler',
    "_torch_lr_scheduler_classes": "give training(lr=[[0, …], [steps, …]]) and warmup_steps",
}
"""Settings that would change what a run does, if they meant anything."""

NO_EFFECT = {
    "add_default_connectors_to_learner_pipeline",
    "batch_mode",
    "broadcast_env_runner_states",
    "broadcast_offline_eval_runner_states",
    "create_env_on_local_worker",
    "custom_resources_per_offline_eval_runner",
    "dataset_num_iters_per_eval_runner",
    "disable_env_checking",
    "eager_max_retraces",
    "eager_tracing",
    "enable_tf1_exec_eagerly",
    "env_runner_state_server_max_concurrency",
    "episode_lookback_horizon",
    "episodes_to_numpy",
    "evaluation_auto_duration_max_env_steps_per_sample",
    "evaluation_auto_duration_min_env_steps_per_sample",
    "evaluation_error_after_n_consecutive_skips",
    "evaluation_force_reset_envs_before_iteration",
    "evaluation_unhealthy_workers_timeout_s",
    "export_native_model_files",
    "ignore_env_runner_failures",
    "ignore_offline_eval_runner_failures",
    "input_compress_columns",
    "input_read_batch_size",
    "input_read_episodes",
    "input_read_method_kwargs",
    "input_read_sample_batches",
    "input_spaces_jsonable",
    "iter_batches_kwargs",
    "keep_per_episode_custom_metrics",
    "local_tf_session_args",
    "log_gradients",
    "map_batches_kwargs",
    "materialize_data",
    "materialize_mapped_data",
    "max_num_offline_eval_runner_restarts",
    "max_requests_in_flight_per_aggregator_actor",
    "max_requests_in_flight_per_env_runner",
    "max_requests_in_flight_per_learner",
    "max_requests_in_flight_per_offline_eval_runner",
    "metrics_episode_collection_timeout_s",
    "metrics_num_episodes_for_smoothing",
    "num_consecutive_env_runner_failures_tolerance",
    "num_cpus_per_offline_eval_runner",
    "num_gpus_per_offline_eval_runner",
    "offline_eval_batch_size_per_runner",
    "offline_eval_rl_module_inference_only",
    "offline_eval_runner_health_probe_timeout_s",
    "offline_eval_runner_restore_timeout_s",
    "offline_evaluation_duration",
    "offline_evaluation_timeout_s",
    "offline_evaluation_type",
    "ope_split_batch_by_episode",
    "output_compress_columns",
    "output_config",
    "output_filesystem",
    "output_filesystem_kwargs",
    "output_max_file_size",
    "output_max_rows_per_file",
    "output_write_episodes",
    "output_write_method",
    "output_write_method_kwargs",
    "output_write_remaining_data",
    "policy_map_capacity",
    "policy_states_are_swappable",
    "prelearner_buffer_kwargs",
    "prelearner_module_synch_period",
    "preprocessor_pref",
    "remote_env_batch_wait_ms",
    "replay_sequence_length",
    "restart_failed_offline_eval_runners",
    "restart_failed_sub_environments",
    "rollout_fragment_length",
    "sample_timeout_s",
    "sampler_perf_stats_ema_coef",
    "shuffle_buffer_size",
    "sync_filters_on_rollout_workers_timeout_s",
    "tf_session_args",
    "torch_compile_worker_dynamo_backend",
    "torch_compile_worker_dynamo_mode",
    "train_batch_size",
    "update_worker_filter_stats",
    "use_worker_filter_stats",
    "validate_offline_eval_runners_after_construction",
}
"""Settings that only tune RLlib's own way of doing what `DT` does otherwise."""

USED = {
    "action_space",
    "actions_in_input_normalized",
    "add_default_connectors_to_env_to_module_pipeline",
    "add_default_connectors_to_module_to_env_pipeline",
    "algo_class",
    "callbacks_class",
    "callbacks_on_algorithm_init",
    "callbacks_on_checkpoint_loaded",
    "callbacks_on_env_runners_recreated",
    "callbacks_on_environment_created",
    "callbacks_on_episode_created",
    "callbacks_on_episode_end",
    "callbacks_on_episode_start",
    "callbacks_on_episode_step",
    "callbacks_on_evaluate_end",
    "callbacks_on_evaluate_start",
    "callbacks_on_train_result",
    "clip_actions",
    "clip_rewards",
    "create_local_env_runner",
    "custom_resources_for_main_process",
    "custom_resources_per_env_runner",
    "custom_resources_per_learner",
    "dataset_num_iters_per_learner",
    "delay_between_env_runner_restarts_s",
    "enable_env_runner_and_connector_v2",
    "enable_rl_module_and_learner",
    "env",
    "env_config",
    "env_runner_cls",
    "env_runner_health_probe_timeout_s",
    "env_runner_restore_timeout_s",
    "evaluation_config",
    "evaluation_duration",
    "evaluation_duration_unit",
    "evaluation_interval",
    "evaluation_num_env_runners",
    "evaluation_parallel_to_training",
    "evaluation_sample_timeout_s",
    "explore",
    "extra_python_environs_for_driver",
    "extra_python_environs_for_worker",
    "framework_str",
    "gamma",
    "grad_clip",
    "grad_clip_by",
    "gym_env_vectorize_mode",
    "in_evaluation",
    "input_",
    "input_filesystem",
    "input_filesystem_kwargs",
    "input_read_schema",
    "learner_config_dict",
    "local_gpu_idx",
    "log_level",
    "log_sys_usage",
    "lr",
    "max_num_env_runner_restarts",
    "min_time_s_per_iteration",
    "normalize_actions",
    "num_cpus_for_main_process",
    "num_cpus_per_env_runner",
    "num_cpus_per_learner",
    "num_envs_per_env_runner",
    "num_gpus_per_env_runner",
    "num_gpus_per_learner",
    "num_learners",
    "observation_space",
    "offline_data_class",
    "placement_strategy",
    "policies",
    "restart_failed_env_runners",
    "seed",
    "stats_cls_lookup",
    "torch_compile_learner",
    "torch_compile_learner_dynamo_backend",
    "torch_compile_learner_dynamo_mode",
    "torch_compile_learner_what_to_compile",
    "torch_ddp_kwargs",
    "validate_env_runners_after_construction",
}
"""Settings that do for `DT` what they do for RLlib's algorithms, or are checked elsewhere."""


def check_unused(config: "DTConfig") -> None:
    """Refuses settings that would be ignored, and warns of those whose purpose is served anyway."""
    if config.in_evaluation:  # RLlib has turned evaluation's settings into those of sampling
        for name, remedy in REFUSED.items():
            if name not in _OF_SAMPLING and _is_set(config, name):
                config.refuse(f"evaluation_config's {_shown(config, name)}: {remedy}")
        return
    if config.is_multi_agent:
        config.refuse(f"DT is single-agent, but the policies are {sorted(config.policies)}")
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        config.refuse(
            "DT needs RLlib's new API stack; leave api_stack(enable_rl_module_and_learner=…, "
            "enable_env_runner_and_connector_v2=…) at True"
        )
    if config.framework_str != "torch":
        config.refuse(f"framework={config.framework_str!r}: DT is written in torch")
    for name, remedy in REFUSED.items():
        if _is_set(config, name):
            config.refuse(f"{_shown(config, name)} would have no effect: {remedy}")
    without_effect = sorted(_shown(config, name) for name in NO_EFFECT if _is_set(config, name))
    if without_effect:
        logger.warning(
            "%s: without effect, since DT reads, holds and draws data, and evaluates, in its own "
            "way",
            ", ".join(without_effect),
        )


_OF_SAMPLING = ("num_env_runners", "num_offline_eval_runners")
"""What RLlib sets itself in the settings of evaluation."""


def _is_set(config: "DTConfig", name: str) -> bool:
    value, default = getattr(config, name), getattr(_DEFAULTS, name)
    if name == "policies_to_train":
        return not (value is None or list(value) == ["default_policy"])
    if name == "minibatch_size":
        return value not in (None, config.train_batch_size_per_learner)
    # empty values mean that nothing was asked for
    return not (value == default or (not value and not default))


def _shown(config: "DTConfig", name: str) -> str:
    text = repr(getattr(config, name))
    return f"{name.removeprefix('_')}={text if len(text) < 80 else '…'}"


def _defaults() -> AlgorithmConfig:
    defaults = AlgorithmConfig()
    defaults.model = copy.deepcopy(defaults.model)
    return defaults


_DEFAULTS: Any = _defaults()
