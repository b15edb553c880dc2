"""Which episodes an evaluation runs, and what it says of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    results: Sequence[EpisodeResult],
    targets: Sequence[float],
    score_reference: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The evaluation as it stands in a result, under `evaluation/env_runners`.

    The usual names at the top belong to the first target; `by_target` holds every target's.
    Without results the numbers are NaN and the counts zero: nothing was measured.
    """
    by_target = {
        target_name(target): _statistics(
            [r for r in results if r.job.target == target], score_reference
        )
        for target in targets
    }
    first = by_target[target_name(targets[0])]
    return {
        **{k: v for k, v in first.items() if k != "num_episodes"},
        "num_episodes": len(results),
        "num_env_steps_sampled": sum(r.length for r in results),
        "by_target": by_target,
    }


def _statistics(
    results: Sequence[EpisodeResult], score_reference: Sequence[float] | None
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
    }
    if score_reference is not None:
        statistics["normalized_score"] = normalized_score(
            statistics["episode_return_mean"], score_reference
        )
    return statistics


def missing_jobs(
    jobs: Sequence[EvaluationJob], results: Sequence[EpisodeResult]
) -> list[EvaluationJob]:
    """The jobs that have no result yet, in their order."""
    done: Mapping[int, bool] = {result.job.index: True for result in results}
    return [job for job in jobs if job.index not in done]
