"""Formats the lines that `benchmarks.scores` appended as the table of docs/results.md.

`python -m benchmarks.scores_table docs/scores.jsonl --into docs/results.md` puts it between the two
markers in that file. Of equal jobs, seeds and temperatures the last line counts.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.parts.documents import insert

BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
HEAD = (
    "| job | data, mean return | updates × windows | actions | target | each seed's mean | mean "
    "| episodes |",
    "|---|---|---|---|---|---|---|---|",
)


def _group(line: dict[str, Any]) -> tuple[str, str, float | None]:
    """Returns what the lines of a row have in common."""
    return line["job"], ", ".join(line["data"]), line["temperature"]


def table(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the table's lines: a row for each job, way of acting and target."""
    latest = {(*_group(line), line["seed"]): line for line in lines}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in sorted(latest.values(), key=lambda line: line["seed"]):
        groups[_group(line)].append(line)
    rows = []
    for (job, data, temperature), runs in sorted(groups.items(), key=lambda item: item[0][:2]):
        first = runs[0]
        actions = "likeliest" if not temperature else f"drawn, temperature {temperature:g}"
        data = f"{data}: {first['data_mean']:g}"
        size = f"{first['updates']:,} × {first['windows']}"
        for target in first["by_target"]:
            means = [run["by_target"][target][0] for run in runs]
            each = ", ".join(f"{mean:g}" for mean in means)
            mean = f"{round(sum(means) / len(means), 3):g}"
            rows.append(
                f"| `{job}` | {data} | {size} | {actions} | {target} | {each} | {mean} "
                f"| {first['episodes']} |"
            )
    return [*HEAD, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.scores.read_text().splitlines()]
    insert(args.into, "\n".join(table(lines)), BEGIN, END)


if __name__ == "__main__":
    main()
