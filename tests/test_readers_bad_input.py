"""Invalid files and columns are refused with an error that names the file and the fix."""

import re
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import recordings as rec
from tests.recordings import check, read, refused, rows

FORMATS = ["a.parquet", "a.hdf5", "a.json", "a.json.gz", "a.zip"]


def without(step_rows, *names):
    return [{k: v for k, v in row.items() if k not in names} for row in step_rows]


# ---- files


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with refused(rf"{tmp_path}/no: there is no such file or folder; check offline_data\(input_="):
        read(tmp_path / "no")


def test_a_name_or_folder_without_a_known_format_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("obs,actions\n")
    with refused(r"data.csv: its name does not end like .*; wanted one of .*'.parquet'.*'.hdf5'"):
        read(tmp_path / "data.csv")
    for given in (tmp_path, tmp_path / "*.json"):
        with refused(rf"{re.escape(str(given))}: it holds no data file; .*'.parquet'.*'.hdf5'"):
            read(given)


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with refused(f"{name}: it is empty; remove it from the input"):
        read(tmp_path / name)


def test_a_file_without_steps_is_refused(tmp_path):
    table = pq.read_table(rec.write_rows(tmp_path / "a.parquet", rows(2, 3)))
    pq.write_table(table.slice(0, 0), tmp_path / "b.parquet")
    rec.write_d4rl(
        tmp_path / "c.hdf5",
        (3,),
        **{k: np.zeros((0, 2)) for k in ("observations", "actions")},
        **{k: np.zeros(0) for k in ("rewards", "terminals", "timeouts")},
    )
    nothing = {k: [] for k in ("obs", "new_obs", "actions", "rewards", "dones", "eps_id", "t")}
    rec.write_batches(tmp_path / "d.json", [{"type": "SampleBatch", **nothing}])
    (tmp_path / "e.json").write_text("\n\n")
    for name in ("b.parquet", "c.hdf5", "d.json", "e.json"):
        with refused(f"{name}: it is empty; remove it from the input"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path, name, kept):
    path = rec.write_valid_file(tmp_path / name)
    assert len(read(path).episodes) == 2
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept < 0 else int(len(data) * kept)])
    if name == "a.json" and kept == -1:  # only the last newline is missing: nothing is lost
        assert len(read(path).episodes) == 2
        return
    with refused(f"{name}: (it is not a complete|line [12] is not a complete JSON).*; .*copy"):
        read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_another_format_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe neither Parquet, HDF5, JSON nor an archive" * 7)
    with refused(f"{name}: (it is not a complete|line 1 is not a complete).*; .*copy"):
        read(tmp_path / name)


def test_damage_inside_a_file_is_refused(tmp_path):
    path = rec.write_rows(tmp_path / "a.parquet", rows(2, 500))
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(data)
    with refused("a.parquet: it is not a complete Parquet file"):
        read(path)
    path = rec.write_batches(tmp_path / "a.zip", [rec.batch(2, 500, compressed=())])
    data = bytearray(path.read_bytes())
    data[200:300] = b"\xff" * 100
    path.write_bytes(data)
    with refused("a.zip: it is not a complete zip file"):
        read(path)


def test_an_archive_without_recordings_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with refused("a.zip: it holds no .json file"):
        read(tmp_path / "a.zip")


def test_json_that_is_not_a_sample_batch_is_refused(tmp_path):
    for value, kind in [({"type": "MultiAgentBatch"}, "MultiAgentBatch"), ([1, 2], "list")]:
        path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3), value])
        with refused(f"a.json: line 2 is a {kind}, wanted a SampleBatch"):
            read(path)


# ---- columns


@pytest.mark.parametrize("column", ["obs", "actions", "rewards"])
def test_the_error_for_a_missing_column_names_it_and_the_existing_columns(tmp_path, column):
    others = "".join(f".*'{n}'" for n in sorted({"obs", "actions", "rewards"} - {column}))
    remedy = r"; .*input_read_schema=\{\"obs\": \"my_observations\""
    rec.write_rows(tmp_path / "a.parquet", without(rows(2, 3), column))
    with refused(rf"a.parquet: columns \['{column}'\] are missing; it has \[.*{others}.*{remedy}"):
        read(tmp_path / "a.parquet")
    rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3), rec.batch(3, 3, **{column: None})])
    with refused(rf"a.json: columns \['{column}'\] are missing; it has \[.*{others}.*{remedy}"):
        read(tmp_path / "a.json")
    name = {"obs": "observations"}.get(column, column)
    rec.write_d4rl(tmp_path / "a.hdf5", (3,), terminals=(2,), **{name: None})
    with refused(rf"a.hdf5: datasets \['{name}'\] are missing; it has .*'terminals'"):
        read(tmp_path / "a.hdf5")


