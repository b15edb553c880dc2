"""Compares losses in bf16 and fp32, with the same windows, dropout and initial weights.

`python benchmarks/precision.py --data hopper-medium-replay.hdf5 [--updates 2000] [--threads 2]`

Trains the Hopper example in both precisions alternately, and prints the mean loss of each 100
updates and the largest relative difference.
"""

import argparse
import json
import sys
from pathlib import Path

import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rllib_dt.learning.precision import bf16_instructions
from tuned_examples import hopper_dt

EACH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", choices=["context", "window"], default="context")
    args = parser.parse_args()
    if not bf16_instructions():
        raise SystemExit("this CPU has no instructions for bf16: it would take many times as long")
    torch.set_num_threads(args.threads)
    ray.init("local", num_cpus=2, include_dashboard=False)
    algos = {}
    for precision in ("fp32", "bf16"):
        config = hopper_dt.make_config(args.data).training(precision=precision)
        config.rl_module(model_config={**config.model_config, "attention": args.attention})
        config.offline_data(dataset_num_iters_per_learner=EACH).debugging(seed=0)
        torch.manual_seed(0)
        algos[precision] = config.build_algo()
    losses: dict[str, list[float]] = {precision: [] for precision in algos}
    for _ in range(args.updates // EACH):
        for precision, algo in algos.items():
            learner = algo.train()["learners"]["default_policy"]
            losses[precision].append(float(learner["action_loss"]))
        print({k: round(v[-1], 5) for k, v in losses.items()}, file=sys.stderr, flush=True)
    apart = [b / a - 1 for a, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    print(json.dumps({"losses": losses, "largest_difference": max(apart, key=abs)}))
    for algo in algos.values():
        algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
