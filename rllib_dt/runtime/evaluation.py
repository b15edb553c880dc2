"""Which episodes an evaluation runs, and what it says of them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One episode to run to its end.

    The list of jobs is fixed before the first step, and every job is finished, so that no
    result depends on which episodes happen to end first (short ones would be overcounted).

    Attributes:
        index: the job's place in the evaluation.
        target: the return that is asked for.
        seed: of the environment's reset; the same for every target, so that they start alike.
    """

    index: int
    target: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What an evaluation episode gave.

    Attributes:
        job: the job that it was.
        episode_return: Σ of the environment's rewards, undiscounted.
        length: steps.
    """

    job: EvaluationJob
    episode_return: float
    length: int


@dataclass(frozen=True, kw_only=True)
class EpisodeFailure:
    """An evaluation episode that could not be finished.

    Attributes:
        job: the job that it was.
        error: what the environment raised, or what became of its runner.
    """

    job: EvaluationJob
    error: str


@dataclass(frozen=True, kw_only=True)
class Alive:
    """A sign of life.

    Attributes:
        running: the jobs that are under way.
    """

    running: Sequence[EvaluationJob]


RunnerEvent = EpisodeResult | EpisodeFailure | Alive


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an evaluation's jobs; each is in one of the two."""

    results: Sequence[EpisodeResult]
    failures: Sequence[EpisodeFailure]


NOTHING = Outcome(results=[], failures=[])
"""Of an iteration without evaluation."""


def report_failures(outcome: Outcome) -> None:
    """Logs how many episodes could not be finished, and the error of the first."""
    if outcome.failures:
        first = outcome.failures[0]
        logger.error(
            "%d of %d evaluation episodes could not be finished; the first (target %g, seed %d): "
            "%s",
            len(outcome.failures),
            len(outcome.failures) + len(outcome.results),
            first.job.target,
            first.job.seed,
            first.error,
        )


def make_jobs(targets: Sequence[float], episodes: int, seed: int | None) -> list[EvaluationJob]:
    """`episodes` jobs for each target; fresh starts where `seed` is None."""
    entropy = np.random.SeedSequence(seed)
    seeds = [int(s) for s in entropy.generate_state(episodes)]
    pairs = [(target, s) for target in targets for s in seeds]
    return [EvaluationJob(index=i, target=t, seed=s) for i, (t, s) in enumerate(pairs)]


def target_name(target: float) -> str:
    """The key of a target in results: "3600", "-120", "0.5"."""
    return str(int(target)) if float(target).is_integer() else repr(float(target))


def normalized_score(episode_return: float, reference: Sequence[float]) -> float:
    """100 · (return - random) / (expert - random) (Fu et al. 2020, arXiv:2004.07219, §4)."""
    random, expert = reference
    return 100.0 * (episode_return - random) / (expert - random)


def summarize(
    outcome: Outcome,
    targets: Sequence[float],
    score_reference: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The evaluation as it stands in a result, under `evaluation/env_runners`.

    The usual names at the top belong to the first target; `by_target` holds every target's.
    `num_episodes` counts what was finished, `num_episodes_failed` what could not be. Without
    results the numbers are NaN and the counts zero: nothing was measured.
    """
    by_target = {
        target_name(target): _statistics(
            [r for r in outcome.results if r.job.target == target],
            sum(f.job.target == target for f in outcome.failures),
            score_reference,
        )
        for target in targets
    }
    return {
        **by_target[target_name(targets[0])],
        "num_episodes": len(outcome.results),
        "num_episodes_failed": len(outcome.failures),
        "num_env_steps_sampled": sum(r.length for r in outcome.results),
        "by_target": by_target,
    }


def _statistics(
    results: Sequence[EpisodeResult], failed: int, score_reference: Sequence[float] | None
) -> dict[str, float]:
    returns = np.array([r.episode_return for r in results])
    lengths = np.array([r.length for r in results])
    measured = len(results) > 0
    statistics: dict[str, float] = {
        "episode_return_mean": float(returns.mean()) if measured else math.nan,
        "episode_return_std": float(returns.std()) if measured else math.nan,
        "episode_return_min": float(returns.min()) if measured else math.nan,
        "episode_return_max": float(returns.max()) if measured else math.nan,
        "episode_len_mean": float(lengths.mean()) if measured else math.nan,
        "num_episodes": len(results),
        "num_episodes_failed": failed,
    }
    if score_reference is not None:
        statistics["normalized_score"] = normalized_score(
            statistics["episode_return_mean"], score_reference
        )
    return statistics
