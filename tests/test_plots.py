"""How well achieved returns follow their targets, in numbers and as a plot."""

import math

import numpy as np
import pytest

from rllib_dt.plots import Calibration, calibration, plot_targets


def by_target(means):
    return {
        target: {"episode_return_mean": mean, "episode_return_std": 1.0, "num_episodes": 3}
        for target, mean in means.items()
    }


@pytest.mark.parametrize(
    ("means", "error", "slope"),
    [
        ({"0": 0.0, "50": 50.0, "100": 100.0}, 0.0, 1.0),
        ({"0": 50.0, "50": 50.0, "100": 50.0}, 100 / 3, 0.0),
        ({"0": 10.0, "50": 35.0, "100": 60.0}, (10 + 15 + 40) / 3, 0.5),
        ({"0": 1.0, "50": math.nan, "100": 201.0}, 51.0, 2.0),
        ({"50": 40.0}, 10.0, None),
    ],
)
def test_calibration_is_mean_absolute_error_and_slope(means, error, slope):
    found = calibration(by_target(means))
    assert found.mean_absolute_error == pytest.approx(error)
    assert found.slope == (None if slope is None else pytest.approx(slope))


def test_calibration_in_words():
    assert str(Calibration(mean_absolute_error=12.3456, slope=0.987)) == (
        "mean absolute error 12.35, slope 0.99"
    )
    assert str(Calibration(mean_absolute_error=2.0, slope=None)) == "mean absolute error 2"
    with pytest.raises(ValueError, match="no target has an episode"):
        calibration(by_target({"1": math.nan}))


def test_the_plot_names_the_calibration(tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_targets(by_target({"0": 10.0, "100": 60.0}), [1.0, 2.0], tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "mean absolute error 25, slope 0.50"
    ]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    failed = plot_targets(by_target({"0": np.nan}), [1.0, 2.0])
    assert not any(axes.get_title() for axes in failed.axes)
