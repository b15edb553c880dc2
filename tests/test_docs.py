"""README and docs: code blocks run, links resolve, and the list of semantics is complete."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rllib_dt
from tests.conftest import tiny_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def python_blocks(path):
    """(line, code) of each Python block."""
    text = path.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start()].count("\n") + 2, match[1]


WITH_CODE = [path for path in DOCS if any(python_blocks(path))]


def test_code_is_found():
    assert {p.name for p in WITH_CODE} >= {"README.md", "attention.md", "cluster.md"}
    assert len(list(python_blocks(ROOT / "README.md"))) >= 4


def slow_if_long(path):
    # README trains, evaluates and tunes: half a minute
    marks = [pytest.mark.slow] if path.name == "README.md" else []
    return pytest.param(path, marks=marks, id=path.name)


@pytest.mark.parametrize("path", [slow_if_long(path) for path in WITH_CODE])
def test_code_runs_from_top_to_bottom(cluster, tmp_path, monkeypatch, path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Tune writes by default
    # what a page assumes to be there; README and the other pages assume nothing
    names = {"config": tiny_config("data")} if path.name == "cluster.md" else {}
    for line, code in python_blocks(path):
        code = code.replace("/shared/results", str(tmp_path / "results"))
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)
    if "algo" in names:
        names["algo"].stop()
    if "results" in names:  # README's Tuner
        assert len(names["results"]) == 2
        assert not names["results"].errors


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(cluster, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "first_run.ipynb").read_text())
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]  # none are kept, so that none are stale
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["total"] > 0
    assert names["calibration"](names["by_target"]).slope > 0.5


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    built = (tmp_path / "api" / "index.html").read_text()
    for name in rllib_dt.__all__:
        if name != "register":
            assert f"{name}</" in built or f"{name}<" in built, name


def test_every_page_is_in_the_site_and_in_no_other_place():
    pages = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_to_files_resolve(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
    # files that are named in code style
    for name in re.findall(
        r"`((?:docs|tests|benchmarks|rllib_dt|data)/[\w./-]+)`", path.read_text()
    ):
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name


def test_the_readme_lists_every_layer():
    listed = set(re.findall(r"^\| `rllib_dt/([\w.]+)`", (ROOT / "README.md").read_text(), re.M))
    packages = {p.parent.name for p in (ROOT / "rllib_dt").glob("*/__init__.py")}
    assert listed == packages | {"compat.py", "types.py"}


def test_each_point_of_the_semantics_has_a_marked_test():
    points = re.findall(r"^(\d+)\. ", (ROOT / "docs" / "semantics.md").read_text(), re.MULTILINE)
    points = [int(number) for number in points]
    assert points == list(range(1, len(points) + 1))
    marked = set()
    for path in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for mark in getattr(node, "decorator_list", ()):
                if ast.unparse(mark).startswith("pytest.mark.semantics("):
                    assert node.name.startswith("test_"), f"{path.name}: {node.name} is no test"
                    marked |= {number.value for number in mark.args}
    assert marked == set(points)
