"""All episodes as flat arrays, and what is to be known about them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.episodes.record import Episode
from rllib_dt.episodes.returns import process_rewards, returns_to_go
from rllib_dt.episodes.windows import ACTIONS, OBSERVATIONS, RETURNS_TO_GO, Column

Array = NDArray[Any]

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What a data set holds. Returns are undiscounted sums, in reward units."""

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
    observation_shape: tuple[int, ...]
    action_shape: tuple[int, ...]

    def __str__(self) -> str:
        quantiles = ", ".join(f"{k}: {v:.1f}" for k, v in self.return_quantiles.items())
        return (
            f"{self.num_episodes} episodes, {self.num_steps} steps, lengths "
            f"{self.episode_len_min} … {self.episode_len_max}; returns {self.return_min:.1f} … "
            f"{self.return_max:.1f}, mean {self.return_mean:.1f} ± {self.return_std:.1f} "
            f"({quantiles}); observations {self.observation_shape}, actions {self.action_shape}"
        )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What the network needs to know of its data; travels with the module's weights.

    Attributes:
        observation_mean: the observations' shape, float64, over every step trained on.
        observation_std: the same, plus 1e-6 (kzl/decision-transformer @ e2d82e6).
        return_scale: what returns-to-go are divided by.
    """

    observation_mean: Array
    observation_std: Array
    return_scale: float


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How episodes are laid down.

    Attributes:
        gamma, delayed, clip_rewards: how rewards become returns-to-go; see
            `rllib_dt.episodes.returns`.
        frame_stack: observations are stacks of frames, (F, …), of which each is the one before
            moved by one frame: they are kept once; see `FrameStacks`.
    """

    gamma: float = 1.0
    delayed: bool = False
    clip_rewards: bool | float | None = None
    frame_stack: bool = False


