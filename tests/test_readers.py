"""What good files of each format read to, value by value; see `recordings` for the values."""

import json
import logging
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from gymnasium.spaces import Box, Discrete
from ray.data._internal.tensor_extensions.arrow import ArrowTensorArray
from ray.rllib.utils.compression import pack

from rllib_dt import write_episodes, writer
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.returns import returns_to_go
from rllib_dt.runtime import ingest
from rllib_dt.runtime.ingest import read_episodes
from rllib_dt.runtime.readers.files import ReadOptions, find_files
from tests import recordings as rec
from tests.recordings import ACTIONS, OBSERVATIONS, arrays, check, ends, read, rows


def shuffled(step_rows, seed=0):
    return [step_rows[i] for i in np.random.default_rng(seed).permutation(len(step_rows))]


# ---- the canonical format


@pytest.mark.semantics(30)
def test_written_episodes_read_back_exactly(tmp_path):
    given = [
        arrays(2, 5) | dict(terminated=True, truncated=False, episode_id="first"),
        arrays(3, 1) | dict(terminated=False, truncated=True),
        arrays(4, 7) | dict(terminated=True, truncated=True),
    ]
    given[2]["obs"] = given[2]["obs"][:-1]
    files = write_episodes(iter(given), tmp_path / "new" / "data", OBSERVATIONS, ACTIONS)
    episodes = read(files[0]).episodes
    assert [e.id for e in episodes] == ["first", "1", "2"]
    assert ends(episodes) == [(True, False), (False, True), (True, True)]
    check(episodes[0], 2, 5)
    check(episodes[1], 3, 1)
    check(episodes[2], 4, 7, last=False)
    assert {e.source for e in episodes} == {str(files[0])}
    dtypes = (episodes[0].observations.dtype, episodes[0].actions.dtype, episodes[0].rewards.dtype)
    assert dtypes == (np.float32, np.float32, np.float64)


def test_written_discrete_actions_and_bytes_read_back_exactly(tmp_path):
    obs = np.arange(18, dtype=np.uint8).reshape(6, 3) * 15
    given = dict(obs=obs, actions=[3, 4, 5, 6, 3], rewards=[0.1, 1 / 3, -1e300, 0, 7])
    spaces = Box(0, 255, (3,), np.uint8), Discrete(4, start=3)
    write_episodes([given | dict(terminated=True, truncated=False)], tmp_path, *spaces)
    (episode,) = read(tmp_path).episodes
    np.testing.assert_array_equal(episode.observations, obs)
    np.testing.assert_array_equal(episode.actions, [3, 4, 5, 6, 3])
    np.testing.assert_array_equal(episode.rewards, [0.1, 1 / 3, -1e300, 0, 7])
    assert (episode.observations.dtype, episode.actions.dtype) == (np.uint8, np.int64)
    assert episode.conform(*spaces).actions.tolist() == [3, 4, 5, 6, 3]


def test_much_data_is_written_to_several_files_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_BYTES_PER_FILE", 300)
    given = [arrays(n, 7) | dict(terminated=True, truncated=False) for n in range(11)]
    files = write_episodes(given, tmp_path, OBSERVATIONS, ACTIONS)
    # an episode is 8·3·4 + 7·2·4 = 152 bytes, so the second fills a file
    assert [f.name for f in files] == [f"part-0000{i}.parquet" for i in range(6)]
    assert sorted(tmp_path.iterdir()) == files
    for number, episode in enumerate(read(tmp_path).episodes):
        check(episode, number, 7)
    assert json.loads(pq.read_schema(files[5]).metadata[b"rllib_dt"])["version"] == 1


@pytest.mark.parametrize("names", [{}, {"obs": "seen", "rewards": "paid"}], ids=["ours", "mapped"])
def test_canonical_columns_of_another_tool_read_exactly(tmp_path, names):
    frame = pd.DataFrame(
        {
            "obs": [list(arrays(n, 5)["obs"]) for n in (2, 3)],
            "actions": [list(arrays(n, 5)["actions"]) for n in (2, 3)],
            "rewards": [arrays(n, 5)["rewards"] for n in (2, 3)],
            "terminated": [True, False],
            "truncated": [False, True],
            "comment": ["any", "other"],
        }
    )
    frame.rename(columns=names).to_parquet(tmp_path / "mine.parquet")
    episodes = read(tmp_path, names=names).episodes
    assert [e.id for e in episodes] == ["0", "1"]
    assert ends(episodes) == [(True, False), (False, True)]
    check(episodes[0], 2, 5)
    check(episodes[1], 3, 5)


