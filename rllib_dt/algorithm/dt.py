"""`DT`: the Decision Transformer as an RLlib algorithm."""

import logging
from pathlib import Path
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_RETURN_MEAN,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)
from ray.tune import PlacementGroupFactory

from rllib_dt.algorithm.checks import evaluation_env
from rllib_dt.algorithm.compatibility import MODULE, check_same_network
from rllib_dt.algorithm.config import DTConfig
from rllib_dt.algorithm.environment import awaits_spaces, completed_config
from rllib_dt.algorithm.evaluation import VALIDATION_RESULTS
from rllib_dt.algorithm.online import OnlineAlgorithm
from rllib_dt.algorithm.resources import check_gpu, check_resources
from rllib_dt.compat import check_learners, on_every_learner, repair_msgpack
from rllib_dt.episodes.targets import target_value
from rllib_dt.formats.paths import exists
from rllib_dt.learning.critic_phase import LearnCritic
from rllib_dt.learning.initial_weights import (
    Normalize,
    SetStatistics,
    TakeOver,
    change_networks,
    specs_with_state,
)
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.validation import Validation
from rllib_dt.policy.folders import has_normalization
from rllib_dt.reading.offline_data import is_restoring
from rllib_dt.types import State

logger = logging.getLogger(__name__)


class DT(OnlineAlgorithm):
    """The Decision Transformer (Chen et al. 2021, arXiv:2106.01345); `DTConfig` builds it.

    Attributes:
        offline_data: the `DTOfflineData`; its `summary` describes what was read.
        target_returns, validation: see `MeasuredAlgorithm`.
    """

    config: DTConfig

    _progress_metrics = (  # the columns of Tune's tables
        f"{LEARNER_RESULTS}/{DEFAULT_MODULE_ID}/action_loss",
        f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/{EPISODE_RETURN_MEAN}",
        f"{VALIDATION_RESULTS}/action_loss",
        f"{LEARNER_RESULTS}/{DEFAULT_MODULE_ID}/num_updates_lifetime",
    )

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
        repair_msgpack()  # a recording algorithm in this process may have spoiled it
        self._is_stopped = self._awaits_restore = False
        if evaluation_env(self.config) is not None or awaits_spaces(self.config):
            self.config = completed_config(self.config)
            self.config.validate()
            self.config.freeze()
        check_gpu(self.config)
        self._check_state_paths()
        if ray.util.get_current_placement_group() is None:  # in a trial, Tune has checked
            # this process reserves nothing
            _, *others = self._resources(self.config).bundles
            check_resources(others, "the learners and evaluation runners")
        super().setup(self.config)
        data = self.offline_data
        # the settings of evaluation: `evaluation_config` may override any of them
        targets = self.evaluation_config.target_returns
        self.validation = None
        seed = data.sampling_seed
        on_every_learner(self.learner_group, lambda learner: learner.adopt_seed(seed))
        if data.is_missing:
            self.target_returns = [target_value(t) for t in targets or ()]
            self._awaits_restore = True
            if self.config.is_without_data:
                self._take_over()
            return
        self.target_returns = [target_value(t) for t in targets or data.derived_targets]
        logger.info("target returns: %s", self.target_returns)
        self.validation = self._validation()
        if specs_with_state(self.config.rl_module_spec):
            logger.info("weights and normalisation are those of load_state_path")
        elif self.config.dt_model_config.pretrained is None:
            logger.info("return scale: %g", data.normalization.return_scale)
            change_networks(self.learner_group, Normalize(data.normalization))
            self._set_statistics()
        else:
            self._take_over()

    def _take_over(self) -> None:
        """Takes weights and normalisation of a pretrained folder."""
        config, folder = self.config, str(self.config.dt_model_config.pretrained)
        # the folder may be gone, but a checkpoint of a run that started from it has the weights
        self._awaits_restore = not Path(folder).is_dir()
        if self._awaits_restore:
            return
        weights = TakeOver(folder, config.return_scale, config.action_space)
        change_networks(self.learner_group, weights)
        logger.info("weights and normalisation are those of %s", folder)
        if not has_normalization(folder) and config.observation_mean is None:
            logger.warning(
                "%s holds no statistics: observations are given to the network as they are; set "
                "training(observation_mean=…, observation_std=…) if its training normalised them",
                folder,
            )
        self._set_statistics()

    def _set_statistics(self) -> None:
        mean, std = self.config.observation_mean, self.config.observation_std
        if mean is not None or std is not None:
            change_networks(self.learner_group, SetStatistics(mean, std))

    def _check_state_paths(self) -> None:
        """Refuses states that are not there, or are of another network.

        When restoring, one that is gone is not needed: the checkpoint has the weights.
        """
        specs = self.config.rl_module_spec  # a copy
        for spec in specs_with_state(specs):
            path = str(spec.load_state_path)
            if exists(path):
                check_same_network(path, None, MODULE, self.config)
                continue
            if not is_restoring():
                raise FileNotFoundError(
                    f"RLModuleSpec(load_state_path={path!r}) does not exist; give the folder "
                    f"{MODULE} of a checkpoint"
                )
            logger.warning("%s is gone; the weights are the checkpoint's", path)
            spec.load_state_path = None
            self._awaits_restore = True
        if self._awaits_restore:
            self.config = self.config.copy(copy_frozen=False).rl_module(rl_module_spec=specs)
            self.config.freeze()

    def _validation(self) -> Validation | None:
        pool = self.offline_data.validation
        if pool is None:
            return None
        return Validation(
            pool,
            window_length=self.config.dt_model_config.window_length,
            batch_size=self.config.windows_at_a_time or self.config.windows_per_learner,
            metric_names=on_every_learner(self.learner_group, _metric_names)[0],
        )

    @override(Algorithm)
    def training_step(self) -> None:
        config = self.config
        if self._is_stopped:
            raise RuntimeError(
                "this algorithm was stopped; build another, or restore one with DT.from_checkpoint"
            )
        self._check_weights()
        check_learners(self.learner_group)
        self.trains_policy = not self._learn_critic()
        if not self.trains_policy:
            self.log_no_round()
            return
        updates = config.dataset_num_iters_per_learner
        if self.is_online:
            data_iterators = [self.collect()] * max(1, config.num_learners)
            updates = config.updates_per_iteration
        else:
            self.log_no_round()
            data_iterators = self.offline_data.sample(
                config.train_batch_size_per_learner, num_shards=config.num_learners
            )
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                training_data=TrainingData(data_iterators=data_iterators),
                minibatch_size=config.train_batch_size_per_learner,
                num_iters=updates,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        key = (LEARNER_RESULTS, DEFAULT_MODULE_ID, "num_steps_trained_lifetime")
        lifetime = int(self.metrics.peek(key))
        new, self._steps_seen = lifetime - self._steps_seen, lifetime
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, new, reduce="lifetime_sum")

    def _learn_critic(self) -> bool:
        """Learns some more of the critic; returns whether the policy has to wait for it."""
        config, data = self.config, self.offline_data
        if not config.q_weight or self._critic_is_done():
            return False
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            learn = LearnCritic(data.critic_supply(), config.critic_updates_per_iteration)
            results = on_every_learner(self.learner_group, learn)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0, reduce="lifetime_sum")
        if self._critic_is_done():
            data.stop_critic_supply()
        return True

    def _critic_is_done(self) -> bool:
        return all(on_every_learner(self.learner_group, _critic_is_done))

    @override(Algorithm)
    def cleanup(self) -> None:
        super().cleanup()
        self._is_stopped = True
        if getattr(self, "offline_data", None) is not None:  # setting up may have failed
            self.offline_data.stop()

    # --- weights from a folder that may be gone

    def _check_weights(self) -> None:
        if self._awaits_restore:
            if self.offline_data.is_missing and not self.config.is_without_data:
                raise FileNotFoundError(
                    "the training data is missing, and no checkpoint was restored: there are no "
                    "weights to continue with"
                )
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


def _critic_is_done(learner: DTTorchLearner) -> bool:
    return learner.critic_phase is None or learner.critic_phase.is_done


def _metric_names(learner: DTTorchLearner) -> tuple[str, ...]:
    return learner.network.action_head.metric_names
