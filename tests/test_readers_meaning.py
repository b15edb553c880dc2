"""Data that could be taken for something else is refused, or read as what it is."""

import gzip
import json
import logging
import os
import warnings
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Discrete
from ray.rllib.utils.compression import pack

from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.formats import parquet_input, step_rows
from rllib_dt.formats.files import find_files
from tests import recordings as rec
from tests.recordings import check, read, refused, rows


def episode(**changes):
    steps = 3
    arrays = dict(
        observations=np.zeros((steps, 2)), actions=np.zeros((steps, 1)), rewards=np.ones(steps)
    )
    return Episode(
        **(dict(id="e", source="f", terminated=True, truncated=False) | arrays | changes)
    )


# ---- values


BYTES = Box(0, 255, (2,), np.uint8)
REALS = Box(-np.inf, np.inf, (2,))
FORCES = Box(-1.0, 1.0, (1,))


@pytest.mark.parametrize("value", [300, -1, 0.5, 256.0, np.int64(2**40)])
def test_values_that_a_spaces_integers_cannot_hold_are_refused(value):
    observations = np.array([[0, 0], [1, value], [2, 2]])
    with refused(r"f, episode e: observations at step 1 hold .*, which the space's uint8 cannot"):
        episode(observations=observations).conform(BYTES, FORCES)


def test_values_that_fit_are_converted_exactly():
    for dtype in (np.float64, np.int64, np.uint8):
        observations = np.array([[0, 255], [1, 7], [2, 2]], dtype)
        conformed = episode(observations=observations).conform(BYTES, FORCES)
        assert conformed.observations.dtype == np.uint8
        np.testing.assert_array_equal(conformed.observations, observations)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("observations", np.zeros((3, 2), complex)),
        ("actions", np.zeros((3, 1), "m8[s]")),
        ("rewards", np.zeros(3, "M8[s]")),
        ("rewards", np.zeros(3, complex)),
    ],
)
def test_complex_numbers_durations_and_dates_are_no_numbers(name, values):
    with refused(f"f, episode e: {name} hold .*, not numbers"):
        episode(**{name: values})


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.duration("us"), pa.date32(), pa.time64("us")]
)
@pytest.mark.parametrize("column", ["obs", "rewards", "actions", "t", "eps_id"])
def test_columns_of_dates_and_durations_are_refused_by_type(tmp_path, column, kind):
    table = pa.Table.from_pylist(rows(2, 3))
    storage = pa.array([0, 1, 2], pa.int32() if kind == pa.date32() else pa.int64())
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, storage.cast(kind)), tmp_path / "a.parquet")
    with refused(f"a.parquet: .*column '{column}' (is|are) of type"):
        read(tmp_path / "a.parquet")


def test_numbers_beyond_32_bits_are_refused():
    with refused("rewards at step 1 hold 1e\\+39, beyond what 32-bit floating-point numbers hold"):
        episode(rewards=np.array([0, 1e39, 0])).conform(REALS, FORCES)
    with refused("its rewards add up to as much as 6e\\+38"):
        episode(rewards=np.array([3e38, 3e38, 0])).conform(REALS, FORCES)
    huge = np.array([[0, 0], [1, 1], [-1e39, 2]])
    with refused("observations at step 2 hold -1e\\+39"):
        episode(observations=huge).conform(REALS, FORCES)


def test_an_action_outside_of_a_discrete_space_is_not_called_normalised():
    actions = np.array([0, 3, 1])
    with refused("the action 3 at step 1 lies outside Discrete\\(3\\); check that the environment"):
        episode(actions=actions).conform(REALS, Discrete(3))


