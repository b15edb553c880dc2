"""No content of a file is executed: pickles of anything but arrays are refused by name."""

import base64
import contextlib
import io
import os
import pickle

import h5py
import msgpack
import msgpack_numpy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_dt.formats import arrow_schema
from rllib_dt.formats.arrow_schema import DamagedSchemaError, extension_types
from rllib_dt.formats.parquet_footer import DamagedFooterError, read_footer
from tests import recordings as rec
from tests.recordings import arrays, check, packed, read, refused, rows

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
        (pickle.dumps(np.array([{}], dtype=object)), "it holds a builtins.(dict|list)"),
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
    refusal = rf"column 'obs' holds text .*, but were refused: {message}.*; record numbers"
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
            state | dict(observations=dict(data=[[1.0]] * 5 + [{"x": 1.0}])),
            default=msgpack_numpy.encode,
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


# ---- values that are not in the file, or not numbers


def outside(path, kind):
    """A D4RL file whose observations are in another file, in one of the ways that HDF5 has."""
    rec.write_d4rl(path, (5, 7), terminals=(4, 11))
    secret = path.with_name("secret")
    with h5py.File(path.with_name("other.hdf5"), "w") as other:
        other["observations"] = np.zeros((12, 3), np.float32)
    secret.write_bytes(np.arange(36, dtype=np.float32).tobytes())
    with h5py.File(path, "r+") as file:
        del file["observations"]
        link = h5py.ExternalLink("other.hdf5", "/observations")
        if kind == "external storage":
            where = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("observations", (12, 3), np.float32, external=where)
        elif kind == "external link":
            file["observations"] = link
        elif kind == "soft link through an external link":
            file["hidden"] = h5py.ExternalLink("other.hdf5", "/")
            file["observations"] = h5py.SoftLink("/hidden/observations")
        elif kind == "virtual dataset":
            layout = h5py.VirtualLayout((12, 3), np.float32)
            layout[:] = h5py.VirtualSource("other.hdf5", "observations", (12, 3))
            file.create_virtual_dataset("observations", layout)
        else:
            file["observations"] = h5py.SoftLink("/observations")  # to itself


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external storage", "values of 'observations' are in other files: .*secret"),
        ("external link", "'observations' is a link to another file, other.hdf5"),
        ("soft link through an external link", "'hidden' is a link to another file, other.hdf5"),
        ("virtual dataset", "'observations' is a virtual dataset"),
        ("loop", "'/observations' is a chain of too many links"),
    ],
)
def test_hdf5_datasets_outside_of_the_file_are_refused(tmp_path, kind, message):
    outside(tmp_path / "a.hdf5", kind)
    with refused(f"a.hdf5: .*{message}.*; copy the data into the file itself"):
        read(tmp_path / "a.hdf5")


def test_soft_links_within_an_hdf5_file_are_followed(tmp_path):
    rec.write_d4rl(tmp_path / "a.hdf5", (5, 7), terminals=(4, 11))
    want = read(tmp_path / "a.hdf5").episodes
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file.move("observations", "group/kept")
        file["observations"] = h5py.SoftLink("group/kept")
    got = read(tmp_path / "a.hdf5").episodes
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)


class Hostile(pa.ExtensionType):
    """An extension type whose values run code when they are converted."""

    def __init__(self, storage=None):
        super().__init__(storage or pa.binary(), "hostile.type")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(storage_type)


def as_objects(values):
    """A column of Ray's pickled objects."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    return ArrowPythonObjectArray.from_objects(values)


@pytest.mark.parametrize("column", ["obs", "actions", "rewards", "eps_id", "terminateds", "infos"])
def test_columns_of_pickled_objects_are_refused_before_a_value_is_read(tmp_path, column):
    target = tmp_path / "ran"
    table = pa.Table.from_pylist(rec.rows(2, 5))
    hostile = as_objects([Runs(target)] * 5)
    if column in table.column_names:
        table = table.drop_columns([column])
    pq.write_table(table.append_column(column, hostile), tmp_path / "a.parquet")
    with refused(f"column '{column}' is of the extension type 'ray.data.arrow_pickled_object'"):
        read(tmp_path / "a.parquet")
    assert not target.exists()
    hostile.to_numpy(zero_copy_only=False)  # the same column does run code where it is converted
    assert target.exists()


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "in a list"])
def test_other_extension_types_are_refused_by_name(tmp_path, nested):
    pa.register_extension_type(Hostile())
    try:
        storage = pa.array([b"x"] * 5, pa.binary())
        column = pa.ExtensionArray.from_storage(Hostile(), storage)
        if nested:
            column = pa.ListArray.from_arrays(pa.array(range(6), pa.int32()), column)
        table = pa.Table.from_pylist(rec.rows(2, 5)).drop_columns(["obs"])
        pq.write_table(table.append_column("obs", column), tmp_path / "a.parquet")
        with refused("a.parquet: column 'obs' is of the extension type 'hostile.type'; record"):
            read(tmp_path / "a.parquet")
    finally:
        pa.unregister_extension_type("hostile.type")


class Uninitialised:
    """Pickles to a call of `numpy.ndarray` with a shape: memory that nobody wrote to."""

    def __reduce__(self):
        return np.ndarray, ((5, 3),)


class Reconstructed:
    """Pickles to numpy's own reconstruction, with a shape and no state after it."""

    def __reduce__(self):
        return np.zeros(1).__reduce__()[0], (np.ndarray, (5, 3), b"d")


