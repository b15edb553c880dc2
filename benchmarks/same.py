"""Shows that a refactoring changes no number: records runs of one tree, repeats them in another.

`python benchmarks/same.py record FOLDER [--hopper FILE] [--pendulum FILE]` trains and evaluates
each job at a fixed seed, and stores losses, weights, evaluations and a checkpoint in FOLDER.
`python benchmarks/same.py compare FOLDER [--hopper FILE] [--pendulum FILE]` repeats the jobs, also
continues from each recorded checkpoint, and exits with 1 unless every number equals the recorded
one: bit for bit with one learner, to 1e-6 with two (gradients are added up in no fixed order).

Both must run on the same machine with the same torch. The Hopper and Pendulum jobs need a
recording and are left out without one.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rllib_dt import DT, DTConfig
from rllib_dt.learning.precision import bf16_instructions
from tuned_examples import demo, hopper_dt, pendulum_dt

ITERATIONS, UPDATES = 4, 50
EPISODES = 4
TOLERANCE_OF_TWO_LEARNERS = 1e-6
LEARNER_NUMBERS = ("action_loss", "gradient_norm", "learning_rate", "num_steps_trained_lifetime")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to repeat; `tolerance` 0 requires the same bits."""

    config: DTConfig
    tolerance: float = 0.0


def demo_config() -> DTConfig:
    """Returns the demo's settings with validation."""
    return demo.make_config(str(demo.DATA)).offline_data(validation_fraction=0.1)


def hopper_config(data: str, **model: Any) -> DTConfig:
    """Returns the Hopper example's settings with two targets and changes to the network."""
    config = hopper_dt.make_config([data])
    config.rl_module(model_config={**config.model_config, **model})
    # reading a file of 200,000 steps takes a second, 200 updates take half a minute
    return config.evaluation(target_returns=[3000.0, 500.0])


def jobs(hopper: str | None, pendulum: str | None) -> dict[str, Job]:
    """Returns the jobs by name; those of a recording only if its path is given."""
    found = {
        "demo": Job(config=demo_config()),
        "demo, attention over a band": Job(config=_with_band(demo_config())),
        "streamed": Job(
            config=demo_config().offline_data(pool_capacity_steps=9_000, pool_reuse=2.0)
        ),
        "two learners": Job(
            config=demo_config().learners(num_learners=2), tolerance=TOLERANCE_OF_TWO_LEARNERS
        ),
    }
    if bf16_instructions():
        found["demo, no dropout, bf16"] = Job(config=_with_bf16(demo_config()))
    if pendulum is not None:
        found["pendulum"] = Job(config=pendulum_dt.make_config([pendulum]))
    if hopper is not None:
        found["hopper"] = Job(config=hopper_config(hopper))
        found["hopper, attention over a band"] = Job(
            config=hopper_config(hopper, attention="window")
        )
        found["hopper, streamed"] = Job(
            config=hopper_config(hopper).offline_data(pool_capacity_steps=90_000)
        )
    return found


def _with_bf16(config: DTConfig) -> DTConfig:
    pdrop = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config.rl_module(model_config={**config.model_config, **pdrop})
    return config.training(precision="bf16")


def _with_band(config: DTConfig) -> DTConfig:
    config.rl_module(model_config={**config.model_config, "attention": "window"})
    return config


