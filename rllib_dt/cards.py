"""`report`: a data card, which says what a recording holds and what is odd about it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pyarrow.fs as pafs
from numpy.typing import NDArray

from rllib_dt.episodes.duplicates import Duplicates
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.formats.assembly import Assembler
from rllib_dt.formats.files import find_files, read_file
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.formats.recorded_spaces import Spaces, recorded_spaces
from rllib_dt.spaces.composites import column_shapes, look_normalized, wanted
from rllib_dt.spaces.trees import by_leaf, column_names, from_leaves, leaves
from rllib_dt.types import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 12
_BAR = 40
_SHOWN = 5
"""Problems of one kind that are listed; the others are counted."""
_AT_BOUNDS = 0.05
"""The share of a leaf's action components at their bounds from which a card mentions them."""
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass
class LeafReport:
    """What the values of one leaf are.

    Attributes:
        shape, dtype: of one step's value, as recorded.
        low, high: of `shape`: the least and the largest value of each component.
        at_bounds: the share of values that equal a bound of the space; None if it has none.
    """

    shape: tuple[int, ...]
    dtype: str
    low: Array
    high: Array
    at_bounds: float | None = None

    @property
    def num_constant(self) -> int:
        """The number of components that never change."""
        return int((self.low == self.high).sum())

    def __str__(self) -> str:
        constant = f", {self.num_constant} of {self.low.size} constant" if self.num_constant else ""
        span = f"{self.low.min():.4g} … {self.high.max():.4g}" if self.low.size else "no values"
        bounds = f", {self.at_bounds:.1%} at bounds" if self.at_bounds else ""
        return f"{self.shape} {self.dtype}, {span}{constant}{bounds}"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A data card.

    Attributes:
        num_files: the files that were read.
        returns: (E,) each episode's undiscounted return.
        lengths: (E,) steps of each episode.
        num_terminated, num_truncated: the episodes that ended so.
        leaves: a report by column ("obs/camera").
        spaces: those that the data describes or that were given, or None.
        odd: what is odd, one line each.
        choices: what settings did to the data; see `DataSummary`.
    """

    num_files: int
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    num_terminated: int
    num_truncated: int
    leaves: dict[str, LeafReport]
    spaces: Spaces | None
    odd: list[str]
    choices: dict[str, int] = field(default_factory=dict)

    @property
    def target_returns(self) -> list[float]:
        """Targets worth asking for: the best return, the upper quartile and the median."""
        if not len(self.returns):
            return []
        found = [float(np.quantile(self.returns, q)) for q in (1.0, 0.75, 0.5)]
        return list(dict.fromkeys(found))

    @property
    def return_scale(self) -> float:
        """What training divides returns by unless it is set: the largest absolute return."""
        return float(np.abs(self.returns).max(initial=0.0)) or 1.0

    def histogram(self, bins: int = _BINS) -> tuple[Array, Array]:
        """Returns (bins,) counts of episodes and (bins + 1,) edges of their returns."""
        return np.histogram(self.returns, bins=bins)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{len(self.returns)} episodes, {self.lengths.sum()} steps in {self.num_files} files"
        if len(self.returns):
            yield (
                f"lengths {self.lengths.min()} … {self.lengths.max()}, mean "
                f"{self.lengths.mean():.1f}; {self.num_terminated} terminated, "
                f"{self.num_truncated} truncated"
            )
            quantiles = np.quantile(self.returns, _QUANTILES)
            pairs = zip(_QUANTILES, quantiles, strict=True)
            yield "returns: " + ", ".join(f"{share:.0%} {value:.6g}" for share, value in pairs)
            yield f"mean {self.returns.mean():.6g} ± {self.returns.std():.6g}"
            yield from self._bars()
        for name, leaf in self.leaves.items():
            yield f"{name}: {leaf}"
        if self.spaces is not None:
            yield "spaces: " + " / ".join(" ".join(str(space).split()) for space in self.spaces)
        for what, count in self.choices.items():
            yield f"{what}: {count}"
        for line in self.odd:
            yield f"odd: {line}"
        if self.target_returns:
            targets = ", ".join(f"{target:.6g}" for target in self.target_returns)
            yield f"suggested: target_returns=[{targets}], return_scale={self.return_scale:.6g}"

    def _bars(self) -> Iterator[str]:
        counts, edges = self.histogram()
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            bar = "█" * int(np.ceil(_BAR * count / counts.max()))
            yield f"{low:>12.6g} … {high:<12.6g} {count:>7} {bar}"

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Plots the returns' and the lengths' distributions; needs matplotlib (`plots` extra).

        Args:
            path: the file to save to; None saves nothing.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        for axes, values, name in zip(
            figure.subplots(1, 2), (self.returns, self.lengths), ("return", "steps"), strict=True
        ):
            axes.hist(values, bins=40, color="0.5")
            axes.set_xlabel(name)
            axes.set_ylabel("episodes")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def report(
    data: str | Sequence[str],
    *,
    spaces: Spaces | None = None,
    filesystem: pafs.FileSystem | None = None,
    **options: Any,
) -> DataReport:
    """Reads recordings once, file by file, and says what they hold; needs no Ray.

    What training would refuse is listed as odd, and left out of the figures.

    Args:
        data: like `offline_data(input_=…)`.
        spaces: the observation and the action space; those that the data describes by default.
            Without spaces, shapes and actions are not checked.
        filesystem: the data's file system; derived from each path by default.
        options: settings of `offline_data` that readers need: `time_limit`, `missing_rewards`,
            `missing_ends`, `last_row`, `max_expansion`, and `names` (its `input_read_schema`).

    Raises:
        DataError: there is no data file.
    """
    spaces = recorded_spaces(data, filesystem) if spaces is None else spaces
    reader = EpisodeReader(data, spaces, filesystem, **options)
    card, duplicates = _Card(spaces), Duplicates("keep")
    for episode in duplicates.check(reader.episodes()):
        card.add(episode)
    return card.finish(reader, duplicates.num_episodes - duplicates.num_distinct)


class EpisodeReader:
    """Reads checked episodes in this process, and remembers what could not be read.

    Args:
        data, spaces, filesystem, options: see `report`.

    Attributes:
        files: the data's files with their sizes.
        problems: the message of each file or episode that was left out.
        choices: what settings did; see `DataSummary`.
    """

    def __init__(
        self,
        data: str | Sequence[str],
        spaces: Spaces | None,
        filesystem: pafs.FileSystem | None = None,
        **options: Any,
    ):
        self.files = find_files(data, filesystem)
        self.problems: list[str] = []
        self.choices: Counter[str] = Counter()
        self._spaces, self._filesystem = spaces, filesystem
        self._options = read_options(spaces, **options)

    def episodes(self, *, strict: bool = False) -> Iterator[Episode]:
        """Yields whole episodes; with `strict` the first problem is raised."""
        assembler = Assembler("error" if strict else "drop")
        for path, _ in self.files:
            try:
                for fragment in read_file(path, self._options, self._filesystem):
                    for episode in assembler.add(fragment):
                        yield from self._checked(episode, strict)
            except DataError as error:
                if strict:
                    raise
                self.problems.append(str(error))
        for episode in assembler.finish():
            yield from self._checked(episode, strict)
        self.problems += assembler.dropped
        self.choices = assembler.notes

    def _checked(self, episode: Episode, strict: bool) -> Iterator[Episode]:
        try:
            yield episode if self._spaces is None else episode.conform(*self._spaces)
        except DataError as error:
            if strict:
                raise
            self.problems.append(str(error))


def read_options(spaces: Spaces | None, **options: Any) -> ReadOptions:
    """Returns the options of readers, with what they need of the spaces."""
    if spaces is None:
        return ReadOptions(**options)
    return ReadOptions(
        observed=wanted(spaces[0]),
        acted=wanted(spaces[1]),
        shapes=column_shapes(*spaces),
        **options,
    )


class _Card:
    """Gathers a data card, episode by episode."""

    def __init__(self, spaces: Spaces | None):
        self._spaces = spaces
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._ends: Counter[str] = Counter()
        self._leaves: dict[str, LeafReport] = {}
        self._at_bounds: Counter[str] = Counter()
        self._values: Counter[str] = Counter()
        self._largest: dict[str, Array] = {}
        self._ends_at: Counter[tuple[int, bool]] = Counter()

    def add(self, episode: Episode) -> None:
        """Adds an episode."""
        self._returns.append(float(np.sum(episode.rewards, dtype=np.float64)))
        self._lengths.append(len(episode))
        self._ends["terminated"] += episode.terminated
        self._ends["truncated"] += episode.truncated and not episode.terminated
        self._ends_at[len(episode), episode.terminated] += 1
        for column, array in column_names("obs", episode.observations):
            self._add(column, array)
        bounds = {} if self._spaces is None else leaves(self._spaces[1])
        for path, array in by_leaf(episode.actions).items():
            column = f"actions/{path}" if path else "actions"
            self._add(column, array)
            self._add_bounds(column, array, bounds.get(path))
            largest = np.abs(array).max(axis=0)
            self._largest[path] = np.maximum(self._largest.get(path, largest), largest)

    def _add(self, column: str, values: Array) -> None:
        low, high = values.min(axis=0), values.max(axis=0)
        if column not in self._leaves:
            self._leaves[column] = LeafReport(values.shape[1:], str(values.dtype), low, high)
            return
        leaf = self._leaves[column]
        if low.shape == leaf.low.shape:
            leaf.low, leaf.high = np.minimum(leaf.low, low), np.maximum(leaf.high, high)

    def _add_bounds(self, column: str, values: Array, space: gym.Space | None) -> None:
        if isinstance(space, gym.spaces.Box) and space.is_bounded("both"):
            self._at_bounds[column] += int(((values <= space.low) | (values >= space.high)).sum())
            self._values[column] += values.size

    def finish(self, reader: EpisodeReader, num_copies: int) -> DataReport:
        """Returns the card."""
        for column, count in self._values.items():
            self._leaves[column].at_bounds = self._at_bounds[column] / count
        return DataReport(
            num_files=len(reader.files),
            returns=np.asarray(self._returns, np.float64),
            lengths=np.asarray(self._lengths, np.int64),
            num_terminated=self._ends["terminated"],
            num_truncated=self._ends["truncated"],
            leaves=self._leaves,
            spaces=self._spaces,
            odd=list(self._odd(reader.problems, num_copies)),
            choices=dict(reader.choices),
        )

    def _odd(self, problems: Sequence[str], num_copies: int) -> Iterator[str]:
        yield from problems[:_SHOWN]
        if len(problems) > _SHOWN:
            yield f"{len(problems) - _SHOWN} more episodes or files were left out"
        if not self._returns:
            yield "there is no whole episode"
            return
        if num_copies:
            yield f"{num_copies} episodes are copies of others"
        for column, leaf in self._leaves.items():
            if leaf.num_constant > 0 and leaf.low.size <= 1000:
                places = np.flatnonzero(np.ravel(leaf.low == leaf.high))[:10].tolist()
                yield f"{column}: components {places} never change"
            if leaf.at_bounds is not None and leaf.at_bounds > _AT_BOUNDS:
                yield f"{column}: {leaf.at_bounds:.1%} of the values lie at a bound of the space"
        if self._spaces is not None and look_normalized(
            self._spaces[1], from_leaves(self._largest)
        ):
            yield (
                "all actions lie in [-1, 1] of a wider space: they may be normalised "
                "(actions_in_input_normalized)"
            )
        yield from self._odd_ends()

    def _odd_ends(self) -> Iterator[str]:
        longest, number = max(self._lengths), len(self._lengths)
        at_longest = self._ends_at[longest, True]
        if number > 1 and longest > 1 and at_longest > 0.5 * number:
            yield (
                f"{at_longest} of {number} episodes terminate at the largest length, {longest}: a "
                "time limit may be marked as a termination"
            )
        if number > 1 and len(set(self._returns)) == 1:
            yield f"all returns are {self._returns[0]:g}: there is nothing to condition on"