# ---- one row a step


@pytest.mark.semantics(1)
def test_an_episode_without_timesteps_goes_on_in_the_next_file(tmp_path):
    a, b = rec.old_rows(2, 11), rec.old_rows(3, 7)
    rec.write_rows(tmp_path / "1.parquet", rec.alternate(a[:4], b[:5]))
    rec.write_rows(tmp_path / "2.parquet", rec.alternate(b[5:], a[4:8]))
    rec.write_rows(tmp_path / "3.parquet", a[8:])
    first, second = read(tmp_path).episodes
    check(first, 2, 11)
    check(second, 3, 7)
    assert (first.id, second.id) == ("2", "3")
    # the return-to-go is the whole episode's, though three files hold it
    assert returns_to_go(first.rewards)[0] == sum(i / 8 + 2 for i in range(11))


def test_old_recordings_end_at_dones_and_where_an_id_ends(tmp_path):
    same_id = [row | dict(eps_id=2) for row in rec.old_rows(5, 3)]
    step_rows = [*rec.old_rows(2, 5), *same_id, *rec.old_rows(3, 7, end=False)]
    episodes = read(rec.write_rows(tmp_path / "a.parquet", step_rows)).episodes
    assert [e.id for e in episodes] == ["2", "2", "3"]
    check(episodes[0], 2, 5)
    check(episodes[1], 5, 3)
    check(episodes[2], 3, 7)
    # `dones` are all that it marks, so that without it a time limit ended the episode
    assert ends(episodes) == [(True, False), (True, False), (False, True)]


def test_an_id_that_another_file_uses_anew_is_another_episode(tmp_path):
    # neither has an end, but what followed the first's last action is not the second's start
    for name, number in [("1", 4), ("2", 6)]:
        anew = [row | dict(eps_id=0) for row in rec.old_rows(number, 5, end=False)]
        rec.write_rows(tmp_path / f"{name}.parquet", anew)
    first, second = read(tmp_path).episodes
    check(first, 4, 5)
    check(second, 6, 5)


def test_end_flags_alone_tell_episodes_apart(tmp_path):
    step_rows = [*rows(2, 5), *rows(3, 7, end="truncateds"), *rows(4, 1)]
    for row in step_rows:
        del row["eps_id"], row["t"], row["new_obs"]
    episodes = read(rec.write_rows(tmp_path / "a.pq", step_rows)).episodes
    assert ends(episodes) == [(True, False), (False, True), (True, False)]
    for episode, (number, length) in zip(episodes, [(2, 5), (3, 7), (4, 1)], strict=True):
        check(episode, number, length, last=False)


@pytest.mark.semantics(30)
def test_rows_with_timesteps_may_stand_in_any_order_and_file(tmp_path):
    mixed = shuffled([*rows(2, 11), *rows(3, 7, end="truncateds"), *rows(4, 13)])
    rec.write_rows(tmp_path / "1.parquet", mixed[:17])
    rec.write_rows(tmp_path / "2.parquet", mixed[17:])
    episodes = {e.id: e for e in read(tmp_path).episodes}
    assert sorted(episodes) == ["2", "3", "4"]
    check(episodes["2"], 2, 11)
    check(episodes["3"], 3, 7)
    check(episodes["4"], 4, 13)
    assert ends([episodes["2"], episodes["3"]]) == [(True, False), (False, True)]


def test_names_of_the_users_own_are_mapped(tmp_path):
    names = dict(eps_id="run", t="k", obs="x", actions="u", rewards="c", new_obs="x_next")
    names |= dict(terminateds="terminated", truncateds="truncated")
    mine = [{names[k]: v for k, v in row.items()} for row in shuffled(rows(2, 7))]
    (episode,) = read(rec.write_rows(tmp_path / "a.parquet", mine), names=names).episodes
    check(episode, 2, 7)
    assert ends([episode]) == [(True, False)]