def test_a_missing_column_is_named_by_the_users_own_name(tmp_path):
    path = rec.write_rows(tmp_path / "a.parquet", rows(2, 3))
    with refused(r"columns \['seen'\] are missing; it has .*'obs'"):
        read(path, names={"obs": "seen"})


def test_rows_that_do_not_identify_their_episodes_are_refused(tmp_path):
    bare = without(rows(2, 3), "eps_id", "terminateds", "truncateds")
    path = rec.write_rows(tmp_path / "a.parquet", bare)
    ends = r"\['terminateds', 'truncateds', 'dones', 'eps_id'\]"
    with refused(rf"no column tells where episodes end \(none of {ends}\)"):
        read(path)


def test_d4rl_without_timeouts_asks_for_the_time_limit(tmp_path):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (3, 5), terminals=(2, 7), timeouts=None)
    with refused(r"a.hdf5: it has no 'timeouts'.*; set offline_data\(time_limit="):
        read(path)


def test_columns_of_different_lengths_are_refused(tmp_path):
    lengths = r"its columns have different lengths: \{.*'rewards': 3.*\}; record every column"
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, dones=[False] * 4)])
    with refused(r"a.json: .*different lengths: batch 1 has 4 values of 'dones', but 3"):
        read(path)
    for name, values in [("terminals", [False] * 5), ("timeouts", [True]), ("actions", [[0, 0]])]:
        path = rec.write_d4rl(tmp_path / "a.hdf5", (3,), **{name: np.array(values)})
        with refused(rf"a.hdf5: {lengths}"):
            read(path)


def test_more_than_one_reward_a_step_is_refused(tmp_path):
    for rewards in ([[1.0, 2.0]] * 3, [[[1.0]]] * 3):
        path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, rewards=rewards)])
        with refused(r"a.json: rewards have shape \(3, .*, wanted \(n,\); record one number"):
            read(path)
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, rewards=7.5)])
    with refused("a.json: column 'rewards' holds one value"):
        read(path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("obs", "column 'obs' has 1 missing values, the first in row 1; remove the rows or fill"),
        ("rewards", "column 'rewards' has 1 missing values, the first in row 1"),
        ("eps_id", "column 'eps_id' has 1 missing values, the first in row 1"),
        ("t", "column 't' has 1 missing values, the first in row 1"),
        ("terminateds", "column 'terminateds' has 1 missing values, the first in row 1"),
    ],
)
def test_missing_values_are_refused(tmp_path, column, message):
    step_rows = rows(2, 3)
    step_rows[1][column] = None
    with refused(f"a.parquet: {message}"):
        read(rec.write_rows(tmp_path / "a.parquet", step_rows))


def test_missing_values_within_lists_are_refused(tmp_path):
    step_rows = rows(2, 3)
    step_rows[1]["obs"][2] = None
    with refused("a.parquet: column 'obs' has missing values in its lists; fill them in"):
        read(rec.write_rows(tmp_path / "a.parquet", step_rows))
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, rewards=[1, None, 2])])
    with refused("a.json: column 'rewards' holds values that are not numbers"):
        read(path)


def test_an_optional_column_without_values_counts_as_absent(tmp_path):
    nothing = {"truncateds": None, "new_obs": None, "t": None}
    (episode,) = read(
        rec.write_rows(tmp_path / "a.parquet", [row | nothing for row in rows(2, 3)])
    ).episodes
    check(episode, 2, 3, last=False)
    bare = [row | {"eps_id": None} for row in [*rows(2, 3), *rows(3, 5)]]
    first, second = read(rec.write_rows(tmp_path / "b.parquet", without(bare, "t"))).episodes
    check(first, 2, 3)
    check(second, 3, 5)
