"""An evaluation's jobs to its runners, and their results back."""

from collections.abc import Sequence
from typing import Any

import ray

from rllib_dt.runtime.evaluation import EpisodeResult, EvaluationJob, missing_jobs


def run_jobs(group: Any, jobs: Sequence[EvaluationJob], weights: Any) -> list[EpisodeResult]:
    """Every job's result; what a dying runner leaves undone goes to the others.

    Args:
        group: the `EnvRunnerGroup` of `DTEnvRunner`s.
        jobs: the episodes to run.
        weights: the module state to run them with.
    """
    if group.num_remote_env_runners() == 0:
        return list(group.local_env_runner.run_jobs(jobs, weights))
    weights_ref = ray.put(weights)
    results: list[EpisodeResult] = []
    while left := missing_jobs(jobs, results):
        healthy = group.healthy_worker_ids()
        if not healthy:
            raise RuntimeError(
                f"no evaluation runner is left; {len(left)} of {len(jobs)} episodes were not "
                "run. See the runners' errors above"
            )
        shares = {i: left[n :: len(healthy)] for n, i in enumerate(healthy)}
        shares = {i: share for i, share in shares.items() if share}
        for part in group.foreach_env_runner(
            [_JobRun(share, weights_ref) for share in shares.values()],
            remote_worker_ids=list(shares),
            local_env_runner=False,
            timeout_seconds=None,
        ):
            results.extend(part)
        if len(missing_jobs(jobs, results)) == len(left) and group.healthy_worker_ids() == healthy:
            raise RuntimeError(
                f"the evaluation runners live, but none of {len(left)} episodes came back; see "
                "their errors above"
            )
    return results


class _JobRun:
    """A share of an evaluation, as a call on a remote runner."""

    def __init__(self, jobs: Sequence[EvaluationJob], weights: ray.ObjectRef):
        self._jobs, self._weights = jobs, weights

    def __call__(self, runner: Any) -> list[EpisodeResult]:
        results: list[EpisodeResult] = runner.run_jobs(self._jobs, ray.get(self._weights))
        return results
