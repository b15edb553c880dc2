"""Small files that unpack to gigabytes are refused by every decoder, before they are unpacked."""

import base64
import gzip
import json
import pickle
import resource
import zipfile
from pathlib import Path

import h5py
import lz4.frame
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_dt.formats import expansion
from rllib_dt.formats.expansion import ALWAYS_ALLOWED_BYTES
from tests import recordings as rec
from tests.conftest import tiny_config
from tests.recordings import refused, rows

REFUSED = r"past 256 MiB, and it has only \d+ bytes.*raise offline_data\(max_expansion="
GIGABYTE = 2**30


def read(path, **options):
    """Reads a file with little memory, so that a decoder that unpacks a bomb after all fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIGABYTE, before[1]))
    try:
        return rec.read(path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def long_line(length):
    """A line of JSON that starts like a batch, and then has very many zeros."""
    return b'{"obs": [' + b"0," * (length // 2) + b"0]}\n"


def test_compressed_text_is_bounded(tmp_path):
    text = long_line(64 * 2**20)  # eight bytes a character once parsed: 512 MiB
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", text)
    for name in ("a.json.gz", "a.zip"):
        with refused(rf"{name}: unpacked, its text takes the file {REFUSED}"):
            read(tmp_path / name)


def test_a_zips_members_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(expansion, "ALWAYS_ALLOWED_BYTES", 40_000)
    line = json.dumps(rec.batch(2, 20)).encode() + b" " * 2_500 + b"\n"
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.json", line.replace(b": 2", b": %d" % number))
    with refused("raise offline_data"):
        read(tmp_path / "a.zip", max_expansion=1)
    assert len(read(tmp_path / "a.zip").episodes) == 3


@pytest.mark.parametrize("layout", ["json", "parquet"])
def test_packed_values_are_bounded(tmp_path, layout):
    zeros = pickle.dumps(np.zeros((3, 100 * 2**20), np.uint8))
    once = base64.b64encode(lz4.frame.compress(zeros)).decode()
    del zeros
    if layout == "json":
        path = rec.write_batches(tmp_path / "a.json", [rec.batch(2, 3, obs=once)])
    else:
        table = pa.Table.from_pylist([row | dict(obs="") for row in rows(2, 3)])
        packed = pa.array([once, once, once])
        place = table.column_names.index("obs")
        pq.write_table(table.set_column(place, "obs", packed), tmp_path / "a.parquet")
        path = tmp_path / "a.parquet"
    # the file has megabytes itself: it may take 1,000 times that, unless told otherwise
    with refused("column 'obs' takes the file past 256 MiB"):
        read(path, max_expansion=1)


@pytest.mark.parametrize("name", ["observations", "terminals"])
def test_a_dataset_that_was_declared_and_never_written_is_bounded(tmp_path, name):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5, 7), terminals=(4, 11))
    with h5py.File(path, "r+") as file:
        shape = file[name].shape[1:]
        del file[name]
        file.create_dataset(name, (200_000_000_000, *shape), np.float32, chunks=(1024, *shape))
    with refused(f"a.hdf5: unpacked, dataset '{name}' takes the file {REFUSED}"):
        read(path)


def test_a_chunk_larger_than_its_dataset_is_bounded(tmp_path):
    path = rec.write_d4rl(tmp_path / "a.hdf5", (5, 7), terminals=(4, 11))
    with h5py.File(path, "r+") as file:
        rewards = file["rewards"][()]
        del file["rewards"]
        file.create_dataset(
            "rewards",
            data=rewards,
            chunks=(2**28,),
            maxshape=(None,),
            compression="gzip",
        )
    with refused("dataset 'rewards' takes the file past"):
        read(path, max_expansion=1)


def test_repeated_numbers_in_parquet_are_bounded(tmp_path):
    """A column of one number is run-length encoded: a few bytes for any number of rows."""
    rewards = pa.array(np.zeros(2**23))
    names = ["obs", "actions", "rewards", "terminateds"]
    table = pa.table(
        [rewards, rewards, rewards, pa.array(np.zeros(2**23, bool))],
        names=names,
    )
    pq.write_table(pa.concat_tables([table] * 2), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < ALWAYS_ALLOWED_BYTES / 500
    with refused(f"column '(obs|actions|rewards)' takes the file {REFUSED}"):
        read(tmp_path / "a.parquet", max_expansion=1)


def test_repeated_text_in_parquet_is_bounded(tmp_path):
    """One text of a megabyte, to which a thousand rows refer."""
    table = pa.Table.from_pylist(rows(2, 3))
    table = pa.concat_tables([table] * 400)
    ids = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(table), np.int32)), pa.array(["x" * 2**20])
    )
    place = table.column_names.index("eps_id")
    pq.write_table(table.set_column(place, "eps_id", ids), tmp_path / "a.parquet")
    with refused("column 'eps_id' takes the file past"):
        read(tmp_path / "a.parquet", max_expansion=1)


def test_the_setting_reaches_the_readers(cluster, tiny_data, monkeypatch):
    with pytest.raises(ValueError, match=r"max_expansion=0.5 must be at least 1"):
        tiny_config(tiny_data[0]).offline_data(max_expansion=0.5).validate()
    config = tiny_config(tiny_data[0]).offline_data(max_expansion=7)
    algo = config.build_algo()
    (supply,) = algo.offline_data.sample(1)
    assert supply.num_steps == 71
    algo.stop()
