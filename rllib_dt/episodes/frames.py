"""Stacked frames, each stored once: a stack is a view of consecutive frames.

Letters: F frames in a stack, T steps of an episode, N steps in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rllib_dt.types import Array


def stack_frames(frames: Array, size: int) -> Array:
    """Returns (T, …) frames as (T, F, …) stacks, a view of little more than the frames.

    The first stacks repeat the first frame, as gymnasium's `FrameStackObservation` does by default.
    """
    padded = np.concatenate([np.repeat(frames[:1], size - 1, axis=0), frames])
    stacks: Array = np.moveaxis(sliding_window_view(padded, size, axis=0), -1, 1)
    return stacks


def not_moved(stacks: Array) -> int | None:
    """Returns the first step whose stack, of (T, F, …), is not the one before moved by a frame."""
    same = stacks[1:, :-1] == stacks[:-1, 1:]
    moved = same.all(axis=tuple(range(1, same.ndim)))
    return None if moved.all() else int(np.argmin(moved)) + 1


@dataclass(frozen=True)
class FrameStacks:
    """A column of N stacks, (F, …) each, over N + (F - 1) · E frames of E episodes.

    It represents an array of shape (N, F, …) in about 1/F of its memory: an episode's first stack
    is stored whole, and of each later one only the newest frame:

        frames     f0 f1 f2 f3 f4 …      F = 3
        stack t=0  └──────┘
        stack t=1     └──────┘

    Attributes:
        frames: (N + (F - 1) · E, …).
        first: (N,) int64, the index of the first frame of each step's stack.
        size: F.
    """

    frames: Array
    first: NDArray[np.int64]
    size: int

    @classmethod
    def from_episodes(cls, episodes: Sequence[Array]) -> "FrameStacks":
        """Builds the column from each episode's (T, F, …) stacks.

        Raises:
            ValueError: a stack is not its predecessor shifted by one frame; the message names the
                episode's number and the step.
        """
        size = episodes[0].shape[1]
        for number, stacks in enumerate(episodes):
            step = not_moved(stacks)
            if step is not None:
                raise ValueError(
                    f"episode {number}: the stack at step {step} is not the one before it shifted "
                    "by one frame; record such observations without frame_stack"
                )
        frames = [part for stacks in episodes for part in (stacks[0, :-1], stacks[:, -1])]
        lengths = np.array([len(stacks) for stacks in episodes])
        offsets = np.repeat(np.arange(len(lengths)) * (size - 1), lengths)
        return cls(np.concatenate(frames), np.arange(lengths.sum()) + offsets, size)

    @classmethod
    def concatenate(cls, columns: Sequence["FrameStacks"]) -> "FrameStacks":
        """Joins columns into one."""
        starts = np.cumsum([0, *(len(c.frames) for c in columns[:-1])])
        first = [column.first + start for column, start in zip(columns, starts, strict=True)]
        frames = np.concatenate([column.frames for column in columns])
        return cls(frames, np.concatenate(first), columns[0].size)

    def __getitem__(self, rows: Array) -> "FrameStacks":
        """Returns the steps where an (N,) mask is True, or those at given indices, in order."""
        first = self.first[rows]
        used = np.zeros(len(self.frames), bool)
        for offset in range(self.size):
            used[first + offset] = True
        moved_to = np.cumsum(used) - 1
        return FrameStacks(self.frames[used], moved_to[first], self.size)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, F, …), the shape of the array that this represents."""
        return (len(self.first), self.size, *self.frames.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the frames."""
        return self.frames.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of frames and indices."""
        return int(self.frames.nbytes + self.first.nbytes)

    def array(self) -> Array:
        """Returns the (N, F, …) array that this represents, F times as large."""
        stacks: Array = self.frames[self.first[:, None] + np.arange(self.size)]
        return stacks

    def gather(self, last: Array, steps: Array, out: Array) -> None:
        """Writes the stacks of the `steps[b]` steps up to `last[b]` to the end of `out[b]`.

        Args:
            last, steps: (B,) int.
            out: (B, K, F, …); the rows before those steps are left unchanged.
        """
        # (M, F, …) without a copy; a window's frames are read from memory once, then from the cache
        stacks = np.moveaxis(sliding_window_view(self.frames, self.size, axis=0), -1, 1)
        starts = self.first[last] - (steps - 1)
        for window, start, count in zip(out, starts.tolist(), steps.tolist(), strict=True):
            window[len(window) - count :] = stacks[start : start + count]
