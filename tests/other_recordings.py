"""Small recordings in other programs' formats, whose values are `recordings.arrays`."""

import gzip
import json
import struct

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rllib_dt.formats import tfrecord
from rllib_dt.spaces.descriptions import describe_space
from tests.recordings import ACTIONS, OBSERVATIONS, arrays

EPISODES = ((2, 5), (3, 1), (4, 7))
"""(number, length) of each episode; the second is truncated, the others terminated."""


def flags(number, length):
    """The episode's two flags at each step."""
    last = np.arange(length) == length - 1
    return last & (number != 3), last & (number == 3)


# --- Minari


def minari_space(space):
    """A space as minari describes it (minari 0.5, `serialization.py`)."""
    described = describe_space(space)
    if "spaces" in described:
        inner = space.spaces
        return {
            "type": described["type"],
            "subspaces": {k: minari_space(v) for k, v in inner.items()}
            if isinstance(inner, dict)
            else [minari_space(v) for v in inner],
        }
    if described["type"] == "Box":
        described |= {"low": space.low.tolist(), "high": space.high.tolist()}
    return described | ({"dtype": str(space.dtype)} if space.dtype else {})


def write_metadata(folder, spaces=(OBSERVATIONS, ACTIONS), kind="hdf5"):
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    described = {
        name: json.dumps(minari_space(space))
        for name, space in zip(("observation_space", "action_space"), spaces, strict=True)
    }
    (data / "metadata.json").write_text(json.dumps({"data_format": kind, **described}))
    return data


def write_minari_hdf5(folder, episodes=EPISODES, *, change=None, spaces=(OBSERVATIONS, ACTIONS)):
    """Writes a data set; `change(number, columns)` may replace columns by trees."""
    with h5py.File(write_metadata(folder, spaces) / "main_data.hdf5", "w") as file:
        for i, (number, length) in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            group.attrs["id"] = i
            for name, value in minari_columns(number, length, change).items():
                put(group, name, value)
            group.create_group("infos")
    return folder


def minari_columns(number, length, change=None):
    a = arrays(number, length)
    terminations, truncations = flags(number, length)
    columns = dict(
        observations=a["obs"],
        actions=a["actions"],
        rewards=a["rewards"],
        terminations=terminations,
        truncations=truncations,
    )
    return columns | (change(number, columns) if change else {})


def put(group, name, value):
    """Stores a tree: dicts are groups, and tuples groups of `_index_0`, …"""
    if isinstance(value, tuple):
        value = {f"_index_{i}": each for i, each in enumerate(value)}
    if isinstance(value, dict):
        inner = group.create_group(name)
        for key, each in value.items():
            put(inner, key, each)
    elif value is not None:
        group[name] = value


def write_minari_tables(folder, kind, episodes=EPISODES, *, column=None):
    """Writes a data set with a file for each episode, whose last row is padded."""
    data = write_metadata(folder, kind=kind)
    for i, (number, length) in enumerate(episodes):
        columns = minari_columns(number, length)
        padded = {
            name: np.concatenate([values, np.zeros_like(values[:1])])
            if len(values) == length
            else values
            for name, values in columns.items()
        }
        table = pa.table({k: (column or flat_lists)(k, v) for k, v in padded.items()})
        (data / str(i)).mkdir()
        (data / str(i) / "metadata.json").write_text(json.dumps({"id": i}))
        if kind == "parquet":
            pq.write_table(table, data / str(i) / "part-0.parquet")
        else:
            write_arrow(data / str(i) / "part-0.arrow", table)
    return folder


def flat_lists(name, values):
    """A column as minari writes a Box: lists of one length, without inner axes."""
    if values.ndim == 1:
        return pa.array(values)
    width = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


def write_arrow(path, table, *, stream=False, compression=None):
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
        out.write_table(table, max_chunksize=2)
    return path


# --- robomimic, d3rlpy


def write_robomimic(path, episodes=EPISODES, *, next_obs=True, dones=None):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = "{}"
        for i, (number, length) in enumerate(episodes):
            a = arrays(number, length)
            demo = data.create_group(f"demo_{i}")
            put(demo, "obs", {"position": a["obs"][:-1, :2], "rest": a["obs"][:-1, 2:]})
            if next_obs:
                put(demo, "next_obs", {"position": a["obs"][1:, :2], "rest": a["obs"][1:, 2:]})
            demo["actions"], demo["rewards"] = a["actions"], a["rewards"]
            demo["dones"] = flags(number, length)[0].astype(int) if dones is None else dones(length)
            demo["states"] = np.zeros((length, 40))
        file.create_group("mask")["train"] = np.array([b"demo_0"])
    return path


def write_d3rlpy(path, episodes=EPISODES):
    with h5py.File(path, "w") as file:
        file["version"] = "2.1"
        file["total_size"] = len(episodes)
        for i, (number, length) in enumerate(episodes):
            a = arrays(number, length)
            file[f"observations_{i}"] = a["obs"][:-1]
            file[f"actions_{i}"] = a["actions"]
            file[f"rewards_{i}"] = a["rewards"][:, None]
            file[f"terminated_{i}"] = number != 3
    return path


# --- npz


def write_imitation(path, episodes=EPISODES, **changes):
    parts = [arrays(*episode) for episode in episodes]
    columns = dict(
        obs=np.concatenate([a["obs"] for a in parts]),
        acts=np.concatenate([a["actions"] for a in parts]),
        rews=np.concatenate([a["rewards"] for a in parts]),
        infos=np.array([{"a": 1}] * sum(n for _, n in episodes), object),
        terminal=np.array([number != 3 for number, _ in episodes]),
        indices=np.cumsum([n for _, n in episodes])[:-1],
    )
    return save(path, columns | changes)


