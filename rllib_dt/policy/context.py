"""Contexts of running episodes: what a policy needs to know to pick the next action.

    environment ─ observation, reward ─▶ ContextBuffer ─▶ Contexts.steps ─▶ Policy.act ─▶ action
                                         K steps a slot   whole windows, or the new steps only

Numpy only: a runner can hold contexts without torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.windows import (
    ACTIONS,
    OBSERVATIONS,
    RETURNS_TO_GO,
    Window,
    gather_columns,
)
from rllib_dt.network.config import DTModelConfig
from rllib_dt.spaces.composites import Layout, layouts, text_leaves
from rllib_dt.spaces.leaves import as_array
from rllib_dt.spaces.trees import by_leaf, column_names, flatten, from_leaves, rows
from rllib_dt.types import Array, Batch, Tree, Value

# the columns of `NewSteps` besides those of its window
SLOTS, NEW_STEPS = "slots", "new_steps"
ASKED_RETURNS = "asked_returns"
"""The column of what a policy was asked for, where that may be its own estimate."""


@dataclass(frozen=True, kw_only=True)
class NewSteps:
    """The steps of B running episodes that a policy with a memory has not seen yet.

    Attributes:
        window: with `attention="window"` the step before the first new one (masked if there is
            none), then n steps: (B, n + 1). With "context" all K steps: (B, K), but observations of
            the last n only: (B, n, …). Of the n steps, each episode's last `counts` are new.
        slots: (B,) int, each episode's slot in the memory.
        counts: (B,) int, from 1 to n; more than 1 if the policy's memory must catch up.
    """

    window: Window
    slots: Tree
    counts: Tree

    def columns(self) -> Batch:
        """Returns the arrays by name, as `Window.columns` does."""
        return {**self.window.columns(), SLOTS: self.slots, NEW_STEPS: self.counts}


def steps_from_columns(columns: Mapping[str, Tree]) -> Window | NewSteps:
    """Rebuilds a `Window` or `NewSteps` from its `columns()`."""
    window = Window.from_columns(columns)
    if SLOTS not in columns:
        return window
    return NewSteps(window=window, slots=columns[SLOTS], counts=columns[NEW_STEPS])


def _empty(layout: Tree, rows: int) -> dict[str, Array]:
    """Returns a column of zeros for each leaf, by path."""
    return {
        path: np.zeros((rows, *shape), dtype) for path, (shape, dtype) in by_leaf(layout).items()
    }


def _write(columns: Mapping[str, Array], row: int, value: Tree) -> None:
    """Stores one step's value; written for speed, since it runs twice a step."""
    for path, column in columns.items():
        column[row] = value[path] if path else value


class ContextBuffer:
    """The recent past of each of S running episodes, as flat arrays.

    Each slot owns 2K rows. Steps are appended; when the rows are full, the last K-1 steps move to
    the front, so an append writes one row and, about every K steps, copies K-1.

    Args:
        num_slots: S.
        context_length: K.
        observation_layout, action_layout: shape and dtype of one step's value; a tree.
        rule: how rewards reduce the return-to-go; undiscounted by default.
    """

    def __init__(
        self,
        num_slots: int,
        context_length: int,
        observation_layout: Tree,
        action_layout: Tree,
        rule: ReturnRule | None = None,
    ):
        self._context_length = context_length
        self._capacity = 2 * context_length
        self._rule = rule or ReturnRule()
        self._rule.check_acting()
        rows = num_slots * self._capacity
        self._observations = _empty(observation_layout, rows)
        self._actions = _empty(action_layout, rows)
        self._returns_to_go = np.zeros((rows, 1), np.float32)
        self._observed = dict(column_names(OBSERVATIONS, from_leaves(self._observations)))
        self._others: dict[str, Array] = {
            **dict(column_names(ACTIONS, from_leaves(self._actions))),
            RETURNS_TO_GO: self._returns_to_go,
        }
        self._row = np.zeros(num_slots, np.int64)
        self._timestep = np.zeros(num_slots, np.int64)
        # float64, so that a thousand subtractions do not drift from the training's sum
        self._return_to_go = np.zeros(num_slots, np.float64)

    def begin(self, slot: int, observation: Tree, target_return: float) -> None:
        """Forgets the slot's past and stores the first observation of a new episode."""
        self._row[slot], self._timestep[slot] = slot * self._capacity, 0
        self._return_to_go[slot] = target_return
        self._put(slot, observation)

    def append(self, slot: int, action: Tree, reward: float, observation: Tree) -> None:
        """Stores the result of one environment step."""
        _write(self._actions, self._row[slot], action)
        self._return_to_go[slot] = self._rule.step(self._return_to_go[slot], reward)
        self._advance(slot)
        self._put(slot, observation)

    def settle(self, slot: int, return_to_go: float) -> None:
        """Stores what was asked for at the current step, where the target is infinite."""
        if np.isinf(self._return_to_go[slot]):
            self._returns_to_go[self._row[slot]] = return_to_go

    def windows(
        self, slots: Array, length: int | None = None, observed: int | None = None
    ) -> Window:
        """Returns windows, (len(slots), K) or of `length` steps, that end at each current step.

        The action of the current step, which is not taken yet, is zero. Of the observations they
        hold the last `observed` steps, or all.
        """
        length = self._context_length if length is None else length
        observed = length if observed is None else observed
        assert observed <= length <= self._context_length
        ends = self._row[slots], self._timestep[slots]
        seen = gather_columns(self._observed, *ends, observed)
        return Window.from_columns({**seen, **gather_columns(self._others, *ends, length)})

    def steps_held(self, slot: int) -> int:
        """Returns how many of the episode's steps a window can hold, the current one included."""
        return int(min(self._timestep[slot] + 1, self._context_length))

    def _advance(self, slot: int) -> None:
        self._timestep[slot] += 1
        self._row[slot] += 1
        front = slot * self._capacity
        if self._row[slot] == front + self._capacity:
            keep = self._context_length - 1
            for column in (*self._observed.values(), *self._others.values()):
                column[front : front + keep] = column[front + self._capacity - keep :][:keep]
            self._row[slot] = front + keep

    def _put(self, slot: int, observation: Tree) -> None:
        row = self._row[slot]
        _write(self._observations, row, observation)
        for column in self._actions.values():
            column[row] = 0
        self._returns_to_go[row] = self._return_to_go[slot]


