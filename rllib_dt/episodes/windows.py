"""Windows of K steps: the one layout that training and evaluation share.

A window holds the last K steps up to and including one step, left-padded with zeros if the episode
has fewer steps by then:

    episode            s0 s1 s2 s3 s4 …
    K = 4, ends at s1   .  . s0 s1        mask  F F T T
    K = 4, ends at s4  s1 s2 s3 s4        mask  T T T T

`gather_columns` makes every window, in training and in evaluation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.buffers import Buffers
from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.spaces.trees import column_names, columns_of
from rllib_dt.types import Array, Batch, Tree

Column = Array | FrameStacks
"""(N, …) values of N steps: an array, or stacked frames that represent one."""

# names of a window's columns; RLlib's own if it has one
OBSERVATIONS, ACTIONS, RETURNS_TO_GO = "obs", "actions", "returns_to_go"
TIMESTEPS, MASK = "t", "loss_mask"
REWARDS, TERMINATEDS, EPISODE_RETURNS = "rewards", "terminateds", "episode_returns"
OUTCOMES = (REWARDS, TERMINATEDS, EPISODE_RETURNS)
"""Columns that only some objectives read; see `EpisodePool`."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """B windows of K steps, as numpy arrays or torch tensors.

    Attributes:
        observations: (B, K, …), in the environment's units; a tree.
        actions: (B, K, …), in the environment's units; a tree.
        returns_to_go: (B, K, 1) float32, in reward units.
        timesteps: (B, K) int64, the steps' true timesteps; 0 where padded.
        mask: (B, K) bool, True where real.
        rewards, terminateds, episode_returns: (B, K) each if the pool has `OUTCOMES`, or None.
    """

    observations: Tree
    actions: Tree
    returns_to_go: Tree
    timesteps: Tree
    mask: Tree
    rewards: Tree = None
    terminateds: Tree = None
    episode_returns: Tree = None

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tree]) -> "Window":
        """Picks a window out of named columns, ignoring others; the inverse of `columns`."""
        return cls(
            observations=columns_of(OBSERVATIONS, columns),
            actions=columns_of(ACTIONS, columns),
            returns_to_go=columns[RETURNS_TO_GO],
            timesteps=columns[TIMESTEPS],
            mask=columns[MASK],
            **{name: columns[name] for name in OUTCOMES if name in columns},
        )

    def columns(self) -> Batch:
        """Returns arrays by name: `obs`, or `obs/camera` and `obs/joints` for a composite space."""
        return {
            **dict(column_names(OBSERVATIONS, self.observations)),
            **dict(column_names(ACTIONS, self.actions)),
            RETURNS_TO_GO: self.returns_to_go,
            TIMESTEPS: self.timesteps,
            MASK: self.mask,
            **{name: value for name in OUTCOMES if (value := getattr(self, name)) is not None},
        }

    def map(self, function: Callable[[Tree], Tree]) -> "Window":
        """Applies a function to every array."""
        return self.from_columns({name: function(c) for name, c in self.columns().items()})

    def __getitem__(self, index: Any) -> "Window":
        """Indexes the first axes, (B, K), of every array."""
        return self.map(lambda column: column[index])

    def __len__(self) -> int:
        return len(self.mask)


def gather_windows(
    columns: Mapping[str, Column],
    last: Array,
    timestep: Array,
    window_length: int,
    out: Mapping[str, Array] | None = None,
) -> Window:
    """Gathers B windows that end at given steps, left-padded with zeros.

    Args:
        columns: flat arrays, (N, …) each, in which an episode's steps are contiguous.
        last: (B,) int, the flat index of each window's last step.
        timestep: (B,) int, that step's true timestep; its episode's steps 0 … timestep, or the
            last K of them, must end at it in the columns.
        window_length: K.
        out: (B, K, …) arrays to write each column's windows to.
    """
    return Window.from_columns(gather_columns(columns, last, timestep, window_length, out))


def gather_columns(
    columns: Mapping[str, Column],
    last: Array,
    timestep: Array,
    window_length: int,
    out: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Gathers windows of any columns as `gather_windows` does, with their timesteps and mask."""
    windows = dict(out or empty_windows(columns, len(last), window_length))
    offsets = np.arange(1 - window_length, 1)
    timesteps = timestep[:, None] + offsets  # (B, K)
    mask = timesteps >= 0
    index = last[:, None] + np.where(mask, offsets, 0)
    for name, column in columns.items():
        if isinstance(column, FrameStacks):
            column.gather(last, mask.sum(axis=1), windows[name])
        else:
            # with "clip" numpy writes to `out` directly; no index is out of range
            np.take(column, index, axis=0, out=windows[name], mode="clip")
    if not mask.all():
        padded = ~mask
        timesteps[padded] = 0
        for window in windows.values():
            window[padded] = 0
    return {**windows, TIMESTEPS: timesteps, MASK: mask}


def empty_windows(
    columns: Mapping[str, Column],
    batch_size: int,
    window_length: int,
    buffers: Buffers | None = None,
) -> dict[str, Array]:
    """Allocates (B, K, …) arrays for `gather_windows` to write each column's windows to."""
    empty = buffers.empty if buffers is not None else np.empty
    return {
        name: empty((batch_size, window_length, *column.shape[1:]), column.dtype)
        for name, column in columns.items()
    }


def covering_windows(lengths: Array, window_length: int) -> NDArray[np.int64]:
    """Returns the ends of windows that together hold each step of each episode once.

    Args:
        lengths: (E,) steps of each episode; the episodes are concatenated.
        window_length: K.

    Returns:
        (W,) flat indices: each episode's last step, and every K-th before it.
    """
    windows = -(-lengths // window_length)
    back = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    last = np.repeat(np.cumsum(lengths) - 1, windows)
    ends: NDArray[np.int64] = last - back * window_length
    return ends
