"""`MeasuredAlgorithm`: evaluation by target return, validation, and what results say of them."""

import dataclasses
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
)
from ray.rllib.utils.typing import ResultDict

from rllib_dt.algorithm.checks import check_targets
from rllib_dt.algorithm.compatibility import check_same_scale, check_same_settings
from rllib_dt.algorithm.measurements import (
    AGE_IN_ITERATIONS,
    AGE_IN_UPDATES,
    Latest,
)
from rllib_dt.algorithm.offline import OfflineAlgorithm
from rllib_dt.episodes.targets import target_value
from rllib_dt.learning.validation import Validation
from rllib_dt.rollout.dispatch import run_jobs
from rllib_dt.rollout.jobs import make_jobs
from rllib_dt.rollout.results import report_failures, summarize
from rllib_dt.types import State

if TYPE_CHECKING:
    from rllib_dt.algorithm.config import DTConfig

logger = logging.getLogger(__name__)

VALIDATION_RESULTS = "validation"
NUM_UPDATES_LIFETIME = "num_updates_lifetime"

_MEASURED = "dt_measured"
"""The part of an algorithm's state with its targets and latest measurements."""


class MeasuredAlgorithm(OfflineAlgorithm):
    """An offline algorithm that is evaluated for target returns and validated on held-out data.

    Attributes:
        target_returns: the returns that evaluations ask for.
        validation: the `Validation` on held-out episodes, or None.
        trains_policy: False in iterations that learn a critic; they measure nothing, unless Tune
            needs a first measurement.
    """

    config: "DTConfig"
    evaluation_config: "DTConfig"
    target_returns: list[float]
    validation: Validation | None
    trains_policy: bool = True

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        # reentrant: an iteration evaluates, and callbacks may
        self._lock = threading.RLock()
        self._evaluations, self._validations = Latest(), Latest()
        # of learners' whole life; they report each as `…_lifetime`
        self._counts = dict.fromkeys(("num_updates", "num_windows_trained", "num_steps_trained"), 0)
        self._steps_seen = 0
        super().setup(config)

    @property
    def num_updates(self) -> int:
        """The policy's updates so far."""
        return self._counts["num_updates"]

    def _check_weights(self) -> None:
        """Raises an error if there are no weights yet."""

    @classmethod
    @override(Algorithm)
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        # `evaluate()` may be called by hand, with or without an interval
        return eval_config.env is not None

    @override(Algorithm)
    def step(self) -> ResultDict:
        with self._lock:
            if self.config.evaluation_parallel_to_training:
                # taken now: once learners are training, they answer only after their update
                self._snapshot = self.take_snapshot()
            self._steps_seen = self._counts["num_steps_trained"]
            results: ResultDict = super().step()
            self._count_iteration(results)
            if self.config.evaluation_interval:
                self._attach_evaluation(results)
            if self.validation is not None:
                self._attach_validation(results)
            return results

    @override(Algorithm)
    def _run_one_evaluation(self, parallel_train_future: Any = None) -> ResultDict:
        waits = not self.trains_policy and not self._is_first_of_trial(self._evaluations)
        if waits and parallel_train_future is None:
            return {}
        results: ResultDict = super()._run_one_evaluation(parallel_train_future)
        return results

    def _attach_evaluation(self, results: ResultDict) -> None:
        """Adds the latest evaluation to an iteration that made none, and its age to any."""
        iteration = self.iteration + 1
        if EVALUATION_RESULTS not in results and self._is_first_of_trial(self._evaluations):
            results.update(self._run_one_evaluation(parallel_train_future=None))
        if EVALUATION_RESULTS in results:
            self._evaluations.set(results[EVALUATION_RESULTS], iteration)
        latest, age = self._evaluations.get(iteration)
        if latest is not None:
            measured = latest[ENV_RUNNER_RESULTS]
            measured[AGE_IN_ITERATIONS] = age
            updates = self._counts["num_updates"]
            measured[AGE_IN_UPDATES] = updates - measured[NUM_UPDATES_LIFETIME]
            results[EVALUATION_RESULTS] = latest

    def _attach_validation(self, results: ResultDict) -> None:
        iteration = self.iteration + 1
        due = iteration % self.config.validation_interval == 0 and self.trains_policy
        if due or self._is_first_of_trial(self._validations):
            measured = self.validate() | {NUM_UPDATES_LIFETIME: self._counts["num_updates"]}
            self._validations.set(measured, iteration)
        latest, age = self._validations.get(iteration)
        if latest is not None:
            updates = self._counts["num_updates"] - latest[NUM_UPDATES_LIFETIME]
            results[VALIDATION_RESULTS] = latest | {
                AGE_IN_ITERATIONS: age,
                AGE_IN_UPDATES: updates,
            }

    def _is_first_of_trial(self, measurements: Latest) -> bool:
        """Returns whether Tune, which wants its metric in the first result too, has none yet."""
        return self._storage is not None and measurements.results is None

    def _count_iteration(self, results: ResultDict) -> None:
        """Makes counts those of the iteration, which may have called the learners repeatedly."""
        learned = results[LEARNER_RESULTS][DEFAULT_MODULE_ID]
        for name, before in self._counts.items():
            self._counts[name] = int(learned[f"{name}_lifetime"])
            learned[name] = self._counts[name] - before

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
    def evaluate(
        self,
        parallel_train_future: Any = None,
        *,
        target_returns: float | str | Sequence[float | str] | None = None,
    ) -> ResultDict:
        """Runs exactly `evaluation_duration` whole episodes for each target return.

        In parallel to training (`evaluation_parallel_to_training`) it uses the weights from before
        the iteration.

        Args:
            parallel_train_future: RLlib's, see `Algorithm.evaluate`.
            target_returns: the returns to ask for, any number of them; those of the settings by
                default.

        Returns:
            {"env_runners": {…}} as `rllib_dt.rollout.results.summarize` describes it, with
            `num_updates_lifetime`: the update that the weights come from.

        Raises:
            ValueError: the config names no environment, or the targets are no numbers.
        """
        if self.eval_env_runner_group is None:
            raise ValueError("there is no environment to evaluate in; set environment(env=…)")
        targets = self.target_returns
        if target_returns is not None:
            several = isinstance(target_returns, Sequence | np.ndarray) and not isinstance(
                target_returns, str
            )
            given: list[Any] = list(target_returns) if several else [target_returns]  # type: ignore[arg-type]
            check_targets(given, self.config.dt_model_config.estimates_return)
            targets = [target_value(target) for target in given]
        if not targets:
            raise ValueError(
                "there are no target returns, since the training data is missing; set "
                "evaluation(target_returns=[…]), also in DT.from_checkpoint"
            )
        self.config.return_rule.check_acting()
        self._check_weights()
        with self._lock:  # a thread beside `train()` waits for the iteration's end
            return self._evaluate(targets, parallel=parallel_train_future is not None)

    def _evaluate(self, targets: Sequence[float], *, parallel: bool) -> ResultDict:
        config = self.evaluation_config
        self._before_evaluate()
        make_callback(
            "on_evaluate_start",
            callbacks_objects=self.callbacks,
            callbacks_functions=self.config.callbacks_on_evaluate_start,
            kwargs={"algorithm": self, "metrics_logger": self.metrics},
        )
        jobs = make_jobs(targets, config.evaluation_duration, config.seed)
        snapshot = self._snapshot if parallel else self.take_snapshot()
        outcome = run_jobs(
            self.eval_env_runner_group,
            jobs,
            snapshot.weights,
            call_timeout=config.evaluation_sample_timeout_s,
        )
        report_failures(outcome)
        summary = summarize(outcome, targets, config.score_reference)
        summary[NUM_UPDATES_LIFETIME] = snapshot.num_updates
        evaluation = {ENV_RUNNER_RESULTS: self.take_custom_metrics() | summary}
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

    def take_custom_metrics(self) -> ResultDict:
        """Takes what users' callbacks logged on the runners, so that nothing stale remains."""
        logged = self.eval_env_runner_group.foreach_env_runner(lambda runner: runner.get_metrics())
        key = (EVALUATION_RESULTS, ENV_RUNNER_RESULTS)
        self.metrics.aggregate(logged, key=key)
        custom: ResultDict = self.metrics.peek(key, default={}, latest_merged_only=True)
        self.metrics.delete(EVALUATION_RESULTS, key_error=False)
        return custom

    # --- state

    def _conditions(self) -> dict[str, str]:
        """Describes what measurements depend on besides the weights."""
        config, evaluation = self.config, self.evaluation_config
        held = [str(config.input_), config.validation_fraction, str(config.validation_input)]
        return {
            "evaluation": repr(
                (
                    str(evaluation.env),
                    evaluation.env_config,
                    self.target_returns,
                    evaluation.evaluation_duration,
                    evaluation.score_reference,
                    evaluation.explore,
                    evaluation.temperature,
                )
            ),
            "validation": repr((held, config.seed)),
        }

    @override(Algorithm)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> State:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_MEASURED, components, not_components):
            state[_MEASURED] = {
                "target_returns": self.target_returns,
                "evaluations": self._evaluations.state(),
                "validations": self._validations.state(),
                "conditions": self._conditions(),
                "seed": self.config.seed,
                "model_config": dataclasses.asdict(self.config.dt_model_config),
            }
        return state

    @override(Algorithm)
    def set_state(self, state: State) -> None:
        measured = state.get(_MEASURED)
        if measured is not None:
            check_same_settings(measured, self.config)
        learner = state.get("learner_group", {}).get(COMPONENT_LEARNER, {})
        module = learner.get(COMPONENT_RL_MODULE, {}).get(DEFAULT_MODULE_ID)
        check_same_scale(module, self.config)
        super().set_state(state)
        if measured is None:
            return
        if not self.target_returns:  # they were derived from data that is missing now
            self.target_returns = list(measured["target_returns"])
        # what was measured under other conditions is no result of this run
        now, then = self._conditions(), measured["conditions"]
        if now["evaluation"] == then["evaluation"]:
            self._evaluations.set_state(measured["evaluations"])
        if now["validation"] == then["validation"]:
            self._validations.set_state(measured["validations"])
        seed, ours = measured.get("seed", self.config.seed), self.config.seed
        if seed != ours:
            logger.warning(
                "seed=%s was %s when the state was saved: training goes on with the draws of the "
                "state; evaluations, and the choice of held-out episodes, follow the new one",
                ours,
                seed,
            )

    @override(OfflineAlgorithm)
    def check_restored(self) -> None:
        """See `OfflineAlgorithm.check_restored`; takes the counts of the restored learners."""
        super().check_restored()
        self._counts = self.take_counts()

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, **kwargs: Any) -> None:
        """See `OfflineAlgorithm.restore_from_path`."""
        with self._lock:
            super().restore_from_path(path, **kwargs)

    @override(Algorithm)
    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        """See `OfflineAlgorithm.save_to_path`."""
        with self._lock:
            path: str = super().save_to_path(*args, **kwargs)
        return path