@pytest.mark.parametrize("made", [Uninitialised, Reconstructed])
def test_arrays_without_values_are_refused(tmp_path, made):
    batch = rec.batch(2, 5, obs=packed(made()))
    with refused("a.json: column 'obs' holds text .*, but were refused"):
        read(rec.write_batches(tmp_path / "a.json", [batch]))


class PicklesItsShape(pa.ExtensionType):
    """Ray's tensor type as Ray 2.49 to 2.54 described it: by a pickle, which can hold code."""

    def __init__(self, description):
        self._description = description
        super().__init__(pa.large_list(pa.float32()), "ray.data.arrow_tensor_v2")

    def __arrow_ext_serialize__(self):
        return self._description

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        raise AssertionError("never registered")


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "in a struct"])
def test_pickled_descriptions_of_tensors_are_refused_before_they_are_loaded(
    tmp_path, monkeypatch, nested
):
    from ray.data._internal.tensor_extensions import arrow

    monkeypatch.setattr(arrow, "_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", True)
    target = tmp_path / "ran"
    storage = pa.array([[0.0, 1.0, 2.0]] * 5, pa.large_list(pa.float32()))
    kind = PicklesItsShape(pickle.dumps(Runs(target)))
    column = pa.ExtensionArray.from_storage(kind, storage)
    if nested:
        column = pa.StructArray.from_arrays([column], ["inner"])
    table = pa.Table.from_pylist(rec.rows(2, 5)).append_column("image", column)
    pq.write_table(table, tmp_path / "a.parquet")
    with refused("a.parquet: column 'image' is a tensor whose description is no JSON"):
        read(tmp_path / "a.parquet")
    assert not target.exists()
    with contextlib.suppress(TypeError):
        pq.read_metadata(tmp_path / "a.parquet")  # opening the same file does run code
    assert target.exists()


def test_types_are_refused_before_their_classes_see_the_file(tmp_path):
    seen = []

    class Listening(Hostile):
        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type, serialized):
            seen.append(serialized)
            return cls(storage_type)

    pa.register_extension_type(Listening())
    try:
        column = pa.ExtensionArray.from_storage(Listening(), pa.array([b"x"] * 5, pa.binary()))
        seen.clear()
        table = pa.Table.from_pylist(rec.rows(2, 5)).append_column("notes", column)
        pq.write_table(table, tmp_path / "a.parquet")
        seen.clear()
        with refused("column 'notes' is of the extension type 'hostile.type'"):
            read(tmp_path / "a.parquet")
        assert seen == []
        pq.read_metadata(tmp_path / "a.parquet")
        assert seen
    finally:
        pa.unregister_extension_type("hostile.type")


def serialized_schema(kind, **metadata):
    buffer = io.BytesIO()
    table = pa.table({"a": pa.nulls(1, kind)}).replace_schema_metadata(metadata)
    pq.write_table(table, buffer)
    (found,) = read_footer(buffer).values(b"ARROW:schema")
    assert found == pq.read_metadata(buffer).metadata[b"ARROW:schema"]
    return found


def test_serialised_schemas_that_are_damaged_are_refused(tmp_path):
    """Whatever bytes stand there: an error, or an end, but no hang."""
    whole = base64.b64decode(serialized_schema(pa.list_(pa.struct([("x", pa.list_(pa.int8()))]))))
    assert extension_types(base64.b64encode(whole)) == []
    rng = np.random.default_rng(0)
    refused_ones = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] = rng.integers(256)
        damaged = damaged[: rng.integers(1, len(whole) + 1)]
        try:
            extension_types(base64.b64encode(bytes(damaged)))
        except DamagedSchemaError:
            refused_ones += 1
    assert refused_ones > 500
    with pytest.raises(DamagedSchemaError):
        extension_types(b"no base64")


def with_footer(path, change):
    """Changes the bytes of a Parquet file's footer."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = change(content[-8 - length : -8])
    end = np.uint32(len(footer)).tobytes() + b"PAR1"
    path.write_bytes(content[: -8 - length] + footer + end)
    return path


def test_another_notation_of_the_same_footer_hides_nothing(tmp_path):
    """Thrift can write a length in more bytes than it needs, and a field's number in full."""
    pa.register_extension_type(Hostile())
    try:
        column = pa.ExtensionArray.from_storage(Hostile(), pa.array([b"x"] * 5, pa.binary()))
        table = pa.Table.from_pylist(rec.rows(2, 5)).append_column("notes", column)
        for written in (b"\x18\x8c\x00", b"\x08\x02\x0c"):
            pq.write_table(table, tmp_path / "a.parquet")
            path = with_footer(
                tmp_path / "a.parquet",
                lambda footer, written=written: footer.replace(
                    b"\x18\x0cARROW:schema", written + b"ARROW:schema"
                ),
            )
            assert pq.read_metadata(path).num_rows == 5
            with refused("column 'notes' is of the extension type 'hostile.type'"):
                read(path)
    finally:
        pa.unregister_extension_type("hostile.type")


