"""Trains and evaluates one job of the table in `docs/results.md`; prints a line of JSON.

`python benchmarks/scores.py hopper --data hopper-medium-replay.hdf5 --seed 1 --threads 1`
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rllib_dt import DTConfig
from tuned_examples import cartpole_dt, demo, halfcheetah_dt, hopper_dt, pendulum_dt


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings, the number of updates, and the evaluation episodes for each target."""

    config: DTConfig
    updates: int
    episodes: int


def job(name: str, data: list[str]) -> Job:
    """Returns a job of the table in `docs/results.md`."""
    if name == "demo":
        return Job(config=demo.make_config(data[0]), updates=demo.UPDATES, episodes=20)
    if name == "cartpole":
        return Job(config=cartpole_dt.make_config(data), updates=1000, episodes=20)
    if name == "pendulum":
        return Job(config=pendulum_dt.make_config(data), updates=2000, episodes=20)
    if name == "pendulum-replay":
        config = pendulum_dt.make_config(data, normalized=False)
        config.evaluation(target_returns=[-1200.0, -600.0, -150.0])
        return Job(config=config, updates=2000, episodes=20)
    if name == "hopper":
        return Job(config=hopper_dt.make_config(data), updates=5000, episodes=10)
    if name == "hopper-window":
        config = hopper_dt.make_config(data)
        config.rl_module(model_config={**config.model_config, "attention": "window"})
        config.training(precision="bf16")
        return Job(config=config, updates=5000, episodes=10)
    if name == "halfcheetah":
        return Job(config=halfcheetah_dt.make_config(data), updates=5000, episodes=10)
    raise SystemExit(f"no job {name!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, help="instead of the job's own number")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ray.init("local", num_cpus=2, include_dashboard=False)
    chosen = job(args.job, args.data)
    updates = args.updates or chosen.updates
    config = chosen.config.debugging(seed=args.seed).evaluation(evaluation_duration=chosen.episodes)
    algo = config.build_algo()
    started = time.perf_counter()
    each = config.dataset_num_iters_per_learner
    for _ in range(updates // each):
        learner = algo.train()["learners"]["default_policy"]
        print(
            f"{int(learner['num_updates_lifetime'])} updates, loss {learner['action_loss']:.4f}, "
            f"{learner['num_updates_per_s']:.2f} updates/s",
            file=sys.stderr,
            flush=True,
        )
    trained = time.perf_counter() - started
    results = algo.evaluate()["env_runners"]
    line = {
        "job": args.job,
        "seed": args.seed,
        "updates": updates,
        "action_loss": float(learner["action_loss"]),
        "train_seconds": round(trained),
        "evaluation_seconds": round(time.perf_counter() - started - trained),
        "env_steps": results["num_env_steps_sampled"],
        "by_target": {
            target: [round(r["episode_return_mean"], 1), round(r["episode_return_std"], 1)]
            for target, r in results["by_target"].items()
        },
    }
    print(json.dumps(line), flush=True)
    algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
