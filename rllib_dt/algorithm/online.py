"""`OnlineAlgorithm`: goes on from offline training with episodes that its own policy plays.

One iteration plays some episodes with the sampled policy at an exploration target, puts them into
the replay, whose returns are those achieved, and trains on it (Online DT: Zheng et al. 2022,
arXiv:2202.05607). Runners, learners, checkpoints and results are those of the offline phase.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN

from rllib_dt.algorithm.evaluation import MeasuredAlgorithm
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.replay import Replay
from rllib_dt.episodes.samplers import Draws
from rllib_dt.episodes.targets import target_value
from rllib_dt.episodes.windows import OUTCOMES, REWARDS
from rllib_dt.reading.supply import ResidentSupply, Supply
from rllib_dt.rollout.dispatch import run_jobs
from rllib_dt.rollout.jobs import Outcome, Recording, make_jobs
from rllib_dt.rollout.results import report_failures
from rllib_dt.spaces.composites import stacked_leaves
from rllib_dt.types import State

logger = logging.getLogger(__name__)

_ONLINE = "dt_online"
"""The part of an algorithm's state with the replay."""

_NO_ROUNDS = {"rounds": 0, "episodes": 0, "env_steps": 0}

_STREAM = 2
"""What tells the seeds of exploration from those of evaluation."""


