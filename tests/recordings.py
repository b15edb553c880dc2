"""Small recordings in every format, whose values identify their episode and step."""

import base64
import gzip
import json
import pickle
import zipfile
from dataclasses import dataclass

import h5py
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.compression import pack

from rllib_dt import write_episodes
from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.assembly import Assembler, assemble
from rllib_dt.formats.files import find_files, read_file
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.reading.tasks import group_files, read_fragments

OBSERVATIONS = Box(-np.inf, np.inf, (3,))
ACTIONS = Box(-1.0, 1.0, (2,))


def read(inputs, incomplete="error", **options):
    """Reads files into episodes, without Ray."""
    return assembled(fragments(inputs, **options), incomplete)


def fragments(inputs, **options):
    """Yields the fragments of files, without Ray."""
    inputs = [str(i) for i in inputs] if isinstance(inputs, list) else str(inputs)
    return (f for path, _ in find_files(inputs) for f in read_file(path, ReadOptions(**options)))


def read_with_ray(inputs):
    """Like `read`, but through Ray Data's tasks."""
    groups = group_files(find_files(str(inputs)))
    return assembled(read_fragments(groups, ReadOptions()))


@dataclass
class Assembled:
    """Whole episodes in the order of their completion, and a message for each dropped one."""

    episodes: list
    dropped: list


def assembled(fragments, incomplete="error", *, join_files=False):
    assembler = Assembler(incomplete, join_files=join_files)
    return Assembled(list(assemble(fragments, assembler)), assembler.dropped)


def refused(match):
    """Expects a DataError whose message matches the pattern."""
    return pytest.raises(DataError, match=match)


def arrays(number, length, start=0):
    """T+1 observations, T actions and T rewards from timestep `start` on, all exact in float32."""
    t = np.arange(start, start + length + 1)
    return dict(
        obs=np.stack([t, np.full(length + 1, number), t / 4 - number], 1),
        actions=np.stack([t[:-1] / 64, np.full(length, number / 16)], 1),
        rewards=t[:-1] / 8 + number,
    )


def check(episode, number, length, *, last=True):
    """Asserts that an episode equals `arrays(number, length)` exactly."""
    want = arrays(number, length)
    np.testing.assert_array_equal(episode.observations, want["obs"][: length + last])
    np.testing.assert_array_equal(episode.actions, want["actions"])
    np.testing.assert_array_equal(episode.rewards, want["rewards"])


def ends(episodes):
    return [(episode.terminated, episode.truncated) for episode in episodes]


def rows(number, length, *, start=0, end="terminateds"):
    """One dict per step in RLlib's new names; `end` is the last step's flag, or None."""
    a = arrays(number, length, start)
    return [
        dict(
            eps_id=number,
            t=start + i,
            obs=a["obs"][i].tolist(),
            actions=a["actions"][i].tolist(),
            rewards=float(a["rewards"][i]),
            new_obs=a["obs"][i + 1].tolist(),
            terminateds=end == "terminateds" and i == length - 1,
            truncateds=end == "truncateds" and i == length - 1,
        )
        for i in range(length)
    ]


def old_rows(number, length, *, start=0, end=True):
    """Like `rows`, in the old names: with `dones` and without a timestep."""
    step_rows = rows(number, length, start=start, end="terminateds" if end else None)
    return [
        {k: v for k, v in row.items() if k not in ("t", "truncateds", "terminateds")}
        | dict(dones=row["terminateds"])
        for row in step_rows
    ]


def interleave(*recordings):
    """Interleaves the rows of several episodes, as parallel environments record them."""
    longest = max(map(len, recordings))
    return [r[i] for i in range(longest) for r in recordings if i < len(r)]


def write_rows(path, step_rows):
    pq.write_table(pa.Table.from_pylist(step_rows), path)
    return path


