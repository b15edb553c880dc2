"""The jobs of an evaluation, one for each episode, and what runners report about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rllib_dt.episodes.episode import Episode


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One episode to run to its end.

    The list of jobs is fixed before the first step, and every job is finished, so that no result
    depends on which episodes happen to end first (short ones would be overcounted).

    Attributes:
        index: the job's place in the list of jobs.
        target: the return to ask the policy for.
        seed: the seed of the environment's reset; every target has the same seeds, so that its
            episodes start in the same states.
    """

    index: int
    target: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Asks runners to record episodes whose actions are drawn.

    Attributes:
        temperature: what actions are drawn with.
        seed: of the draws; with one runner it decides them.
    """

    temperature: float
    seed: int


def make_jobs(targets: Sequence[float], episodes: int, seed: int | None) -> list[EvaluationJob]:
    """Makes `episodes` jobs for each target; with `seed` None, every call makes other seeds."""
    entropy = np.random.SeedSequence(seed)
    seeds = [int(s) for s in entropy.generate_state(episodes)]
    pairs = [(target, s) for target in targets for s in seeds]
    return [EvaluationJob(index=i, target=t, seed=s) for i, (t, s) in enumerate(pairs)]


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """A finished evaluation episode.

    Attributes:
        job: the job.
        episode_return: the undiscounted sum of the environment's rewards.
        length: the number of steps.
        episode: what happened, if it was to be recorded.
    """

    job: EvaluationJob
    episode_return: float
    length: int
    episode: Episode | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeFailure:
    """An evaluation episode that could not be finished.

    Attributes:
        job: the job.
        error: the environment's error, or how its runner was lost.
    """

    job: EvaluationJob
    error: str


@dataclass(frozen=True, kw_only=True)
class Alive:
    """A sign of life from a runner.

    Attributes:
        running: the jobs in progress.
    """

    running: Sequence[EvaluationJob]


RunnerEvent = EpisodeResult | EpisodeFailure | Alive
"""What a runner reports while it runs jobs."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of an evaluation: every job has either a result or a failure."""

    results: Sequence[EpisodeResult]
    failures: Sequence[EpisodeFailure]