def test_a_canonical_name_for_a_row_a_step_is_no_row_an_episode(tmp_path):
    # after mapping, the five columns of the canonical format are there, but of one step each
    names = dict(terminateds="terminated", truncateds="truncated")
    step_rows = [
        {names.get(k, k): v for k, v in row.items()} for row in [*rows(2, 5), *rows(3, 7)]
    ]
    path = rec.write_rows(tmp_path / "a.parquet", step_rows)
    first, second = read(path, names=names).episodes
    check(first, 2, 5)
    check(second, 3, 7)


def test_every_way_to_store_an_array_reads_to_the_same(tmp_path):
    a = arrays(2, 7)
    flags = np.arange(7) == 6
    common = dict(rewards=a["rewards"][:, None].tolist(), terminateds=flags, truncateds=~(flags | 1))
    obs, actions = a["obs"][:-1], a["actions"]
    fixed = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(obs))
    wanted = dict(
        fixed_list=(pa.FixedSizeListArray.from_arrays(obs.ravel(), 3), actions.tolist()),
        arrow_tensor=(fixed, actions.tolist()),
        ray_tensor=(ArrowTensorArray.from_numpy(obs), ArrowTensorArray.from_numpy(actions)),
        packed=([pack(o) for o in obs], [pack(x) for x in actions]),
        packed_bytes=([pack(o).encode() for o in obs], actions.tolist()),
        float32=(obs.astype(np.float32).tolist(), actions.tolist()),
    )
    for name, (observations, acted) in wanted.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(dict(obs=observations, actions=acted, **common)), path)
        (episode,) = read(path).episodes
        check(episode, 2, 7, last=False)


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
    # a lookback repeats the last steps of the chunk before, in front of its own
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


def test_batches_of_one_step_and_without_ids_read_exactly(tmp_path):
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


# ---- D4RL


@pytest.mark.semantics(30)
def test_a_d4rl_step_with_both_flags_ends_one_episode(tmp_path):
    path = rec.write_d4rl(
        tmp_path / "a.hdf5", (5, 7, 3, 2), terminals=(4, 14), timeouts=(4, 11)
    )
    assembly = read(path)
    for number, (episode, length) in enumerate(zip(assembly.episodes, (5, 7, 3), strict=True)):
        check(episode, number, length, last=False)
    assert ends(assembly.episodes) == [(True, True), (False, True), (True, False)]
    # the fourth has no end: left out, and said so
    (message,) = assembly.dropped
    assert message.startswith(f"{path}, episode (without id): the last of its 2 steps is neither")
    assert "returns-to-go are not known" in message
    check(read(path, incomplete="keep").episodes[3], 3, 2, last=False)


@pytest.mark.semantics(30)
def test_d4rl_without_timeouts_splits_at_the_time_limit(tmp_path):
    # 5 + 5 without a terminal, then one that ends early, one at the limit, and 2 of the next
    path = rec.write_d4rl(
        tmp_path / "a.h5", (5, 5, 3, 5, 2), terminals=(12, 17), timeouts=None
    )
    assembly = read(path, time_limit=5)
    for number, (episode, length) in enumerate(zip(assembly.episodes, (5, 5, 3, 5), strict=True)):
        check(episode, number, length, last=False)
    assert ends(assembly.episodes) == [(False, True), (False, True), (True, False), (True, True)]
    assert len(assembly.dropped) == 1


def test_d4rl_columns_of_width_one_are_read(tmp_path):
    rewards, terminals = arrays(0, 5)["rewards"][:, None], (np.arange(5) == 4)[:, None]
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5,), rewards=rewards, terminals=terminals)
    (episode,) = read(path).episodes
    check(episode, 0, 5, last=False)


@pytest.mark.semantics(28)
def test_statistics_come_from_the_episodes_that_are_left(tmp_path):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5, 7, 3), terminals=(4, 11))
    episodes = [e.conform(OBSERVATIONS, ACTIONS) for e in read(path).episodes]
    statistics = EpisodePool.from_episodes(episodes).normalization()
    kept = np.concatenate([arrays(n, length)["obs"][:-1] for n, length in [(0, 5), (1, 7)]])
    np.testing.assert_allclose(statistics.observation_mean, kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.observation_std, kept.std(axis=0) + 1e-6, rtol=1e-12)


