"""The benchmark's arithmetic, its result table and its script; no speed is asserted."""

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
import torch

from benchmarks.parts.documents import insert
from benchmarks.speed import run, table
from tests.scripts import ROOT


def test_a_ratio_is_the_median_over_rounds_against_the_better_peer():
    mine, worse, better = [4.0, 6.0, 8.0], [1.0, 1.0, 9.0], [2.0, 2.0, 2.0]
    # the ratio of each round to the peer with the higher median: 2, 3, 4
    assert table.ratio(mine, [worse, better]) == "3.00 (2.50 … 3.50)"
    assert table.quartiles([1.0, 2.0, 3.0], "s") == "2.0 (1.5 … 2.5) s"


@dataclasses.dataclass
class Always:
    """A contender with the same rate for everything."""

    value: float

    def rate(self, task, n):
        return self.value


def rates_of(name):
    return {f"{who} {task}": [1.0, 2.0, 4.0] for who, task, _ in run.MEASUREMENTS[name].orders}


def test_every_measurement_has_a_row_in_the_table_between_the_markers(tmp_path):
    found = {
        "rates": {name: rates_of(name) for name in run.MEASUREMENTS},
        "memory": {"beyond": {"own": 50, "files": 1, "shared": 60}, "data": 61},
        "bf16_instructions": [],
        "left_out": ["ours train_bf16"],
        "matrix_gflops": {"fp32": 90.0},
        "python": "3.11",
        "threads": 2,
        "machine": "here",
    }
    rows = table.rows(found)
    assert len({what for what, _, _ in rows}) == len(rows) > 20
    document = tmp_path / "d.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    insert(document, table.to_markdown(found), table.BEGIN, table.END)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 1.00 (1.00 … 1.00) |" in text
    assert "has no bf16 instructions" in text
    assert "mean nothing without: ours train_bf16" in text


def test_bf16_is_left_out_by_name_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(run, "bf16_instructions", list)
    monkeypatch.setattr(run.Run, "contender", lambda self, name: Always(1.0))
    running = run.Run(threads=1, without=set())
    rates = running.measure(run.MEASUREMENTS["training"], rounds=2)
    assert running.left_out == {"ours train_bf16", "ours train_window_bf16"}
    assert not running.left_out & set(rates)
    assert rates["ours train_fp32"] == [1.0, 1.0]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_every_script_fits_the_package(path):
    """Its imports are there; what it measures is not run."""
    assert callable(importlib.import_module(f"benchmarks.{path.stem}").main)


@pytest.mark.slow
def test_a_short_run_reports_a_rate_for_every_selected_measurement(tmp_path):
    out = tmp_path / "bench.json"
    command = ["-m", "benchmarks.speed.run", "--no-d3rlpy", "--rounds", "1", "--threads", "1"]
    selection = ["--only", "training", "batches", "--out", str(out)]
    subprocess.run([sys.executable, *command, *selection], check=True, cwd=ROOT, timeout=280)
    rates = json.loads(out.read_text())["rates"]
    assert all(len(v) == 1 and v[0] > 0 for part in rates.values() for v in part.values())


def run_gpu(*flags):
    command = [sys.executable, "-m", "benchmarks.gpu", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_there_is_no_gpu():
    done = run_gpu()
    assert done.returncode == 2
    assert "there is no GPU" in done.stderr
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gpu_benchmark_runs_on_a_cpu_in_place_of_one():
    pytest.importorskip("transformers")
    done = run_gpu("--device", "cpu", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| passed |") == 4
    assert "| 8 | 32 | fp32 |" in done.stdout