# ---- timesteps and ids


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([0.0, np.nan, 2.0], "timesteps t hold nan at row 1"),
        ([0.0, 0.5, 1.0], "timesteps t hold 0.5 at row 1"),
        ([-1, 0, 1], "timesteps t hold -1 at row 0"),
        ([0.0, 1.0, 1e300], "timesteps t hold 1e.300 at row 2"),
        ([True, False, True], "timesteps t hold bool"),
    ],
)
def test_timesteps_that_are_no_whole_numbers_are_refused(tmp_path, steps, message):
    table = pa.Table.from_pylist(rows(2, 3))
    place = table.column_names.index("t")
    pq.write_table(table.set_column(place, "t", pa.array(steps)), tmp_path / "a.parquet")
    with refused(f"a.parquet: the {message}; number the steps"):
        read(tmp_path / "a.parquet")
    if not np.isnan(steps).any():
        path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, t=steps)])
        with refused(f"a.json: the {message}"):
            read(path)


def test_timesteps_may_be_floats_and_unsigned(tmp_path):
    for dtype in (np.float32, np.float64, np.uint8, np.int16):
        table = pa.Table.from_pylist([*rows(2, 3)[::-1]])
        place = table.column_names.index("t")
        steps = pa.array(np.array([2, 1, 0], dtype))
        pq.write_table(table.set_column(place, "t", steps), tmp_path / "a.parquet")
        (found,) = read(tmp_path / "a.parquet").episodes
        check(found, 2, 3)


def with_ids(path, ids):
    """Two episodes of two steps whose rows alternate, named by `ids`, a pair."""
    first, second = rows(2, 2), rows(3, 2)
    table = pa.Table.from_pylist([first[0], second[0], first[1], second[1]])
    place = table.column_names.index("eps_id")
    ids = ids.take([0, 1, 0, 1]) if isinstance(ids, pa.Array) else pa.array([*ids, *ids])
    pq.write_table(table.set_column(place, "eps_id", ids), path)
    return path


def test_ids_beyond_what_floats_tell_apart_stay_apart(tmp_path):
    big = 2**63 + 1
    for ids in (pa.array([big, big + 1], pa.uint64()), [str(big), str(big + 1)]):
        first, second = read(with_ids(tmp_path / "a.parquet", ids)).episodes
        check(first, 2, 2)
        check(second, 3, 2)
        assert (first.id, second.id) == (str(big), str(big + 1))
    batches = [
        rec.batch(2, 2, eps_id=[2**53] * 2, dones=[False] * 2, t=None),
        rec.batch(3, 2, eps_id=[2**53 + 1] * 2, dones=[False] * 2, t=None),
        rec.batch(4, 2, eps_id=[-3] * 2, dones=[False] * 2, t=None),
        rec.batch(5, 2, eps_id=[2**64] * 2, dones=[False] * 2, t=None),
    ]
    found = read(rec.write_batches(tmp_path / "a.json", batches)).episodes
    assert [e.id for e in found] == [str(2**53), str(2**53 + 1), "-3", str(2**64)]
    assert [len(e) for e in found] == [2] * 4


@pytest.mark.parametrize("ids", [[np.nan, 1.0], [0.5, 1.0], [2.0**53 + 2, 1.0], [np.inf, 1.0]])
def test_ids_that_are_no_whole_numbers_are_refused(tmp_path, ids):
    with refused("a.parquet: the id in column 'eps_id', row 0, is .*; name each episode by"):
        read(with_ids(tmp_path / "a.parquet", ids))


@pytest.mark.parametrize("ids", [[[1], [2]], [{"a": 1}, {"a": 2}]])
def test_nested_ids_are_refused(tmp_path, ids):
    with refused("a.parquet: ids in column 'eps_id' are of type"):
        read(with_ids(tmp_path / "a.parquet", ids))
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 2, eps_id=ids)])
    with refused("a.json: the id in column 'eps_id', row 0, is"):
        read(path)


def test_a_missing_id_in_json_is_refused(tmp_path):
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, eps_id=[2, None, 2])])
    with refused("a.json: the id in column 'eps_id', row 1, is None"):
        read(path)


