"""How long training takes until a policy reaches a score.

`python -m benchmarks.time_to_score hopper-short --data hopper-medium-replay.hdf5 --score 2700
[--seed 0] [--every 250] [--threads 2]`

Evaluates the job's first target after every 250 updates, until the mean of its episodes reaches the
score for the first time. Prints a line of JSON: updates, and seconds of training without the
evaluations. Jobs and recordings are those of `benchmarks/scores.py`, but not those that go on
online; actions are the example's.
"""

import argparse
import json
import time
from pathlib import Path

import ray
import torch

from benchmarks.scores import JOBS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--score", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="updates between evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--append", type=Path, help="a file to append the line to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ray.init("local", num_cpus=2, include_dashboard=False)
    job = JOBS[args.job](args.data)
    if job.rounds:
        parser.error(f"{args.job} goes on online, which counts no updates")
    config = job.config.debugging(seed=args.seed)
    config.evaluation(
        target_returns=config.target_returns[:1],
        evaluation_duration=job.episodes,
        evaluation_interval=None,
    ).offline_data(dataset_num_iters_per_learner=args.every)
    algo = config.build_algo()
    updates, seconds, means = 0, 0.0, []
    while updates < job.updates and (not means or means[-1] < args.score):
        started = time.perf_counter()
        learner = algo.train()["learners"]["default_policy"]
        seconds += time.perf_counter() - started
        updates = int(learner["num_updates_lifetime"])
        if not updates:  # a critic is learned first
            continue
        (target,) = algo.evaluate()["env_runners"]["by_target"].values()
        means.append(round(target["episode_return_mean"], 1))
    line = {
        "job": args.job,
        "data": [Path(path).name for path in args.data],
        "seed": args.seed,
        "score": args.score,
        "reached": means[-1] >= args.score,
        "updates": updates,
        "train_seconds": round(seconds, 1),
        "means": means,
    }
    print(json.dumps(line), flush=True)
    if args.append:
        with args.append.open("a") as file:
            file.write(json.dumps(line) + "\n")
    algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