@dataclass(frozen=True, kw_only=True)
class EpisodePool:
    """Every step of some episodes, an episode's steps in a row.

    Attributes:
        columns: `obs` (N, …), `actions` (N, …), `returns_to_go` (N, 1) float32.
        timesteps: (N,) int32.
        returns: (E,) float64, undiscounted, of the rewards as recorded.
        lengths: (E,) int64.
    """

    columns: Mapping[str, Column]
    timesteps: Array
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_episodes(
        cls, episodes: Sequence[Episode], options: PoolOptions | None = None
    ) -> "EpisodePool":
        """Lays conforming episodes end to end; returns-to-go never cross an end."""
        options = options or PoolOptions()
        to_go = [
            returns_to_go(
                process_rewards(e.rewards, options.clip_rewards),
                gamma=options.gamma,
                delayed=options.delayed,
            )
            for e in episodes
        ]
        observations = [e.observations[: len(e)] for e in episodes]
        return cls(
            columns={
                OBSERVATIONS: (
                    FrameStacks.from_episodes(observations)
                    if options.frame_stack
                    else np.concatenate(observations)
                ),
                ACTIONS: np.concatenate([e.actions for e in episodes]),
                RETURNS_TO_GO: np.concatenate(to_go).astype(np.float32)[:, None],
            },
            timesteps=np.concatenate([np.arange(len(e), dtype=np.int32) for e in episodes]),
            returns=np.array([e.undiscounted_return for e in episodes]),
            lengths=np.array([len(e) for e in episodes], np.int64),
        )

    @classmethod
    def concatenate(cls, pools: Sequence["EpisodePool"]) -> "EpisodePool":
        """All the pools' episodes in one."""
        if len(pools) == 1:
            return pools[0]
        return cls(
            columns={
                name: _concatenate([p.columns[name] for p in pools]) for name in pools[0].columns
            },
            timesteps=np.concatenate([p.timesteps for p in pools]),
            returns=np.concatenate([p.returns for p in pools]),
            lengths=np.concatenate([p.lengths for p in pools]),
        )

    def select(self, episodes: NDArray[np.bool_]) -> "EpisodePool":
        """The episodes that an (E,) mask chooses."""
        rows = np.repeat(episodes, self.lengths)
        return EpisodePool(
            columns={name: column[rows] for name, column in self.columns.items()},
            timesteps=self.timesteps[rows],
            returns=self.returns[episodes],
            lengths=self.lengths[episodes],
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def nbytes(self) -> int:
        return int(self.timesteps.nbytes + sum(column.nbytes for column in self.columns.values()))

    def statistics(self) -> "Statistics":
        """What is to be known about these episodes."""
        statistics = Statistics()
        statistics.add(self)
        return statistics


def _concatenate(columns: Sequence[Any]) -> Column:
    if isinstance(columns[0], FrameStacks):
        return FrameStacks.concatenate(columns)
    joined: Array = np.concatenate(columns)
    return joined


class Statistics:
    """What is to be known about episodes, taken in pool after pool, so that none need stay.

    Means and variances are merged pairwise in float64 (Chan, Golub & LeVeque 1983).
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        self._returns: list[NDArray[np.float64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def add(self, pool: EpisodePool) -> None:
        """Takes a pool's episodes in."""
        observations: Any = pool.columns[OBSERVATIONS]
        steps, total = len(pool), self.num_steps + len(pool)
        mean = observations.mean(axis=0, dtype=np.float64)
        squares = observations.var(axis=0, dtype=np.float64) * steps
        away = mean - self._mean
        self._squares = self._squares + squares + away**2 * (self.num_steps * steps / total)
        self._mean = self._mean + away * (steps / total)
        self.num_steps = total
        self._returns.append(pool.returns)
        self._lengths.append(pool.lengths)
        self._shapes = (observations.shape[1:], pool.columns[ACTIONS].shape[1:])

    @property
    def returns(self) -> NDArray[np.float64]:
        """(E,), in the order of the episodes."""
        return np.concatenate(self._returns)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,), in the order of the episodes."""
        return np.concatenate(self._lengths)

    def summary(self) -> DataSummary:
        returns, lengths = self.returns, self.lengths
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
        """Statistics of exactly these steps; the scale defaults to the largest |return|."""
        scale = return_scale if return_scale is not None else float(np.abs(self.returns).max())
        return Normalization(
            observation_mean=self._mean,
            observation_std=np.sqrt(self._squares / self.num_steps) + 1e-6,
            return_scale=scale or 1.0,
        )

    def derived_targets(self) -> list[float]:
        """The best episode's return and the median's, where they differ."""
        best, median = float(self.returns.max()), float(np.median(self.returns))
        return [best] if best == median else [best, median]


def top_episodes(
    returns: NDArray[np.float64], lengths: NDArray[np.int64], fraction: float
) -> NDArray[np.bool_]:
    """Which episodes are the best that hold at most this fraction of all steps: %BC's data.

    Best first, while their steps together stay within `max(int(fraction · N), 1)`, the limit
    itself included; the best is always in (kzl/decision-transformer @ e2d82e6,
    gym/experiment.py, `pct_traj`).

    Args:
        returns: (E,) undiscounted.
        lengths: (E,) steps.
        fraction: in (0, 1].
    """
    order = np.argsort(-returns, kind="stable")
    fits = np.cumsum(lengths[order]) <= max(int(fraction * lengths.sum()), 1)
    fits[0] = True
    chosen = np.zeros(len(returns), bool)
    chosen[order[fits]] = True
    return chosen


def pack(episodes: Iterable[Episode], steps: int, options: PoolOptions) -> Iterator[EpisodePool]:
    """Pools of at least so many steps, in the episodes' order; the last one may hold less."""
    batch: list[Episode] = []
    held = 0
    for episode in episodes:
        batch.append(episode)
        held += len(episode)
        if held >= steps:
            yield EpisodePool.from_episodes(batch, options)
            batch, held = [], 0
    if batch:
        yield EpisodePool.from_episodes(batch, options)
