"""`DTEnvRunner`: runs an evaluation's (target, seed) jobs, each to its end."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.numpy import convert_to_numpy

from rllib_dt.compat import env_creator, notify_environment_created
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.policy.context import ASKED_RETURNS
from rllib_dt.rollout.connector import TARGET_RETURN
from rllib_dt.rollout.environments import SLOT_ENVS, SlotEnvs, SlotFailure
from rllib_dt.rollout.jobs import (
    Alive,
    EpisodeFailure,
    EpisodeResult,
    EvaluationJob,
    Recording,
    RunnerEvent,
)
from rllib_dt.spaces.trees import flatten, known_leaves, rows, stacked, unflatten
from rllib_dt.threads import use_reserved_cpus
from rllib_dt.types import State, Value

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 120.0
"""How long a restarted runner keeps trying to create its environments."""

_PAUSE_SECONDS = 2.0

_KEPT = (ASKED_RETURNS, Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP)
"""What episodes keep of each step's outputs of the module, besides the action."""


class DTEnvRunner(SingleAgentEnvRunner):
    """Runs evaluation jobs on environments that it resets itself, slot by slot.

    Each job starts from its own seed, no step is taken between two episodes, and no environment
    influences another, so any number of environments and runners yields the same episodes. It runs
    only jobs; `sample()` is for online algorithms.
    """

    env: Any
    module: Any
    _ongoing_episodes: list[SingleAgentEpisode]
    _drawn_by: tuple[int | None, torch.Generator | None] = (None, None)

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        if self.worker_index:  # otherwise the process is the driver's
            use_reserved_cpus()
        if self.env is not None:
            self.env.close()
        context = EnvContext(
            self.config.env_config, worker_index=self.worker_index, num_workers=self.num_workers
        )
        create = env_creator(self.config)
        self.num_envs = self.config.num_envs_per_env_runner
        kind = SLOT_ENVS[str(self.config.gym_env_vectorize_mode).lower()]
        makers = [lambda: create(context)] * self.num_envs
        timeout, space = self.config.evaluation_sample_timeout_s, self.config.observation_space
        self._slots = _patiently(lambda: kind(makers, timeout, space))
        self.env = self._slots.vector
        notify_environment_created(self, context)

    @override(SingleAgentEnvRunner)
    def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        raise NotImplementedError("DTEnvRunner runs evaluation jobs; see `run_jobs`")

    def run_jobs(
        self,
        jobs: Sequence[EvaluationJob],
        weights: State = None,
        *,
        at_once: int | None = None,
        recording: Recording | None = None,
    ) -> Iterator[RunnerEvent]:
        """Runs every job to its end, each environment one job at a time.

        Args:
            jobs: the episodes to run.
            weights: a module state to load first; None keeps the current one.
            at_once: the most episodes to run at a time; by default one in each environment.
            recording: record the episodes, with actions that are drawn.

        Yields:
            Each job's result or failure as soon as it is known, and signs of life in between.
        """
        if weights is not None:
            self.module.set_state(weights)
        # otherwise RLlib would set the mode and restore it at every step
        self.module.eval()
        self._recording = recording
        temperature = self.config.temperature
        self._explores = self.config.explore if temperature is None else temperature > 0
        self.module.temperature, self.module.generator = temperature or 1.0, None
        if recording is not None:
            self._explores, self.module.temperature = True, recording.temperature
            if recording.seed != self._drawn_by[0]:  # further jobs of a round draw on
                self._drawn_by = recording.seed, self._generator(recording.seed)
            self.module.generator = self._drawn_by[1]
        pending = deque(jobs)
        running: dict[int, EvaluationJob] = {}
        usable = list(range(self.num_envs))
        self._ongoing_episodes = [None] * self.num_envs
        clock = _Clock()
        while pending or running:
            free = [slot for slot in usable if slot not in running]
            room = (at_once or self.num_envs) - len(running)
            started = {slot: pending.popleft() for slot in free[: min(room, len(pending))]}
            running |= started
            if started or clock.has_ticked():
                yield Alive(running=list(running.values()))
            for slot, failure in self._start(started):
                if failure is not None and failure.unmade and len(usable) > 1:
                    # the slot would fail job after job, faster than other slots finish theirs
                    usable.remove(slot)
                    pending.appendleft(running.pop(slot))
                elif failure is not None:
                    yield EpisodeFailure(job=running.pop(slot), error=failure.error)
                if clock.has_ticked():
                    yield Alive(running=list(running.values()))
            for slot, end in self._step(sorted(running)):
                if isinstance(end, SlotFailure):
                    yield EpisodeFailure(job=running.pop(slot), error=end.error)
                elif end:
                    yield self._finish(slot, running.pop(slot))
                if clock.has_ticked():
                    yield Alive(running=list(running.values()))

    def _start(self, jobs: dict[int, EvaluationJob]) -> Iterator[tuple[int, SlotFailure | None]]:
        """Begins the jobs' episodes in their slots."""
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
        for slot, start in self._slots.reset({slot: job.seed for slot, job in jobs.items()}):
            if isinstance(start, SlotFailure):
                yield slot, start
                continue
            self._ongoing_episodes[slot].add_env_reset(
                observation=start.observation, infos=start.info
            )
            self._make_on_episode_callback("on_episode_start", slot, self._ongoing_episodes)
            yield slot, None

    def _step(self, slots: list[int]) -> Iterator[tuple[int, bool | SlotFailure]]:
        """Steps the slots' environments; yields for each slot whether its episode has ended."""
        if not slots:
            return
        actions, for_env, extra = self._compute_actions(slots)
        taken = dict(zip(slots, actions, strict=True))
        outputs = dict(zip(slots, extra, strict=True))
        for slot, result in self._slots.step(dict(zip(slots, for_env, strict=True))):
            if isinstance(result, SlotFailure):
                yield slot, result
                continue
            self._ongoing_episodes[slot].add_env_step(
                observation=result.observation,
                action=taken[slot],
                reward=result.reward,
                infos=result.info,
                terminated=result.terminated,
                truncated=result.truncated,
                extra_model_outputs=outputs[slot],
            )
            self._make_on_episode_callback("on_episode_step", slot, self._ongoing_episodes)
            yield slot, result.ended

    def _compute_actions(
        self, slots: list[int]
    ) -> tuple[list[Value], list[Value], list[dict[str, Any] | None]]:
        """Returns the slots' actions as the module made them and as environments get them.

        Beside them is what episodes keep of the module's other outputs.
        """
        explore = self._explores
        # one dict for both pipelines: the first stores in it how the second splits batches
        shared: dict[str, Any] = {
            "rl_module": self.module,
            "episodes": [self._ongoing_episodes[slot] for slot in slots],
            "explore": explore,
            "shared_data": {},
        }
        to_module = self._env_to_module(batch={}, **shared)
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        outputs = forward(to_module)
        if not explore:  # nothing was drawn from it
            outputs.pop(Columns.ACTION_DIST_INPUTS, None)
        kept = convert_to_numpy({n: outputs.pop(n) for n in _KEPT if n in outputs})
        extra = [{n: values[i] for n, values in kept.items()} or None for i in range(len(slots))]
        to_env = self._module_to_env(batch=outputs, **shared)
        actions = to_env[Columns.ACTIONS]
        taken = self._split(actions, len(slots))
        for_env = to_env.get(Columns.ACTIONS_FOR_ENV)
        return taken, taken if for_env is None else self._split(for_env, len(slots)), extra

    def _split(self, actions: Value, count: int) -> list[Value]:
        space = self.env.single_action_space
        return [unflatten(space, row) for row in rows(space, actions, count)]

    def _finish(self, slot: int, job: EvaluationJob) -> EpisodeResult | EpisodeFailure:
        self._make_on_episode_callback("on_episode_end", slot, self._ongoing_episodes)
        episode = self._ongoing_episodes[slot]
        try:
            recorded = None if self._recording is None else self._recorded(episode, job)
        except DataError as error:  # a reward that is not finite, say
            return EpisodeFailure(job=job, error=str(error))
        return EpisodeResult(
            job=job,
            episode_return=float(episode.get_return()),
            length=len(episode),
            episode=recorded,
        )

    def _recorded(self, episode: SingleAgentEpisode, job: EvaluationJob) -> Episode:
        """Returns what happened; a truncated episode has not terminated."""
        observes, acts = self.env.single_observation_space, self.env.single_action_space
        ignore = self.config.dt_model_config.ignore
        observed = [
            flatten(observes, known_leaves(observes, seen), ignore)
            for seen in episode.get_observations()
        ]
        acted = [flatten(acts, taken) for taken in episode.get_actions()]
        return Episode(
            id=f"seed {job.seed}",
            source="online",
            observations=stacked(observed),
            actions=stacked(acted),
            rewards=np.asarray(episode.get_rewards(), np.float64),
            terminated=episode.is_terminated,
            truncated=episode.is_truncated,
        )

    def _generator(self, seed: int) -> torch.Generator:
        device = next(self.module.parameters()).device
        return torch.Generator(device).manual_seed(seed + self.worker_index)


def _patiently(make: Callable[[], SlotEnvs]) -> SlotEnvs:
    """Creates the environments; a runner that Ray has restarted keeps trying for a while.

    Ray does not restart a process whose constructor raised, and what an environment lacks (a
    licence, a port, memory) may become available again.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return make()
        except Exception:
            context = ray.get_runtime_context()
            restarted = context.get_actor_id() and context.was_current_actor_reconstructed
            if not restarted or time.monotonic() > until:  # at set-up an error is raised at once
                raise
            logger.exception("the environment could not be created; trying again")
            time.sleep(_PAUSE_SECONDS)


class _Clock:
    """Ticks once a second."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def has_ticked(self) -> bool:
        now = time.monotonic()
        if now - self._last < 1.0:
            return False
        self._last = now
        return True