class OnlineAlgorithm(MeasuredAlgorithm):
    """An algorithm that may play episodes of its own once its offline phase is over.

    Attributes:
        replay: the episodes that the online phase trains on; empty before it begins.
    """

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        self.replay = Replay(self.config.buffer_episodes)
        self._online = dict(_NO_ROUNDS)
        self._returns: tuple[float, float] | None = None
        super().setup(config)

    @property
    def is_online(self) -> bool:
        """Whether the next iteration plays episodes."""
        config = self.config
        is_asked_for = config.rollouts_per_iteration is not None
        return is_asked_for and self.num_updates >= config.offline_updates

    def collect(self) -> Supply:
        """Plays one round of episodes, adds them to the replay, and returns a supply of it."""
        config = self.config
        assert config.rollouts_per_iteration is not None
        if not len(self.replay):
            self._begin()
        seed = self._seed_of_round()
        outcome = run_jobs(
            self.eval_env_runner_group,
            make_jobs([self.exploration_target], config.rollouts_per_iteration, seed),
            self.take_snapshot().weights,
            call_timeout=self.evaluation_config.evaluation_sample_timeout_s,
            recording=Recording(temperature=config.exploration_temperature, seed=seed),
        )
        report_failures(outcome, "online")
        self._take([r.episode for r in outcome.results if r.episode is not None])
        self._online["rounds"] += 1
        self._online["episodes"] += len(outcome.results)
        self._online["env_steps"] += sum(result.length for result in outcome.results)
        self._log_round(outcome)
        return self._supply()

    def _begin(self) -> None:
        """Fills the replay with the best recorded episodes, if there are any."""
        if self.offline_data.is_missing:
            logger.warning("there is no recorded data: the replay begins empty")
            return
        recorded = self.offline_data.best_episodes(self.config.buffer_episodes)
        self.replay.begin(recorded)
        self._seen(self.offline_data.supply.return_range)

    def _take(self, episodes: Sequence[Episode]) -> None:
        """Adds what was played to the replay.

        Raises:
            RuntimeError: none of the round's episodes can be trained on.
        """
        taken = 0
        for episode in episodes:
            try:
                pool = self._relabelled(episode)
            except DataError as error:
                logger.error("an episode is left out of the replay: %s", error)
                continue
            self.replay.extend([pool])
            self._seen((float(pool.targets[0]),) * 2)
            taken += 1
        if not taken:
            raise RuntimeError(
                "no episode of the round could be finished and trained on; the errors are above"
            )

    def _seen(self, returns: tuple[float, float]) -> None:
        """Widens the range of returns, which never narrows: gaps would jump."""
        least, most = self._returns or returns
        self._returns = min(least, returns[0]), max(most, returns[1])

    @property
    def exploration_target(self) -> float:
        """What exploration asks for; the first target of evaluation by default."""
        asked = self.config.exploration_target
        return self.target_returns[0] if asked is None else target_value(asked)

    def _seed_of_round(self) -> int:
        seed = self.config.seed
        entropy = None if seed is None else (seed, _STREAM, self._online["rounds"])
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _relabelled(self, episode: Episode) -> EpisodePool:
        """Returns an episode as training sees it, with the returns that it achieved."""
        config, most = self.config, self.config.dt_model_config.max_ep_len
        if len(episode) > most:
            raise episode.error(
                f"it has {len(episode)} steps, max_ep_len is {most}",
                "set a time limit in the environment, or a larger max_ep_len for a new run",
            )
        ignore = config.dt_model_config.ignore
        stacked = tuple(stacked_leaves(config.observation_space, config.frame_stack, ignore))
        checked = episode.conform(
            config.observation_space, config.action_space, stacked=stacked, ignore=ignore
        )
        return EpisodePool.from_episodes(
            [checked], config.return_rule, stacked=stacked, outcomes=config.reads_outcomes
        )

    def _supply(self) -> Supply:
        pool = self.replay.pool()
        assert self._returns is not None
        return ResidentSupply(
            pool=ray.put(pool),
            draws=Draws(
                window_length=self.config.dt_model_config.window_length,
                batch_size=self.config.windows_per_learner,
                seed=self.offline_data.sampling_seed,
            ),
            num_steps=len(pool),
            return_range=self._returns,
            generation=self._online["rounds"],
        )

    def _log_round(self, outcome: Outcome) -> None:
        results = outcome.results
        values: dict[str, float] = {
            "num_episodes": len(results),
            "num_episodes_failed": len(outcome.failures),
            "num_env_steps_sampled": sum(r.length for r in results),
            "num_episodes_lifetime": self._online["episodes"],
            "num_env_steps_sampled_lifetime": self._online["env_steps"],
            "replay_episodes": len(self.replay),
        }
        if results:
            values[EPISODE_RETURN_MEAN] = float(np.mean([r.episode_return for r in results]))
            values[EPISODE_LEN_MEAN] = float(np.mean([r.length for r in results]))
        custom = self.take_custom_metrics()  # else the next evaluation would have them
        values |= {k: v for k, v in custom.items() if isinstance(v, Real) and k not in values}
        self._log_played(values)

    def log_no_round(self) -> None:
        """Logs that nothing was played yet: Tune ends a search whose metric is missing."""
        if self.config.rollouts_per_iteration is not None:
            self._log_played({EPISODE_RETURN_MEAN: math.nan, EPISODE_LEN_MEAN: math.nan})

    def _log_played(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.metrics.log_value((ENV_RUNNER_RESULTS, name), value, reduce="mean", window=1)

    # --- state

    @override(Algorithm)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> State:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_ONLINE, components, not_components):
            state[_ONLINE] = {
                "counts": dict(self._online),
                "returns": self._returns,
                "replay": self.replay.state(),
            }
        return state

    @override(Algorithm)
    def set_state(self, state: State) -> None:
        super().set_state(state)
        if "training_iteration" not in state:  # a part of a state
            return
        online = state.get(_ONLINE, {"counts": _NO_ROUNDS, "returns": None, "replay": {}})
        self._online, self._returns = dict(online["counts"]), online["returns"]
        replay = online["replay"]
        columns = replay.get("columns", {})
        if self.config.reads_outcomes and columns and REWARDS not in columns:
            logger.warning(
                "the replay was saved without rewards, which q_weight reads; it begins anew"
            )
            replay = {}
        elif not self.config.reads_outcomes and columns:
            read = {name: column for name, column in columns.items() if name not in OUTCOMES}
            replay = {**replay, "columns": read}
        self.replay.set_state(replay)