def write_stable_baselines(path, episodes=EPISODES, **changes):
    parts = [arrays(*episode) for episode in episodes]
    columns = dict(
        obs=np.concatenate([a["obs"][:-1] for a in parts]),
        actions=np.concatenate([a["actions"] for a in parts]),
        rewards=np.concatenate([a["rewards"] for a in parts]),
        episode_returns=np.array([a["rewards"].sum() for a in parts]),
        episode_starts=np.concatenate([np.arange(n) == 0 for _, n in episodes]),
    )
    return save(path, columns | changes)


def write_ogbench(path, episodes=EPISODES, **changes):
    """Each episode has a row for its last state, whose action is NaN here: nobody may read it."""
    parts = [arrays(*episode) for episode in episodes]
    columns = dict(
        observations=np.concatenate([a["obs"] for a in parts]),
        actions=np.concatenate([np.vstack([a["actions"], [[np.nan, np.nan]]]) for a in parts]),
        terminals=np.concatenate([np.arange(n + 1) == n for _, n in episodes]).astype(np.float32),
        qpos=np.zeros((sum(n + 1 for _, n in episodes), 9)),
    )
    return save(path, columns | changes)


def save(path, columns):
    np.savez(path, **{k: v for k, v in columns.items() if v is not None})
    return path


def write_d4rl_atari(folder, episodes=EPISODES, *, name="{}.gz", tail=2, **changes):
    """Writes frames whose pixels are the step, and `tail` steps of an episode without an end."""
    folder.mkdir(exist_ok=True)
    steps = np.concatenate([np.arange(n) for _, n in [*episodes, (0, tail)]])
    last = np.concatenate([np.arange(n) == n - 1 for _, n in episodes] + [np.zeros(tail, bool)])
    fields = dict(
        observation=np.broadcast_to(steps[:, None, None], (len(steps), 84, 84)).astype(np.uint8),
        action=steps % 4,
        reward=np.sign(steps - 2).astype(np.float32),
        terminal=last.astype(np.uint8),
    )
    for field_name, values in (fields | changes).items():
        with gzip.open(folder / name.format(field_name), "wb") as file:
            np.save(file, values)
    return folder


# --- RLDS


def write_rlds(path, episodes=EPISODES, *, change=None, cut=False):
    """Writes an episode a record; with `cut` the rows of last observations are missing."""
    with open(path, "wb") as file:
        for number, length in episodes:
            content = example({f"steps/{k}": v for k, v in rlds_steps(number, length, change, cut)})
            head = struct.pack("<Q", len(content))
            sums = [struct.pack("<I", tfrecord._masked_crc(part)) for part in (head, content)]
            file.write(head + sums[0] + content + sums[1])
    return path


def rlds_steps(number, length, change, cut):
    a = arrays(number, length)
    last = np.arange(length + 1) == length
    steps = {
        "observation/position": a["obs"][:, :2],
        "observation/rest": a["obs"][:, 2:],
        "observation/text": [b"go \xc3\xa9"] * (length + 1),
        "action": np.vstack([a["actions"], [[7.0, 7.0]]]),
        "reward": np.append(a["rewards"], 0.0),
        "is_first": np.arange(length + 1) == 0,
        "is_last": last,
        "is_terminal": last & (number != 3),
    } | (change(number) if change else {})
    return [(k, v[: length if cut else None]) for k, v in steps.items() if v is not None]


def example(features):
    """Serialises a `tf.train.Example`, as protobuf does."""
    entries = b"".join(field(1, field(1, k.encode()) + field(2, v)) for k, v in
                       ((k, feature(v)) for k, v in features.items()))  # fmt: skip
    return field(1, entries)


def feature(values):
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    flat = np.asarray(values).ravel()
    if flat.dtype.kind == "f":
        return field(2, field(1, flat.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(v) % 2**64) for v in flat)))


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


# --- LeRobot


def write_lerobot(folder, version, episodes=EPISODES, *, without=(), **changes):
    """Writes a data set of version "2.1" (a file an episode) or "3.0" (one file of all)."""
    tables = [lerobot_table(i, *episode) for i, episode in enumerate(episodes)]
    tables = [
        pa.table({k: v for k, v in table.items() if k not in without} | changes)
        for table in tables
    ]  # fmt: skip
    chunk = folder / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    (folder / "meta" / "episodes").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps({"codebase_version": f"v{version}"}))
    (folder / "meta" / "tasks.jsonl").write_text("{}")
    pq.write_table(pa.table({"length": [1]}), folder / "meta" / "episodes" / "file-000.parquet")
    if version == "3.0":
        pq.write_table(pa.concat_tables(tables), chunk / "file-000.parquet", row_group_size=4)
    for i, table in enumerate(tables if version == "2.1" else []):
        pq.write_table(table, chunk / f"episode_{i:06d}.parquet")
    return folder


def lerobot_table(index, number, length):
    a = arrays(number, length)
    terminations, truncations = flags(number, length)
    return {
        "observation.state": pa.array(a["obs"][:-1, :2].tolist()),
        "observation.rest": pa.array(a["obs"][:-1, 2:].tolist()),
        "action": pa.array(a["actions"].tolist()),
        "next.reward": pa.array([[r] for r in a["rewards"]]),
        "next.done": pa.array(terminations),
        "next.truncated": pa.array(truncations),
        "next.success": pa.array(terminations),
        "timestamp": pa.array(np.arange(length) / 10),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array([index] * length),
        "index": pa.array(np.arange(length)),
        "task_index": pa.array([0] * length),
    }
