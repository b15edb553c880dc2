"""DT: the algorithm, and the repairs that an offline algorithm needs in RLlib 2.60."""

import copy
import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from gymnasium.spaces import Discrete
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
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
from ray.tune import PlacementGroupFactory

from rllib_dt.algorithm.config import DTConfig
from rllib_dt.algorithm.resources import check_resources
from rllib_dt.runtime import checkpoints
from rllib_dt.runtime.compat import check_learners, on_every_learner, recall_learners
from rllib_dt.runtime.dispatch import run_jobs
from rllib_dt.runtime.evaluation import NOTHING, make_jobs, report_failures, summarize
from rllib_dt.runtime.initial_weights import Normalize, TakeOver, change_networks
from rllib_dt.runtime.learner import COUNTERS
from rllib_dt.runtime.validation import Validation

VALIDATION_RESULTS = "validation"
NUM_UPDATES_LIFETIME = "num_updates_lifetime"

logger = logging.getLogger(__name__)


class DT(Algorithm):
    """The Decision Transformer (Chen et al. 2021, arXiv:2106.01345). Built by `DTConfig`.

    Attributes:
        offline_data: the `DTOfflineData`; its `summary` says what was read.
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
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """What a trial reserves: this process, its learners, its evaluation runners.

        Reading asks for no CPU, and an offline algorithm has no training runners.

        Raises:
            NotEnoughResourcesError: the whole cluster has less.
        """
        request = cls._resources(config)
        if ray.is_initialized():
            check_resources(request.bundles, "a trial, its learners and its evaluation runners")
        return request

    @classmethod
    def _resources(cls, config: Any) -> PlacementGroupFactory:
        settings = config.to_dict() if isinstance(config, AlgorithmConfig) else config
        request: PlacementGroupFactory = super().default_resource_request(
            {**settings, "num_env_runners": 0}
        )
        return request

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        if ray.util.get_current_placement_group() is None:  # in a trial, Tune has seen to it
            # this process reserves nothing
            _, *others = self._resources(config).bundles
            check_resources(others, "the learners and evaluation runners")
        super().setup(config)
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
            # a checkpoint of a run that began there brings its own weights
            self._awaits_restore = True

    def _validation(self) -> Validation | None:
        pool = self.offline_data.validation
        if pool is None:
            return None
        return Validation(
            pool,
            window_length=self.config.dt_model_config.window_length,
            batch_size=self.config.windows_per_learner,
            discrete=isinstance(self.config.action_space, Discrete),
        )

    @classmethod
    @override(Algorithm)
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        # `evaluate()` may be called by hand, whatever the interval
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
    def step(self) -> dict[str, Any]:
        if self.config.evaluation_parallel_to_training:
            # before training takes hold of the learners: they would answer behind their update
            self._snapshot = self._take_snapshot()
        results = super().step()
        if self.config.evaluation_interval and EVALUATION_RESULTS not in results:
            # Tune wants its metrics in every result: NaN, since nothing was measured
            nothing = summarize(NOTHING, self.target_returns, self.config.score_reference)
            nothing[NUM_UPDATES_LIFETIME] = math.nan
            results[EVALUATION_RESULTS] = {ENV_RUNNER_RESULTS: nothing}
        if self.validation is not None:
            due = (self.iteration + 1) % self.config.validation_interval == 0
            results[VALIDATION_RESULTS] = self.validate() if due else self.validation.nothing()
        return results

    def validate(self) -> dict[str, float]:
        """The action loss on the episodes that were kept back, in evaluation mode.

        Returns:
            `action_loss` (as in training: the mean over steps), `action_accuracy` for Discrete
            actions (the share of steps whose likeliest action was the recorded one),
            `num_episodes`, `num_steps`. Each step counts once.

        Raises:
            ValueError: no episodes were kept back.
        """
        if self.validation is None:
            raise ValueError(
                "there is nothing to validate on; set offline_data(validation_fraction=…) or "
                "offline_data(validation_input=…)"
            )
        self._check_weights()
        return self.validation.run(self.learner_group)

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Runs exactly `evaluation_duration` episodes for each target return, to their ends.

        Beside training (`evaluation_parallel_to_training`) with the weights from before it.

        Returns:
            {"env_runners": {…}} as `rllib_dt.runtime.evaluation.summarize` describes it, and
            `num_updates_lifetime` there: the update that the weights come from.
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
        snapshot = self._take_snapshot() if parallel_train_future is None else self._snapshot
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

    def _take_snapshot(self) -> "_Snapshot":
        """The learners' present weights, copied: training may go on meanwhile."""
        state = self.learner_group.get_state(
            components=[f"{COMPONENT_LEARNER}/{c}" for c in (COMPONENT_RL_MODULE, COUNTERS)],
            inference_only=True,
        )[COMPONENT_LEARNER]
        return _Snapshot(
            weights=copy.deepcopy(state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]),
            num_updates=state[COUNTERS]["updates"],
        )

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
            self._check_restored()
        if "metrics_logger" in state:
            self.metrics.set_state(state["metrics_logger"])
        if "training_iteration" in state:
            self._iteration = state["training_iteration"]

    @override(Algorithm)
    def save_to_path(
        self,
        path: str | Path | None = None,
        *,
        state: Any = None,
        filesystem: Any = None,
        use_msgpack: bool = False,
    ) -> str:
        """Saves a checkpoint, which appears under `path` as a whole or not at all.

        Raises:
            CheckpointError: it could not be written; what was there before is unharmed.
        """
        if path is None:
            path = Path(tempfile.mkdtemp(prefix="dt-")) / "checkpoint"
        path = str(path) if filesystem is not None else checkpoints.absolute(path)
        try:
            with checkpoints.writing(path, filesystem) as draft:
                super().save_to_path(draft, state=state, use_msgpack=use_msgpack)
        except checkpoints.CheckpointError:
            # RLlib leaves a learner that could not write out of every later call
            recall_learners(self.learner_group)
            raise
        return path

    @override(Algorithm)
    def restore_from_path(
        self, path: Any, *, component: str | None = None, filesystem: Any = None, **kwargs: Any
    ) -> None:
        """Restores from a checkpoint, or a component of one.

        Raises:
            CheckpointError: a file of it is missing, cut or changed; nothing was restored.
        """
        if filesystem is None:
            path = checkpoints.absolute(path)
        if component is None:
            checkpoints.verify(path, filesystem)
        Checkpointable.restore_from_path(
            self, path, component=component, filesystem=filesystem, **kwargs
        )
        self._check_restored()
        self._awaits_restore = False

    def _check_restored(self) -> None:
        # RLlib says nothing of a learner that could not take its state on; it leaves it out
        on_every_learner(self.learner_group, lambda learner: None)

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> "DT":
        """A new `DT` from a checkpoint (a path, a URI or a `ray.tune.Checkpoint`).

        Raises:
            CheckpointError: a file of it is missing, cut or changed.
        """
        if not isinstance(path, str | Path):
            path, filesystem = path.path, filesystem or path.filesystem
        if filesystem is None:
            path = checkpoints.absolute(path)
        checkpoints.verify(path, filesystem)
        algo: DT = super().from_checkpoint(path, filesystem=filesystem, **kwargs)
        return algo

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule | None:
        """A copy of the module with the learners' present weights, in eval mode."""
        spec = self.config.get_multi_rl_module_spec(
            spaces=self._spaces_by_module(), inference_only=True
        )
        if module_id not in spec.rl_module_specs:
            return None
        module = spec.rl_module_specs[module_id].build()
        module.set_state(self._take_snapshot().weights)
        return module.eval()

    def _spaces_by_module(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    weights: Any
    num_updates: int