# ---- which files


def test_folders_patterns_and_lists_name_files_in_a_fixed_order(tmp_path):
    for name in ("b/2.json", "b/10.json", "a.json", "_hidden/x.json", ".y.json", "b/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")

    def found(inputs):
        files = find_files(inputs)
        assert {size for _, size in files} == {3}
        return [path.removeprefix("file://").removeprefix(f"{tmp_path}/") for path, _ in files]

    assert found(str(tmp_path)) == ["a.json", "b/10.json", "b/2.json"]
    assert found(f"file://{tmp_path}") == ["a.json", "b/10.json", "b/2.json"]
    assert found(f"{tmp_path}/b/*.json") == ["b/10.json", "b/2.json"]
    assert found([f"{tmp_path}/b", f"{tmp_path}/a.json"]) == ["b/10.json", "b/2.json", "a.json"]


# ---- fitting the spaces


def test_normalised_actions_come_out_in_the_environments_units(tmp_path):
    actions = [[-1.0, 0.5], [0.0, -1.0], [1.0, 1.25]]
    path = rec.write_canonical(tmp_path / "a.parquet", [(0, 3)], actions=actions)
    (episode,) = read(path).episodes
    space = Box(np.float32([-2, 0]), np.float32([2, 8]))
    got = episode.conform(OBSERVATIONS, space, actions_normalized=True)
    # low + (a + 1)(high - low)/2, clipped as RLlib clips what a policy gives
    np.testing.assert_array_equal(got.actions, [[-2, 6], [0, 0], [2, 8]])
    assert (got.observations.dtype, got.actions.dtype) == (np.float32, np.float32)


def test_one_number_a_step_fits_with_and_without_an_axis(tmp_path):
    path = rec.write_canonical(tmp_path / "a.parquet", [(0, 3)], actions=[[4.0], [3.0], [5.0]])
    got = read(path).episodes[0].conform(OBSERVATIONS, Discrete(3, start=3))
    assert (got.actions.tolist(), got.actions.dtype) == ([4, 3, 5], np.int64)
    path = rec.write_canonical(tmp_path / "b.parquet", [(0, 3)], actions=[0.5, 1.0, -1.0])
    got = read(path).episodes[0].conform(OBSERVATIONS, Box(-1.0, 1.0, (1,)))
    assert got.actions.tolist() == [[0.5], [1.0], [-1.0]]


# ---- through Ray Data


def test_ray_datas_tensors_come_through_its_tasks_exactly(cluster, tmp_path):
    def numpy_rows(number, length):
        for row in rows(number, length):
            arrays_of = {k: np.array(row[k]) for k in ("obs", "actions", "new_obs")}
            yield row | arrays_of | dict(actions=pack(arrays_of["actions"]))

    for number, length in [(2, 5), (3, 7)]:
        dataset = ray.data.from_items(list(numpy_rows(number, length)))
        dataset.write_parquet(str(tmp_path / str(number)))
    kinds = pq.read_schema(find_files(str(tmp_path))[0][0])
    assert "tensor" in str(kinds.field("obs").type)
    assert kinds.field("actions").type == pa.string()
    episodes = read_episodes(str(tmp_path), ReadOptions()).episodes
    assert [e.id for e in episodes] == ["2", "3"]
    check(episodes[0], 2, 5)
    check(episodes[1], 3, 7)


def test_reading_in_tasks_equals_reading_without_them_and_reports(
    cluster, tmp_path, caplog, monkeypatch
):
    numbers = [{**row, "obs": row["obs"][0], "new_obs": row["new_obs"][0]} for row in rows(2, 5)]
    rec.write_rows(tmp_path / "1.parquet", numbers)
    rec.write_d4rl(tmp_path / "2.hdf5", (5, 7), terminals=(4,), rewards=np.arange(12, dtype=">f4"))
    rec.write_batches(tmp_path / "3.zip", [rec.batch(6, 5), rec.batch(7, 3)])
    monkeypatch.setattr(ingest, "_PROGRESS_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "rllib_dt"):
        theirs = read_episodes(str(tmp_path), ReadOptions())
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
    assert f"left out: {ours.dropped[0]}" in messages
