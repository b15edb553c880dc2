"""Data on S3, served on this machine: reading, broken connections, credentials."""

import io
import logging
import socket
import threading

import numpy as np
import pyarrow.fs as pafs
import pytest
from gymnasium.spaces import Box
from ray import tune

from rllib_dt import DT, load_policy, write_episodes
from rllib_dt.formats import remote_files
from rllib_dt.formats.files import find_files, read_file
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.formats.recorded_spaces import recorded_spaces
from rllib_dt.formats.remote_files import PersistentFile, RemoteReadError
from rllib_dt.huggingface import save_pretrained
from rllib_dt.reading import credentials
from rllib_dt.reading.credentials import Sealed
from tests import other_recordings as other
from tests.conftest import make_episodes, tiny_config

moto = pytest.importorskip("moto.server")

TEXT = "observation/text"
SECRET = "kept-secret-0123456789"
KEY = "AKIAFORTESTSONLY0000"


@pytest.fixture(scope="module")
def server():
    """The port of an S3 server with the bucket `recordings`, and a file system to access it."""
    s3 = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    port = s3.get_host_and_port()[1]
    system = filesystem(port)
    system.create_dir("recordings", recursive=True)
    yield port, system
    s3.stop()


def filesystem(port):
    return pafs.S3FileSystem(**settings(port))


def settings(port):
    return dict(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )


@pytest.fixture(scope="module")
def recorded(server, tmp_path_factory):
    """The number of steps of the episodes in s3://recordings/many, which this fixture writes."""
    folder = tmp_path_factory.mktemp("local")
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    episodes = []
    for part in range(4):
        of_part = make_episodes([30, 5, 17, 2] * 20, seed=part)
        write_episodes(of_part, folder / str(part), *spaces)
        episodes += of_part
    pafs.copy_files(str(folder), "recordings/many", pafs.LocalFileSystem(), server[1])
    return sum(len(e["rewards"]) for e in episodes)


class Proxy:
    """Forwards to a port, and cuts the first `cuts` responses after more than `after` bytes."""

    def __init__(self, target, cuts, after):
        self.target, self.cuts, self.after = target, cuts, after
        self.was_cut = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self.copy, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self.answer, args=(upstream, client), daemon=True).start()

    def copy(self, source, sink):
        try:
            while part := source.recv(65536):
                sink.sendall(part)
        except OSError:
            pass
        sink.close()

    def answer(self, upstream, client):
        sent = 0
        try:
            while part := upstream.recv(4096):
                if sent > self.after and self.was_cut < self.cuts:
                    self.was_cut += 1
                    break
                client.sendall(part)
                sent += len(part)
        except OSError:
            pass
        client.close()
        upstream.close()

    def close(self):
        self.socket.close()


@pytest.mark.parametrize("streamed", [False, True])
def test_training_reads_from_s3(cluster, server, recorded, streamed):
    config = tiny_config("recordings/many").offline_data(
        input_filesystem="s3", input_filesystem_kwargs=settings(server[0])
    )
    if streamed:
        config.offline_data(pool_capacity_steps=1000)
    algo = config.build_algo()
    assert algo.offline_data.summary.num_steps == recorded
    assert algo.offline_data.is_streamed == streamed
    assert np.isfinite(algo.train()["learners"]["default_policy"]["action_loss"])
    algo.stop()