def test_ids_written_as_floats_and_integers_name_the_same_episode(tmp_path):
    """pandas turns integers into floats where a value is missing elsewhere."""
    table = pa.Table.from_pylist(rows(2, 5))
    place = table.column_names.index("eps_id")
    pq.write_table(table.slice(0, 3), tmp_path / "1.parquet")
    later = table.slice(3).set_column(place, "eps_id", pa.array([2.0, 2.0]))
    pq.write_table(later, tmp_path / "2.parquet")
    (found,) = read(tmp_path).episodes
    check(found, 2, 5)


def test_categories_of_pandas_are_ids(tmp_path):
    ids = pa.array(["a", "b"]).dictionary_encode()
    first, second = read(with_ids(tmp_path / "a.parquet", ids)).episodes
    assert (first.id, second.id) == ("a", "b")
    check(second, 3, 2)


# ---- an episode's parts


def test_a_step_that_is_there_twice_is_named(tmp_path):
    twice = [*rows(2, 5)[:3], *rows(2, 5)[2:]]
    with refused("a.parquet, episode 2: its step 2 is recorded more than once; give each"):
        read(rec.write_rows(tmp_path / "a.parquet", twice))


def test_a_gap_is_named_and_drops_the_episode_whole(tmp_path):
    gap = [*old_rows_with_t(2, 9)[:4], *old_rows_with_t(2, 9)[6:]]
    path = rec.write_rows(tmp_path / "a.parquet", [*gap, *old_rows_with_t(3, 4)])
    with refused("a.parquet, episode 2: its steps 4 … 5 are missing; add the missing rows"):
        read(path)
    dropped = read(path, "drop")
    assert [e.id for e in dropped.episodes] == ["3"]
    assert len(dropped.dropped) == 2


def old_rows_with_t(number, length):
    """Rows whose flags mark terminations only, so an id's last row may be an end as well."""
    step_rows = rec.old_rows(number, length, end=False)
    return [row | dict(t=t) for t, row in enumerate(step_rows)]


def bare(number, length, *, start=0, end=True):
    """Rows that nothing but their order joins."""
    return [
        {k: v for k, v in row.items() if k != "new_obs"}
        for row in rec.old_rows(number, length, start=start, end=end)
    ]


def test_an_episode_continues_in_another_file_only_if_that_is_proven(tmp_path):
    rec.write_rows(tmp_path / "1.parquet", bare(2, 4, end=False))
    rec.write_rows(tmp_path / "2.parquet", bare(2, 3, start=4))
    message = "2.parquet, episode 2: it would continue an episode that .*1.parquet does not finish"
    with refused(rf"{message}.*offline_data\(join_files=True\)"):
        read(tmp_path)
    (found,) = rec.assembled(rec.fragments(tmp_path), join_files=True).episodes
    check(found, 2, 7, last=False)
    rec.write_rows(tmp_path / "1.parquet", rec.old_rows(2, 4, end=False))
    rec.write_rows(tmp_path / "2.parquet", rec.old_rows(2, 3, start=4))
    (found,) = read(tmp_path).episodes  # the next observation proves it
    check(found, 2, 7)


def test_an_episode_does_not_continue_in_another_format_unproven(tmp_path):
    rec.write_rows(tmp_path / "1.parquet", bare(2, 4, end=False))
    later = rec.batch(2, 3, start=4, t=None, new_obs=None)
    rec.write_batches(tmp_path / "2.json", [later])
    with refused("2.json, episode 2: it would continue an episode"):
        read(tmp_path)


def test_rows_out_of_order_are_refused_if_only_the_next_observations_tell(tmp_path):
    in_order = [*rec.old_rows(2, 5), *rec.old_rows(3, 4)]
    path = tmp_path / "a.parquet"
    shuffled = [in_order[i] for i in (1, 0, 2, 3, 4, 5, 6, 7, 8)]
    with refused("a.parquet: the observation of row 1 is not the next observation .* of row 0"):
        read(rec.write_rows(path, shuffled))
    first, second = read(rec.write_rows(path, rec.interleave(in_order[:5], in_order[5:]))).episodes
    check(first, 2, 5)
    check(second, 3, 4)


