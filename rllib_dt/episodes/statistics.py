"""Statistics of a data set: returns, lengths, means and standard deviations."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.episodes.pool import EpisodePool, best_episodes
from rllib_dt.episodes.windows import ACTIONS, OBSERVATIONS
from rllib_dt.spaces.trees import by_leaf, columns_of, from_leaves, map_tree
from rllib_dt.types import Array, Tree

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_MIN_STD = 1e-6
_IMAGES_AT_ONCE = 512
"""Images whose squares are in memory at a time, as float64."""


@dataclass(frozen=True, kw_only=True, repr=False)
class DataSummary:
    """A summary of a data set.

    Returns are those that training sees, in reward units: undiscounted sums, unless `gamma` or
    `clip_rewards` says otherwise. `choices` counts what settings of `offline_data` did to the data,
    such as `missing_rewards`.
    """

    num_episodes: int
    num_steps: int
    return_min: float
    return_median: float
    return_mean: float
    return_max: float
    return_std: float
    return_quantiles: Mapping[str, float]
    episode_len_min: int
    episode_len_mean: float
    episode_len_max: int
    observation_shape: Tree
    action_shape: Tree
    choices: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"DataSummary({self})"

    def __str__(self) -> str:
        quantiles = ", ".join(f"{k}: {v:.1f}" for k, v in self.return_quantiles.items())
        choices = "".join(f"; {what}: {count}" for what, count in self.choices.items())
        return (
            f"{self.num_episodes} episodes, {self.num_steps} steps, lengths "
            f"{self.episode_len_min} … {self.episode_len_max}; returns {self.return_min:.1f} … "
            f"{self.return_max:.1f}, mean {self.return_mean:.1f} ± {self.return_std:.1f} "
            f"({quantiles}); observations {self.observation_shape}, actions {self.action_shape}"
            f"{choices}"
        )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The statistics that the network normalises with; saved with the module's weights.

    Attributes:
        observation_mean: float64 of an observation's shape, the mean over every step trained on;
            of a composite space a tree of the leaves that are normalised.
        observation_std: the same shapes, the standard deviation plus 1e-6
            (kzl/decision-transformer @ e2d82e6); of an image one number, around the mean image.
        return_scale: the number that returns-to-go are divided by.
        action_mean, action_std: float64 of an action's shape, the unit of unbounded components.
    """

    observation_mean: Tree
    observation_std: Tree
    return_scale: float
    action_mean: Tree
    action_std: Tree


