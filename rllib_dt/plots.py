"""Shows achieved against target returns, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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


def plot_targets(
    by_target: Mapping[str, Mapping[str, Any]],
    data_returns: Sequence[float],
    path: str | Path | None = None,
) -> "Figure":
    """Plots achieved against target return, with the data's returns in the background.

    Needs matplotlib (the `plots` extra).

    Args:
        by_target: `by_target` of an evaluation's result.
        data_returns: the return of each recorded episode.
        path: the file to save to, whose suffix decides the format; None saves nothing.

    Returns:
        The figure, which a notebook shows.
    """
    from matplotlib.figure import Figure

    targets = np.array([float(t) for t in by_target])
    means = np.array([r["episode_return_mean"] for r in by_target.values()])
    stds = np.array([r["episode_return_std"] for r in by_target.values()])
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    behind = axes.twinx()
    behind.hist(data_returns, bins=40, color="0.87")
    behind.set_ylabel("recorded episodes", color="0.5")
    behind.tick_params(axis="y", colors="0.5")
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    ends = [min(targets.min(), min(data_returns)), max(targets.max(), max(data_returns))]
    axes.plot(ends, ends, "--", color="0.4", linewidth=1, label="as asked")
    axes.errorbar(targets, means, yerr=stds, fmt="o", capsize=4, label="achieved, mean ± std")
    axes.set_xlabel("target return")
    axes.set_ylabel("achieved return")
    axes.legend(loc="upper left")
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