def run(config: DTConfig, save_to: Path | None) -> dict[str, Any]:
    """Runs a job and returns its numbers; saves a checkpoint after the first half to `save_to`."""
    config.offline_data(dataset_num_iters_per_learner=UPDATES)
    config.evaluation(evaluation_duration=EPISODES)
    algo = config.debugging(seed=0, log_level="ERROR").build_algo()
    try:
        first = [numbers(algo.train()) for _ in range(ITERATIONS // 2)]
        if save_to is not None:
            algo.save_to_path(save_to)
        return {"first half": first, "second half": finish(algo)}
    finally:
        algo.stop()


def finish(algo: DT) -> dict[str, Any]:
    """Runs the second half of a job and returns its numbers."""
    trained = [numbers(algo.train()) for _ in range(ITERATIONS // 2)]
    state = algo.get_module().network.state_dict()
    return {
        "trained": trained,
        "weights": {name: value.tolist() for name, value in sorted(state.items())},
        "evaluation": without_callbacks(algo.evaluate()["env_runners"]),
    }


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers to compare of one `train()` result."""
    learner = result["learners"]["default_policy"]
    return {name: float(learner[name]) for name in LEARNER_NUMBERS} | {
        "validation": {
            name: float(value)
            for name, value in result.get("validation", {}).items()
            if not name.startswith("age_")
        }
    }


def without_callbacks(results: dict[str, Any]) -> dict[str, Any]:
    """Returns evaluation results as plain JSON values."""
    kept: dict[str, Any] = json.loads(json.dumps(results, default=float))
    return kept


def current_names(run: dict[str, Any]) -> dict[str, Any]:
    """Renames a recorded run's weights to the names in this tree."""
    weights = run["second half"]["weights"]
    renamed = {name.replace("codec.", "action_head."): v for name, v in weights.items()}
    run["second half"]["weights"] = dict(sorted(renamed.items()))
    return run


def largest_difference(a: Any, b: Any) -> float:
    """Returns the largest difference of numbers in two structures; infinite if these differ.

    `b` may have names that `a` does not: a later tree reports more.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        if not a.keys() <= b.keys():
            return float("inf")
        return max((largest_difference(a[k], b[k]) for k in a), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and a and isinstance(a[0], dict):
        if len(a) != len(b):
            return float("inf")
        return max(largest_difference(x, y) for x, y in zip(a, b, strict=True))
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape:
        return float("inf")
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    difference = np.where(same, 0.0, np.abs(x - y))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def record(folder: Path, found: dict[str, Job]) -> int:
    """Runs each job and stores its numbers; returns the exit code."""
    for name, job in found.items():
        numbers = run(job.config, save_to=folder / name / "checkpoint")
        (folder / name / "numbers.json").write_text(json.dumps(numbers))
        print(f"{name}: recorded", flush=True)
    return 0


def compare(folder: Path, found: dict[str, Job]) -> int:
    """Repeats each job and prints how it differs from the record; returns the exit code."""
    differing = 0
    for name, job in found.items():
        recorded = current_names(json.loads((folder / name / "numbers.json").read_text()))
        checks: dict[str, tuple[Any, Callable[[], Any]]] = {
            "the run": (recorded, lambda job=job: run(job.config, None)),
            "from the recorded checkpoint": (
                recorded["second half"],
                lambda name=name: restored(folder / name / "checkpoint"),
            ),
        }
        for what, (wanted, again) in checks.items():
            difference = largest_difference(wanted, again())
            ok = difference <= job.tolerance
            differing += not ok
            verdict = "same" if difference == 0 else f"within {difference:.1e}"
            print(f"{name}, {what}: {verdict}{'' if ok else ' - TOO MUCH'}", flush=True)
    print(f"{differing} differ")
    return int(differing > 0)


def restored(checkpoint: Path) -> dict[str, Any]:
    """Runs the second half of a job from a recorded checkpoint."""
    algo = DT.from_checkpoint(checkpoint)
    try:
        return finish(algo)
    finally:
        algo.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hopper", help="a recording of Hopper in D4RL's layout")
    parser.add_argument("--pendulum", help="a recording of Pendulum by RLlib")
    parser.add_argument("--only", nargs="*", help="the jobs to run, by name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    for quiet in ("rllib_dt", "ray.data"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    found = jobs(args.hopper, args.pendulum)
    chosen = {name: job for name, job in found.items() if not args.only or name in args.only}
    act = record if args.action == "record" else compare
    code = act(args.folder.resolve(), chosen)
    ray.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