def test_a_field_that_is_there_twice_is_refused(tmp_path):
    """Which of the two counts would depend on the reader."""
    path = rec.write_rows(tmp_path / "a.parquet", rec.rows(2, 5))
    # an empty list of key-value pairs, as field 5 of the struct, before the end of it
    with_footer(path, lambda footer: footer[:-1] + b"\x09\x0a\x0c\x00")
    with refused("a.parquet: .*field 5 of a struct is there twice"):
        read(path)


def test_footers_are_read_as_pyarrow_reads_them(tmp_path):
    table = pa.table(
        {
            "a": pa.array([[1, 2], [3], []], pa.list_(pa.int16())),
            "b": pa.array(["x", "x", "y"]),
            "c": pa.array([b"123", b"456", b"789"], pa.binary(3)),
            "d": pa.array([True, False, True]),
            "e": pa.array([{"f": 1.0}, {"f": 2.0}, {"f": None}]),
        }
    ).replace_schema_metadata({"who": "me" * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with open(tmp_path / "a.parquet", "rb") as file:
        footer = read_footer(file)
    theirs = pq.read_metadata(tmp_path / "a.parquet")
    groups = [theirs.row_group(i) for i in range(theirs.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(theirs.num_columns)]
    assert [c.path for c in footer.columns] == [c.path_in_schema for c in columns]
    assert [c.num_values for c in footer.columns] == [c.num_values for c in columns]
    assert [c.has_dictionary for c in footer.columns] == [c.has_dictionary_page for c in columns]
    assert [c.width for c in footer.columns][:5] == [4, None, 3, 1, 8]
    assert footer.num_rows == theirs.num_rows
    assert footer.num_bytes == sum(group.total_byte_size for group in groups)
    assert dict(footer.metadata) == theirs.metadata


def test_damaged_footers_are_refused_without_pyarrow(tmp_path):
    path = rec.write_rows(tmp_path / "a.parquet", rec.rows(2, 5))
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    rng = np.random.default_rng(0)
    refused_ones = 0
    for _ in range(2000):
        damaged = bytearray(data)
        for place in rng.integers(len(data) - 8 - length, len(data), size=3):
            damaged[place] = rng.integers(256)
        try:
            read_footer(io.BytesIO(bytes(damaged)))
        except DamagedFooterError:
            refused_ones += 1
    assert refused_ones > 300


# ---- what would take time or memory out of proportion


def pickled(body):
    return rec.packed_pickle(b"\x80\x04" + body + b".")


NESTED = b")q\x000" + b"h\x00h\x00\x86q\x000" * 40  # tuples of tuples: 2^40 leaves


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "body",
    [
        NESTED + b"}h\x00K\x01s",
        NESTED + b"c_codecs\nencode\n(X\x01\x00\x00\x00ah\x00tR",
        NESTED + b"cnumpy\ndtype\n(h\x00tR",
        b"Nr" + (2**28).to_bytes(4, "little"),
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x0a\x00\x00\x00V400000000tRtR",
        b"X\x01\x00\x00\x00aq\x000" + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR0" * 3,
    ],
    ids=["hashed", "shown", "dtype", "far memo", "large number", "repeated text"],
)
def test_small_pickles_that_take_much_are_refused_at_once(tmp_path, body):
    path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 5, obs=pickled(body))])
    with refused("a.json: column 'obs' holds text .*, but were refused"):
        read(path)


def test_arrays_of_every_protocol_and_order_are_read(tmp_path):
    arrays_of = [
        np.arange(15.0).reshape(5, 3),
        np.asfortranarray(np.arange(15.0).reshape(5, 3)),
        np.arange(15).reshape(5, 3).astype(">i4"),
        np.zeros((5, 3), bool),
        np.arange(15, dtype=np.float16).reshape(5, 3),
    ]
    for values in arrays_of:
        for protocol in range(6):
            packed_one = rec.packed_pickle(pickle.dumps(values, protocol))
            path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 5, obs=packed_one)])
            np.testing.assert_array_equal(read(path).episodes[0].observations[:5], values)


def test_a_schema_whose_columns_share_their_fields_is_refused_at_once():
    """Many columns that refer to one table of many fields: the count is that of the schema."""
    whole = base64.b64decode(serialized_schema(pa.struct([(str(i), pa.int8()) for i in range(50)])))
    assert extension_types(base64.b64encode(whole)) == []
    original = arrow_schema._MAX_FIELDS
    arrow_schema._MAX_FIELDS = 40
    try:
        with pytest.raises(DamagedSchemaError, match="more than 40 fields"):
            extension_types(base64.b64encode(whole))
    finally:
        arrow_schema._MAX_FIELDS = original
