"""RLlib's own recordings, old and new, read exactly, directly and through Ray Data's tasks."""

import json
import logging
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from gymnasium.spaces import Box, Discrete
from ray.rllib.utils.compression import pack

from rllib_dt.episodes.episode import DataError
from rllib_dt.episodes.returns import returns_to_go
from rllib_dt.formats.files import find_files
from rllib_dt.reading import tasks
from tests import recordings as rec
from tests.conftest import tiny_config
from tests.recordings import OBSERVATIONS, arrays, check, ends, read, rows

# ---- episodes that RLlib serialised


@pytest.mark.parametrize("finalized", [False, True], ids=["lists", "arrays"])
@pytest.mark.semantics(30)
def test_serialised_episodes_read_exactly(tmp_path, finalized):
    recorded = [rec.rllib_episode(2, 5), rec.rllib_episode(3, 7, end="truncated")]
    if finalized:
        recorded = [e.to_numpy() for e in recorded]
    path = rec.write_states(tmp_path / "a.parquet", [e.get_state() for e in recorded])
    episodes = read(path).episodes
    assert [e.id for e in episodes] == ["e2", "e3"]
    assert ends(episodes) == [(True, False), (False, True)]
    for episode, (number, length) in zip(episodes, [(2, 5), (3, 7)], strict=True):
        np.testing.assert_array_equal(episode.observations, arrays(number, length)["obs"])
        np.testing.assert_array_equal(episode.actions, np.arange(length) % 3)
        np.testing.assert_array_equal(episode.rewards, arrays(number, length)["rewards"])


@pytest.mark.semantics(1)
def test_chunks_of_a_serialised_episode_join_by_their_timesteps(tmp_path):
    whole = rec.rllib_episode(2, 11)
    chunks = [whole[0:4], whole[4:9], whole[9:11]]
    # a lookback buffer repeats the previous chunk's last steps in front of the chunk's own
    chunks[1] = whole.slice(slice(4, 9), len_lookback_buffer=2)
    assert [c.t_started for c in chunks] == [0, 4, 9]
    assert len(chunks[1].rewards.data) == 7
    states = [c.get_state() | dict(id_="e2") for c in chunks]
    rec.write_states(tmp_path / "1.parquet", [states[1]])
    rec.write_states(tmp_path / "2.parquet", [states[2], states[0]])
    (episode,) = read(tmp_path).episodes
    np.testing.assert_array_equal(episode.observations, arrays(2, 11)["obs"])
    np.testing.assert_array_equal(episode.actions, np.arange(11) % 3)
    np.testing.assert_array_equal(episode.rewards, arrays(2, 11)["rewards"])
    assert returns_to_go(episode.rewards)[0] == sum(i / 8 + 2 for i in range(11))


# ---- old sample batches


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".zip"])
@pytest.mark.parametrize("compressed", [(), ("obs", "new_obs", "actions", "rewards")])
def test_sample_batches_read_exactly(tmp_path, suffix, compressed):
    lines = [
        rec.batch(2, 4, compressed=compressed, dones=[False] * 4),
        rec.batch(3, 7, compressed=compressed),
        rec.batch(2, 3, start=4, compressed=compressed),
    ]
    first, second = read(rec.write_batches(tmp_path / f"a{suffix}", lines)).episodes
    check(first, 2, 7)
    check(second, 3, 7)
    assert (first.id, second.id, *ends([first])) == ("2", "3", (True, False))


def test_batches_of_one_step_without_ids_read_exactly(tmp_path):
    a = arrays(2, 5)
    lines = [
        {
            "type": "SampleBatch",
            "obs": [pack(a["obs"][i])],
            "actions": [a["actions"][i].tolist()],
            "rewards": [a["rewards"][i]],
            "dones": [float(i == 4)],
        }
        for i in range(5)
    ]
    (episode,) = read(rec.write_batches(tmp_path / "a.json", [*lines, *lines[4:]])).episodes[:1]
    check(episode, 2, 5, last=False)


