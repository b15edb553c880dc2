"""What a run says by default, in a process of its own: our lines, and none of Ray's."""

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import SHIPPED

SCRIPT = """
    import ray
    from rllib_dt import plots
    from tests.conftest import cartpole_config

    ray.init("local", num_cpus=2, include_dashboard=False)
    config = cartpole_config().evaluation(evaluation_interval=1)
    config.offline_data(validation_fraction=0.1, pool_capacity_steps={capacity})
    algo = config.build_algo()
    result = algo.train()
    figure = plots.plot_targets(
        result["evaluation"]["env_runners"]["by_target"], algo.offline_data.returns
    )
    print("figure of", len(figure.axes), "axes")
    algo.stop()
"""
NOISE = (
    "Starting execution of Dataset",
    "Execution plan of Dataset",
    "Running Dataset",
    "execution finished",
    "Progress bars disabled",
    "Progress will be logged",
    "DeprecationWarning",
    "on the new API stack",
)


@pytest.mark.slow
def test_a_run_shows_its_own_lines_and_none_of_rays(tmp_path):
    for capacity in (None, 5_000):
        script = textwrap.dedent(SCRIPT).format(capacity=capacity)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
        )
        assert "figure of 2 axes" in done.stdout
        said = done.stdout + done.stderr
        for line in ("rllib_dt: read 1 files", "rllib_dt: data: ", "rllib_dt: target returns: "):
            assert said.count(line) == 1
        for noise in NOISE:
            assert noise not in said
        assert SHIPPED.is_dir()
