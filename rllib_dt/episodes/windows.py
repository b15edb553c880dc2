"""Windows of K steps: the one layout that training and evaluation share.

A window holds the last K steps up to and including one step, left-padded with zeros where
the episode began less than K steps before (see `docs/design.md`, "Windows"). Both ways
through the code call `gather_windows`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.buffers import Buffers
from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.episodes.returns import next_return_to_go, process_rewards

Array = NDArray[Any]
Column = Array | FrameStacks
"""(N, …), or what stands for such an array."""

# columns of a window, beside the data's own; RLlib's names where it has them
OBSERVATIONS, ACTIONS, RETURNS_TO_GO = "obs", "actions", "returns_to_go"
TIMESTEPS, MASK = "t", "loss_mask"
# columns beside a window that continues what a module holds of the episodes already
SLOTS, NEW_STEPS = "slots", "new_steps"


def gather_windows(
    columns: Mapping[str, Column],
    last: Array,
    timestep: Array,
    window_length: int,
    out: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """B windows that end at given steps, left-padded.

    Args:
        columns: flat arrays, (N, …) each, in which an episode's steps stand in a row.
        last: (B,) int, the flat index of each window's last step.
        timestep: (B,) int, the step's true timestep; its episode's steps 0 … timestep, or
            the last K of them, must stand before it in the columns.
        window_length: K.
        out: where to write each column's windows, (B, K, …).

    Returns:
        Each column as (B, K, …), zero where padded; `t` (B, K) int64, the true timesteps,
        0 where padded; `loss_mask` (B, K) bool, True where real.
    """
    windows = dict(out or empty_windows(columns, len(last), window_length))
    offsets = np.arange(1 - window_length, 1)
    timesteps = timestep[:, None] + offsets  # (B, K)
    mask = timesteps >= 0
    index = last[:, None] + np.where(mask, offsets, 0)
    for name, column in columns.items():
        if isinstance(column, FrameStacks):
            column.gather(last, mask.sum(axis=1), windows[name])
        else:
            # with "clip" numpy writes to `out` directly; the indices are all within
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
    """(B, K, …) arrays for `gather_windows` to write each column's windows to."""
    empty = buffers.empty if buffers is not None else np.empty
    return {
        name: empty((batch_size, window_length, *column.shape[1:]), column.dtype)
        for name, column in columns.items()
    }


def covering_windows(lengths: Array, window_length: int) -> Array:
    """Where windows end that together hold each step of each episode once.

    Args:
        lengths: (E,) the episodes' steps, which stand end to end.
        window_length: K.

    Returns:
        (W,) int64 flat indices: each episode's last step, and every K-th before it.
    """
    windows = -(-lengths // window_length)
    back = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    last = np.repeat(np.cumsum(lengths) - 1, windows)
    result: Array = last - back * window_length
    return result


@dataclass(frozen=True, kw_only=True)
class WindowSampler:
    """Draws windows that end at uniformly chosen steps, so long episodes in proportion.

    A batch follows from (seed, stream, update) alone: two samplers with the same three
    numbers draw the same, and nothing but the update counter has to be saved.

    Attributes:
        columns: flat arrays by name, (N, …) each.
        timesteps: (N,) int32, each step's timestep in its episode.
        window_length: K, steps in a window.
        batch_size: B, windows in a batch.
        seed: any non-negative integer.
        stream: tells learners apart that share a seed.
    """

    columns: Mapping[str, Column]
    timesteps: Array
    window_length: int
    batch_size: int
    seed: int
    stream: int = 0
    _buffers: Buffers = field(default_factory=Buffers, compare=False, repr=False)

    def sample(self, update: int) -> dict[str, Array]:
        """The batch of one update, as `gather_windows` returns it."""
        rng = np.random.default_rng((self.seed, self.stream, update))
        last = rng.integers(len(self.timesteps), size=self.batch_size)
        timestep = self.timesteps[last].astype(np.int64)
        out = empty_windows(self.columns, self.batch_size, self.window_length, self._buffers)
        return gather_windows(self.columns, last, timestep, self.window_length, out)

    def state(self) -> None:
        """Nothing: the update's number is enough."""


class ContextBuffer:
    """The recent past of each of S running episodes, as windows for the next action.

    Each slot owns 2K rows of flat arrays. Steps are appended; when the rows are full the
    last K-1 steps move to the front, so an append costs one row and, every K steps, a copy.
    """

    def __init__(
        self,
        num_slots: int,
        context_length: int,
        observation_layout: tuple[tuple[int, ...], np.dtype],
        action_layout: tuple[tuple[int, ...], np.dtype],
        *,
        gamma: float = 1.0,
        delayed: bool = False,
        clip_rewards: bool | float | None = None,
    ):
        self._context_length = context_length
        self._capacity = 2 * context_length
        self._gamma, self._delayed, self._clip = gamma, delayed, clip_rewards
        rows = num_slots * self._capacity
        self._columns: dict[str, Array] = {
            OBSERVATIONS: np.zeros((rows, *observation_layout[0]), observation_layout[1]),
            ACTIONS: np.zeros((rows, *action_layout[0]), action_layout[1]),
            RETURNS_TO_GO: np.zeros((rows, 1), np.float32),
        }
        self._row = np.zeros(num_slots, np.int64)
        self._timestep = np.zeros(num_slots, np.int64)
        # float64, so that a thousand subtractions do not drift from the training's sum
        self._return_to_go = np.zeros(num_slots, np.float64)

    def begin(self, slot: int, observation: Array, target_return: float) -> None:
        """Forgets the slot's past and holds the first observation of a new episode."""
        self._row[slot], self._timestep[slot] = slot * self._capacity, 0
        self._return_to_go[slot] = target_return
        self._put(slot, observation)

    def append(self, slot: int, action: Array, reward: float, observation: Array) -> None:
        """Takes in what one environment step gave."""
        self._columns[ACTIONS][self._row[slot]] = action
        self._return_to_go[slot] = next_return_to_go(
            self._return_to_go[slot],
            process_rewards(np.asarray(reward), self._clip),
            gamma=self._gamma,
            delayed=self._delayed,
        )
        self._advance(slot)
        self._put(slot, observation)

    def windows(self, slots: Array, length: int | None = None) -> dict[str, Array]:
        """(len(slots), K, …) windows that end at each slot's current step; K or `length` steps.

        The action of the current step, not taken yet, is zero.
        """
        length = self._context_length if length is None else length
        assert length <= self._context_length
        return gather_windows(self._columns, self._row[slots], self._timestep[slots], length)

    def steps_held(self, slot: int) -> int:
        """Steps of the slot's episode that a window can show, the current one included."""
        return int(min(self._timestep[slot] + 1, self._context_length))

    def _advance(self, slot: int) -> None:
        self._timestep[slot] += 1
        self._row[slot] += 1
        front = slot * self._capacity
        if self._row[slot] == front + self._capacity:
            keep = self._context_length - 1
            for column in self._columns.values():
                column[front : front + keep] = column[front + self._capacity - keep :][:keep]
            self._row[slot] = front + keep

    def _put(self, slot: int, observation: Array) -> None:
        row = self._row[slot]
        self._columns[OBSERVATIONS][row] = observation
        self._columns[ACTIONS][row] = 0
        self._columns[RETURNS_TO_GO][row] = self._return_to_go[slot]