def test_an_archive_may_hold_several_recordings(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/1.json", json.dumps(rec.batch(2, 5)))
        archive.writestr("x/2.json", "\n" + json.dumps(rec.batch(3, 7)) + "\n\n")
        archive.writestr("x/readme.txt", "not read")
    first, second = read(tmp_path / "a.zip").episodes
    check(first, 2, 5)
    check(second, 3, 7)
    assert second.source == f"{tmp_path}/a.zip!x/2.json"


# ---- fitting the spaces


def test_normalised_actions_are_converted_to_the_environments_units(tmp_path):
    actions = [[-1.0, 0.5], [0.0, -1.0], [1.0, 1.25]]
    path = rec.write_canonical(tmp_path / "a.parquet", [(0, 3)], actions=actions)
    (episode,) = read(path).episodes
    space = Box(np.float32([-2, 0]), np.float32([2, 8]))
    got = episode.conform(OBSERVATIONS, space, actions_normalized=True)
    # low + (a + 1)(high - low)/2, clipped as RLlib clips a policy's actions
    np.testing.assert_array_equal(got.actions, [[-2, 6], [0, 0], [2, 8]])
    assert (got.observations.dtype, got.actions.dtype) == (np.float32, np.float32)


def test_scalar_actions_fit_with_and_without_an_axis(tmp_path):
    path = rec.write_canonical(tmp_path / "a.parquet", [(0, 3)], actions=[[4.0], [3.0], [5.0]])
    got = read(path).episodes[0].conform(OBSERVATIONS, Discrete(3, start=3))
    assert (got.actions.tolist(), got.actions.dtype) == ([4, 3, 5], np.int64)
    path = rec.write_canonical(tmp_path / "b.parquet", [(0, 3)], actions=[0.5, 1.0, -1.0])
    got = read(path).episodes[0].conform(OBSERVATIONS, Box(-1.0, 1.0, (1,)))
    assert got.actions.tolist() == [[0.5], [1.0], [-1.0]]


# ---- through Ray Data


def test_tensors_written_by_ray_data_read_exactly_through_its_tasks(cluster, tmp_path):
    def numpy_rows(number, length):
        for row in rows(number, length):
            arrays_of = {k: np.array(row[k]) for k in ("obs", "actions", "new_obs")}
            yield row | arrays_of | dict(actions=pack(arrays_of["actions"]))

    for number, length in [(2, 5), (3, 7)]:
        dataset = ray.data.from_items(list(numpy_rows(number, length)))
        dataset.write_parquet(str(tmp_path / str(number)))
    kinds = pq.read_schema(find_files(str(tmp_path))[0][0])
    assert "Tensor" in str(kinds.field("obs").type)
    assert kinds.field("actions").type == pa.string()
    episodes = rec.read_with_ray(tmp_path).episodes
    assert [e.id for e in episodes] == ["2", "3"]
    check(episodes[0], 2, 5)
    check(episodes[1], 3, 7)


def test_reading_in_tasks_equals_reading_without_them_and_logs_progress(
    cluster, tmp_path, caplog, monkeypatch
):
    numbers = [{**row, "obs": row["obs"][0], "new_obs": row["new_obs"][0]} for row in rows(2, 5)]
    rec.write_rows(tmp_path / "1.parquet", numbers)
    rec.write_d4rl(tmp_path / "2.hdf5", (5, 7), terminals=(4,), rewards=np.arange(12, dtype=">f4"))
    rec.write_batches(tmp_path / "3.zip", [rec.batch(6, 5), rec.batch(7, 3)])
    monkeypatch.setattr(tasks, "_PROGRESS_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "rllib_dt"):
        theirs = rec.read_with_ray(tmp_path)
    ours = read(tmp_path)
    assert len(ours.episodes) == 4
    for one, other in zip(theirs.episodes, ours.episodes, strict=True):
        assert (one.id, one.source) == (other.id, other.source)
        assert ends([one]) == ends([other])
        for name in ("observations", "actions", "rewards"):
            got, want = getattr(one, name), getattr(other, name)
            np.testing.assert_array_equal(got, want, strict=True)
    assert theirs.dropped == ours.dropped
    assert len(theirs.dropped) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert "read 25 steps, from 1 of 1 groups of files" in messages
    assert any(m.startswith("read 3 files, 25 steps in ") for m in messages)


def test_dropped_episodes_are_logged(cluster, tmp_path, caplog):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5, 7), terminals=(4,))
    spaces = dict(observation_space=rec.OBSERVATIONS, action_space=rec.ACTIONS)
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        algo = tiny_config(str(path)).environment(**spaces).build_algo()
    algo.stop()
    (dropped,) = read(path).dropped
    assert f"left out: {dropped}" in [record.getMessage() for record in caplog.records]
    assert algo.offline_data.summary.num_episodes == 1


def test_ids_of_sample_batches_may_be_strings(tmp_path):
    batch = dict(
        type="SampleBatch", obs=[[1.0], [2.0]], actions=[0, 1], rewards=[3.0, 4.0], dones=[0, 0],
        eps_id=["one", "two"],
    )  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(batch))
    got = read(tmp_path / "a.json").episodes
    assert [e.id for e in got] == ["one", "two"]
    assert [e.rewards.tolist() for e in got] == [[3.0], [4.0]]


def test_column_lengths_are_checked_batch_by_batch(tmp_path):
    """One line lacks a reward and the next has one too many, so only the totals agree."""
    lines = [
        dict(obs=[[1.0], [2.0]], actions=[0, 1], rewards=[3.0], dones=[0, 0]),
        dict(obs=[[1.0]], actions=[0], rewards=[3.0, 4.0], dones=[1]),
    ]
    (tmp_path / "a.json").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(DataError, match="batch 1 has 1 values of 'rewards', but 2"):
        read(tmp_path / "a.json")


def die(items, options, filesystem):
    os._exit(1)


@pytest.mark.slow
def test_a_file_that_ends_the_process_that_reads_it_is_refused(cluster, tmp_path, monkeypatch):
    """Ray Data itself would start the task again for ever."""
    path = rec.write_canonical(tmp_path / "a.parquet")
    monkeypatch.setattr(tasks, "_read_groups", die)
    with pytest.raises(DataError, match="the process that read one of these files died"):
        rec.read_with_ray(path)
