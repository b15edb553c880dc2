"""The evaluation's env runner: runs (target, seed) jobs, each to its end."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_dt.runtime.compat import env_creator, notify_environment_created
from rllib_dt.runtime.connector import TARGET_RETURN
from rllib_dt.runtime.evaluation import EpisodeResult, EvaluationJob
from rllib_dt.runtime.slots import SLOT_ENVS


class DTEnvRunner(SingleAgentEnvRunner):
    """Runs evaluation jobs on environments that it resets itself, slot by slot.

    Each job starts from its own seed, no step is fed between two episodes, and what an
    environment gives does not depend on its neighbours: any number of environments and runners
    yields the same episodes. It is for jobs only: `sample()` belongs to online algorithms.
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
        self.num_envs = self.config.num_envs_per_env_runner
        kind = SLOT_ENVS[str(self.config.gym_env_vectorize_mode).lower()]
        self._slots = kind([lambda: create(context)] * self.num_envs)
        self.env = self._slots.vector
        notify_environment_created(self, context)

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        raise NotImplementedError("DTEnvRunner runs evaluation jobs; see `run_jobs`")

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
        while pending or running:
            free = [slot for slot in range(self.num_envs) if slot not in running]
            started = {slot: pending.popleft() for slot in free[: len(pending)]}
            self._start(started)
            running |= started
            for slot in self._step(sorted(running)):
                results.append(self._finish(slot, running.pop(slot)))
        return results

    def _start(self, jobs: dict[int, EvaluationJob]) -> None:
        for slot, job in jobs.items():
            episode = SingleAgentEpisode(
                observation_space=self.env.single_observation_space,
                action_space=self.env.single_action_space,
            )
            episode.custom_data[TARGET_RETURN] = job.target
            self._ongoing_episodes[slot] = episode
            self._make_on_episode_callback("on_episode_created", slot, self._ongoing_episodes)
        if not jobs:
            return
        starts = self._slots.reset({slot: job.seed for slot, job in jobs.items()})
        for slot, (observation, info) in starts.items():
            self._ongoing_episodes[slot].add_env_reset(observation=observation, infos=info)
            self._make_on_episode_callback("on_episode_start", slot, self._ongoing_episodes)

    def _step(self, slots: list[int]) -> list[int]:
        """One step of the slots' environments; those whose episodes have ended."""
        actions, for_env = self._compute_actions(slots)
        results = self._slots.step(dict(zip(slots, for_env, strict=True)))
        for slot, action in zip(slots, actions, strict=True):
            result = results[slot]
            self._ongoing_episodes[slot].add_env_step(
                observation=result.observation,
                action=action,
                reward=result.reward,
                infos=result.info,
                terminated=result.terminated,
                truncated=result.truncated,
            )
            self._make_on_episode_callback("on_episode_step", slot, self._ongoing_episodes)
        return [slot for slot in slots if results[slot].ended]

    def _compute_actions(self, slots: list[int]) -> tuple[Any, Any]:
        """(len(slots), …) actions as the module gave them, and as the environments get them."""
        explore = self.config.explore
        # one dict for both: the first pipeline leaves there how the second takes batches apart
        shared: dict[str, Any] = {
            "rl_module": self.module,
            "episodes": [self._ongoing_episodes[slot] for slot in slots],
            "explore": explore,
            "shared_data": {},
        }
        to_module = self._env_to_module(batch={}, **shared)
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        to_env = self._module_to_env(batch=forward(to_module), **shared)
        actions = to_env[Columns.ACTIONS]
        return actions, to_env.get(Columns.ACTIONS_FOR_ENV, actions)

    def _finish(self, slot: int, job: EvaluationJob) -> EpisodeResult:
        self._make_on_episode_callback("on_episode_end", slot, self._ongoing_episodes)
        episode = self._ongoing_episodes[slot]
        return EpisodeResult(
            job=job, episode_return=float(episode.get_return()), length=len(episode)
        )
