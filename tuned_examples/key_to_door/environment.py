"""Key-to-Door, a gymnasium environment of three rooms in sequence.

    the key's room          the middle room          the door's room

      # # # # # # #       # # # # # # # # # # #           # # D # #
      # k k k k k #       # . . . . . . . . . #           # . . . #
      # k k k k k #       # . . . . . . . . . #           # . @ . #
      # # . . . # #       # . . . . @ . . . . #           # . . . #
      # @ @ @ @ @ #       # . . . . . . . . . #           # # # # #
      # @ @ @ @ @ #       # . . . . . . . . . #
      # # # # # # #       # # # # # # # # # # #

The key lies on one of the cells k, the player @ starts on one of those marked. A room ends by its
timer only. Stepping on the key takes it; the door D opens to those who hold it, and gives a reward
of 1, once. The player sees 5 × 5 cells, and not whether it holds the key.

The rooms are those of DeepMind's Temporal Value Transport (Hung et al. 2019, arXiv:1810.06721),
with the middle room empty as in Chen et al. 2021 (§5.4), whose own environment was not released.
There, neither sizes nor times are stated: 15 steps each in the first and the last room give a
random walk a success of 2.8 %, theirs has 3.1 %.
"""

from typing import Any

import gymnasium as gym
import numpy as np

KEY_ROOM = ("#######", "#kkkkk#", "#kkkkk#", "##...##", "#@@@@@#", "#@@@@@#", "#######")
MIDDLE_ROOM = (
    "###########",
    "#.........#",
    "#.........#",
    "#....@....#",
    "#.........#",
    "#.........#",
    "###########",
)
DOOR_ROOM = ("##D##", "#...#", "#.@.#", "#...#", "#####")
MOVES = ((-1, 0), (1, 0), (0, 1), (0, -1))
"""Up, down, right, left, as (rows, columns)."""

END_ROOM_STEPS = 15
SIGHT = 2
"""Cells that the player sees in each direction."""


class KeyToDoor(gym.Env):
    """Three rooms in sequence; see the module.

    Observations are (5, 5, 3) uint8, 255 where there is a wall, the key or the door, in this order
    of the channels, around the player. Actions are 0 to 3: up, down, right, left; a move into a
    wall does nothing. An episode has 30 + `middle_steps` steps, and its return is 0 or 1.

    Args:
        middle_steps: the steps in the middle room.
        as_vector: observations are (75,) float32 of zeros and ones instead.
    """

    metadata = {"render_modes": []}

    def __init__(self, middle_steps: int = 60, as_vector: bool = False):
        size = 2 * SIGHT + 1
        self.observation_space: gym.Space = (
            gym.spaces.Box(0.0, 1.0, (size * size * 3,), np.float32)
            if as_vector
            else gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        )
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self.num_steps = 2 * END_ROOM_STEPS + middle_steps
        self._middle_steps, self._as_vector = middle_steps, as_vector

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in the key's room."""
        super().reset(seed=seed)
        self._step = 0
        self._has_key = self._is_open = False
        self._enter(KEY_ROOM)
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves the player, and to the next room if the time is up."""
        reward = 0.0
        row, column = np.add(self._player, MOVES[int(action)])
        if not self._is_blocked(row, column):
            self._player = (int(row), int(column))
        if self._player == self._key:
            self._has_key, self._key = True, None
        if self._player == self._door and not self._is_open:
            self._is_open, reward = True, 1.0
        self._step += 1
        if self._step == END_ROOM_STEPS:
            self._enter(MIDDLE_ROOM)
        if self._step == END_ROOM_STEPS + self._middle_steps:
            self._enter(DOOR_ROOM)
        info = {"has_key": self._has_key}
        return self._observation(), reward, self._step == self.num_steps, False, info

    def _enter(self, room: tuple[str, ...]) -> None:
        cells = np.array([list(row) for row in room])
        self._walls = np.pad(cells == "#", SIGHT, constant_values=True)
        self._player = self._one_of(cells == "@")
        self._key = self._one_of(cells == "k")
        self._door = self._one_of(cells == "D")

    def _one_of(self, marked: np.ndarray) -> Any:
        """Returns (row, column) of a random marked cell, or None if there is none."""
        places = np.argwhere(marked) + SIGHT
        if not len(places):
            return None
        row, column = places[self.np_random.integers(len(places))]
        return int(row), int(column)

    def _is_blocked(self, row: int, column: int) -> bool:
        is_locked = (row, column) == self._door and not self._has_key
        return bool(self._walls[row, column]) or is_locked

    def _observation(self) -> np.ndarray:
        seen = np.zeros((*self._walls.shape, 3), np.uint8)
        seen[..., 0] = self._walls
        for channel, place in ((1, self._key), (2, self._door)):
            if place is not None:
                seen[(*place, channel)] = 1
        row, column = self._player
        crop = seen[row - SIGHT : row + SIGHT + 1, column - SIGHT : column + SIGHT + 1]
        return crop.reshape(-1).astype(np.float32) if self._as_vector else crop * np.uint8(255)
