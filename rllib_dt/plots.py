"""Shows achieved against target returns, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_dt.episodes.targets import MAX

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def target_table(by_target: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats target, achieved mean ± standard deviation and episodes as aligned text."""
    rows = [("target", "achieved", "episodes")]
    for target, result in by_target.items():
        mean, std = result["episode_return_mean"], result["episode_return_std"]
        rows.append((target, f"{mean:.1f} ± {std:.1f}", str(result["num_episodes"])))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well achieved returns follow what was asked, over the targets.

    Attributes:
        mean_absolute_error: the mean of |achieved - target|, in reward units.
        slope: of the least-squares line through the targets' means: 1 follows them exactly, 0 not
            at all. None with a single target.
    """

    mean_absolute_error: float
    slope: float | None

    def __str__(self) -> str:
        error = f"mean absolute error {self.mean_absolute_error:.4g}"
        return error if self.slope is None else f"{error}, slope {self.slope:.2f}"


def calibration(by_target: Mapping[str, Mapping[str, Any]]) -> Calibration:
    """Computes the calibration of an evaluation's `by_target`, without targets that lack episodes.

    Raises:
        ValueError: no target has an episode.
    """
    means = {float(t): r["episode_return_mean"] for t, r in by_target.items() if t != MAX}
    pairs = np.array([(t, mean) for t, mean in means.items() if np.isfinite(mean)])
    if not len(pairs):
        raise ValueError("no target has an episode")
    targets, achieved = pairs.T
    slope = float(np.polyfit(targets, achieved, 1)[0]) if len(targets) > 1 else None
    return Calibration(mean_absolute_error=float(np.abs(achieved - targets).mean()), slope=slope)


def plot_targets(
    by_target: Mapping[str, Mapping[str, Any]],
    data_returns: Sequence[float],
    path: str | Path | None = None,
) -> "Figure":
    """Plots achieved against target return, with the data's returns behind and the `calibration`.

    Needs matplotlib (the `plots` extra).

    Args:
        by_target: `by_target` of an evaluation's result.
        data_returns: the return of each recorded episode; none if they are not known.
        path: the file to save to, whose suffix decides the format; None saves nothing.

    Returns:
        The figure, which a notebook shows.
    """
    from matplotlib.figure import Figure

    asked = {t: r for t, r in by_target.items() if t != MAX}
    targets = np.array([float(t) for t in asked])
    means = np.array([r["episode_return_mean"] for r in asked.values()])
    stds = np.array([r["episode_return_std"] for r in asked.values()])
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    if len(data_returns):
        _draw_behind(axes, data_returns)
    every = [*targets, *data_returns] or [0.0]
    ends = [min(every), max(every)]
    axes.plot(ends, ends, "--", color="0.4", linewidth=1, label="as asked")
    axes.errorbar(targets, means, yerr=stds, fmt="o", capsize=4, label="achieved, mean ± std")
    if MAX in by_target:
        most = by_target[MAX]["episode_return_mean"]
        axes.axhline(most, color="C1", linewidth=1, label="achieved, asked for the most")
    axes.set_xlabel("target return")
    axes.set_ylabel("achieved return")
    axes.legend(loc="upper left")
    if len(means) and np.isfinite(means).any():
        axes.set_title(str(calibration(by_target)), fontsize="medium")
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_behind(axes: Any, data_returns: Sequence[float]) -> None:
    behind = axes.twinx()
    behind.hist(data_returns, bins=40, color="0.87")
    behind.set_ylabel("recorded episodes", color="0.5")
    behind.tick_params(axis="y", colors="0.5")
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