def test_a_parquet_column_that_ends_early_is_refused(tmp_path, monkeypatch):
    """A damaged file whose column pyarrow ends silently; here the footer claims a row more."""
    path = rec.write_canonical(tmp_path / "a.parquet")
    genuine = parquet_input.read_footer
    monkeypatch.setattr(
        parquet_input, "read_footer", lambda file: replace(genuine(file), num_rows=3)
    )
    with refused("a.parquet: it holds 2 of the 3 rows that it declares"):
        read(path)


# ---- files


def test_files_that_are_listed_twice_are_read_once(tmp_path, caplog):
    path = rec.write_rows(tmp_path / "a.parquet", rows(2, 5))
    (tmp_path / "link.parquet").symlink_to(path)
    inputs = [str(path), str(tmp_path), str(tmp_path / "*.parquet"), str(path)]
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        files = find_files(inputs)
    assert [os.path.realpath(p) for p, _ in files] == [str(path)]
    assert "files are listed more than once and are read once, such as" in caplog.text


def test_a_link_of_any_name_leads_to_packed_text(tmp_path):
    lines = (json.dumps(rec.batch(2, 5)) + "\n").encode()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b.json", lines)
    for name, target in (("one", "a.json.gz"), ("two", "b.zip"), ("three.json", "a.json.gz")):
        (tmp_path / name).symlink_to(tmp_path / target)
        (episode,) = read(tmp_path / name).episodes
        check(episode, 2, 5)


