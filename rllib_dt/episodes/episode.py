"""`Episode`: one recorded episode, checked; data reaches training in no other form."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from rllib_dt.episodes.frames import not_moved, stack_frames
from rllib_dt.spaces.leaves import (
    action_remedy,
    forbidden,
    out_of_space,
    step_layout,
    text_to_bytes,
    unsquash_actions,
)
from rllib_dt.spaces.trees import ACTION_MASK, by_leaf, column_names, from_leaves, joined, leaves
from rllib_dt.types import Array, Tree

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def _listed(numbers: Collection[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


def _of(path: str) -> str:
    return f" (leaf {path!r})" if path else ""


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _limits(dtype: np.dtype) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


class DataError(ValueError):
    """Recorded data that cannot be trained on; names file, episode, problem and remedy."""

    def __init__(self, source: str, problem: str, remedy: str, episode: str | None = None):
        where = source if episode is None else f"{source}, episode {episode}"
        super().__init__(f"{where}: {problem}; {remedy}")
        self.parts = (source, problem, remedy, episode)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), self.parts


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A whole recorded episode of T ≥ 1 steps.

    Attributes:
        id: the name of the episode in its file, for messages.
        source: the file it came from, for messages.
        observations: (T, …) or (T+1, …); the last of T+1 follows the last action. A tree.
        actions: (T, …), in the environment's units. A tree.
        rewards: (T,), in the environment's units.
        terminated: the environment ended the episode.
        truncated: a time limit, or the end of the recording, ended the episode.
    """

    id: str
    source: str
    observations: Tree
    actions: Tree
    rewards: Array
    terminated: bool
    truncated: bool

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        if steps == 0:
            raise self.error("it holds no steps", "remove it from the data")
        if self.rewards.ndim != 1:
            raise self.error(
                f"rewards have shape {self.rewards.shape}, wanted ({steps},)",
                "record one number for each step",
            )
        observed, acted = (
            {len(array) for array in by_leaf(value).values()}
            for value in (self.observations, self.actions)
        )
        for name, value in (("observations", self.observations), ("actions", self.actions)):
            if not by_leaf(value):
                raise self.error(
                    f"{name} have no leaf that is read", "record the leaves of the space"
                )
        if acted != {steps} or observed not in ({steps}, {steps + 1}):
            raise self.error(
                f"it holds {_listed(observed)} observations, {_listed(acted)} actions "
                f"and {steps} rewards",
                "record an action and a reward for each step, and one observation for each "
                "step or one more",
            )
        for name, value in (("observations", self.observations), ("actions", self.actions)):
            for column, array in column_names(name, value):
                self._check_finite(column, array)
        self._check_finite("rewards", self.rewards)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def undiscounted_return(self) -> float:
        """The sum of the rewards as recorded."""
        return float(np.sum(self.rewards, dtype=np.float64))

    def error(self, problem: str, remedy: str) -> DataError:
        """Returns a `DataError` about this episode."""
        return DataError(self.source, problem, remedy, episode=self.id)

    def _check_finite(self, name: str, values: Array) -> None:
        if values.dtype.kind == "S" and values.ndim == 1 and name.startswith("observations"):
            return  # text, which only a leaf of text may hold
        if values.dtype.kind not in "biuf":  # complex numbers and durations count as numbers
            raise self.error(
                f"{name} hold {values.dtype}, not numbers",
                "record arrays of numbers, of one shape at every step",
            )
        if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
            step = int(np.argwhere(~np.isfinite(values))[0][0])
            raise self.error(
                f"{name} at step {step} are {values[step]}",
                "remove the episode or repair its values",
            )

    def conform(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        actions_normalized: bool = False,
        stacked: Collection[str] = (),
        ignore: Collection[str] = (),
    ) -> "Episode":
        """Checks the episode against the spaces and converts it to the pool's dtypes.

        Args:
            observation_space, action_space: the spaces.
            actions_normalized: recorded actions are in [-1, 1].
            stacked: paths of the observations' leaves that are stacks, (F, …); they were recorded
                as single frames, or as stacks that move by one frame a step.
            ignore: paths of observations' leaves to leave out.

        Raises:
            DataError: a leaf is missing, shapes do not fit, or an action is outside the space or
                forbidden by the mask of its observation.
        """
        observations = {
            path: self._observed(path, leaf, is_stacked=path in stacked)
            for path, leaf in leaves(observation_space, ignore).items()
        }
        self._check_rewards()
        actions = {
            path: self._acted(path, leaf, actions_normalized)
            for path, leaf in leaves(action_space).items()
        }
        if ACTION_MASK in observations:
            self._check_legal(action_space, actions, observations[ACTION_MASK])
        return Episode(
            id=self.id,
            source=self.source,
            observations=from_leaves(observations),
            actions=from_leaves(actions),
            rewards=self.rewards,
            terminated=self.terminated,
            truncated=self.truncated,
        )

    def _observed(self, path: str, leaf: gym.Space, *, is_stacked: bool) -> Array:
        name, values = self._part("observations", self.observations, path)
        if values.dtype.kind == "S":
            values = self._text(name, values, leaf)
        if is_stacked:
            values = self._stacked(values, leaf, path)
        values = self._cast_shape(name, values, leaf)
        if not isinstance(leaf, gym.spaces.Box):  # recorded numbers may leave a Box
            problem = out_of_space(leaf, values, "observation")
            if problem:
                raise self.error(
                    f"{problem}{_of(path)}", "check that the environment belongs to this data"
                )
        return self._converted(name, values, step_layout(leaf)[1])

    def _text(self, name: str, values: Array, leaf: gym.Space) -> Array:
        if not isinstance(leaf, gym.spaces.Text):
            raise self.error(f"{name} hold text, but the space is {leaf}", "record numbers")
        try:
            return text_to_bytes(leaf, values)
        except ValueError as error:
            raise self.error(
                f"{name}: {error}", "raise the space's max_length, or shorten the texts"
            ) from error

    def _acted(self, path: str, leaf: gym.Space, normalized: bool) -> Array:
        name, values = self._part("actions", self.actions, path)
        if normalized:
            values = unsquash_actions(leaf, values)
        values = self._cast_shape(name, values, leaf)
        problem = out_of_space(leaf, values)
        if problem:
            raise self.error(f"{problem}{_of(path)}", action_remedy(leaf, normalized=normalized))
        return self._converted(name, values, step_layout(leaf)[1])

    def _part(self, name: str, value: Tree, path: str) -> tuple[str, Array]:
        """Returns a leaf's array and its name."""
        found = by_leaf(value)
        if path in found:
            return joined(name, path), found[path]
        has = f"the leaves {sorted(found)}" if "" not in found else "a single array"
        raise self.error(
            f"{name} have no leaf {path!r} but {has}" if path else f"{name} have {has}",
            "record every leaf of the space at every step"
            + (", or leave it out with DTModelConfig(ignore=[…])" if name == "observations" else "")
            if path
            else "check that the environment (or the given spaces) belongs to this data",
        )

    def _check_legal(self, space: gym.Space, actions: Mapping[str, Array], masks: Array) -> None:
        """Refuses actions that the mask of their observation forbids."""
        step = forbidden(space, actions[""], masks[: len(self)])
        if step is not None:
            raise self.error(
                f"the action {actions[''][step]} at step {step} is forbidden by its "
                f"{ACTION_MASK} {masks[step]}",
                "check that action and mask are of the same step, or leave the mask out with "
                f"DTModelConfig(ignore=[{ACTION_MASK!r}])",
            )

    def _converted(self, name: str, values: Array, dtype: np.dtype) -> Array:
        """Converts to a dtype; raises a DataError if a value would become another."""
        if values.dtype == dtype:
            return values
        if dtype.kind == "f":
            self._check_float32(name, values)
        elif values.dtype.kind != "b":
            least, most = (0, 1) if dtype.kind == "b" else _limits(dtype)
            bad = (values < least) | (values > most) | (values != np.floor(values))
            if bad.any():
                step = int(np.argwhere(bad)[0][0])
                raise self.error(
                    f"{name} at step {step} hold {values[bad].ravel()[0]}, which the space's "
                    f"{dtype} cannot hold",
                    f"record whole numbers from {least} to {most}, or use a space of "
                    "floating-point numbers",
                )
        return values.astype(dtype)

    def _check_rewards(self) -> None:
        self._check_float32("rewards", self.rewards)
        total = float(np.abs(self.rewards.astype(np.float64)).sum())
        if total > _LARGEST_FLOAT32:
            raise self.error(
                f"its rewards add up to as much as {total:g}, beyond what 32-bit floating-point "
                "numbers hold",
                "scale the recorded rewards, or remove the episode",
            )

    def _check_float32(self, name: str, values: Array) -> None:
        if values.dtype.kind != "f" or values.dtype.itemsize <= 4:
            return
        bad = np.abs(values) > _LARGEST_FLOAT32
        if bad.any():
            step = int(np.argwhere(bad)[0][0])
            raise self.error(
                f"{name} at step {step} hold {values[bad].ravel()[0]}, beyond what 32-bit "
                "floating-point numbers hold",
                "scale the recorded values, or remove the episode",
            )

    def _stacked(self, values: Array, space: gym.Space, path: str) -> Array:
        """Returns observations as (T, F, …) stacks, which move by one frame a step."""
        shape = step_layout(space)[0]
        if values.shape[1:] == shape[1:]:
            return stack_frames(values, shape[0])
        if values.shape[1:] == shape:
            step = not_moved(values)
            if step is not None:
                raise self.error(
                    f"the stack of frames at step {step}{_of(path)} is not the one before it moved "
                    "by one frame",
                    "record single frames, or leave offline_data(frame_stack=…) out",
                )
        return values

    def _cast_shape(self, name: str, values: Array, space: gym.Space) -> Array:
        shape = step_layout(space)[0]
        # a recording may store a Discrete action with an axis of length 1, or grey images without
        if values.shape[1:] != shape and _without_ones(values.shape[1:]) == _without_ones(shape):
            return values.reshape(len(values), *shape)
        if values.shape[1:] != shape:
            raise self.error(
                f"{name} have the shape {values.shape[1:]} at each step, but the space is {space}",
                "check that the environment (or the given spaces) belongs to this data",
            )
        return values


EpisodeName = tuple[str, str, int]
"""A name that no other episode has: file, id, and how many of that id come before it in the file.

It is the same in every pass, whatever the order of the files.
"""


def named(episodes: Iterable[Episode]) -> Iterator[tuple[EpisodeName, Episode]]:
    """Yields each episode with its name."""
    counts: Counter[tuple[str, str]] = Counter()
    for episode in episodes:
        key = episode.source, episode.id
        yield (*key, counts[key]), episode
        counts[key] += 1
