"""Creates a separate Python environment for d3rlpy, which requires gymnasium 1.0.0.

`python benchmarks/speed/d3rlpy_env.py` prints the path of its Python.
"""

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".venv-d3rlpy"
# the torch version of constraints.txt, so that torch makes no difference
PACKAGES = ["torch==2.13.0", "d3rlpy==2.8.1", "gymnasium[mujoco]==1.0.0", "mujoco==4.0.0"]


def python() -> Path:
    """Returns the environment's Python; creates the environment if it does not exist."""
    path = FOLDER / "bin" / "python"
    if not (FOLDER / ".ready").exists():
        venv.create(FOLDER, with_pip=True, clear=True)
        for package in (PACKAGES[:1], PACKAGES):  # torch first: see the Makefile
            install = [str(path), "-m", "pip", "install", "--quiet", *package]
            subprocess.run(install, check=True, stdout=sys.stderr)
        (FOLDER / ".ready").touch()
    return path


if __name__ == "__main__":
    print(python())
