"""Formats a run's rates as the table of docs/performance.md.

`python -m benchmarks.speed.table results/bench.json --into docs/performance.md` puts it between the
two markers in that file.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.documents import insert

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
PEERS = ("huggingface train", "d3rlpy train")
PEER_LOOPS = ("huggingface evaluate", "d3rlpy evaluate")
READ_STEPS = 1_000_000

RATIOS = [
    ("images", "ours train_images", "huggingface train_images",
     "image windows, 128 × 30 × 4 × 84 × 84, to the peer", "1.3, aim 2"),
    ("learners", "ours two_learners", "ours one_learner",
     "2 learners to 1 with 2 threads, 64 windows each", "0.95, aim 1.1"),
    ("rllib", "ours train_rllib", "ours train_fp32",
     "`algo.train()` to the bare step in a loop", "0.93, aim 0.98"),
    ("growth", "ours growth_1m", "ours growth_10k",
     "updates/s with 1 million steps to 10 thousand", "within 5 %"),
    ("growth", "ours growth_10m", "ours growth_10k",
     "updates/s with 10 million steps to 10 thousand", "within 5 %"),
    ("batches", "ours frames", "ours copy",
     "128 × 30 stacks of 4 frames, to a plain copy", "0.5, aim 0.8"),
    ("evaluation", "ours evaluate_window_100", "ours evaluate_window",
     "window: K 100 to K 20", "0.85, aim 0.95"),
]  # fmt: skip
"""Rows of one quotient: measurement, numerator, denominator, what it is, must and aim."""


def ratio(mine: Sequence[float], others: Sequence[Sequence[float]]) -> str:
    """Returns the median and quartiles of the rounds' ratios to the better of the others.

    The better one is the same in all rounds: the one with the higher median.
    """
    best = max(others, key=np.median)
    low, middle, high = np.quantile(np.array(mine) / np.array(best), [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f} … {high:.2f})"


def quartiles(values: Sequence[float], unit: str, scale: float = 1.0, digits: int = 1) -> str:
    """Returns the median and quartiles of scaled values, with their unit."""
    low, middle, high = np.quantile(np.array(values) * scale, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f}) {unit}"


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the table's rows: (what, must and aim, measured)."""
    rates = found["rates"]
    table: list[tuple[str, str, str]] = []

    def against_peers(part: str, task: str, peers: Sequence[str], what: str, goal: str) -> None:
        there = [rates[part][peer] for peer in peers if peer in rates[part]]
        table.append((what, goal, ratio(rates[part][task], there)))

    if "training" in rates:
        for task, what, goal in (
            ("train_fp32", "bare step, fp32, to the better peer", "1.7, aim 2"),
            ("train_bf16", "bare step, bf16, to the better peer (fp32)", "2.8, aim 3.3"),
            ("train_window_fp32", 'the same with `attention="window"`, fp32', "-"),
            ("train_window_bf16", 'the same with `attention="window"`, bf16', "-"),
        ):
            if f"ours {task}" in rates["training"]:  # without bf16 on some machines
                against_peers("training", f"ours {task}", PEERS, what, goal)
        for name, values in rates["training"].items():
            table.append((f"{name}, updates/s", "-", quartiles(values, "/s", digits=2)))
    table += [
        (what, goal, ratio(rates[part][mine], [rates[part][other]]))
        for part, mine, other, what, goal in RATIOS
        if part in rates
    ]
    if "batches" in rates:
        part = rates["batches"]
        for name, values in part.items():
            if name.endswith("batch"):
                goal = "0.5 ms, aim 0.2" if name.startswith("ours") else "-"
                milliseconds = 1000 / np.array(values)
                table.append((f"a batch of 64 × 20: {name.split()[0]}", goal,
                              quartiles(list(milliseconds), "ms", digits=2)))  # fmt: skip
    if "evaluation" in rates:
        part = rates["evaluation"]
        for task, what, goal in (
            ("evaluate", "evaluation, 16 environments, to the better peer's loop", "3.6, aim 5"),
            ("evaluate_window", 'the same with `attention="window"`', "8, aim 10"),
        ):
            against_peers("evaluation", f"ours {task}", PEER_LOOPS, what, goal)
        for name, values in part.items():
            table.append((f"{name}, steps/s", "-", quartiles(values, "/s", digits=0)))
    if "set_up" in rates:
        seconds = list(1 / np.array(rates["set_up"]["ours set_up"]))
        table.append(("set-up to first update, CartPole example", "5 s, aim 2",
                      quartiles(seconds, "s", digits=2)))  # fmt: skip
    if "reading" in rates:
        for name, values in rates["reading"].items():
            thousands = quartiles(values, "k steps/s", READ_STEPS / 1000, digits=0)
            table.append((f"{name.split()[1]}, one core", "300k, aim 1M", thousands))
    if "starting" in rates:
        for name, values in rates["starting"].items():
            kind = name.split("_")[1].upper().replace("PARQUET", "Parquet")
            table.append((f"1 million steps of {kind} to the first update", "3 s",
                          quartiles(list(1 / np.array(values)), "s", digits=2)))  # fmt: skip
    if "memory" in found:
        beyond, data = found["memory"]["beyond"], found["memory"]["data"]
        text = f"{beyond['own']} MB own, {beyond['shared']} MB shared, of {data} MB of data"
        table.append(("a learner beyond torch and RLlib", "data + 120 MB, aim + 80", text))
    return table


def to_markdown(found: dict[str, Any]) -> str:
    """Returns the table, followed by the versions and the machine."""
    lines = ["| what | must | measured |", "|---|---|---|"]
    lines += [f"| {what} | {goal} | {value} |" for what, goal, value in rows(found)]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(found.get("versions", {}).items()))
    roof = ", ".join(f"{v:.0f} ({k})" for k, v in found["matrix_gflops"].items())
    instructions = ", ".join(found["bf16_instructions"])
    bf16 = f"has {instructions}" if instructions else "has no bf16 instructions"
    left_out = ", ".join(found.get("left_out", ()))
    without = f" Left out, since they mean nothing without: {left_out}." if left_out else ""
    lines += [
        "",
        f"Python {found['python']}, {found['threads']} threads, {found['machine']}; {versions}. "
        f"The CPU {bf16}.{without} Matrix products at these widths: {roof} GFLOP/s. "
        "Values are medians with quartiles.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("found", type=Path)
    parser.add_argument("--into", type=Path)
    args = parser.parse_args()
    text = to_markdown(json.loads(args.found.read_text()))
    if args.into:
        insert(args.into, text, BEGIN, END)
    else:
        print(text)


if __name__ == "__main__":
    main()
