"""Measures streaming of data larger than the pool: memory, passes and updates per second.

`python benchmarks/streaming.py --folder FOLDER [--steps 20000000] [--capacity 1000000]
[--passes 3] [--num-learners 0] [--rounds 8]`

Generates the data (episodes of 1 to 1,000 steps, 11 observations, 3 actions) unless the folder has
it. Then it measures (a) passes over the stream, with a network too small to slow it down, and the
memory of each process at every quarter of a pass; (b) updates per second in the paper's setting,
streamed against data that fits the capacity, alternating, with medians.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from gymnasium.spaces import Box

from rllib_dt import DTConfig, DTModelConfig, write_episodes

OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (11,)), Box(-1.0, 1.0, (3,))


def episodes(steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields random episodes of 1 to 1,000 steps, `steps` in all."""
    rng = np.random.default_rng(seed)
    while steps > 0:
        length = min(steps, int(rng.integers(1, 1001)))
        steps -= length
        yield {
            "obs": rng.standard_normal((length + 1, 11), np.float32),
            "actions": rng.uniform(-1, 1, (length, 3)).astype(np.float32),
            "rewards": rng.uniform(0, 1, length),
            "terminated": True,
            "truncated": False,
        }


def generate(folder: Path, steps: int) -> Path:
    """Writes random data to a folder, one subfolder per million steps, unless it exists."""
    part = 1_000_000
    for number in range(-(-steps // part)):
        if not (folder / f"{number:03d}").exists():
            write_episodes(
                episodes(min(part, steps - number * part), seed=number),
                folder / f"{number:03d}",
                OBSERVATIONS,
                ACTIONS,
            )
    return folder


def config(data: Path, batch_size: int, model: DTModelConfig) -> DTConfig:
    """Returns settings for training on a folder without an environment."""
    return (
        DTConfig()
        .environment(observation_space=OBSERVATIONS, action_space=ACTIONS)
        .offline_data(input_=str(data))
        .rl_module(model_config=model)
        .training(train_batch_size_per_learner=batch_size, lr=1e-4, return_scale=1000.0)
        .debugging(seed=0)
    )


def memory() -> dict[str, dict[str, int]]:
    """Returns MB by process: anonymous memory, and touched pages of the shared object store."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes().split(b"\0")[0].decode()
            status = (path / "status").read_text()
        except OSError:
            continue
        is_driver = path.name == str(os.getpid())
        if name.startswith("ray::") or is_driver or "raylet/raylet" in name:
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            label = "driver and learner" if is_driver else Path(name.split(" ")[0]).name
            own, shared = (int(fields[f].split()[0]) // 1024 for f in ("RssAnon", "RssShmem"))
            known = found.get(label, {"own": 0, "shared": 0})
            found[label] = {"own": max(own, known["own"]), "shared": max(shared, known["shared"])}
    return found


def stream_passes(
    data: Path, capacity: int, reuse: float, wanted: float, num_learners: int
) -> dict[str, Any]:
    """Streams the data for the wanted number of passes, and returns memory and rates."""
    small = DTModelConfig(context_length=20, hidden_size=16, n_layer=1, max_ep_len=1000)
    settings = config(data, 1024, small).offline_data(
        pool_capacity_steps=capacity, pool_reuse=reuse, dataset_num_iters_per_learner=10
    )
    algo = settings.learners(num_learners=num_learners).build_algo()
    steps = algo.offline_data.summary.num_steps
    seen: list[dict[str, Any]] = []
    waits: list[float] = []
    started = time.perf_counter()
    while True:
        results = algo.train()["learners"]["default_policy"]
        passes = results["num_passes_over_data"] / reuse
        waits.append(results["data_wait_share"])
        if passes * 4 >= len(seen) + 1 or passes >= wanted:
            seen.append({"passes": round(passes, 2), **memory()})
            print(json.dumps(seen[-1]), file=sys.stderr, flush=True)
        if passes >= wanted:
            break
    seconds = time.perf_counter() - started
    algo.stop()
    return {
        "steps": steps,
        "capacity": capacity,
        "megabytes_by_passes": seen,
        "steps_read_per_s": round(wanted * steps / seconds),
        "data_wait_share": {"median": statistics.median(waits), "largest": max(waits)},
    }


def updates_per_second(stream: Path, fits: Path, capacity: int, rounds: int) -> dict[str, Any]:
    """Compares updates per second of streamed data and of data that fits."""
    model = DTModelConfig(context_length=20, max_ep_len=1000)
    algos = {
        "streamed": config(stream, 64, model).offline_data(pool_capacity_steps=capacity),
        "resident": config(fits, 64, model).offline_data(pool_capacity_steps=2 * capacity),
    }
    built = {
        name: c.offline_data(dataset_num_iters_per_learner=25).build_algo()
        for name, c in algos.items()
    }
    assert built["streamed"].offline_data.is_streamed
    assert not built["resident"].offline_data.is_streamed
    rates: dict[str, list[float]] = {name: [] for name in built}
    for turn in range(rounds + 1):
        for name, algo in built.items():
            rate = algo.train()["learners"]["default_policy"]["num_updates_per_s"]
            if turn:  # the first warms up
                rates[name].append(rate)
    for algo in built.values():
        algo.stop()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "updates_per_s": {name: [round(v, 2) for v in values] for name, values in rates.items()},
        "streamed_to_resident": round(medians["streamed"] / medians["resident"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000_000)
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--reuse", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=8, help="0 skips the speed")
    parser.add_argument("--passes", type=float, default=3.0, help="0 skips the passes")
    parser.add_argument("--num-learners", type=int, default=0, help="learners in the passes")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stream = generate(args.folder / "stream", args.steps)
    fits = generate(args.folder / "fits", args.capacity)
    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=2 * 2**30)
    found: dict[str, Any] = {"versions": {"ray": ray.__version__, "torch": torch.__version__}}
    if args.passes:
        found["passes"] = stream_passes(
            stream, args.capacity, args.reuse, args.passes, args.num_learners
        )
    if args.rounds:
        found["speed"] = updates_per_second(stream, fits, args.capacity, args.rounds)
    print(json.dumps(found, indent=1))
    ray.shutdown()


if __name__ == "__main__":
    main()
