"""Damaged files of every format give exactly what they hold, or a `DataError`.

What a file holds is read a second time here, by the libraries themselves and in the simplest way.
"""

import gzip
import io
import json
import zipfile
from dataclasses import dataclass

import h5py
import msgpack
import msgpack_numpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from ray.rllib.utils.compression import unpack_if_needed

from rllib_dt.episodes.episode import DataError
from rllib_dt.spaces.trees import by_leaf
from tests import other_recordings as other
from tests import recordings as rec

FILES_EACH = 200
"""Damaged files of each kind; seventeen kinds make 3,400."""

LENGTHS = (5, 1, 7)


# ---- valid files


def write_step_rows(path):
    rows = [row for n, length in enumerate(LENGTHS) for row in rec.rows(n, length)]
    return rec.write_rows(path, rows)


def write_old_rows(path):
    rows = [row for n, length in enumerate(LENGTHS) for row in rec.old_rows(n, length)]
    return rec.write_rows(path, rows)


def write_canonical(path):
    return rec.write_valid_file(path)


def write_plain_canonical(path):
    return rec.write_canonical(path, [(n, length) for n, length in enumerate(LENGTHS)])


def write_serialised(path):
    states = [
        rec.rllib_episode(n, length).to_numpy().get_state() for n, length in enumerate(LENGTHS)
    ]
    return rec.write_states(path, states)


def write_hdf5(path):
    ends = tuple(np.cumsum(LENGTHS) - 1)
    return rec.write_d4rl(path, LENGTHS, terminals=ends)


def write_checked_hdf5(path):
    """With checksums, as h5py can add them."""
    write_hdf5(path)
    with h5py.File(path, "r+") as file:
        for name in list(file):
            values = file[name][()]
            del file[name]
            file.create_dataset(name, data=values, chunks=True, fletcher32=True, compression="gzip")
    return path


def write_json(path):
    return rec.write_batches(path, [rec.batch(n, length) for n, length in enumerate(LENGTHS)])


def write_plain_json(path):
    batches = [rec.batch(n, length, compressed=()) for n, length in enumerate(LENGTHS)]
    return rec.write_batches(path, batches)


def of_others(write, **settings):
    """Returns a function that writes `LENGTHS` in another program's format."""
    return lambda path: write(path, list(enumerate(LENGTHS)), **settings)


def write_minari(path):
    folder = other.write_minari_hdf5(path.parent / "set", list(enumerate(LENGTHS)))
    return (folder / "data" / "main_data.hdf5").rename(path)


def write_arrow(path):
    folder = other.write_minari_tables(path.parent / "set", "arrow", [(2, 7)])
    return (folder / "data" / "0" / "part-0.arrow").rename(path)


def write_rlds(path):
    texts = {"observation/text": None, "observation/position": None}
    return other.write_rlds(path, list(enumerate(LENGTHS)), change=lambda number: texts)


# ---- what a file holds

ENDS = ("terminateds", "truncateds", "dones")


def grouped(obs, actions, rewards, ids):
    """Splits steps by id, in the order of first appearance."""
    names = list(dict.fromkeys(map(str, ids)))
    at = {name: [i for i, other in enumerate(ids) if str(other) == name] for name in names}
    return [
        tuple(np.asarray([c[i] for i in at[n]]) for c in (obs, actions, rewards)) for n in names
    ]


def columns_of(path, *names):
    """The rows of some columns; others, which nobody reads, may be damaged."""
    there = pq.ParquetFile(path).schema_arrow.names
    return pq.read_table(path, columns=[name for name in names if name in there]).to_pylist()


def of_rows(path):
    rows = columns_of(path, "obs", "actions", "rewards", "eps_id", "t", *ENDS)
    if "t" in rows[0]:
        rows.sort(key=lambda row: row["t"])
    number = dict.fromkeys((row["eps_id"] for row in rows), 0)
    for row in rows:  # an id may be that of several episodes
        name = row["eps_id"]
        row["eps_id"] = f"{name} {number[name]}"
        number[name] += any(row.get(end) for end in ENDS)
    return grouped(*([row[k] for row in rows] for k in ("obs", "actions", "rewards", "eps_id")))


def of_canonical(path):
    rows = columns_of(path, "obs", "actions", "rewards")
    return [
        tuple(np.asarray(v) for v in (r["obs"][: len(r["rewards"])], r["actions"], r["rewards"]))
        for r in rows
    ]


def of_serialised(path):
    states = [
        msgpack.unpackb(item, object_hook=msgpack_numpy.decode, strict_map_key=False)
        for item in pq.read_table(path)["item"].to_pylist()
    ]
    found = []
    for state in states:
        columns = (state[k] for k in ("observations", "actions", "rewards"))
        obs, actions, rewards = (np.asarray(c["data"])[c["lookback"] :] for c in columns)
        found.append((obs[: len(rewards)], actions, rewards))
    return found


