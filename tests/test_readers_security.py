"""No content of a file is executed: pickles of anything but arrays are refused by name."""

import os
import pickle

import msgpack
import msgpack_numpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import recordings as rec
from tests.recordings import arrays, check, read, refused, rows

FORMATS = ["a.parquet", "a.hdf5", "a.json", "a.json.gz", "a.zip"]


class Stranger:
    """A class that is not an array."""


class Runs:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def hostile_values(target):
    """Pickles of other things than arrays, each with a pattern for its refusal."""
    objects = np.array([Runs(target)], dtype=object)
    return [
        (pickle.dumps(Runs(target)), rf"it holds {os.system.__module__}.system"),
        (pickle.dumps(Stranger()), rf"it holds {Stranger.__module__}.Stranger"),
        (pickle.dumps(objects), rf"it holds {os.system.__module__}.system"),
        (pickle.dumps(np.array([{}], dtype=object)), "it holds a numpy array of Python objects"),
        (pickle.dumps({"obs": np.zeros(3)}), "it holds a builtins.dict"),
        (pickle.dumps([1.0, 2.0]), "it holds a builtins.list"),
        (pickle.dumps(eval), "it holds (builtins|__builtin__).eval"),
        (pickle.dumps(np.zeros(3))[:-9], "its bytes are not a readable pickle"),
    ]


@pytest.mark.parametrize("case", range(8))
def test_a_pickle_of_anything_but_an_array_is_refused_by_name_and_not_run(tmp_path, case):
    target = tmp_path / "ran"
    data, message = hostile_values(target)[case]
    step_rows = [row | dict(obs=rec.packed_pickle(data)) for row in rows(2, 3)]
    refusal = rf"column 'obs' holds a packed value that was refused: {message}.*; write the column"
    with refused(f"a.parquet: {refusal}"):
        read(rec.write_rows(tmp_path / "a.parquet", step_rows))
    for obs in (rec.packed_pickle(data), [rec.packed_pickle(data)] * 3):
        path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, obs=obs)])
        with refused(f"a.json: {refusal}"):
            read(path)
    assert not target.exists()


@pytest.mark.parametrize("text", ["no base64!", "bm8gZnJhbWU=", ""])
def test_text_that_rllib_did_not_pack_is_refused(tmp_path, text):
    path = rec.write_rows(tmp_path / "a.parquet", [row | dict(obs=text) for row in rows(2, 3)])
    with refused(r"column 'obs' .*refused: it is not base64 text of an lz4 frame \("):
        read(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_pickle_protocol_are_read(tmp_path, protocol):
    values = arrays(2, 5)["obs"][:-1]
    text = rec.packed_pickle(pickle.dumps(np.asfortranarray(values), protocol))
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 5, obs=text, new_obs=None)])
    check(read(path).episodes[0], 2, 5, last=False)


def test_object_arrays_of_msgpack_are_not_unpickled(tmp_path):
    target = tmp_path / "ran"
    state = rec.rllib_episode(2, 5).to_numpy().get_state()
    hostile = np.array([Runs(target)] * 6, dtype=object)
    infos = state | dict(infos=dict(data=hostile, lookback=0))
    (episode,) = read(rec.write_states(tmp_path / "a.parquet", [infos])).episodes
    np.testing.assert_array_equal(episode.rewards, arrays(2, 5)["rewards"])
    observed = state | dict(observations=dict(data=hostile, lookback=0))
    with refused("b.parquet: row 0 is not an episode that RLlib serialised .*not numbers"):
        read(rec.write_states(tmp_path / "b.parquet", [observed]))
    # an array of objects that claims to be an array of numbers
    packed = msgpack.packb(observed, default=msgpack_numpy.encode)
    renamed = packed.replace(b"\xc4\x04kind\xc4\x01O", b"\xc4\x04kind\xc4\x01f")
    assert renamed != packed
    pq.write_table(pa.table({"item": pa.array([renamed], pa.binary())}), tmp_path / "c.parquet")
    with refused("c.parquet: row 0 is not an episode that RLlib serialised"):
        read(tmp_path / "c.parquet")
    assert not target.exists()
    # unpickling does run the same bytes, so the check above can fail
    msgpack.unpackb(packed, object_hook=msgpack_numpy.decode, strict_map_key=False)
    assert target.exists()


def damaged_states():
    state = rec.rllib_episode(2, 5).get_state()
    short = dict(data=state["observations"]["data"][:5], lookback=0)
    good = msgpack.packb(state, default=msgpack_numpy.encode)
    return {
        "cut": good[:-40],
        "text": b"no msgpack",
        "number": msgpack.packb(7),
        "without id": msgpack.packb(
            {k: v for k, v in state.items() if k != "id_"}, default=msgpack_numpy.encode
        ),
        "too few observations": msgpack.packb(
            state | dict(observations=short), default=msgpack_numpy.encode
        ),
        "lists for buffers": msgpack.packb(
            state | dict(observations=[[0.0] * 3] * 6), default=msgpack_numpy.encode
        ),
        "dicts": msgpack.packb(
            state | dict(observations=dict(data=[{"x": 1.0}] * 6)), default=msgpack_numpy.encode
        ),
        "missing": None,
    }


@pytest.mark.parametrize("case", damaged_states())
def test_a_row_that_is_not_a_serialised_episode_is_refused(tmp_path, case):
    whole = msgpack.packb(rec.rllib_episode(3, 5).get_state(), default=msgpack_numpy.encode)
    items = pa.array([whole, damaged_states()[case]], pa.binary())
    pq.write_table(pa.table({"item": items}), tmp_path / "a.parquet")
    with refused(r"a.parquet: row 1 is not an episode that RLlib serialised \(.*; record it with"):
        read(tmp_path / "a.parquet")