def test_a_link_to_the_folder_above_is_not_followed_for_ever(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rec.write_rows(folder / "a.parquet", rows(2, 5))
    (folder / "again").symlink_to(folder)
    assert [p for p, _ in find_files(str(folder))] == [str(folder / "a.parquet")]


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with refused("a.parquet: it is neither a file nor a folder"):
        read(tmp_path / "a.parquet")


def test_a_file_that_became_a_folder_or_vanished_is_refused(tmp_path):
    (tmp_path / "a.parquet").mkdir()
    with refused("a.parquet: it is no longer a file"):
        list(rec.read_file(str(tmp_path / "a.parquet"), rec.ReadOptions()))
    with refused("b.parquet: it has disappeared"):
        list(rec.read_file(str(tmp_path / "b.parquet"), rec.ReadOptions()))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = rec.write_rows(tmp_path / "a.parquet", rows(2, 5))
    path.chmod(0)
    with refused("a.parquet: it cannot be opened"):
        read(path)


@pytest.mark.parametrize("name", ["what?.json.gz", "a?b.zip", "c?.json", "d?.parquet"])
def test_names_with_question_marks_are_read(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        rec.write_rows(path, rows(2, 5))
    else:
        rec.write_batches(path, [rec.batch(2, 5)])
    (found,) = read([path]).episodes
    check(found, 2, 5)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_serialised_episodes_may_have_long_bytes_and_other_columns(tmp_path, kind):
    rec.write_states(tmp_path / "a.parquet", [rec.rllib_episode(2, 5).get_state()])
    table = pq.read_table(tmp_path / "a.parquet")
    table = table.set_column(0, "item", table["item"].cast(kind)).append_column("n", pa.array([1]))
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet").episodes
    np.testing.assert_array_equal(found.observations, rec.arrays(2, 5)["obs"])


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_pylist(rows(2, 3))
    pq.write_table(table.append_column("obs", table["obs"]), tmp_path / "a.parquet")
    with refused(r"a.parquet: it has several columns of the names \['obs'\]"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "metadata", [b"no JSON", b"[]", b'{"version": "new"}', b'{"version": null}']
)
def test_metadata_that_is_not_ours_is_refused(tmp_path, metadata):
    path = rec.write_canonical(tmp_path / "a.parquet")
    table = pq.read_table(path).replace_schema_metadata({"rllib_dt": metadata})
    pq.write_table(table, path)
    with refused("a.parquet: its metadata 'rllib_dt' is damaged"):
        read(path)


# ---- JSON


def test_lines_of_one_step_are_read(tmp_path):
    for name, packs in (("a.json", False), ("b.json.gz", True)):
        lines = [
            row | (dict(obs=pack(np.array(row["obs"]))) if packs else {})
            for row in [*rows(2, 5), *rows(3, 4)]
        ]
        first, second = read(rec.write_batches(tmp_path / name, lines)).episodes
        check(first, 2, 5)
        check(second, 3, 4)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    line = json.dumps(rec.batch(2, 3))
    (tmp_path / "a.json").write_text(line[:-1] + ', "rewards": [0, 0, 0]}\n')
    with refused("a.json: line 1 holds the key 'rewards' twice"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_json_that_python_cannot_read_is_refused(tmp_path, value):
    (tmp_path / "a.json").write_text('{"obs": ' + value + "}\n")
    with refused("a.json: line 1 (cannot be read|is not a complete JSON value)"):
        read(tmp_path / "a.json")


def test_what_a_library_stumbles_over_becomes_a_data_error(tmp_path, monkeypatch):
    def stumble(*args, **kwargs):
        raise ZeroDivisionError("deep inside")

    path = rec.write_d4rl(tmp_path / "a.hdf5", (5,), terminals=(4,))
    monkeypatch.setattr(h5py, "File", stumble)
    with refused(r"a.hdf5: it cannot be read \(ZeroDivisionError: deep inside\); it is damaged"):
        read(path)


def test_a_column_of_ends_or_ids_must_be_in_every_line(tmp_path):
    bare = dict(new_obs=None, t=None)
    for missing, changes in (("eps_id", bare), ("dones", bare | {"eps_id": None})):
        lines = [rec.batch(2, 5, **changes), rec.batch(3, 7, **changes)]
        lines[1].pop(missing)
        with refused(f"a.json: column '{missing}' is missing in line 2, but not in line 1"):
            read(rec.write_batches(tmp_path / "a.json", lines))


def test_ids_of_numbers_and_text_and_large_ones_beside_floats_stay_apart(tmp_path):
    def ids(*values):
        bare = dict(new_obs=None, t=None, dones=None)
        batches = [rec.batch(2, 2, eps_id=[value] * 2, **bare) for value in values]
        return rec.write_batches(tmp_path / "a.json", batches)

    found = read(ids(2**53, 2**53 + 1, 1.0)).episodes
    assert [e.id for e in found] == [str(2**53), str(2**53 + 1), "1"]
    with refused("a.json: ids in column 'eps_id' are numbers and text"):
        read(ids(1, "1"))


def test_members_of_one_name_are_both_read_and_others_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.json", json.dumps(rec.batch(2, 5)))
        archive.writestr("a.json", json.dumps(rec.batch(3, 7)))
        archive.writestr("B.JSON", json.dumps(rec.batch(4, 3)))
    assert [len(e) for e in read(tmp_path / "a.zip").episodes] == [5, 7, 3]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(rec.batch(2, 5)))
        archive.writestr("b.json.gz", b"")
    with refused(r"b.zip: it holds \['b.json.gz'\], which are not read; unpack"):
        read(tmp_path / "b.zip")


def test_a_byte_order_mark_and_packed_flags_are_read(tmp_path):
    columns = ("obs", "new_obs", "actions", "rewards", "dones", "t")
    path = rec.write_batches(
        tmp_path / "a.json", [rec.batch(2, 5, compressed=columns, eps_id=None)]
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (found,) = read(path).episodes
    check(found, 2, 5)


def test_parts_of_a_large_file_are_read_as_the_whole(tmp_path, monkeypatch):
    """What a part lacks (a truncation, values of a column) is no property of the file."""
    first = [row | dict(dones=row["terminateds"]) for row in rows(1, 40)]
    second = [row | dict(dones=i == 19) for i, row in enumerate(rows(2, 20, end=None))]
    third = [row | dict(dones=row["terminateds"]) for row in rows(3, 40)]
    kept = ("obs", "actions", "rewards", "terminateds", "dones")
    table = [{k: row[k] for k in kept} for row in first + second + third]
    path = rec.write_rows(tmp_path / "a.parquet", table)
    for size in (10**9, 1500, 3000):
        monkeypatch.setattr(step_rows, "MAX_BYTES_AT_ONCE", size)
        found = read(path).episodes
        assert [len(e) for e in found] == [40, 20, 40]
        assert rec.ends(found) == [(True, False), (False, True), (True, False)]
    half = [row | dict(dones=None if i < 30 else row["dones"]) for i, row in enumerate(table)]
    path = rec.write_rows(tmp_path / "b.parquet", half)
    for size in (10**9, 1500):
        monkeypatch.setattr(step_rows, "MAX_BYTES_AT_ONCE", size)
        with refused("b.parquet: column 'dones' has .*missing values"):
            read(path)


def test_uris_of_local_files_are_decoded_once(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    for name, number in (("x%41.json", 2), ("xA.json", 3), ("c d.json", 4)):
        rec.write_batches(folder / name, [rec.batch(number, 5)])
    found = read(f"file://{tmp_path}/a%20b").episodes
    assert sorted(e.observations[0, 1] for e in found) == [2, 3, 4]
    for bad in ("foo://x/y.json", "a" * 300 + ".json"):
        with pytest.raises(DataError, match=bad[:20]):
            read(bad)


def test_a_link_to_nothing_is_refused_and_one_to_a_blob_is_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "data").mkdir()
    blob = rec.write_rows(tmp_path / "blobs" / "abc.parquet", rows(2, 5))
    blob.rename(tmp_path / "blobs" / "abc")
    (tmp_path / "data" / "x.parquet").symlink_to(tmp_path / "blobs" / "abc")
    for given in (tmp_path / "data", tmp_path / "data" / "x.parquet"):
        (found,) = read(given).episodes
        check(found, 2, 5)
    (tmp_path / "data" / "y.json").symlink_to("nowhere")
    with refused("y.json: it is a link to nothing"):
        read(tmp_path / "data")


def test_columns_whose_names_hold_dots_are_bounded_too(tmp_path):
    zeros = pa.array(np.zeros(2**21))
    table = pa.table([zeros] * 3 + [pa.array(np.zeros(2**21, bool))], ["a.b", "c.d", "e.f", "end"])
    pq.write_table(pa.concat_tables([table] * 8), tmp_path / "a.parquet")
    names = {"obs": "a.b", "actions": "c.d", "rewards": "e.f", "terminateds": "end"}
    with refused("takes the file past 256 MiB"):
        read(tmp_path / "a.parquet", names=names, max_expansion=1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": [0, 5]}, "row 1 begins with t=5, so rows are parts of episodes"),
        ({"t": [list(range(5)), list(range(5, 12))]}, "row 1 begins with t=5"),
        ({"eps_id": [4, 4]}, "row 1 begins with eps_id=4"),
        ({"eps_id": [["x"] * 5, ["x"] * 7]}, "row 1 begins with eps_id='x'"),
    ],
)
@pytest.mark.parametrize("incomplete", ["error", "drop", "keep"])
def test_rows_that_are_parts_of_episodes_are_no_episodes(tmp_path, columns, message, incomplete):
    path = rec.write_canonical(tmp_path / "a.parquet")
    table = pq.read_table(path).drop_columns(["episode_id"])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    with refused(message):
        read(path, incomplete)
    for name in columns:  # whole ones pass
        whole = {"t": [0, 0], "eps_id": [4, 5]}[name]
        table = table.drop_columns([name]).append_column(name, pa.array(whole))
    pq.write_table(table, path)
    for episode, numbers in zip(read(path).episodes, [(2, 5), (3, 7)], strict=True):
        check(episode, *numbers)
