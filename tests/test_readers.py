"""Valid Parquet and HDF5 files read exactly; `recordings` defines their values."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Discrete
from ray.data._internal.tensor_extensions.arrow import (
    ArrowTensorArray,
    ArrowVariableShapedTensorArray,
)
from ray.rllib.utils.compression import pack

from rllib_dt import write_episodes
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.returns import returns_to_go
from rllib_dt.episodes.statistics import Statistics
from rllib_dt.formats import assembly, canonical
from rllib_dt.formats.files import find_files, read_file
from rllib_dt.formats.fragments import ReadOptions
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
    given = dict(obs=obs, actions=[3, 4, 5, 6, 3], rewards=[0.1, 1 / 3, -1e30, 0, 7])
    spaces = Box(0, 255, (3,), np.uint8), Discrete(4, start=3)
    write_episodes([given | dict(terminated=True, truncated=False)], tmp_path, *spaces)
    (episode,) = read(tmp_path).episodes
    np.testing.assert_array_equal(episode.observations, obs)
    np.testing.assert_array_equal(episode.actions, [3, 4, 5, 6, 3])
    np.testing.assert_array_equal(episode.rewards, [0.1, 1 / 3, -1e30, 0, 7])
    assert (episode.observations.dtype, episode.actions.dtype) == (np.uint8, np.int64)
    assert episode.conform(*spaces).actions.tolist() == [3, 4, 5, 6, 3]


def test_large_data_is_written_to_several_files_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(canonical, "_BYTES_PER_FILE", 300)
    given = [arrays(n, 7) | dict(terminated=True, truncated=False) for n in range(11)]
    files = write_episodes(given, tmp_path, OBSERVATIONS, ACTIONS)
    # an episode is 8·3·4 + 7·2·4 = 152 bytes, so the second fills a file
    assert [f.name for f in files] == [f"part-0000{i}.parquet" for i in range(6)]
    assert sorted(tmp_path.iterdir()) == files
    for number, episode in enumerate(read(tmp_path).episodes):
        check(episode, number, 7)
    assert json.loads(pq.read_schema(files[5]).metadata[b"rllib_dt"])["version"] == 1


@pytest.mark.parametrize("names", [{}, {"obs": "seen", "rewards": "paid"}], ids=["ours", "mapped"])
def test_canonical_columns_from_another_tool_read_exactly(tmp_path, names):
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


def test_canonical_tensor_columns_read_exactly(tmp_path):
    # as Ray Data writes arrays in rows: obs and actions differ in length, rewards are flat
    def column(name):
        steps = np.empty(2, object)
        steps[:] = [arrays(2, 5)[name], arrays(3, 7)[name]]
        return ArrowVariableShapedTensorArray.from_numpy(steps)

    columns = {name: column(name) for name in ("obs", "actions", "rewards")}
    ends_of = dict(terminated=[True, False], truncated=[False, True], episode_id=[17, 19])
    pq.write_table(pa.table(columns | ends_of), tmp_path / "a.parquet")
    first, second = read(tmp_path).episodes
    check(first, 2, 5)
    check(second, 3, 7)
    assert (first.id, second.id) == ("17", "19")


# ---- one row per step


@pytest.mark.semantics(1)
def test_an_episode_without_timesteps_continues_in_the_next_file(tmp_path):
    a, b = rec.old_rows(2, 11), rec.old_rows(3, 7)
    rec.write_rows(tmp_path / "1.parquet", rec.interleave(a[:4], b[:5]))
    rec.write_rows(tmp_path / "2.parquet", rec.interleave(b[5:], a[4:8]))
    rec.write_rows(tmp_path / "3.parquet", a[8:])
    episodes = {episode.id: episode for episode in read(tmp_path).episodes}
    assert episodes.keys() == {"2", "3"}
    first, second = episodes["2"], episodes["3"]
    check(first, 2, 11)
    check(second, 3, 7)
    # the return-to-go covers the whole episode, which spans three files
    assert returns_to_go(first.rewards)[0] == sum(i / 8 + 2 for i in range(11))


def test_old_recordings_split_at_dones_and_at_changes_of_the_id(tmp_path):
    same_id = [row | dict(eps_id=2) for row in rec.old_rows(5, 3)]
    step_rows = [*rec.old_rows(2, 5), *same_id, *rec.old_rows(3, 7, end=False)]
    episodes = read(rec.write_rows(tmp_path / "a.parquet", step_rows)).episodes
    assert [e.id for e in episodes] == ["2", "2", "3"]
    check(episodes[0], 2, 5)
    check(episodes[1], 5, 3)
    check(episodes[2], 3, 7)
    # `dones` is the only flag, so an episode that ends without it counts as truncated
    assert ends(episodes) == [(True, False), (True, False), (False, True)]


@pytest.mark.parametrize("change", [dict(dones=False), dict(new_obs=None)])
def test_an_id_that_another_file_reuses_is_another_episode(tmp_path, change):
    # without end flags, the first episode's last new_obs differs from the second's first obs;
    # with end flags, nothing joins an episode that has ended
    for name, number in [("1", 4), ("2", 6)]:
        reused = [row | dict(eps_id=0) | change for row in rec.old_rows(number, 5)]
        rec.write_rows(tmp_path / f"{name}.parquet", reused)
    first, second = read(tmp_path).episodes
    check(first, 4, 5, last="new_obs" not in change)
    check(second, 6, 5, last="new_obs" not in change)


def test_end_flags_alone_separate_episodes(tmp_path):
    step_rows = [*rows(2, 5), *rows(3, 7, end="truncateds"), *rows(4, 1)]
    for row in step_rows:
        del row["eps_id"], row["t"], row["new_obs"]
    episodes = read(rec.write_rows(tmp_path / "a.pq", step_rows)).episodes
    assert ends(episodes) == [(True, False), (False, True), (True, False)]
    for episode, (number, length) in zip(episodes, [(2, 5), (3, 7), (4, 1)], strict=True):
        check(episode, number, length, last=False)


@pytest.mark.semantics(30)
def test_rows_with_timesteps_may_be_in_any_order_and_file(tmp_path):
    mixed = shuffled([*rows(2, 11), *rows(3, 7, end="truncateds"), *rows(4, 13)])
    whole = rec.write_rows(tmp_path / "whole.parquet", mixed)
    assert sorted(map(len, read_file(str(whole), ReadOptions()))) == [7, 11, 13]
    whole.unlink()
    rec.write_rows(tmp_path / "1.parquet", mixed[:17])
    rec.write_rows(tmp_path / "2.parquet", mixed[17:])
    episodes = {e.id: e for e in read(tmp_path).episodes}
    assert sorted(episodes) == ["2", "3", "4"]
    check(episodes["2"], 2, 11)
    check(episodes["3"], 3, 7)
    check(episodes["4"], 4, 13)
    assert ends([episodes["2"], episodes["3"]]) == [(True, False), (False, True)]


@pytest.mark.parametrize("common", [False, True])
def test_user_defined_column_names_are_mapped(tmp_path, common):
    # the canonical format has gymnasium's names for end flags too, but here a row is a step
    names = dict(terminateds="terminated", truncateds="truncated", eps_id="run", t="k")
    if not common:
        names |= dict(obs="x", actions="u", rewards="c", new_obs="x_next")
    mine = [{names.get(k, k): v for k, v in row.items()} for row in shuffled(rows(2, 7))]
    (episode,) = read(rec.write_rows(tmp_path / "a.parquet", mine), names=names).episodes
    check(episode, 2, 7)
    assert ends([episode]) == [(True, False)]


def test_every_array_encoding_reads_to_the_same_values(tmp_path):
    a = arrays(2, 7)
    flags = np.arange(7) == 6
    common = dict(rewards=a["rewards"][:, None].tolist(), terminateds=flags)
    common["truncateds"] = np.zeros(7, bool)
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


# ---- D4RL


@pytest.mark.semantics(30)
def test_a_d4rl_step_with_both_flags_ends_one_episode(tmp_path):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5, 7, 3, 2), terminals=(4, 14), timeouts=(4, 11))
    assembly = read(path)
    for number, (episode, length) in enumerate(zip(assembly.episodes, (5, 7, 3), strict=True)):
        check(episode, number, length, last=False)
    assert ends(assembly.episodes) == [(True, True), (False, True), (True, False)]
    # the fourth episode has no end, so it is dropped with a message
    (message,) = assembly.dropped
    assert message.startswith(f"{path}, episode (without id): the last of its 2 steps is neither")
    assert "returns-to-go are not known" in message
    check(read(path, incomplete="keep").episodes[3], 3, 2, last=False)


@pytest.mark.semantics(30)
def test_d4rl_without_timeouts_splits_at_the_time_limit(tmp_path):
    # two without a terminal, one that ends early, one that ends at the limit, 2 steps of a fifth
    path = rec.write_d4rl(tmp_path / "a.h5", (5, 5, 3, 5, 2), terminals=(12, 17), timeouts=None)
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
def test_statistics_come_only_from_the_episodes_that_were_kept(tmp_path):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5, 7, 3), terminals=(4, 11))
    episodes = [e.conform(OBSERVATIONS, ACTIONS) for e in read(path).episodes]
    statistics = Statistics.of(EpisodePool.from_episodes(episodes)).normalization()
    kept = np.concatenate([arrays(n, length)["obs"][:-1] for n, length in [(0, 5), (1, 7)]])
    np.testing.assert_allclose(statistics.observation_mean, kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.observation_std, kept.std(axis=0) + 1e-6, rtol=1e-12)


# ---- finding files


def test_folders_patterns_and_lists_expand_to_files_in_a_fixed_order(tmp_path):
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


def test_a_file_of_a_later_format_version_is_refused(tmp_path):
    (path,) = write_episodes(
        [dict(obs=[[1.0]], actions=[0], rewards=[1.0], terminated=True, truncated=False)],
        tmp_path / "d",
        Box(-9, 9, (1,)),
        Discrete(2),
    )
    table = pq.read_table(path)
    later = json.loads(table.schema.metadata[b"rllib_dt"]) | {"version": 2}
    pq.write_table(table.replace_schema_metadata({"rllib_dt": json.dumps(later)}), path)
    with rec.refused(r"format version 2, this rllib_dt reads up to 1; upgrade"):
        read(path)


def test_joining_shuffled_rows_takes_work_in_proportion_to_their_number(tmp_path, monkeypatch):
    """Each row of a shuffled recording is a fragment; they must not be compared pair by pair."""
    calls = []
    continues = assembly._continues
    monkeypatch.setattr(assembly, "_continues", lambda *a: calls.append(1) or continues(*a))
    rng = np.random.default_rng(0)
    counts = {}
    for steps in (200, 400):
        calls.clear()
        step_rows = [row for number in range(4) for row in rows(number, steps // 4)]
        order = rng.permutation(steps)
        for part in range(8):
            folder = tmp_path / str(steps)
            folder.mkdir(exist_ok=True)
            of_part = [step_rows[i] for i in order[part::8]]
            rec.write_rows(folder / f"{part}.parquet", of_part)
        episodes = {e.id: e for e in read(folder).episodes}
        for number in range(4):
            check(episodes[str(number)], number, steps // 4)
        counts[steps] = len(calls)
    assert counts[400] < 4 * 400
    assert counts[400] < 2.5 * counts[200]


# ---- images as bytes


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_bytes_have_the_shape_that_the_files_metadata_gives(tmp_path, dtype):
    frames = np.arange(5 * 6 * 4).reshape(5, 6, 4).astype(dtype)
    table = pa.Table.from_pylist(rec.rows(2, 5)).drop_columns(["obs", "new_obs"])
    size = frames[0].nbytes
    values = pa.array([frame.tobytes() for frame in frames], pa.binary(size))
    table = table.append_column("obs", values)
    described = {"obs_shape": "[6, 4]", "obs_dtype": f'"{dtype}"'}
    pq.write_table(table.replace_schema_metadata(described), tmp_path / "a.parquet")
    (episode,) = read(tmp_path / "a.parquet").episodes
    np.testing.assert_array_equal(episode.observations, frames)
    assert episode.observations.dtype == dtype
    for wrong in ({"obs_shape": "[6, 5]"}, {"obs_shape": "no JSON"}, {"obs_dtype": '"O"'}):
        described = {"obs_shape": "[6, 4]", "obs_dtype": f'"{dtype}"'} | wrong
        pq.write_table(table.replace_schema_metadata(described), tmp_path / "b.parquet")
        with rec.refused("b.parquet: the metadata of column 'obs' does not fit its values"):
            read(tmp_path / "b.parquet")
