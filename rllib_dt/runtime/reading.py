"""One pass over the input: whole, checked episodes, as often as wanted and in any order."""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import gymnasium as gym
import pyarrow.fs as pafs

from rllib_dt.episodes.record import DataError, Episode
from rllib_dt.runtime.ingest import read_fragments
from rllib_dt.runtime.readers.files import ReadOptions
from rllib_dt.runtime.readers.fragments import Assembler, IncompletePolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EpisodeReader:
    """Reads the input's episodes; small to pickle, so that any process can read them.

    Attributes:
        groups: the files, in groups of which each is one task.
        options: see `ReadOptions`.
        filesystem: where the files are; from their URI, or local, where None.
        incomplete: what to do with an episode without end.
        observation_space, action_space: what each episode must fit.
        actions_normalized: the recorded actions are in [-1, 1], not in the environment's units.
        max_ep_len: longer episodes are refused.
        minimal_return: episodes of a smaller return are left out.
        share_of_ties: of those that reach it exactly, so many are kept, chosen by their names.
    """

    groups: Sequence[Sequence[str]]
    options: ReadOptions
    filesystem: pafs.FileSystem | None
    incomplete: IncompletePolicy
    observation_space: gym.Space
    action_space: gym.Space
    actions_normalized: bool
    max_ep_len: int
    minimal_return: float | None = None
    share_of_ties: float = 1.0

    def episodes(
        self,
        *,
        order: Sequence[int] | None = None,
        assembler: Assembler | None = None,
        max_open_steps: int | None = None,
        quiet: bool = False,
    ) -> Iterator[Episode]:
        """The input's episodes, in the pool's dtypes and the environment's units.

        Args:
            order: of the groups; as they stand by default.
            assembler: to join with; it can be asked afterwards what it saw.
            max_open_steps: of episodes that may go on in a later file, so many may be held.
            quiet: no progress, and no word on what is left out.

        Raises:
            DataError: naming file, episode and remedy, on data that cannot be trained on.
        """
        groups = self.groups if order is None else [self.groups[i] for i in order]
        assembler = assembler or Assembler(self.incomplete)
        for fragment in read_fragments(groups, self.options, self.filesystem, quiet=quiet):
            for _, episode in assembler.add(fragment):
                yield from self._checked(episode)
            if max_open_steps is not None and assembler.open_steps > max_open_steps:
                raise DataError(
                    fragment.source,
                    f"{assembler.open_steps} steps read so far belong to episodes whose end did "
                    f"not come yet, more than the pool holds ({max_open_steps})",
                    "mark episodes' ends (truncateds), keep an episode's files next to each "
                    "other, or raise offline_data(pool_capacity_steps=…)",
                )
        for _, episode in assembler.finish():
            yield from self._checked(episode)
        for message in [] if quiet else assembler.dropped:
            logger.warning("left out: %s", message)

    def best(self, minimal_return: float, share_of_ties: float) -> "EpisodeReader":
        """A reader of the episodes above this return, and of a share of those that reach it."""
        return replace(self, minimal_return=minimal_return, share_of_ties=share_of_ties)

    def _checked(self, episode: Episode) -> Iterator[Episode]:
        episode = episode.conform(
            self.observation_space, self.action_space, actions_normalized=self.actions_normalized
        )
        if len(episode) > self.max_ep_len:
            raise episode.error(
                f"it has {len(episode)} steps, max_ep_len is {self.max_ep_len}",
                "raise model_config.max_ep_len or split the episode",
            )
        if self._is_wanted(episode):
            yield episode

    def _is_wanted(self, episode: Episode) -> bool:
        if self.minimal_return is None or episode.undiscounted_return > self.minimal_return:
            return True
        is_tie = episode.undiscounted_return == self.minimal_return
        return is_tie and draw_by_name(episode, "ties") < self.share_of_ties


def draw_by_name(episode: Episode, seed: int | str) -> float:
    """A number in [0, 1) that follows from the episode's name and the end of its file's path.

    So it is the same in every pass and process, and stays when the data moves as a whole.
    """
    place = "/".join(episode.source.split("/")[-2:])
    digest = hashlib.blake2b(f"{seed}/{place}/{episode.id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


class Holdout:
    """Keeps some episodes back, chosen by their names, so that every pass keeps the same ones.

    Which ones does not depend on what else is in the data: more of it moves none over. At least
    one is kept.

    Args:
        fraction: the share of episodes that is expected.
        seed: of the choice.
        max_steps: so many steps are held at most; further chosen episodes are left out.

    Attributes:
        episodes: those kept back by `train`.
        left_out: how many were chosen, but not held.
    """

    def __init__(self, fraction: float, seed: int, max_steps: int | None = None):
        self.episodes: list[Episode] = []
        self.left_out = 0
        self._seed = seed
        self._threshold = fraction
        self._max_steps = max_steps

    def train(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """The episodes to train on; the first pass, which keeps the others back."""
        nearest: Episode | None = None  # in case that none falls under the fraction
        steps = 0
        for episode in episodes:
            if self._draw(episode) < self._threshold:
                if self._max_steps is None or steps + len(episode) <= self._max_steps:
                    self.episodes.append(episode)
                    steps += len(episode)
                else:
                    self.left_out += 1
            elif self.episodes:
                yield episode
            elif nearest is None:
                nearest = episode
            else:
                nearest, other = sorted((nearest, episode), key=self._draw)
                yield other
        if nearest is not None and self.episodes:
            yield nearest
        elif nearest is not None:
            self.episodes.append(nearest)
            self._threshold = math.nextafter(self._draw(nearest), 2.0)

    def skip(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """The episodes to train on, in a later pass."""
        return (e for e in episodes if self._draw(e) >= self._threshold)

    def rule(self) -> "Holdout":
        """The same choice, without what was kept: small to send."""
        return Holdout(self._threshold, self._seed)

    def _draw(self, episode: Episode) -> float:
        return draw_by_name(episode, self._seed)
