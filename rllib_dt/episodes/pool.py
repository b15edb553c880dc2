"""All episodes as flat arrays, and what is to be known about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.record import Episode
from rllib_dt.episodes.returns import process_rewards, returns_to_go
from rllib_dt.episodes.windows import ACTIONS, OBSERVATIONS, RETURNS_TO_GO

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
class EpisodePool:
    """Every step of every episode, an episode's steps in a row.

    Attributes:
        columns: `obs` (N, …), `actions` (N, …), `returns_to_go` (N, 1) float32.
        timesteps: (N,) int32.
        returns: (E,) float64, undiscounted, of the rewards as recorded.
        lengths: (E,) int64.
    """

    columns: Mapping[str, Array]
    timesteps: Array
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        *,
        gamma: float = 1.0,
        delayed: bool = False,
        clip_rewards: bool | float | None = None,
    ) -> "EpisodePool":
        """Lays conforming episodes end to end; returns-to-go never cross an end."""
        to_go = [
            returns_to_go(process_rewards(e.rewards, clip_rewards), gamma=gamma, delayed=delayed)
            for e in episodes
        ]
        return cls(
            columns={
                OBSERVATIONS: np.concatenate([e.observations[: len(e)] for e in episodes]),
                ACTIONS: np.concatenate([e.actions for e in episodes]),
                RETURNS_TO_GO: np.concatenate(to_go).astype(np.float32)[:, None],
            },
            timesteps=np.concatenate([np.arange(len(e), dtype=np.int32) for e in episodes]),
            returns=np.array([np.sum(e.rewards, dtype=np.float64) for e in episodes]),
            lengths=np.array([len(e) for e in episodes], np.int64),
        )

    def __len__(self) -> int:
        return len(self.timesteps)

    def summary(self) -> DataSummary:
        returns, lengths = self.returns, self.lengths
        return DataSummary(
            num_episodes=len(returns),
            num_steps=len(self),
            return_min=float(returns.min()),
            return_median=float(np.median(returns)),
            return_mean=float(returns.mean()),
            return_max=float(returns.max()),
            return_std=float(returns.std()),
            return_quantiles={f"{q:g}": float(np.quantile(returns, q)) for q in _QUANTILES},
            episode_len_min=int(lengths.min()),
            episode_len_mean=float(lengths.mean()),
            episode_len_max=int(lengths.max()),
            observation_shape=self.columns[OBSERVATIONS].shape[1:],
            action_shape=self.columns[ACTIONS].shape[1:],
        )

    def normalization(self, return_scale: float | None = None) -> Normalization:
        """Statistics of exactly these steps; the scale defaults to the largest |return|."""
        observations = self.columns[OBSERVATIONS]
        scale = return_scale if return_scale is not None else float(np.abs(self.returns).max())
        return Normalization(
            observation_mean=observations.mean(axis=0, dtype=np.float64),
            observation_std=observations.std(axis=0, dtype=np.float64) + 1e-6,
            return_scale=scale or 1.0,
        )

    def derived_targets(self) -> list[float]:
        """The best episode's return and the median's, where they differ."""
        best, median = float(self.returns.max()), float(np.median(self.returns))
        return [best] if best == median else [best, median]


def top_episodes(episodes: Sequence[Episode], fraction: float) -> list[Episode]:
    """The best episodes by return that hold at most this fraction of all steps: %BC's data.

    Best first, while their steps together stay within `max(int(fraction · N), 1)`, the limit
    itself included; the best is always in (kzl/decision-transformer @ e2d82e6,
    gym/experiment.py, `pct_traj`). They keep their order in the data.
    """
    order = sorted(range(len(episodes)), key=lambda i: -float(np.sum(episodes[i].rewards)))
    limit = max(int(fraction * sum(map(len, episodes))), 1)
    chosen, steps = [order[0]], len(episodes[order[0]])
    for i in order[1:]:
        if steps + len(episodes[i]) > limit:
            break
        chosen.append(i)
        steps += len(episodes[i])
    return [episodes[i] for i in sorted(chosen)]
