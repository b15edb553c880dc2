"""`DT`: the Decision Transformer as an RLlib algorithm."""

import logging
import math
from pathlib import Path
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)
from ray.rllib.utils.typing import ResultDict
from ray.tune import PlacementGroupFactory

from rllib_dt.algorithm.config import DTConfig
from rllib_dt.algorithm.environment import complete_from_environment, needs_environment
from rllib_dt.algorithm.offline import OfflineAlgorithm
from rllib_dt.algorithm.resources import check_resources
from rllib_dt.compat import check_learners, on_every_learner
from rllib_dt.learning.initial_weights import Normalize, TakeOver, change_networks
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.validation import Validation
from rllib_dt.rollout.dispatch import run_jobs
from rllib_dt.rollout.jobs import make_jobs
from rllib_dt.rollout.results import NOTHING, report_failures, summarize
from rllib_dt.types import State

VALIDATION_RESULTS = "validation"
NUM_UPDATES_LIFETIME = "num_updates_lifetime"

logger = logging.getLogger(__name__)


class DT(OfflineAlgorithm):
    """The Decision Transformer (Chen et al. 2021, arXiv:2106.01345); `DTConfig` builds it.

    Attributes:
        offline_data: the `DTOfflineData`; its `summary` describes what was read.
        target_returns: the returns that evaluations ask for.
        validation: the `Validation` on held-out episodes, or None.
    """

    config: DTConfig

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> DTConfig:
        return DTConfig()

    @classmethod
    @override(Algorithm)
    def default_resource_request(
        cls, config: AlgorithmConfig | dict[str, Any]
    ) -> PlacementGroupFactory:
        """Returns what a trial reserves: its own process, its learners, its evaluation runners.

        Reading reserves no CPU, and an offline algorithm has no training runners.

        Raises:
            NotEnoughResourcesError: it is more than the whole cluster has.
        """
        request = cls._resources(config)
        if ray.is_initialized():
            check_resources(request.bundles, "a trial, its learners and its evaluation runners")
        return request

    @classmethod
    def _resources(cls, config: AlgorithmConfig | dict[str, Any]) -> PlacementGroupFactory:
        settings = config.to_dict() if isinstance(config, AlgorithmConfig) else config
        request: PlacementGroupFactory = super().default_resource_request(
            {**settings, "num_env_runners": 0}
        )
        return request

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        if needs_environment(self.config):
            self.config = complete_from_environment(self.config)
            self.config.validate()
            self.config.freeze()
        if ray.util.get_current_placement_group() is None:  # in a trial, Tune has checked
            # this process reserves nothing
            _, *others = self._resources(self.config).bundles
            check_resources(others, "the learners and evaluation runners")
        super().setup(self.config)
        data = self.offline_data
        self.target_returns = [float(t) for t in self.config.target_returns or data.derived_targets]
        logger.info("target returns: %s", self.target_returns)
        seed = data.sampling_seed
        on_every_learner(self.learner_group, lambda learner: learner.adopt_seed(seed))
        self.validation = self._validation()
        self._awaits_restore = False
        pretrained = self.config.dt_model_config.pretrained
        if pretrained is None:
            logger.info("return scale: %g", data.normalization.return_scale)
            change_networks(self.learner_group, Normalize(data.normalization))
        elif Path(pretrained).is_dir():
            change_networks(self.learner_group, TakeOver(pretrained))
            logger.info("weights and normalisation are those of %s", pretrained)
        else:
            # the folder is gone, but a checkpoint of a run that started from it has the weights
            self._awaits_restore = True

    def _validation(self) -> Validation | None:
        pool = self.offline_data.validation
        if pool is None:
            return None
        return Validation(
            pool,
            window_length=self.config.dt_model_config.window_length,
            batch_size=self.config.windows_per_learner,
            metric_names=on_every_learner(self.learner_group, _metric_names)[0],
        )

    @classmethod
    @override(Algorithm)
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        # `evaluate()` may be called by hand, with or without an interval
        return eval_config.env is not None

    @override(Algorithm)
    def training_step(self) -> None:
        config = self.config
        self._check_weights()
        check_learners(self.learner_group)
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
    def step(self) -> ResultDict:
        if self.config.evaluation_parallel_to_training:
            # taken now: once learners are training, they answer only after their update
            self._snapshot = self.take_snapshot()
        results: ResultDict = super().step()
        if self.config.evaluation_interval and EVALUATION_RESULTS not in results:
            # Tune expects its metric in every result; nothing was measured, so it is NaN
            nothing = summarize(NOTHING, self.target_returns, self.config.score_reference)
            nothing[NUM_UPDATES_LIFETIME] = math.nan
            results[EVALUATION_RESULTS] = {ENV_RUNNER_RESULTS: nothing}
        if self.validation is not None:
            due = (self.iteration + 1) % self.config.validation_interval == 0
            results[VALIDATION_RESULTS] = self.validate() if due else self.validation.nothing()
        return results

    def validate(self) -> dict[str, float]:
        """Computes the action loss on the held-out episodes, in evaluation mode.

        Returns:
            `action_loss` (the mean over steps, as in training), the action head's metrics
            (`action_accuracy` for Discrete actions: the share of steps whose likeliest action is
            the recorded one), `num_episodes` and `num_steps`. Each step counts once.

        Raises:
            ValueError: no episodes were held out.
        """
        if self.validation is None:
            raise ValueError(
                "there is nothing to validate on; set offline_data(validation_fraction=…) or "
                "offline_data(validation_input=…)"
            )
        self._check_weights()
        return self.validation.run(self.learner_group)

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> ResultDict:
        """Runs exactly `evaluation_duration` whole episodes for each target return.

        In parallel to training (`evaluation_parallel_to_training`) it uses the weights from before
        the iteration.

        Returns:
            {"env_runners": {…}} as `rllib_dt.rollout.results.summarize` describes it, with
            `num_updates_lifetime`: the update that the weights come from.

        Raises:
            ValueError: the config names no environment.
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
        snapshot = self.take_snapshot() if parallel_train_future is None else self._snapshot
        outcome = run_jobs(
            self.eval_env_runner_group,
            jobs,
            snapshot.weights,
            call_timeout=self.config.evaluation_sample_timeout_s,
        )
        report_failures(outcome)
        summary = summarize(outcome, self.target_returns, self.config.score_reference)
        summary[NUM_UPDATES_LIFETIME] = snapshot.num_updates
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

    def _custom_metrics(self) -> ResultDict:
        """Takes what users' callbacks logged on the runners, so that nothing stale remains."""
        logged = self.eval_env_runner_group.foreach_env_runner(lambda runner: runner.get_metrics())
        key = (EVALUATION_RESULTS, ENV_RUNNER_RESULTS)
        self.metrics.aggregate(logged, key=key)
        custom: ResultDict = self.metrics.peek(key, default={}, latest_merged_only=True)
        self.metrics.delete(EVALUATION_RESULTS, key_error=False)
        return custom

    # --- weights from a folder that may be gone

    def _check_weights(self) -> None:
        if self._awaits_restore:
            raise FileNotFoundError(
                f"{self.config.dt_model_config.pretrained} is missing, and no checkpoint was "
                "restored: there are no weights to continue with"
            )

    @override(Algorithm)
    def set_state(self, state: State) -> None:
        super().set_state(state)
        self._awaits_restore = False

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, **kwargs: Any) -> None:
        """See `OfflineAlgorithm.restore_from_path`."""
        super().restore_from_path(path, **kwargs)
        self._awaits_restore = False


def _metric_names(learner: DTTorchLearner) -> tuple[str, ...]:
    return learner.network.action_head.metric_names
