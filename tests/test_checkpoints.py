"""Checkpoints: saving is atomic, and incomplete or damaged checkpoints are refused."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from gymnasium.spaces import Box

from rllib_dt import DT, write_episodes
from rllib_dt.algorithm import checkpoints
from rllib_dt.algorithm.checkpoints import STATES, verify, writing
from rllib_dt.policy.manifest import MANIFEST, CheckpointError
from tests.conftest import make_episodes, tiny_config
from tests.training import same, weights


@pytest.fixture(scope="module")
def saved(cluster, tmp_path_factory):
    """Two checkpoints of one run, and the weights of the first."""
    folder = tmp_path_factory.mktemp("run")
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    write_episodes(make_episodes([9, 4]), folder / "data", *spaces)
    algo = tiny_config(str(folder / "data")).build_algo()
    algo.train()
    first, kept = algo.save_to_path(folder / "first"), weights(algo)
    algo.train()
    second = algo.save_to_path(folder / "second")
    algo.stop()
    return first, second, kept


def files_of(folder):
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder)
        for name in names
    )


def test_a_truncated_file_is_named_and_an_earlier_checkpoint_restores(saved, tmp_path):
    first, second, kept = saved
    for name in files_of(second):
        damaged = tmp_path / "damaged"
        shutil.copytree(second, damaged)
        path = damaged / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=f"{os.path.basename(name)}.*restore from an ear"):
            DT.from_checkpoint(damaged)
        shutil.rmtree(damaged)
    algo = DT.from_checkpoint(second)
    algo.restore_from_path(first)
    assert same(weights(algo), kept)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        algo.restore_from_path(tmp_path / "empty")
    assert same(weights(algo), kept)
    algo.stop()


@pytest.mark.parametrize("change", ["flip", "remove"])
def test_a_changed_or_missing_file_is_refused(saved, tmp_path, change):
    shutil.copytree(saved[1], tmp_path / "ck")
    path = tmp_path / "ck" / f"{STATES[1]}.pkl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content) if change == "flip" else path.unlink()
    problem = "other bytes" if change == "flip" else "is missing"
    with pytest.raises(CheckpointError, match=f"learner/state.pkl .*{problem}"):
        DT.from_checkpoint(tmp_path / "ck")


def test_the_error_for_a_missing_checkpoint_names_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nowhere"):
        DT.from_checkpoint(tmp_path / "nowhere")


def test_saving_over_a_checkpoint_replaces_it(saved, tmp_path):
    first, second, kept = saved
    shutil.copytree(second, tmp_path / "ck")
    algo = DT.from_checkpoint(first)
    assert algo.save_to_path(tmp_path / "ck") == str(tmp_path / "ck")
    algo.stop()
    again = DT.from_checkpoint(tmp_path / "ck")
    assert same(weights(again), kept)
    again.stop()
    assert os.listdir(tmp_path) == ["ck"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_replaces_another_in_one_step_if_the_system_can_exchange_names(
    tmp_path, monkeypatch, in_one_step
):
    names = {}
    for name in ("draft", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if in_one_step:
        assert checkpoints._exchange(tmp_path / "draft", tmp_path / "final")
        names = {p.name: [q.name for q in p.iterdir()] for p in tmp_path.iterdir()}
        assert names == {"draft": ["final"], "final": ["draft"]}
        assert not checkpoints._exchange(tmp_path / "nowhere", tmp_path / "final")
        checkpoints._exchange(tmp_path / "draft", tmp_path / "final")
        monkeypatch.setattr("pathlib.Path.rename", None)  # a move in two steps would fail
    else:
        monkeypatch.setattr(checkpoints, "_exchange", lambda one, other: False)
    checkpoints._move(tmp_path / "draft", tmp_path / "final")
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["draft"]


def test_a_folder_with_other_files_is_not_replaced_and_relative_paths_work(
    saved, tmp_path, monkeypatch
):
    algo = DT.from_checkpoint(saved[0])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds things other than a checkpoint"):
        algo.save_to_path(tmp_path / "results")
    assert os.listdir(tmp_path / "results") == ["notes.txt"]
    monkeypatch.chdir(tmp_path)
    path = algo.save_to_path("relative/ck")
    assert path == str(tmp_path / "relative" / "ck")
    algo.restore_from_path("relative/ck")
    algo.stop()


WRITER = """
import os, pickle, signal, sys
from pathlib import Path
from rllib_dt.algorithm.checkpoints import STATES
from rllib_dt.algorithm.checkpoints import writing

with writing(sys.argv[1]) as draft:
    for number, state in enumerate(STATES):
        path = draft / f"{state}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_bytes(pickle.dumps(list(range(1000))))
"""


@pytest.mark.parametrize("moment", range(len(STATES)))
@pytest.mark.parametrize("exists", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kill_during_a_write_leaves_no_checkpoint_that_looks_complete(tmp_path, moment, exists):
    path = tmp_path / "ck"
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    if exists:
        subprocess.run([*command, "99"], check=True)
        before = files_of(path)
    done = subprocess.run([*command, str(moment)], check=False)
    assert done.returncode == -signal.SIGKILL
    if exists:
        assert files_of(path) == before
        verify(path)
    else:
        assert not path.exists()
        (draft,) = tmp_path.iterdir()
        with pytest.raises(CheckpointError, match=MANIFEST):
            verify(draft)


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_disk_raises_and_leaves_the_earlier_checkpoint_intact(
    cluster, tiny_data, tmp_path, num_learners
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        algo = tiny_config(tiny_data[0]).learners(num_learners=num_learners).build_algo()
        algo.train()
        first, kept = algo.save_to_path(disk / "first"), weights(algo)
        algo.train()
        (disk / "ballast").write_bytes(b"0" * (shutil.disk_usage(disk).free - 100_000))
        with pytest.raises(CheckpointError, match="earlier checkpoints are unharmed"):
            algo.save_to_path(disk / "second")
        assert sorted(os.listdir(disk)) == ["ballast", "first"]
        learner = algo.train()["learners"]["default_policy"]  # training continues
        assert learner["num_updates_lifetime"] == 3 * 3
        algo.stop()
        again = DT.from_checkpoint(first)
        assert same(weights(again), kept)
        again.stop()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_without_all_its_states_is_refused_and_not_saved(tmp_path):
    def write_all_but_one():
        with writing(tmp_path / "ck") as draft:
            for state in STATES[:-1]:
                path = draft / f"{state}.pkl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pickle.dumps(1))

    with pytest.raises(CheckpointError, match="written only in part"):
        write_all_but_one()
    assert not (tmp_path / "ck").exists()
