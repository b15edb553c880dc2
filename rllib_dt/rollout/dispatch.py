"""Sends evaluation jobs to runners, and survives the runners' failures."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from rllib_dt.compat import runner_actors, set_runner_health
from rllib_dt.rollout.jobs import (
    Alive,
    EpisodeFailure,
    EpisodeResult,
    EvaluationJob,
    Outcome,
    Recording,
    RunnerEvent,
)
from rllib_dt.types import ActorHandle, EnvRunnerGroup, State

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
"""How many runners may die while running one job; the second attempt runs alone."""

MAX_UNHEARD = 3
"""How many runners may die without an answer to one job, before it runs alone."""

_RESTART_SECONDS = 300.0
"""How long to wait for a restart if no runner is left, and for a first sign of life."""

_GRACE_SECONDS = 15.0
"""Added to the time limit of an environment's call before a silent runner is killed."""

_PROBE_SECONDS = 0.5
"""Pause between two checks whether a lost runner has restarted."""


def run_jobs(
    group: EnvRunnerGroup,
    jobs: Sequence[EvaluationJob],
    weights: State,
    *,
    call_timeout: float | None = None,
    recording: Recording | None = None,
) -> Outcome:
    """Runs every job; if a runner dies or hangs, the others take over its jobs.

    Args:
        group: the `EnvRunnerGroup` of `DTEnvRunner`s.
        jobs: the episodes to run.
        weights: the module state to run them with.
        call_timeout: seconds that an environment's `reset` or `step` may take; a runner that shows
            no sign of life for longer is killed.
        recording: record the episodes, with actions that are drawn; by default they are evaluated.

    Raises:
        RuntimeError: no runner is left, and none restarted in time.
    """
    if group.num_remote_env_runners() == 0:
        return _run_here(group.local_env_runner, jobs, weights, recording)
    return _Dispatch(runner_actors(group), jobs, weights, call_timeout, recording).run(group)


def _run_here(
    runner: ActorHandle,
    jobs: Sequence[EvaluationJob],
    weights: State,
    recording: Recording | None,
) -> Outcome:
    record = _Record(jobs)
    for event in runner.run_jobs(jobs, weights, recording=recording):
        record.take(event)
    return record.outcome()


class _Record:
    """The unfinished jobs, and the results of the others."""

    def __init__(self, jobs: Sequence[EvaluationJob]):
        self._left = {job.index: job for job in jobs}
        self._attempts: Counter[int] = Counter()
        self._unheard: Counter[int] = Counter()
        self._alone: deque[EvaluationJob] = deque()
        self._results: dict[int, EpisodeResult] = {}
        self._failures: dict[int, EpisodeFailure] = {}

    def take(self, event: RunnerEvent) -> None:
        """Records a runner's report on a job, unless the job has already ended."""
        if isinstance(event, Alive) or event.job.index not in self._left:
            return
        del self._left[event.job.index]
        if isinstance(event, EpisodeResult):
            self._results[event.job.index] = event
        else:
            self._failures[event.job.index] = event

    def lose(self, jobs: Iterable[EvaluationJob], error: str) -> None:
        """Reschedules jobs that were running when their runner died, once more and each alone."""
        for job in self.unfinished(jobs):
            self._attempts[job.index] += 1
            if self._attempts[job.index] >= MAX_ATTEMPTS:
                self.take(EpisodeFailure(job=job, error=error))
            else:
                self._alone.append(job)

    def lose_unheard(self, jobs: Sequence[EvaluationJob], error: str) -> list[EvaluationJob]:
        """Returns the jobs to reschedule together after their runner died without an answer.

        The runner may have been dead before, or one of the jobs killed it before it could answer.
        """
        again = []
        for job in self.unfinished(jobs):
            self._unheard[job.index] += 1
            if self._unheard[job.index] < MAX_UNHEARD and len(jobs) > 1:
                again.append(job)
            else:
                self.lose([job], error)
        return again

    def unfinished(self, jobs: Iterable[EvaluationJob]) -> list[EvaluationJob]:
        """Returns the jobs that have not ended."""
        return [job for job in jobs if job.index in self._left]

    def take_alone(self) -> EvaluationJob | None:
        """Takes a job that must run alone, if there is one."""
        while self._alone:
            job = self._alone.popleft()
            if job.index in self._left:
                return job
        return None

    @property
    def num_left(self) -> int:
        """The number of jobs that have not ended."""
        return len(self._left)

    def outcome(self) -> Outcome:
        """Returns all results in the order of the jobs, whichever runner ran them."""
        return Outcome(
            results=[self._results[i] for i in sorted(self._results)],
            failures=[self._failures[i] for i in sorted(self._failures)],
        )


@dataclass
class _Runner:
    actor: ActorHandle
    events: Any = None
    """The stream of events from its current jobs, or None if it is idle."""
    jobs: list[EvaluationJob] = field(default_factory=list)
    running: Sequence[EvaluationJob] = ()
    has_answered: bool = False
    last_sign: float = 0.0
    ping: Any = None
    """A call that returns once the runner has restarted; set while it is thought to be dead."""
    next_probe: float = 0.0
    is_gone: bool = False


