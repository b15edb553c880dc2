"""Makes the environment that d3rlpy needs, beside the project's own: it wants gymnasium 1.0.0.

`python benchmarks/speed/d3rlpy_env.py` prints the path of its Python.
"""

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".venv-d3rlpy"
# the same torch as the project's constraints have, so that the two differ in nothing else
PACKAGES = ["torch==2.13.0", "d3rlpy==2.8.1", "gymnasium[mujoco]==1.0.0", "mujoco==4.0.0"]


def python() -> Path:
    """The Python of the environment, which is made where it is not there yet."""
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
