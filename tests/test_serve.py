"""A real Serve instance on loopback: many sessions at once, wrong requests, a killed replica."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
import torch
from gymnasium.spaces import Box

from rllib_dt import DecisionTransformer, DTModelConfig, load_policy
from rllib_dt.huggingface import save_pretrained

serve = pytest.importorskip("ray.serve", reason="the serve extra")
pytest.importorskip("fastapi", reason="the serve extra")

from rllib_dt.serve import RemoteActor, RequestError, ServeSettings, app  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # Ray Serve 2.60 (2026-11): event loops that its shutdown leaves to the garbage collector
    "ignore:.*event loop.*:DeprecationWarning",
    "ignore:unclosed:ResourceWarning",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = DTModelConfig(hidden_size=16, n_layer=2, context_length=5, max_ep_len=60)
    spaces = Box(-np.inf, np.inf, (4,)), Box(-2.0, 2.0, (2,))
    network = DecisionTransformer(config, *spaces)
    with torch.no_grad():
        network.predict_action.weight.mul_(20)
    path = tmp_path_factory.mktemp("served") / "policy"
    save_pretrained(network, path)
    return path


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def url(cluster):
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def episode(actor, seed, steps):
    """Observations and rewards that depend on the seed alone, and the actions that followed."""
    generator = np.random.default_rng(seed)
    actor.reset()
    reward, actions = 0.0, []
    for _ in range(steps):
        observation = generator.normal(size=4).astype(np.float32)
        actions.append(actor.predict(observation, reward))
        reward = float(generator.normal())
    return np.stack(actions)


def posted(url, body, method="POST", path="/"):
    request = urllib.request.Request(url + path, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("/tmp/never-made-by-a-request",)


def test_sessions_and_windows_over_http_and_a_handle(url, folder):
    settings = ServeSettings(checkpoint=str(folder), sessions=True)
    handle = serve.run(app(settings), route_prefix="/policy")
    url = f"{url}/policy"
    trained = load_policy(folder)
    num_sessions, steps = 64, 6
    actors = [
        RemoteActor(url, 30.0 + i, session=i % 4 != 0, retry_s=5.0) for i in range(num_sessions)
    ]
    with ThreadPoolExecutor(num_sessions) as pool:
        got = list(pool.map(lambda i: episode(actors[i], i, steps), range(num_sessions)))
    for i, actions in enumerate(got):
        want = episode(trained.actor(30.0 + i), i, steps)
        np.testing.assert_allclose(actions, want, atol=1e-5)
    # what is wrong is said, and nothing else
    window = {"observations": [[1, 2]], "returns_to_go": [1]}
    for body, status, message in (
        (json.dumps(window).encode(), 400, r"observations[0]: it has the shape (2,), wanted (4,)"),
        (b'{"observations": [', 400, "the body is no JSON"),
        (pickle.dumps(Hostile()), 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "the body is nested too deeply"),
        (b'{"session": "new", "step": 3, "observation": [1, 2, 3, 4], "reward": 1}', 410, "begin"),
    ):
        found, content = posted(url, body)
        assert found == status
        assert message in content["error"]
        assert "Traceback" not in content["error"]
    assert not os.path.exists("/tmp/never-made-by-a-request")
    assert posted(url, None, "GET", "/nowhere")[0] == 404
    with pytest.raises(RequestError, match="wanted") as refused:
        actors[0].predict(np.zeros(3))
    assert refused.value.status == 400
    # a refused step can be asked for again
    played = trained.actor(30.0)
    actors[0].reset()
    for t in range(7):
        with pytest.raises(RequestError, match="wanted"):
            actors[0].predict(np.zeros(3), 1.0)
        got = actors[0].predict(np.full(4, t / 7), 1.0)
        np.testing.assert_allclose(got, played.predict(np.full(4, t / 7), 1.0), atol=1e-5)
    assert posted(url, b"{}", "PUT")[0] == 405
    huge = dict(observations=[[3e38, 0, 0, 0]], returns_to_go=[1])
    status, content = posted(url, json.dumps(huge).encode())
    assert (status, content["error"][:24]) == (400, "the action is not finite")
    actors[1].close()
    actors[1].close()
    with pytest.raises(RequestError, match="begin again at step 0") as lost:
        actors[1].predict(np.zeros(4))
    assert lost.value.status == 410
    # the handle, with arrays
    observation = np.ones((1, 4), np.float32)
    request = dict(observations=observation, returns_to_go=np.array([30.0]))
    want = trained.actor(30.0).predict(observation[0])
    np.testing.assert_allclose(handle.act.remote(request).result(), want, atol=1e-5)
    with pytest.raises(Exception, match="observations holds 0 steps"):
        handle.act.remote(dict(observations=[], returns_to_go=[])).result()
    assert handle.describe.remote().result()["window"] == 5


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_no_window(url, folder):
    serve.run(app(ServeSettings(checkpoint=str(folder), num_replicas=2)))
    trained = load_policy(folder)
    killed, stop = [], threading.Event()

    def play(i):
        # no retries of the client: the server itself must lose nothing
        actor, rounds = RemoteActor(url, 30.0, retry_s=0.0), 0
        want = episode(trained.actor(30.0), i, 15)
        while not stop.is_set() or rounds < 2:
            np.testing.assert_allclose(episode(actor, i, 15), want, atol=1e-5)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(16) as pool:
        players = [pool.submit(play, i) for i in range(16)]
        try:
            for _ in range(2):
                time.sleep(2.0)
                killed.append(kill_a_replica(killed))
            time.sleep(4.0)
        finally:
            stop.set()
        rounds = [player.result() for player in players]
    assert len(set(killed)) == 2
    assert min(rounds) >= 2


def kill_a_replica(already):
    """Kills a replica that holds the policy, and returns its name."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            if "PolicyReplica" in name and name not in already:
                ray.kill(ray.get_actor(name, namespace=actor["namespace"]))
                return name
        time.sleep(0.2)
    raise AssertionError("there is no replica to kill")


@pytest.mark.slow
def test_serve_run_starts_it_from_a_checkpoint(folder):
    port = free_port()
    command = f"""
import ray, yaml
from ray import serve
from ray.serve.scripts import cli
ray.init(num_cpus=4, include_dashboard=False)
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
cli(["run", "rllib_dt.serve:app", "checkpoint={folder}", "sessions=true"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        actor = RemoteActor(f"http://127.0.0.1:{port}", 30.0, session=True, retry_s=120.0)
        got = episode(actor, 3, 7)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    np.testing.assert_allclose(got, episode(load_policy(folder).actor(30.0), 3, 7), atol=1e-5)


def test_settings_that_cannot_work_are_refused(folder):
    with pytest.raises(ValueError, match="sessions=True with num_replicas=2"):
        app(ServeSettings(checkpoint=str(folder), sessions=True, num_replicas=2))
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        app(ServeSettings(checkpoint="/nowhere"))
    for wrong in (
        dict(max_batch_size=0), dict(sesions=True), dict(retry_s=-1), dict(temperature=np.inf),
        dict(batch_wait_timeout_s=np.inf),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ServeSettings(checkpoint="/x", **wrong)