def of_hdf5(path):
    with h5py.File(path) as file:
        columns = [file[name][()] for name in ("observations", "actions", "rewards")]
        ends = file["terminals"][()].astype(bool) | file["timeouts"][()].astype(bool)
    stops = np.flatnonzero(ends) + 1
    starts = [0, *stops[:-1]]
    return [tuple(c[a:b] for c in columns) for a, b in zip(starts, stops, strict=True)]


def lines_of(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zip":
        archive = zipfile.ZipFile(io.BytesIO(data))
        data = b"".join(archive.read(m) for m in archive.namelist() if not m.startswith("__MACOSX"))
    return [json.loads(line) for line in data.decode().split("\n") if line.strip()]


def of_json(path):
    steps = ([], [], [], [])
    for batch in lines_of(path):
        for part, name in zip(steps, ("obs", "actions", "rewards", "eps_id"), strict=True):
            part += list(unpack_if_needed(batch[name]))
    return grouped(*steps)


def of_minari(path):
    with h5py.File(path) as file:
        groups = [file[name] for name in sorted(file) if name.startswith("episode_")]
        return [
            (g["observations"][: len(g["rewards"])], g["actions"][()], g["rewards"][()])
            for g in groups
        ]


def of_arrow(path):
    with pa.OSFile(str(path)) as file:
        file.seek(8)
        rows = pa.ipc.open_stream(file).read_all().to_pylist()[:-1]
    columns = ([row[k] for row in rows] for k in ("observations", "actions", "rewards"))
    return [tuple(map(np.asarray, columns))]


def of_robomimic(path):
    with h5py.File(path) as file:
        demos = [file["data"][name] for name in sorted(file["data"])]
        return [
            (demo["obs"]["rest"][()], demo["actions"][()], demo["rewards"][()]) for demo in demos
        ]


def of_d3rlpy(path):
    with h5py.File(path) as file:
        numbers = [name.split("_")[1] for name in sorted(file) if name.startswith("actions_")]
        names = ("observations", "actions", "rewards")
        found = [[file[f"{name}_{i}"][()] for name in names] for i in numbers]
    return [(obs, actions, rewards.reshape(len(rewards))) for obs, actions, rewards in found]


def of_imitation(path):
    with np.load(path) as file:
        cuts = file["indices"]
        obs = np.split(file["obs"], cuts + 1 + np.arange(len(cuts)))
        rest = [np.split(file[name], cuts) for name in ("acts", "rews")]
    return [(o[:-1], a, r) for o, a, r in zip(obs, *rest, strict=True)]


def of_stable_baselines(path):
    with np.load(path) as file:
        cuts = np.flatnonzero(file["episode_starts"])[1:]
        columns = [np.split(file[name], cuts) for name in ("obs", "actions", "rewards")]
    return list(zip(*columns, strict=True))


def of_rlds(path):
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        example = Example.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length
        features = dict(example.features.feature)
        lists = {k: v.float_list.value for k, v in features.items()}
        rows = len(features["steps/is_last"].int64_list.value)
        ended = bool(features["steps/is_last"].int64_list.value[-1])
        names = ("steps/observation/rest", "steps/action", "steps/reward")
        columns = [np.asarray(lists[name], np.float32).reshape(rows, -1) for name in names]
        obs, actions, rewards = (column[: rows - ended] for column in columns)
        found.append((obs, actions, rewards[:, 0]))
    return found


def example_class():
    """Builds the class of `tf.train.Example` by tensorflow's `feature.proto`."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="test", syntax="proto3")

    def message(name, *fields):
        added = file.message_type.add(name=name)
        for number, (field_name, kind, label, type_name) in enumerate(fields, 1):
            added.field.add(
                name=field_name, number=number, type=kind, label=label, type_name=type_name
            )
        return added

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", ("value", field.TYPE_BYTES, many, None))
    message("FloatList", ("value", field.TYPE_FLOAT, many, None))
    message("Int64List", ("value", field.TYPE_INT64, many, None))
    message(
        "Feature",
        ("bytes_list", field.TYPE_MESSAGE, one, ".test.BytesList"),
        ("float_list", field.TYPE_MESSAGE, one, ".test.FloatList"),
        ("int64_list", field.TYPE_MESSAGE, one, ".test.Int64List"),
    )
    features = message(
        "Features", ("feature", field.TYPE_MESSAGE, many, ".test.Features.FeatureEntry")
    )
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=one)
    entry.field.add(
        name="value", number=2, type=field.TYPE_MESSAGE, label=one, type_name=".test.Feature"
    )
    message("Example", ("features", field.TYPE_MESSAGE, one, ".test.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Example"))


Example = example_class()


# ---- damage


def flip(data, rng):
    data = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 5)):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def overwrite(data, rng):
    start = rng.integers(len(data))
    junk = rng.integers(256, size=rng.integers(1, 40), dtype=np.uint8).tobytes()
    return data[:start] + junk + data[start + len(junk) :]


def truncate(data, rng):
    return data[: rng.integers(len(data))]


def repeat(data, rng):
    a, b = np.sort(rng.integers(len(data), size=2))
    return data[:b] + data[a:b] + data[b:]


DAMAGE = (flip, overwrite, truncate, repeat)


def shuffled_columns(path, rng):
    """Gives a Parquet file's columns other names, types, rows or missing values."""
    table = pq.read_table(path)
    names = table.column_names
    for _ in range(rng.integers(1, 3)):
        i, j = rng.integers(len(names), size=2)
        what = rng.integers(6)
        if what == 0:
            names[i], names[j] = names[j], names[i]
            table = table.rename_columns(names)
        elif what == 1:
            table = table.take(pa.array(rng.permutation(len(table))))
        elif what == 2:
            holes = [None if rng.random() < 0.2 else v for v in table[names[i]].to_pylist()]
            table = table.set_column(int(i), names[i], pa.array(holes, table[names[i]].type))
        elif what == 3:
            table = table.slice(0, max(1, len(table) - rng.integers(1, 4)))
        elif what == 4:
            table = pa.concat_tables([table, table.slice(0, rng.integers(1, 4))])
        else:
            kinds = [pa.string(), pa.float32(), pa.int8(), pa.timestamp("s"), pa.float16()]
            kind = kinds[rng.integers(len(kinds))]
            try:
                table = table.set_column(int(i), names[i], table[names[i]].cast(kind))
            except pa.ArrowException:
                continue
    pq.write_table(table, path)


@dataclass
class Kind:
    suffix: str
    write: object
    holds: object
    is_exact: bool = False
    """The format has checksums, so whatever is read is what was written."""


KINDS = {
    "rows": Kind(".parquet", write_step_rows, of_rows),
    "old rows": Kind(".parquet", write_old_rows, of_rows),
    "canonical": Kind(".parquet", write_canonical, of_canonical, is_exact=True),
    "canonical of others": Kind(".parquet", write_plain_canonical, of_canonical),
    "serialised": Kind(".parquet", write_serialised, of_serialised),
    "hdf5": Kind(".hdf5", write_hdf5, of_hdf5),
    "hdf5 with checksums": Kind(".hdf5", write_checked_hdf5, of_hdf5),
    "json": Kind(".json", write_json, of_json),
    "json.gz": Kind(".json.gz", write_plain_json, of_json, is_exact=True),
    "zip": Kind(".zip", write_json, of_json, is_exact=True),
    "minari": Kind(".hdf5", write_minari, of_minari),
    "arrow": Kind(".arrow", write_arrow, of_arrow),
    "robomimic": Kind(".hdf5", of_others(other.write_robomimic), of_robomimic),
    "d3rlpy": Kind(".h5", of_others(other.write_d3rlpy), of_d3rlpy),
    "imitation": Kind(".npz", of_others(other.write_imitation), of_imitation, is_exact=True),
    "stable-baselines": Kind(
        ".npz", of_others(other.write_stable_baselines), of_stable_baselines, is_exact=True
    ),
    "rlds": Kind(".tfrecord", write_rlds, of_rlds),
}


def steps_of(episodes):
    # of several leaves the one that every kind has
    seen = [by_leaf(e.observations) for e in episodes]
    for tree in seen:
        if not {"", "rest"} & set(tree):
            raise DataError("it", f"it lacks a leaf, and has {list(tree)}", "as spaces refuse it")
    leaves = [tree[""] if "" in tree else tree["rest"] for tree in seen]
    return [(o[: len(e)], e.actions, e.rewards) for o, e in zip(leaves, episodes, strict=True)]


def same(found, held):
    return len(found) == len(held) and all(
        one.shape == other.shape and np.array_equal(one, other)
        for a, b in zip(found, held, strict=True)
        for one, other in zip(a, b, strict=True)
    )


def in_order(episodes):
    """Sorts episodes by content: which comes first depends on where each one ends."""
    return sorted(episodes, key=lambda e: [np.asarray(c, float).tobytes() for c in e])


def check(kind, path, original):
    """Returns whether the file was read; fails if it was read wrongly."""
    try:
        found = in_order(steps_of(rec.read(path).episodes))
    except DataError:
        return False
    if kind.is_exact:
        assert same(found, original)
    if not same(found, original):
        assert same(found, in_order(kind.holds(path)))
    return True


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy's, of values like 1e300
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # zipfile's
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_or_read_exactly(tmp_path, name):
    kind = KINDS[name]
    path = kind.write(tmp_path / f"a{kind.suffix}")
    original, data = in_order(steps_of(rec.read(path).episodes)), path.read_bytes()
    assert same(original, in_order(kind.holds(path)))
    read = 0
    for number in range(FILES_EACH):
        rng = np.random.default_rng((number, len(data)))
        path.write_bytes(data)
        if kind.suffix == ".parquet" and number % 2:
            shuffled_columns(path, rng)
            read += check(Kind(kind.suffix, kind.write, kind.holds), path, original)
        else:
            path.write_bytes(DAMAGE[number % len(DAMAGE)](data, rng))
            read += check(kind, path, original)
    assert read < FILES_EACH  # otherwise nothing was damaged
