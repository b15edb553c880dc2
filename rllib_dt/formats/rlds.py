"""Reads RLDS (TFDS, Open X-Embodiment): TFRecord, with an episode in each `tf.train.Example`.

A row is (o_t, a_t, r_t), r_t the reward of a_t. The standard leaves action and reward of the row
that `is_last` undefined, as it holds the last observation; many data sets use it all the same, so
`offline_data(last_row=…)` decides where it has a reward.
"""

from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.expansion import Expansion, size_of
from rllib_dt.formats.fragments import (
    Fragment,
    ReadOptions,
    end_flags,
    end_for,
    one_a_step,
    rewards_for,
    whole_episode,
)
from rllib_dt.formats.images import decode_images, is_encoded
from rllib_dt.formats.nested import text_array
from rllib_dt.formats.tfrecord import DamagedRecordError, Feature, features, records
from rllib_dt.spaces.trees import at, from_leaves, joined
from rllib_dt.types import Array, Tree

_STEPS = "steps/"
_COLUMNS = {"obs": "observation", "actions": "action", "rewards": "reward"}
_IS_LAST, _IS_TERMINAL = "is_last", "is_terminal"


def read_rlds(file: IO[bytes], source: str, options: ReadOptions) -> Iterator[Fragment]:
    """Yields a fragment for each record.

    Args:
        file: an open binary file.
        source: its name, for messages.
        options: `names` maps RLlib's column names to the steps' ("observation/state").
    """
    size = size_of(file)
    expansion = Expansion(source, size, options.max_expansion)
    try:
        for number, record in enumerate(records(file, size)):
            expansion.take(len(record), f"episode {number}")
            found = features(record)
            steps = {k.removeprefix(_STEPS): v for k, v in found.items() if k.startswith(_STEPS)}
            yield _Episode(steps, source, str(number), options, expansion).fragment()
    except DamagedRecordError as error:
        raise DataError(
            source, f"it is not a complete TFRecord file ({error})", "copy or download it again"
        ) from error


class _Episode:
    """One episode's steps, by the names of the record."""

    def __init__(
        self,
        steps: Mapping[str, Feature],
        source: str,
        key: str,
        options: ReadOptions,
        expansion: Expansion,
    ):
        self._steps, self._source, self._key = steps, source, key
        self._options, self._expansion = options, expansion
        flags = (steps.get(name) for name in (_IS_LAST, _IS_TERMINAL, "is_first", "reward"))
        one_a_row = next((flag for flag in flags if isinstance(flag, np.ndarray)), None)
        if one_a_row is None or (_IS_LAST not in steps and options.missing_ends is None):
            raise self._error(
                f"it has no steps/{_IS_LAST}, only {sorted(steps)[:20]}",
                'set offline_data(missing_ends="terminated"), or "truncated", if every row is a '
                "step, and use RLDS's layout otherwise (docs/dataset_format.md)",
            )
        self._num_rows = len(one_a_row)
        self._is_last, self._is_terminal = (self._flag(n) for n in (_IS_LAST, _IS_TERMINAL))

    def fragment(self) -> Fragment:
        """Builds the fragment."""
        has_last, terminated = bool(self._is_last[-1]), bool(self._is_terminal[-1])
        truncated = has_last and not terminated
        kept, rewards, notes = self._rewards(has_last)
        if not has_last and not terminated:  # the recording was cut, or has no such rows
            terminated, truncated, of_end = end_for(self._options)
            notes = {**notes, **of_end}
        return whole_episode(
            source=self._source,
            key=self._key,
            observations=self._tree("obs"),
            actions=at(self._tree("actions"), slice(kept)),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            notes=notes,
        )

    def _flag(self, name: str) -> Array:
        """Returns a flag of each row; raises a DataError if it is set before the last."""
        values = self._steps.get(name)
        if not isinstance(values, np.ndarray):
            return np.zeros(self._num_rows, bool)
        flags = end_flags(values, name, f"{self._source}, episode {self._key}")
        if len(flags) != self._num_rows or flags[:-1].any():
            raise self._error(
                f"{name} is set in row {int(np.argmax(flags))} of {self._num_rows}",
                "record each episode on its own",
            )
        return flags

    def _rewards(self, has_last: bool) -> tuple[int, Array, Mapping[str, int]]:
        """Returns the number of steps, their rewards, and what the settings did to them."""
        name = self._name("rewards")
        choice = self._options.last_row
        recorded = self._steps.get(name)
        if recorded is None and "rewards" in self._options.names:
            raise self._error(
                f"it has no steps/{name}, only {sorted(self._steps)[:20]}",
                "correct input_read_schema",
            )
        if not isinstance(recorded, np.ndarray):
            kept = self._num_rows - (has_last and choice != "keep")
            return kept, *rewards_for(kept, self._options, self._source)
        rewards = one_a_step(self._rows(recorded, "rewards", name), "rewards", self._source)
        if not has_last or choice == "keep":
            return len(rewards), rewards, {}
        if rewards[-1] and choice is None:
            raise self._error(
                f"its last row (is_last) has the reward {rewards[-1]:g}, which RLDS's standard "
                "leaves undefined",
                'set offline_data(last_row="keep") if that action was taken and rewarded, or '
                'last_row="drop" if not',
            )
        dropped = {'rewards that last_row="drop" left out': 1} if rewards[-1] else {}
        return len(rewards) - 1, rewards[:-1], dropped

    def _tree(self, column: str) -> Tree:
        """Returns the values of a column, (T, …), by leaf."""
        name, choice = self._name(column), self._options.choice_of(column)
        prefix = f"{name}/"
        if name in self._steps:
            named = {"": name}
        else:
            paths = (k.removeprefix(prefix) for k in sorted(self._steps) if k.startswith(prefix))
            named = {path: prefix + path for path in paths if not choice.skips(path)}
        if not named:
            raise self._error(
                f"it has no steps/{name}, only {sorted(self._steps)[:20]}",
                f'map it with offline_data(input_read_schema={{"{column}": "my_name"}})',
            )
        return from_leaves(
            {
                path: self._leaf(self._steps[each], column, path, each, path in choice.texts)
                for path, each in named.items()
            }
        )

    def _leaf(self, values: Feature, column: str, path: str, name: str, is_text: bool) -> Array:
        if isinstance(values, np.ndarray):
            return self._rows(values, joined(column, path), name)
        where = f"{self._source}, episode {self._key}"
        if is_text:
            return text_array(values, where, name, self._expansion)
        if values and is_encoded(values[0]):
            return decode_images(values, where, name, self._expansion)
        raise self._error(
            f"steps/{name} holds text or bytes that are no PNG or JPEG",
            f'leave it out with DTModelConfig(ignore=["{path}"]), or record numbers',
        )

    def _rows(self, values: Array, column: str, name: str) -> Array:
        """Splits flat numbers by step, and gives them the shape of the space."""
        if len(values) % self._num_rows:
            raise self._error(
                f"steps/{name} has {len(values)} numbers for {self._num_rows} steps",
                "record every value at every step",
            )
        rows = values.reshape(self._num_rows, -1)
        shape = self._options.shapes.get(column)
        if shape is None or rows[0].size != np.prod(shape, dtype=int):
            return rows
        return rows.reshape(self._num_rows, *shape)

    def _name(self, column: str) -> str:
        return self._options.names.get(column, _COLUMNS[column])

    def _error(self, problem: str, remedy: str) -> DataError:
        return DataError(self._source, problem, remedy, episode=self._key)