class _Dispatch:
    def __init__(
        self,
        actors: dict[int, ActorHandle],
        jobs: Sequence[EvaluationJob],
        weights: State,
        call_timeout: float | None,
        recording: Recording | None,
    ):
        self._recording = recording
        self._runners = {i: _Runner(actor) for i, actor in actors.items()}
        self._record = _Record(jobs)
        self._pending = list(jobs)
        self._weights = ray.put(weights)
        self._patience = None if call_timeout is None else call_timeout + _GRACE_SECONDS

    def run(self, group: EnvRunnerGroup) -> Outcome:
        alone_since = None
        try:
            while self._record.num_left:
                self._hand_out()
                if any(runner.events is not None for runner in self._runners.values()):
                    alone_since = None
                    self._listen()
                else:
                    alone_since = alone_since or time.monotonic()
                    self._wait_for_a_runner(time.monotonic() - alone_since)
                self._probe()
        finally:
            for i, runner in self._runners.items():
                set_runner_health(group, i, healthy=runner.ping is None and not runner.is_gone)
        return self._record.outcome()

    def _hand_out(self) -> None:
        idle = [
            r
            for r in self._runners.values()
            if r.events is None and r.ping is None and not r.is_gone
        ]
        self._pending = self._record.unfinished(self._pending)
        if self._pending:
            shares = [self._pending[n :: len(idle)] for n in range(len(idle))]
            for runner, share in zip(idle, shares, strict=True):
                if share:
                    self._send(runner, share, at_once=None)
            if idle:
                self._pending = []
            return
        for runner in idle:
            job = self._record.take_alone()
            if job is not None:
                self._send(runner, [job], at_once=1)

    def _send(self, runner: _Runner, jobs: list[EvaluationJob], at_once: int | None) -> None:
        runner.events = runner.actor.run_jobs.options(num_returns="streaming").remote(
            jobs, self._weights, at_once=at_once, recording=self._recording
        )
        runner.jobs, runner.running = jobs, ()
        runner.has_answered, runner.last_sign = False, time.monotonic()

    def _listen(self) -> None:
        busy = {r.events: r for r in self._runners.values() if r.events is not None}
        ready, silent = ray.wait(list(busy), num_returns=1, timeout=1.0, fetch_local=False)
        if silent:
            more, silent = ray.wait(silent, num_returns=len(silent), timeout=0, fetch_local=False)
            ready += more
        for events in ready:
            self._hear(busy[events])
        for events in silent:
            runner = busy[events]
            seconds = time.monotonic() - runner.last_sign
            # a runner that has not answered yet may still be starting
            patience = self._patience if runner.has_answered else _RESTART_SECONDS
            if patience is not None and seconds > patience:
                ray.kill(runner.actor, no_restart=False)
                self._lost(runner, f"the environment hangs: no sign of life for {seconds:.0f} s")

    def _hear(self, runner: _Runner) -> None:
        try:
            event = ray.get(next(runner.events))
        except StopIteration:
            runner.events = None
            self._pending += self._record.unfinished(runner.jobs)
            return
        except RayActorError as error:
            self._lost(runner, f"its runner died ({type(error).__name__})")
            return
        except RayTaskError as error:
            raise error.as_instanceof_cause() from None
        runner.has_answered, runner.last_sign = True, time.monotonic()
        if isinstance(event, Alive):
            runner.running = event.running
        self._record.take(event)

    def _lost(self, runner: _Runner, error: str) -> None:
        logger.warning("a runner was lost: %s; the others take over its episodes", error)
        if runner.has_answered:
            under_way = {job.index for job in runner.running}
            self._record.lose(runner.running, error)
            waiting = [job for job in runner.jobs if job.index not in under_way]
            self._pending += self._record.unfinished(waiting)
        else:
            self._pending += self._record.lose_unheard(runner.jobs, error)
        runner.events, runner.running, runner.jobs = None, (), []
        self._ask(runner)

    def _ask(self, runner: _Runner) -> None:
        runner.ping = runner.actor.ping.remote()
        runner.next_probe = time.monotonic() + _PROBE_SECONDS

    def _probe(self) -> None:
        for runner in self._runners.values():
            if runner.ping is None or time.monotonic() < runner.next_probe:
                continue
            ready, _ = ray.wait([runner.ping], timeout=0)
            if not ready:
                continue
            try:
                ray.get(runner.ping)
            except ray.exceptions.ActorDiedError:
                runner.ping, runner.is_gone = None, True
            except RayActorError:
                self._ask(runner)
            else:
                runner.ping = None

    def _wait_for_a_runner(self, waited: float) -> None:
        if all(r.is_gone for r in self._runners.values()) or waited > _RESTART_SECONDS:
            raise RuntimeError(
                f"no evaluation runner is left, and none has restarted; {self._record.num_left} "
                "episodes were not run. See the runners' errors above"
            )
        time.sleep(_PROBE_SECONDS)