def write_canonical(path, episodes=((2, 5), (3, 7)), **changes):
    """Writes canonical columns without our metadata; `changes` go into the last episode."""
    episode_rows = [
        {k: v.tolist() for k, v in arrays(*e).items()}
        | dict(episode_id=f"e{e[0]}", terminated=True, truncated=False)
        for e in episodes
    ]
    episode_rows[-1].update(changes)
    return write_rows(path, episode_rows)


def batch(number, length, *, start=0, compressed=("obs", "new_obs"), **changes):
    """An old `SampleBatch` as JSON values; `changes` replace columns, and None removes one."""
    a = arrays(number, length, start)
    columns = dict(
        obs=a["obs"][:-1],
        new_obs=a["obs"][1:],
        actions=a["actions"],
        rewards=a["rewards"],
        dones=np.arange(length) == length - 1,
        eps_id=np.full(length, number),
        t=np.arange(start, start + length),
    )
    values = {k: pack(v) if k in compressed else v.tolist() for k, v in columns.items()}
    values = {"type": "SampleBatch", **values, **changes}
    return {k: v for k, v in values.items() if v is not None}


def write_batches(path, batches):
    """Writes batches as lines of JSON to a `.json`, `.json.gz` or `.zip` file."""
    text = "".join(json.dumps(b) + "\n" for b in batches)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/._recorded.json", "no JSON")
            archive.writestr("recorded.json", text)
    else:
        data = text.encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def rllib_episode(number, length, *, end="terminated"):
    """An episode as an env runner holds it, with discrete actions and infos at every step."""
    a = arrays(number, length)
    episode = SingleAgentEpisode(id_=f"e{number}")
    episode.add_env_reset(a["obs"][0], infos={"kept": {"not": "needed"}})
    for i in range(length):
        episode.add_env_step(
            a["obs"][i + 1],
            np.int64(i % 3),
            a["rewards"][i],
            infos={"step": i},
            terminated=end == "terminated" and i == length - 1,
            truncated=end == "truncated" and i == length - 1,
        )
    return episode


def write_states(path, states):
    """Writes serialised episodes as `ray.rllib.offline.offline_env_runner` does."""
    items = [msgpack.packb(state, default=msgpack_numpy.encode) for state in states]
    pq.write_table(pa.table({"item": pa.array(items, pa.binary())}), path)
    return path


def write_d4rl(path, lengths, *, terminals=(), timeouts=(), **changes):
    """Writes episodes 0, 1, … one after another in D4RL's layout.

    `terminals` and `timeouts` list the steps that have the flag, or are the flag's whole array.
    `changes` replace arrays, and None omits one.
    """
    parts = [arrays(i, n) for i, n in enumerate(lengths)]
    steps = np.arange(sum(lengths))
    data = dict(
        observations=np.concatenate([a["obs"][:-1] for a in parts]).astype(np.float32),
        actions=np.concatenate([a["actions"] for a in parts]).astype(np.float32),
        rewards=np.concatenate([a["rewards"] for a in parts]).astype(np.float32),
        terminals=np.isin(steps, terminals) if isinstance(terminals, tuple) else terminals,
        timeouts=np.isin(steps, timeouts) if isinstance(timeouts, tuple) else timeouts,
    )
    with h5py.File(path, "w") as file:
        for name, values in (data | changes).items():
            if values is not None:
                file[name] = values
    return path


def packed_pickle(data):
    """Wraps pickle bytes as RLlib's `pack` does."""
    return base64.b64encode(lz4.frame.compress(data)).decode("ascii")


def packed(value):
    return packed_pickle(pickle.dumps(value))


def write_valid_file(path):
    """Writes a valid file of two episodes, in the format of the path's suffix."""
    if path.suffix == ".hdf5":
        return write_d4rl(path, (5, 7), terminals=(4, 11))
    if path.suffix == ".parquet":
        folder = path.with_suffix("")
        episodes = [arrays(n, 5) | dict(terminated=True, truncated=False) for n in (2, 3)]
        return write_episodes(episodes, folder, OBSERVATIONS, ACTIONS)[0].rename(path)
    return write_batches(path, [batch(2, 5), batch(3, 7)])