class Moments:
    """Accumulates mean and variance, part by part, in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, values: Array) -> None:
        """Adds (n, …) values."""
        count, total = len(values), self._count + len(values)
        mean = values.mean(axis=0, dtype=np.float64)
        squares = values.var(axis=0, dtype=np.float64) * count
        away = mean - self._mean
        self._squares = self._squares + squares + away**2 * (self._count * count / total)
        self._mean = self._mean + away * (count / total)
        self._count = total

    @property
    def mean(self) -> Array:
        """(…) float64."""
        return np.asarray(self._mean)

    @property
    def std(self) -> Array:
        """(…) float64, the standard deviation plus 1e-6."""
        return np.asarray(np.sqrt(self._squares / max(1, self._count)) + _MIN_STD)


class Statistics:
    """Accumulates the statistics of episodes pool by pool, without keeping the pools.

    Args:
        normalized: the paths of the observations' leaves that are numbers to normalise; those of
            others are left at mean 0 and deviation 1. All by default.
        images: the paths of those that are images to normalise.
    """

    def __init__(
        self, normalized: Collection[str] | None = None, images: Collection[str] = ()
    ) -> None:
        self.num_steps = 0
        self._normalized, self._images = normalized, images
        self._stack_size: dict[str, int] = {}
        self._moments: dict[str, dict[str, Moments]] = {OBSERVATIONS: {}, ACTIONS: {}}
        self._returns: list[NDArray[np.float64]] = []
        self._targets: list[NDArray[np.float64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._largest_action: dict[str, Any] = {}
        self._shapes: tuple[Tree, Tree] = ((), ())

    @classmethod
    def of(cls, pool: EpisodePool, normalized: Collection[str] | None = None) -> "Statistics":
        """Returns the statistics of one pool."""
        statistics = cls(normalized)
        statistics.add(pool)
        return statistics

    def add(self, pool: EpisodePool) -> None:
        """Adds a pool's episodes."""
        observations = columns_of(OBSERVATIONS, pool.columns)
        actions = columns_of(ACTIONS, pool.columns)
        for path, column in by_leaf(observations).items():
            if self._normalized is None or path in self._normalized:
                is_stacked = isinstance(column, FrameStacks)
                self._add(OBSERVATIONS, path, column.array() if is_stacked else column)
        for path in self._images:
            self._add_images(path, by_leaf(observations)[path])
        for path, column in by_leaf(actions).items():
            self._add(ACTIONS, path, column)
            largest = np.maximum(np.abs(column.max(axis=0)), np.abs(column.min(axis=0)))
            self._largest_action[path] = np.maximum(self._largest_action.get(path, 0.0), largest)
        self.num_steps += len(pool)
        self._returns.append(pool.returns)
        self._targets.append(pool.targets)
        self._lengths.append(pool.lengths)
        shapes = (map_tree(lambda c: c.shape[1:], tree) for tree in (observations, actions))
        self._shapes = next(shapes), next(shapes)

    def _add(self, name: str, path: str, values: Array) -> None:
        self._moments[name].setdefault(path, Moments()).add(values)

    def _add_images(self, path: str, column: Array | FrameStacks) -> None:
        """Adds each frame once, whether or not frames are stacked."""
        if isinstance(column, FrameStacks):
            self._stack_size[path], column = column.size, column.frames
        for start in range(0, len(column), _IMAGES_AT_ONCE):
            self._add(OBSERVATIONS, path, column[start : start + _IMAGES_AT_ONCE])

    def _mean_and_std(self, name: str) -> tuple[Tree, Tree]:
        moments = self._moments[name] or {"": Moments()}  # nothing is normalised
        means = {path: one.mean for path, one in moments.items()}
        stds = {path: one.std for path, one in moments.items()}
        for path in self._images if name == OBSERVATIONS else ():
            if path in self._stack_size:
                means[path] = np.stack([means[path]] * self._stack_size[path])
            stds[path] = np.sqrt(np.square(stds[path]).mean())
        return from_leaves(means), from_leaves(stds)

    @property
    def returns(self) -> NDArray[np.float64]:
        """(E,) undiscounted returns, in the order of the episodes."""
        return np.concatenate(self._returns)

    @property
    def targets(self) -> NDArray[np.float64]:
        """(E,) returns as training sees them; see `EpisodePool`."""
        return np.concatenate(self._targets)

    @property
    def largest_action(self) -> Tree:
        """Of an action's shape: the largest absolute value in each component."""
        return from_leaves({path: np.asarray(v) for path, v in self._largest_action.items()})

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode, in their order."""
        return np.concatenate(self._lengths)

    def summary(self) -> DataSummary:
        """Summarises the episodes for people to read."""
        returns, lengths = self.targets, self.lengths
        return DataSummary(
            num_episodes=len(returns),
            num_steps=self.num_steps,
            return_min=float(returns.min()),
            return_median=float(np.median(returns)),
            return_mean=float(returns.mean()),
            return_max=float(returns.max()),
            return_std=float(returns.std()),
            return_quantiles={f"{q:g}": float(np.quantile(returns, q)) for q in _QUANTILES},
            episode_len_min=int(lengths.min()),
            episode_len_mean=float(lengths.mean()),
            episode_len_max=int(lengths.max()),
            observation_shape=self._shapes[0],
            action_shape=self._shapes[1],
        )

    def normalization(self, return_scale: float | None = None) -> Normalization:
        """Returns the normalisation of these steps; the scale defaults to the largest |return|."""
        scale = return_scale if return_scale is not None else float(np.abs(self.targets).max())
        observations, actions = self._mean_and_std(OBSERVATIONS), self._mean_and_std(ACTIONS)
        return Normalization(
            observation_mean=observations[0],
            observation_std=observations[1],
            return_scale=scale or 1.0,
            action_mean=actions[0],
            action_std=actions[1],
        )

    def derived_targets(self) -> list[float]:
        """Returns the best episode's return, and the median return if it differs.

        Both as training sees them, since the network is asked for returns-to-go.
        """
        best, median = float(self.targets.max()), float(np.median(self.targets))
        return [best] if best == median else [best, median]


def top_episodes(
    returns: NDArray[np.float64], lengths: NDArray[np.int64], fraction: float
) -> NDArray[np.bool_]:
    """Chooses the best episodes that hold at most this fraction of all N steps: %BC's data.

    Takes episodes best first while their steps together stay within `max(int(fraction · N), 1)`,
    the limit itself included; the best one is always taken (kzl/decision-transformer @ e2d82e6,
    gym/experiment.py, `pct_traj`).

    Args:
        returns: (E,) undiscounted returns.
        lengths: (E,) steps of each episode.
        fraction: in (0, 1].
    """
    return best_episodes(returns, lengths, max(int(fraction * lengths.sum()), 1))
