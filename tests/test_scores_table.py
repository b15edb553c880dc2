"""The table of scores is made from the lines that were measured, and from nothing else."""

import json
from pathlib import Path

from benchmarks.scores_table import BEGIN, END, table

DOCS = Path(__file__).resolve().parents[1] / "docs"


def line(seed, mean, **changes):
    return {
        "job": "a",
        "data": ["x.parquet"],
        "data_mean": 2.5,
        "seed": seed,
        "updates": 3000,
        "windows": 64,
        "episodes": 10,
        "temperature": 1.0,
        "by_target": {"20": [mean, 1.0], "5": [mean / 2, 1.0]},
    } | changes


def test_the_last_line_of_a_seed_counts_and_seeds_are_in_order():
    lines = [line(1, 7.0), line(0, 2.0), line(0, 4.0), line(0, 9.0, temperature=None)]
    _, _, *rows = table(lines)
    assert rows == [
        "| `a` | x.parquet: 2.5 | 3,000 × 64 | drawn, temperature 1 | 20 | 4, 7 | 5.5 | 10 |",
        "| `a` | x.parquet: 2.5 | 3,000 × 64 | drawn, temperature 1 | 5 | 2, 3.5 | 2.75 | 10 |",
        "| `a` | x.parquet: 2.5 | 3,000 × 64 | likeliest | 20 | 9 | 9 | 10 |",
        "| `a` | x.parquet: 2.5 | 3,000 × 64 | likeliest | 5 | 4.5 | 4.5 | 10 |",
    ]


def test_large_means_are_written_out():
    assert table([line(0, 2799.02), line(1, 2848.0)])[-2].split(" | ")[4:7] == [
        "20",
        "2799.02, 2848",
        "2823.51",
    ]


def test_the_documents_table_is_that_of_its_lines():
    lines = [json.loads(text) for text in (DOCS / "scores.jsonl").read_text().splitlines()]
    text = (DOCS / "results.md").read_text()
    within = text.partition(BEGIN)[2].partition(END)[0]
    assert within.strip().splitlines() == table(lines)
