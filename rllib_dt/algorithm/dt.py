"""DT: the algorithm, and the repairs that an offline algorithm needs in RLlib 2.60."""

import logging
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)

from rllib_dt.algorithm.config import DTConfig
from rllib_dt.runtime.dispatch import run_jobs
from rllib_dt.runtime.evaluation import make_jobs, summarize
from rllib_dt.runtime.initial_weights import Normalize, TakeOver, change_networks

logger = logging.getLogger(__name__)


class DT(Algorithm):
    """The Decision Transformer (Chen et al. 2021, arXiv:2106.01345). Built by `DTConfig`.

    Attributes:
        offline_data: the `DTOfflineData`; its `summary` says what was read.
        target_returns: the returns that evaluations ask for.
    """

    config: DTConfig

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> DTConfig:
        return DTConfig()

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        super().setup(config)
        data = self.offline_data
        self.target_returns = [float(t) for t in self.config.target_returns or data.derived_targets]
        logger.info("target returns: %s", self.target_returns)
        self._awaits_restore = False
        pretrained = self.config.dt_model_config.pretrained
        if pretrained is None:
            logger.info("return scale: %g", data.normalization.return_scale)
            change_networks(self.learner_group, Normalize(data.normalization))
        elif Path(pretrained).is_dir():
            change_networks(self.learner_group, TakeOver(pretrained))
            logger.info("weights and normalisation are those of %s", pretrained)
        else:
            # a checkpoint of a run that began there brings its own weights
            self._awaits_restore = True

    @classmethod
    @override(Algorithm)
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        # `evaluate()` may be called by hand, whatever the interval
        return eval_config.env is not None

    @override(Algorithm)
    def training_step(self) -> None:
        config = self.config
        self._check_weights()
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                training_data=TrainingData(
                    data_iterators=self.offline_data.sample(
                        config.train_batch_size_per_learner, num_shards=config.num_learners
                    )
                ),
                minibatch_size=config.train_batch_size_per_learner,
                num_iters=config.dataset_num_iters_per_learner,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        steps = self.metrics.peek(
            (LEARNER_RESULTS, DEFAULT_MODULE_ID, "num_steps_trained"), default=0
        )
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum")

    @override(Algorithm)
    def cleanup(self) -> None:
        super().cleanup()
        if getattr(self, "offline_data", None) is not None:  # setting up may have failed
            self.offline_data.stop()

    # --- evaluation

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        results = super().step()
        if self.config.evaluation_interval and EVALUATION_RESULTS not in results:
            # Tune wants its metrics in every result: NaN, since nothing was measured
            nothing = summarize([], self.target_returns, self.config.score_reference)
            results[EVALUATION_RESULTS] = {ENV_RUNNER_RESULTS: nothing}
        return results

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Runs exactly `evaluation_duration` episodes for each target return, to their ends.

        Returns:
            {"env_runners": {…}} as `rllib_dt.runtime.evaluation.summarize` describes it.
        """
        if self.eval_env_runner_group is None:
            raise ValueError("there is no environment to evaluate in; set environment(env=…)")
        self._check_weights()
        self._before_evaluate()
        make_callback(
            "on_evaluate_start",
            callbacks_objects=self.callbacks,
            callbacks_functions=self.config.callbacks_on_evaluate_start,
            kwargs={"algorithm": self, "metrics_logger": self.metrics},
        )
        jobs = make_jobs(self.target_returns, self.config.evaluation_duration, self.config.seed)
        results = run_jobs(self.eval_env_runner_group, jobs, self._module_state())
        summary = summarize(results, self.target_returns, self.config.score_reference)
        evaluation = {ENV_RUNNER_RESULTS: self._custom_metrics() | summary}
        make_callback(
            "on_evaluate_end",
            callbacks_objects=self.callbacks,
            callbacks_functions=self.config.callbacks_on_evaluate_end,
            kwargs={
                "algorithm": self,
                "metrics_logger": self.metrics,
                "evaluation_metrics": evaluation,
            },
        )
        return evaluation

    def _module_state(self) -> Any:
        state = self.learner_group.get_state(
            components=COMPONENT_LEARNER + "/" + COMPONENT_RL_MODULE, inference_only=True
        )
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]

    def _custom_metrics(self) -> dict[str, Any]:
        """What users' callbacks logged on the runners; forgotten at once, so never stale."""
        logged = self.eval_env_runner_group.foreach_env_runner(lambda runner: runner.get_metrics())
        key = (EVALUATION_RESULTS, ENV_RUNNER_RESULTS)
        self.metrics.aggregate(logged, key=key)
        custom: dict[str, Any] = self.metrics.peek(key, default={}, latest_merged_only=True)
        self.metrics.delete(EVALUATION_RESULTS, key_error=False)
        return custom

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Brings restarted evaluation runners back; each evaluation hands them its weights."""
        if env_runner_group is None:
            return []
        remote = env_runner_group.num_remote_env_runners()
        if remote == env_runner_group.num_healthy_remote_workers():
            return []
        restored: list[int] = env_runner_group.probe_unhealthy_env_runners(
            timeout_seconds=self.config.env_runner_health_probe_timeout_s
        )
        return restored

    # --- state: `Algorithm`'s versions need training runners, which an offline one has not

    @override(Algorithm)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        # evaluation runners have no state that the learners have not
        components = super().get_checkpointable_components()
        return [c for c in components if c[1] is self.learner_group]

    @override(Algorithm)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        state.pop("eval_env_runner", None)
        return state

    def _check_weights(self) -> None:
        if self._awaits_restore:
            raise FileNotFoundError(
                f"{self.config.dt_model_config.pretrained} is not there, and no checkpoint was "
                "restored: there are no weights to go on with"
            )

    @override(Algorithm)
    def set_state(self, state: Any) -> None:
        self._awaits_restore = False
        if "learner_group" in state:
            self.learner_group.set_state(state["learner_group"])
        if "metrics_logger" in state:
            self.metrics.set_state(state["metrics_logger"])
        if "training_iteration" in state:
            self._iteration = state["training_iteration"]

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        Checkpointable.restore_from_path(self, path, *args, **kwargs)
        self._awaits_restore = False

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule | None:
        """A copy of the module with the learners' present weights, in eval mode."""
        spec = self.config.get_multi_rl_module_spec(
            spaces=self._spaces_by_module(), inference_only=True
        )
        if module_id not in spec.rl_module_specs:
            return None
        module = spec.rl_module_specs[module_id].build()
        module.set_state(self._module_state())
        return module.eval()

    def _spaces_by_module(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}
