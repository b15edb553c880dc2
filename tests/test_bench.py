"""The benchmark's arithmetic, its result table and its script; no speed is asserted."""

import json
import subprocess
import sys

import pytest

from benchmarks.speed import run, table
from tests.scripts import ROOT


def test_a_ratio_is_the_median_over_rounds_against_the_better_peer():
    mine, worse, better = [4.0, 6.0, 8.0], [1.0, 1.0, 9.0], [2.0, 2.0, 2.0]
    # the ratio of each round to the peer with the higher median: 2, 3, 4
    assert table.ratio(mine, [worse, better]) == "3.00 (2.50 … 3.50)"
    assert table.quartiles([1.0, 2.0, 3.0], "s") == "2.0 (1.5 … 2.5) s"


def rates_of(name):
    return {f"{who} {task}": [1.0, 2.0, 4.0] for who, task, _ in run.MEASUREMENTS[name].orders}


def test_every_measurement_has_a_row_in_the_table_between_the_markers(tmp_path):
    found = {
        "rates": {name: rates_of(name) for name in run.MEASUREMENTS},
        "memory": {"beyond": {"own": 50, "files": 1, "shared": 60}, "data": 61},
        "matrix_gflops": {"fp32": 90.0},
        "python": "3.11",
        "threads": 2,
        "machine": "here",
    }
    rows = table.rows(found)
    assert len({what for what, _, _ in rows}) == len(rows) > 20
    document = tmp_path / "d.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.insert(document, table.to_markdown(found))
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 1.00 (1.00 … 1.00) |" in text


@pytest.mark.slow
def test_a_short_run_reports_a_rate_for_every_selected_measurement(tmp_path):
    out = tmp_path / "bench.json"
    command = ["-m", "benchmarks.speed.run", "--no-d3rlpy", "--rounds", "1", "--threads", "1"]
    selection = ["--only", "training", "batches", "--out", str(out)]
    subprocess.run([sys.executable, *command, *selection], check=True, cwd=ROOT, timeout=280)
    rates = json.loads(out.read_text())["rates"]
    assert all(len(v) == 1 and v[0] > 0 for part in rates.values() for v in part.values())
