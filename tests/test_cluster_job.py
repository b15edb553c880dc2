"""The `ray job submit` command of `docs/cluster.md`, run against a local head node."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rllib_dt import write_episodes
from tests.conftest import make_episodes

pytest.importorskip("ray.dashboard.modules.job.cli", reason='needs "ray[default]"')

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).parent / "ray")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """The address of a head node with token authentication, and an environment with the token."""
    # a short path, since socket paths are limited in length; a separate folder, or the job would
    # find another cluster that was started later on this machine
    sessions = tempfile.mkdtemp(prefix="dt-", dir="/tmp")
    env = os.environ | {
        "RAY_TMPDIR": sessions,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    port = free_port()
    log = (tmp_path / "head.log").open("wb")
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=3", "--node-ip-address=127.0.0.1"),
            *(f"--port={free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"),
            *(f"--ray-client-server-port={free_port()}", "--object-store-memory=200000000"),
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=env,
        stdout=log,
        stderr=log,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        assert process.poll() is None, (tmp_path / "head.log").read_text()
        yield f"http://127.0.0.1:{port}", env
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()
        shutil.rmtree(sessions, ignore_errors=True)


def documented_command():
    """The command from `docs/cluster.md`, as a list of words."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    block = re.search(r"```sh\n(ray job submit.*?)```", text, re.DOTALL).group(1)
    return block.replace("\\\n", " ").split()


@pytest.mark.slow
@pytest.mark.trap(26)
def test_the_documented_command_runs_an_example_on_a_cluster(head, tmp_path):
    address, env = head
    command = documented_command()
    command[0] = RAY
    command[command.index("http://HEAD:8265")] = address
    recordings = tmp_path / "recordings"
    episodes = make_episodes([30, 9, 21], (4,), Discrete(2))
    write_episodes(episodes, recordings, Box(-np.inf, np.inf, (4,)), Discrete(2))
    command[command.index("s3://BUCKET/recordings")] = str(recordings)
    command += ["--stop-iters=1", "--evaluation-duration=1"]
    run = dict(env=env, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    deadline = time.monotonic() + 60
    while subprocess.run([RAY, "job", "list", "--address", address], **run).returncode:
        assert time.monotonic() < deadline, "the head accepts no jobs"
        time.sleep(1)
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert list((tmp_path / "ray_results").rglob("result.json"))
    refused = subprocess.run(
        [RAY, "job", "list", "--address", address],
        env=env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0
