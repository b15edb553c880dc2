"""`make bench`: runs all contenders alternately; writes JSON and prints it as a table.

`python -m benchmarks.speed.run [--rounds 10] [--threads 2] [--only training …] [--no-d3rlpy]`

Each round runs every contender of a measurement once, so that other load on the machine affects all
of them alike. A ratio is the median of the rounds' ratios, with its quartiles; the first round
warms up and does not count.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import d3rlpy_env
from benchmarks.speed.table import to_markdown
from rllib_dt.learning.precision import bf16_instructions

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("huggingface", "d3rlpy")


class Contender:
    """A contender's process, which runs tasks on request."""

    def __init__(self, module: str, python: str, threads: int):
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.speed.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ
            | environment
            | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"},
        )
        self.versions = self._answer()["versions"]

    def rate(self, task: str, n: int) -> float:
        """Runs a task with count n and returns the rate, n per second."""
        assert self._process.stdin is not None
        print(json.dumps({"task": task, "n": n}), file=self._process.stdin, flush=True)
        return float(n / self._answer()["seconds"])

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a contender has died; see its output above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Measurement:
    """The tasks of one round: (contender, task, count) each."""

    orders: list[tuple[str, str, int]]
    rounds: int | None = None


MEASUREMENTS = {
    "training": Measurement(
        [
            ("ours", "train_fp32", 3),
            ("huggingface", "train", 3),
            ("ours", "train_bf16", 3),
            ("d3rlpy", "train", 3),
            ("ours", "train_window_fp32", 3),
            ("ours", "train_window_bf16", 3),
        ]
    ),
    "images": Measurement(
        [("ours", "train_images", 1), ("huggingface", "train_images", 1)], rounds=5
    ),
    "learners": Measurement([("ours", "one_learner", 1280), ("ours", "two_learners", 1280)]),
    "rllib": Measurement([("ours", "train_fp32", 10), ("ours", "train_rllib", 10)]),
    "growth": Measurement(
        [("ours", "growth_10k", 10), ("ours", "growth_1m", 10), ("ours", "growth_10m", 10)]
    ),
    "batches": Measurement(
        [
            ("ours", "batch", 500),
            ("huggingface", "batch", 20),
            ("d3rlpy", "batch", 20),
            ("ours", "frames", 5),
            ("ours", "copy", 5),
        ]
    ),
    "evaluation": Measurement(
        [
            ("ours", "evaluate", 3200),
            ("huggingface", "evaluate", 300),
            ("ours", "evaluate_window", 3200),
            ("d3rlpy", "evaluate", 300),
            ("ours", "evaluate_window_100", 3200),
        ]
    ),
    "set_up": Measurement([("ours", "set_up", 1)], rounds=5),
    "reading": Measurement([("reading", "read_hdf5", 1), ("reading", "read_parquet", 1)], rounds=5),
    "starting": Measurement(
        [("starting", "start_hdf5", 1), ("starting", "start_parquet", 1)], rounds=5
    ),
}


@dataclass
class Run:
    """The running contenders, their versions, and the tasks that mean nothing on this machine."""

    threads: int
    without: set[str]
    contenders: dict[str, Contender] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def contender(self, name: str) -> Contender:
        """Returns a contender; starts it on first use."""
        if name not in self.contenders:
            python, module = sys.executable, name
            if name == "d3rlpy":
                python, module = str(d3rlpy_env.python()), "d3rlpy_dt"
            self.contenders[name] = Contender(module, python, self.threads)
            versions = self.contenders[name].versions
            self.versions |= {k: v for k, v in versions.items() if isinstance(v, str)}
        return self.contenders[name]

    def measure(self, measurement: Measurement, rounds: int) -> dict[str, list[float]]:
        """Returns the rates of each task, by "contender task", round by round."""
        orders = [order for order in measurement.orders if order[0] not in self.without]
        if not bf16_instructions():
            self.left_out |= {f"{who} {task}" for who, task, _ in orders if "bf16" in task}
            orders = [order for order in orders if "bf16" not in order[1]]
        rates: dict[str, list[float]] = {f"{who} {task}": [] for who, task, _ in orders}
        for turn in range((measurement.rounds or rounds) + 1):
            for who, task, n in orders:
                rate = self.contender(who).rate(task, n)
                if turn:
                    rates[f"{who} {task}"].append(rate)
        return rates

    def end(self) -> None:
        """Ends all contenders."""
        for contender in self.contenders.values():
            contender.end()


def memory(threads: int) -> dict[str, Any]:
    """Returns the result of `benchmarks.speed.memory`."""
    contender = Contender("memory", sys.executable, threads)
    contender.end()
    found: dict[str, Any] = contender.versions["memory"]
    return found


def matrix_rates(threads: int) -> dict[str, float]:
    """Measures matrix products on this machine, in GFLOP/s: the limit of a training step."""
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(3840, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype)
        seconds = []
        for _ in range(40):
            started = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - started)
        found[name] = float(2 * 3840 * 512 * 512 / np.median(seconds) / 1e9)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=[*MEASUREMENTS, "memory"], default=None)
    parser.add_argument("--no-d3rlpy", action="store_true", help="leave d3rlpy out")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench.json")
    args = parser.parse_args()
    run = Run(args.threads, {"d3rlpy"} if args.no_d3rlpy else set())
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "threads": args.threads,
        "bf16_instructions": bf16_instructions(),
        "matrix_gflops": matrix_rates(args.threads),
    }
    try:
        rates = {}
        for name, measurement in MEASUREMENTS.items():
            if args.only is None or name in args.only:
                print(f"{name} …", file=sys.stderr, flush=True)
                rates[name] = run.measure(measurement, args.rounds)
        found |= {"rates": rates, "versions": run.versions, "left_out": sorted(run.left_out)}
    finally:
        run.end()
    if args.only is None or "memory" in args.only:
        found["memory"] = memory(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))
    print(to_markdown(found))
    print(f"\nall results: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