def test_a_uri_is_read_with_its_options(server, recorded, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = f"?endpoint_override=127.0.0.1:{server[0]}&scheme=http&region=us-east-1"
    files = find_files(f"s3://recordings/many{options}")
    assert len(files) == 4
    fragments = [f for path, _ in files for f in read_file(path, ReadOptions())]
    assert sum(map(len, fragments)) == recorded


@pytest.mark.parametrize("kind", ["minari hdf5", "minari arrow", "imitation", "rlds", "lerobot"])
def test_other_formats_are_read_from_s3(server, tmp_path, kind, monkeypatch):
    folder = tmp_path / kind.replace(" ", "-")
    folder.mkdir()
    if kind == "minari hdf5":
        other.write_minari_hdf5(folder)
    elif kind == "minari arrow":
        other.write_minari_tables(folder, "arrow")
    elif kind == "imitation":
        other.write_imitation(folder / "a.npz")
    elif kind == "rlds":
        other.write_rlds(folder / "a.tfrecord-00000-of-00001", change=lambda n: {TEXT: None})
    else:
        other.write_lerobot(folder, "3.0")
    system = server[1]
    place = f"recordings/{folder.name}"
    pafs.copy_files(str(folder), place, pafs.LocalFileSystem(), system)
    files = find_files(place, system)
    found = [f for path, _ in files for f in read_file(path, ReadOptions(), system)]
    assert sum(map(len, found)) == sum(length for _, length in other.EPISODES)
    spaces = recorded_spaces(place, system)
    assert (spaces is not None) == kind.startswith("minari")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = f"?endpoint_override=127.0.0.1:{server[0]}&scheme=http&region=us-east-1"
    assert recorded_spaces(f"s3://{place}{options}") == spaces


@pytest.mark.slow
def test_policies_are_loaded_from_s3(cluster, server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    port, system = server
    episodes = make_episodes([9, 8, 7])
    write_episodes(episodes, tmp_path / "data", Box(-9, 9, (3,)), Box(-1.0, 1.0, (2,)))
    algo = tiny_config(str(tmp_path / "data")).build_algo()
    local = algo.save_to_path(str(tmp_path / "trial" / "checkpoint_000003"))
    save_pretrained(algo.get_module().network, tmp_path / "hf")
    algo.stop()
    for name in ("trial", "hf"):
        pafs.copy_files(str(tmp_path / name), f"recordings/{name}", pafs.LocalFileSystem(), system)
    options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    want = load_policy(local)
    for name in ("trial", "trial/checkpoint_000003", "hf"):
        found = load_policy(f"s3://recordings/{name}{options}")
        for key, value in want.network.state_dict().items():
            np.testing.assert_array_equal(found.network.state_dict()[key], value)
    with pytest.raises(FileNotFoundError):
        load_policy(f"s3://recordings/nowhere{options}")


@pytest.mark.slow
def test_a_read_is_retried_after_its_connection_breaks(server, recorded):
    proxy = Proxy(server[0], cuts=3, after=8192)
    system = filesystem(proxy.port)
    files = find_files("recordings/many", system)
    steps = sum(len(f) for path, _ in files for f in read_file(path, ReadOptions(), system))
    assert steps == recorded
    assert proxy.was_cut == 3
    proxy.close()


class Flaky:
    """A file system whose next `failures` reads fail."""

    def __init__(self, content, failures):
        self.content, self.failures, self.opened = content, failures, 0

    def open_input_file(self, path):
        self.opened += 1
        flaky = self

        class File:
            def size(self):
                return len(flaky.content)

            def read_at(self, size, place):
                if flaky.failures:
                    flaky.failures -= 1
                    raise OSError("connection reset by peer")
                return flaky.content[place : place + size]

            def close(self):
                pass

        return File()


def test_failed_reads_resume_where_they_stopped(monkeypatch):
    monkeypatch.setattr(remote_files, "_FIRST_PAUSE_SECONDS", 0.001)
    content = bytes(range(256)) * 10
    system = Flaky(content, failures=0)
    file = PersistentFile(system, "a", "s3://a")
    assert file.read(100) == content[:100]
    system.failures = 3
    assert file.read(50) == content[100:150]
    assert file.tell() == 150
    assert system.opened == 4
    assert file.seek(-10, io.SEEK_END) == len(content) - 10
    assert file.read() == content[-10:]
    assert file.read() == b""
    system.failures = 100
    file.seek(0)
    with pytest.raises(RemoteReadError, match=r"s3://a: reading failed 6 times.*connection reset"):
        file.read(1)


@pytest.mark.slow
def test_credentials_appear_in_no_checkpoint_result_or_log(
    cluster, server, recorded, tmp_path, caplog
):
    for given in (
        dict(input_filesystem="s3", input_filesystem_kwargs=settings(server[0])),
        dict(input_filesystem=filesystem(server[0]), input_filesystem_kwargs={}),
    ):
        config = tiny_config("recordings/many").offline_data(**given)
        assert SECRET not in repr(config.to_dict()) + str(vars(config))
        with caplog.at_level(logging.DEBUG):
            results = tune.Tuner(
                "DT",
                param_space=config,
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path),
                    verbose=0,
                    stop={"training_iteration": 1},
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
                ),
            ).fit()
        assert not results.errors
        again = DT.from_checkpoint(results[0].checkpoint.path)
        assert again.offline_data.summary.num_steps == recorded
        assert SECRET not in repr(again.train())
        again.stop()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("learner" in str(path) for path in files)
    assert any(path.name == "params.json" for path in files)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in caplog.text


def test_unsealing_credentials_that_ray_does_not_know_raises(monkeypatch):
    sealed = Sealed.seal({"secret_key": SECRET})
    assert SECRET not in repr(sealed)
    monkeypatch.setattr(Sealed, "_known", {})
    monkeypatch.setattr(credentials.ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="credentials of input_filesystem are not saved"):
        Sealed.unseal(sealed)


@pytest.mark.parametrize(
    "path",
    [
        f"s3://{KEY}:{SECRET}@recordings/many",
        f"s3://{KEY}:{SECRET}/with/slash@recordings/many",
        f"abfs://:{SECRET}@account.blob.core.windows.net/container",
        f"abfs://container@account/path?client_secret={SECRET}",
    ],
)
def test_credentials_in_a_path_are_refused(path):
    for given in (dict(), dict(input_filesystem=pafs.LocalFileSystem())):
        with pytest.raises(ValueError, match="path holds credentials") as caught:
            tiny_config("x").offline_data(input_=[path], **given)
        assert SECRET not in str(caught.value)


def test_credentials_from_a_dict_are_sealed_before_anything_is_written():
    config = tiny_config("x")
    config.update_from_dict({"input_filesystem_kwargs": {"secret_key": SECRET}})
    config.validate()
    assert SECRET not in repr(config.get_state())
