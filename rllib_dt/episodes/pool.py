"""`EpisodePool`: episodes as flat arrays, from which windows are gathered."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.episode import Episode
from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.episodes.returns import ReturnRule, process_rewards
from rllib_dt.episodes.windows import (
    ACTIONS,
    EPISODE_RETURNS,
    OBSERVATIONS,
    RETURNS_TO_GO,
    REWARDS,
    TERMINATEDS,
    Column,
    Window,
    gather_windows,
)
from rllib_dt.spaces.trees import by_leaf, joined
from rllib_dt.types import Array


@dataclass(frozen=True, kw_only=True)
class EpisodePool:
    """The N steps of E episodes as flat arrays; each episode's steps are contiguous and in order.

    Attributes:
        columns: `obs` (N, …), `actions` (N, …), `returns_to_go` (N, 1) float32; of a composite
            space a column for each leaf, `obs/camera`. With outcomes also `rewards` (N,) float32,
            clipped if so configured, `terminateds` (N,) bool, True at an episode's last step
            unless it was truncated, and `episode_returns` (N,) float32, each episode's target.
        timesteps: (N,) int32, each step's timestep in its episode.
        returns: (E,) float64, the undiscounted sums of the rewards as recorded.
        targets: (E,) float64, the return-to-go of each episode's first step: its return as
            training sees it, with clipped or discounted rewards if so configured.
        lengths: (E,) int64, the steps of each episode.
    """

    columns: Mapping[str, Column]
    timesteps: Array
    returns: NDArray[np.float64]
    targets: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        rule: ReturnRule | None = None,
        *,
        stacked: Collection[str] = (),
        outcomes: bool = False,
    ) -> "EpisodePool":
        """Concatenates conforming episodes; returns-to-go never cross an episode's end.

        Args:
            episodes: at least one.
            rule: how rewards become returns-to-go; undiscounted by default.
            stacked: paths of the observations' leaves that are stacks of frames, (F, …), each its
                predecessor shifted by one frame; every frame is stored once, see `FrameStacks`.
            outcomes: keep rewards, terminations and episodes' returns too.
        """
        rule = rule or ReturnRule()
        to_go = [rule.to_go(e.rewards) for e in episodes]
        targets = np.array([first[0] for first in to_go])
        lengths = np.array([len(e) for e in episodes], np.int64)
        return cls(
            columns={
                **dict(_columns(OBSERVATIONS, episodes, stacked=stacked)),
                **dict(_columns(ACTIONS, episodes)),
                RETURNS_TO_GO: np.concatenate(to_go).astype(np.float32)[:, None],
                **(_outcomes(episodes, rule, targets, lengths) if outcomes else {}),
            },
            timesteps=np.concatenate([np.arange(len(e), dtype=np.int32) for e in episodes]),
            returns=np.array([e.undiscounted_return for e in episodes]),
            targets=targets,
            lengths=lengths,
        )

    @classmethod
    def concatenate(cls, pools: Sequence["EpisodePool"]) -> "EpisodePool":
        """Joins pools into one."""
        if len(pools) == 1:
            return pools[0]
        return cls(
            columns={
                name: _concatenate([p.columns[name] for p in pools]) for name in pools[0].columns
            },
            timesteps=np.concatenate([p.timesteps for p in pools]),
            returns=np.concatenate([p.returns for p in pools]),
            targets=np.concatenate([p.targets for p in pools]),
            lengths=np.concatenate([p.lengths for p in pools]),
        )

    def select(self, episodes: NDArray[np.bool_]) -> "EpisodePool":
        """Returns a pool of the episodes where an (E,) mask is True."""
        rows = np.repeat(episodes, self.lengths)
        return EpisodePool(
            columns={name: column[rows] for name, column in self.columns.items()},
            timesteps=self.timesteps[rows],
            returns=self.returns[episodes],
            targets=self.targets[episodes],
            lengths=self.lengths[episodes],
        )

    def best(self, count: int, steps: int) -> "EpisodePool":
        """Returns the episodes with the largest targets, of equal ones the first.

        Args:
            count: the most episodes.
            steps: the most steps of all together; the best one is there in any case.
        """
        return self.select(best_episodes(self.targets, self.lengths, steps, count))

    def episodes(self) -> list["EpisodePool"]:
        """Returns a pool of each episode alone; none shares an array with this one."""
        found = []
        stops = np.cumsum(self.lengths)
        for number, stop in enumerate(stops.tolist()):
            rows = np.arange(stop - self.lengths[number], stop)
            one = slice(number, number + 1)
            found.append(
                EpisodePool(
                    columns={name: column[rows] for name, column in self.columns.items()},
                    timesteps=self.timesteps[rows],
                    returns=self.returns[one].copy(),
                    targets=self.targets[one].copy(),
                    lengths=self.lengths[one].copy(),
                )
            )
        return found

    def windows(
        self, last: Array, window_length: int, out: Mapping[str, Array] | None = None
    ) -> Window:
        """Gathers the windows that end at the given steps; see `gather_windows`.

        Args:
            last: (B,) int, flat indices.
            window_length: K.
            out: (B, K, …) arrays to write each column's windows to.
        """
        timestep = self.timesteps[last].astype(np.int64)
        return gather_windows(self.columns, last, timestep, window_length, out)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def nbytes(self) -> int:
        """The bytes of all columns and timesteps."""
        return int(self.timesteps.nbytes + sum(column.nbytes for column in self.columns.values()))


def _columns(
    name: str, episodes: Sequence[Episode], *, stacked: Collection[str] = ()
) -> Iterator[tuple[str, Column]]:
    """Yields the observations or actions of all episodes, a column for each leaf."""
    trees = [e.observations if name == OBSERVATIONS else e.actions for e in episodes]
    for path in by_leaf(trees[0]):
        parts = [by_leaf(t)[path][: len(e)] for t, e in zip(trees, episodes, strict=True)]
        yield (
            joined(name, path),
            FrameStacks.from_episodes(parts) if path in stacked else np.concatenate(parts),
        )


def _outcomes(
    episodes: Sequence[Episode], rule: ReturnRule, targets: Array, lengths: Array
) -> dict[str, Column]:
    terminateds = np.zeros(lengths.sum(), bool)
    terminateds[np.cumsum(lengths) - 1] = [e.terminated for e in episodes]
    return {
        REWARDS: np.concatenate(
            [process_rewards(e.rewards, rule.clip_rewards) for e in episodes]
        ).astype(np.float32),
        TERMINATEDS: terminateds,
        EPISODE_RETURNS: np.repeat(targets.astype(np.float32), lengths),
    }


def best_episodes(
    returns: NDArray[np.float64],
    lengths: NDArray[np.int64],
    steps: int,
    count: int | None = None,
) -> NDArray[np.bool_]:
    """Chooses episodes best first while their steps together stay within a number.

    Args:
        returns, lengths: (E,) of each episode; of equal returns the first is the better one.
        steps: the most steps, itself included; the best episode is chosen in any case.
        count: the most episodes.

    Returns:
        (E,) True where chosen.
    """
    order = np.argsort(-returns, kind="stable")[:count]
    fits = np.cumsum(lengths[order]) <= steps
    fits[0] = True
    chosen = np.zeros(len(returns), bool)
    chosen[order[fits]] = True
    return chosen


def _concatenate(columns: Sequence[Any]) -> Column:
    if isinstance(columns[0], FrameStacks):
        return FrameStacks.concatenate(columns)
    joined: Array = np.concatenate(columns)
    return joined


def pack(
    episodes: Iterable[Episode],
    steps: int,
    rule: ReturnRule,
    *,
    stacked: Collection[str] = (),
    outcomes: bool = False,
) -> Iterator[EpisodePool]:
    """Packs episodes, in order, into pools of at least `steps` steps; the last may be smaller."""
    packed = partial(EpisodePool.from_episodes, rule=rule, stacked=stacked, outcomes=outcomes)
    batch: list[Episode] = []
    held = 0
    for episode in episodes:
        batch.append(episode)
        held += len(episode)
        if held >= steps:
            yield packed(batch)
            batch, held = [], 0
    if batch:
        yield packed(batch)
