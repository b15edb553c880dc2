"""Summarises evaluations in the form in which `train()` and `evaluate()` return them."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rllib_dt.episodes.targets import target_name
from rllib_dt.rollout.jobs import EpisodeResult, Outcome

logger = logging.getLogger(__name__)


def report_failures(outcome: Outcome, kind: str = "evaluation") -> None:
    """Logs the number of episodes that could not be finished, and the first one's error."""
    if outcome.failures:
        first = outcome.failures[0]
        logger.error(
            "%d of %d %s episodes could not be finished; the first (target %g, seed %d): %s",
            len(outcome.failures),
            len(outcome.failures) + len(outcome.results),
            kind,
            first.job.target,
            first.job.seed,
            first.error,
        )


def normalized_score(episode_return: float, reference: Sequence[float]) -> float:
    """Returns 100 · (return - random) / (expert - random).

    D4RL's normalised score (Fu et al. 2020, arXiv:2004.07219, §4).
    """
    random, expert = reference
    return 100.0 * (episode_return - random) / (expert - random)


def summarize(
    outcome: Outcome,
    targets: Sequence[float],
    score_reference: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Summarises an evaluation in the form that results have under `evaluation/env_runners`.

    At the top level, statistics are those of the first target, and counts those of all targets;
    `by_target` has both for each target. `num_episodes` counts finished episodes,
    `num_episodes_failed` those that could not be finished. Without results, statistics are NaN and
    counts zero.
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
