"""Runs scripts that start, stop or damage clusters, each in its own process."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_script(script, *args, timeout=280, check=True, **env):
    """Runs Python code from the project's root and returns its standard output.

    Raises an AssertionError if the script fails or takes too long. Processes that the script
    started are killed when it ends.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        raise AssertionError(f"not done in {timeout} s: " + out[-2000:] + errors[-6000:]) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if check:
        assert process.returncode == 0, out[-2000:] + errors[-6000:]
    return out
