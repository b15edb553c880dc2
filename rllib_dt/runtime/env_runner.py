"""The evaluation's env runner: runs (target, seed) jobs, each to its end."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_dt.runtime.compat import env_creator, notify_environment_created
from rllib_dt.runtime.connector import TARGET_RETURN
from rllib_dt.runtime.evaluation import EpisodeResult, EvaluationJob

_VECTOR_ENVS = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}


class DTEnvRunner(SingleAgentEnvRunner):
    """Runs evaluation jobs on a vector of environments that it resets itself.

    Without gymnasium's autoreset each job starts from its own seed, no step is fed between two
    episodes, and what an environment gives does not depend on its neighbours: any number of
    environments and runners yields the same episodes.
    """

    env: Any
    module: Any
    _ongoing_episodes: list[Any]

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        if self.env is not None:
            self.env.close()
        context = EnvContext(
            self.config.env_config, worker_index=self.worker_index, num_workers=self.num_workers
        )
        create = env_creator(self.config)
        make = _VECTOR_ENVS[str(self.config.gym_env_vectorize_mode).lower()]
        self.num_envs = self.config.num_envs_per_env_runner
        vector = make(
            [lambda: create(context)] * self.num_envs, autoreset_mode=AutoresetMode.DISABLED
        )
        self.env = DictInfoToList(vector)
        self._needs_initial_reset = True
        notify_environment_created(self, context)

    def run_jobs(self, jobs: Sequence[EvaluationJob], weights: Any = None) -> list[EpisodeResult]:
        """Runs every job to its end, in as many environments as there are.

        Args:
            jobs: the episodes to run.
            weights: a module state to take on first, whatever the runner had before.
        """
        if weights is not None:
            self.module.set_state(weights)
        pending = deque(jobs)
        running: dict[int, EvaluationJob] = {}
        results: list[EpisodeResult] = []
        self._ongoing_episodes = [None] * self.num_envs
        ended = np.ones(self.num_envs, bool)
        while pending or running:
            started = {}
            for slot in range(self.num_envs):
                if slot not in running and pending:
                    started[slot] = running[slot] = pending.popleft()
            if ended.any():
                self._reset(ended, started)
            ended = self._step(sorted(running))
            for slot in sorted(running):
                if ended[slot]:
                    results.append(self._finish(slot, running.pop(slot)))
        # the next stock `sample()` call must not go on with these environments
        self._needs_initial_reset = True
        return results

    def _reset(self, ended: np.ndarray, started: dict[int, EvaluationJob]) -> None:
        """Resets every environment that has ended; those that start a job with its seed."""
        for slot, job in started.items():
            episode = SingleAgentEpisode(
                observation_space=self.env.single_observation_space,
                action_space=self.env.single_action_space,
            )
            episode.custom_data[TARGET_RETURN] = job.target
            self._ongoing_episodes[slot] = episode
            self._make_on_episode_callback("on_episode_created", slot, self._ongoing_episodes)
        seeds = [started[i].seed if i in started else None for i in range(self.num_envs)]
        observations, infos = self.env.reset(seed=seeds, options={"reset_mask": ended.copy()})
        for slot in started:
            self._ongoing_episodes[slot].add_env_reset(
                observation=observations[slot], infos=infos[slot] if infos else {}
            )
            self._make_on_episode_callback("on_episode_start", slot, self._ongoing_episodes)

    def _step(self, slots: list[int]) -> np.ndarray:
        """One step of the environments; (num_envs,) bool, which of them have ended."""
        actions, actions_for_env = self._compute_actions(slots)
        everyone = np.stack([self._idle_action()] * self.num_envs)
        everyone[slots] = actions_for_env
        observations, rewards, terminateds, truncateds, infos = self.env.step(everyone)
        for row, slot in enumerate(slots):
            self._ongoing_episodes[slot].add_env_step(
                observation=observations[slot],
                action=actions[row],
                reward=rewards[slot],
                infos=infos[slot] if infos else {},
                terminated=terminateds[slot],
                truncated=truncateds[slot],
            )
            self._make_on_episode_callback("on_episode_step", slot, self._ongoing_episodes)
        ended: np.ndarray = np.logical_or(terminateds, truncateds)
        return ended

    def _compute_actions(self, slots: list[int]) -> tuple[np.ndarray, np.ndarray]:
        episodes = [self._ongoing_episodes[slot] for slot in slots]
        explore = self.config.explore
        # one dict for both: the first pipeline leaves there how the second takes batches apart
        shared: dict[str, Any] = {
            "rl_module": self.module,
            "episodes": episodes,
            "explore": explore,
            "shared_data": {},
        }
        to_module = self._env_to_module(batch={}, **shared)
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        to_env = self._module_to_env(batch=forward(to_module), **shared)
        actions = to_env[Columns.ACTIONS]
        return actions, to_env.get(Columns.ACTIONS_FOR_ENV, actions)

    def _idle_action(self) -> np.ndarray:
        """Some legal action, for environments that have no job left."""
        space = self.env.single_action_space
        if isinstance(space, gym.spaces.Discrete):
            return np.asarray(space.start, space.dtype)
        return np.asarray(space.low)

    def _finish(self, slot: int, job: EvaluationJob) -> EpisodeResult:
        self._make_on_episode_callback("on_episode_end", slot, self._ongoing_episodes)
        episode = self._ongoing_episodes[slot]
        return EpisodeResult(
            job=job, episode_return=float(episode.get_return()), length=len(episode)
        )