class Contexts:
    """The contexts of S running episodes, in the form that a policy with these settings reads.

    With `attention="context"` that is a whole window at every step, or all of it but the
    observations that the policy remembers. With "window" a policy has a cache, and reads only the
    new steps while the cache is valid.

    Args:
        num_slots: S.
        model: the network's settings.
        observation_space, action_space: the environment's spaces.
        rule: how rewards reduce the return-to-go; undiscounted by default.
        remembers: `Policy.remembers`; by default, windows are whole.
    """

    def __init__(
        self,
        num_slots: int,
        model: DTModelConfig,
        observation_space: gym.Space,
        action_space: gym.Space,
        rule: ReturnRule | None = None,
        *,
        remembers: bool = False,
    ):
        self.num_slots = num_slots
        self._remembers = remembers
        self._is_incremental = model.attention == "window"
        # one step more than matters: the step before the first new one
        self._length = model.receptive_steps + int(self._is_incremental)
        self._spaces = observation_space, action_space
        self._ignore = model.ignore
        self._texts = text_leaves(observation_space, model.ignore)
        self._layouts = layouts(observation_space, model.ignore)
        shapes = from_leaves(self._layouts), from_leaves(layouts(action_space))
        self._buffer = ContextBuffer(num_slots, self._length, *shapes, rule)
        # slots whose steps are in the policy's memory, except for the newest
        self._known: set[int] = set()
        self._version: int | None = None

    @property
    def ignore(self) -> Sequence[str]:
        """The paths of leaves that are left out."""
        return self._ignore

    @property
    def layouts(self) -> dict[str, Layout]:
        """The shape and dtype of each leaf of an observation, as they are stored."""
        return self._layouts

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each leaf of an environment's observation; a text has none."""
        found = self._layouts.items()
        return {path: () if path in self._texts else shape for path, (shape, _) in found}

    def begin(self, slot: int, observation: Tree, target_return: float) -> None:
        """Starts a new episode in a slot."""
        self._known.discard(slot)
        self._buffer.begin(slot, self._encoded(observation), target_return)

    def append(self, slot: int, action: Tree, reward: float, observation: Tree) -> None:
        """Stores the result of one environment step."""
        self._buffer.append(slot, action, reward, self._encoded(observation))

    def settle(self, slot: int, return_to_go: float) -> None:
        """Stores the return that was asked for at the current step.

        It has an effect where the target is "max": later steps see what was estimated then.
        """
        self._buffer.settle(slot, return_to_go)

    def observed(self, observation: Value) -> Tree:
        """Turns an environment's observation into a tree of the leaves that the policy reads."""
        return flatten(self._spaces[0], observation, self._ignore)

    def acted(self, action: Value) -> Tree:
        """Turns an environment's action into a tree."""
        return flatten(self._spaces[1], action)

    def observed_rows(self, observations: Value, count: int) -> list[Tree]:
        """Turns a batch of observations into a tree for each; see `observed`.

        Raises:
            ValueError: an array does not hold `count` values, or values of another shape.
        """
        found = rows(self._spaces[0], observations, count, self._ignore)
        for path, (shape, _) in self._layouts.items():
            leaf = by_leaf(found[0])[path]
            if path not in self._texts and np.shape(leaf) != shape:
                name = f"leaf {path!r} of an observation" if path else "an observation"
                raise ValueError(f"{name} has the shape {np.shape(leaf)}, but the space {shape}")
        return found

    def _encoded(self, observation: Tree) -> Tree:
        if not self._texts:
            return observation
        found = by_leaf(observation)
        for path, leaf in self._texts.items():
            found[path] = as_array(leaf, found[path])
        return from_leaves(found)

    def steps(self, slots: Array, version: int | None = None) -> Window | NewSteps:
        """Returns what the policy has to read for the next action of each slot.

        Args:
            slots: (B,) int, the running episodes.
            version: `Policy.version`; when it changes, the policy's memory has become invalid.
        """
        if not (self._is_incremental or self._remembers):
            return self._buffer.windows(slots)
        if version != self._version:
            self._known, self._version = set(), version
        is_known = np.array([int(slot) in self._known for slot in slots])
        held = np.array([self._buffer.steps_held(slot) for slot in slots])
        most = self._length - int(self._is_incremental)
        counts = np.where(is_known, 1, np.minimum(held, most))
        self._known.update(map(int, slots))
        newest = int(counts.max())
        if not self._is_incremental:
            window = self._buffer.windows(slots, observed=newest)
            return NewSteps(window=window, slots=slots, counts=counts)
        window = self._buffer.windows(slots, newest + 1)
        for row in np.flatnonzero(~is_known):  # the cache holds nothing before the first new step
            window.mask[row, : -counts[row]] = False
        return NewSteps(window=window, slots=slots, counts=counts)
