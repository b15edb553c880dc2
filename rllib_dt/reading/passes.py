"""`Passes`: a chain of generators from files to pools of checked episodes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import gymnasium as gym
import pyarrow.fs as pafs

from rllib_dt.episodes.duplicates import without
from rllib_dt.episodes.episode import Episode, EpisodeName
from rllib_dt.episodes.pool import EpisodePool, pack
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.formats.assembly import Assembler, IncompletePolicy, assemble
from rllib_dt.formats.fragments import ReadOptions
from rllib_dt.reading.holdout import draw_by_name
from rllib_dt.reading.tasks import read_fragments

logger = logging.getLogger(__name__)

EpisodeFilter = Callable[[Iterator[Episode]], Iterator[Episode]]


@dataclass(frozen=True, kw_only=True)
class Passes:
    """A description of how to read the input, small to pickle, so that any process can read it.

    Attributes:
        groups: the files, in groups; each group is one task.
        options: see `ReadOptions`.
        filesystem: the files' file system; None derives it from each path.
        incomplete: what to do with an episode without an end.
        observation_space, action_space: the spaces that each episode must fit.
        actions_normalized: recorded actions are in [-1, 1], not in the environment's units.
        max_ep_len: longer episodes are refused.
        rule: the rule by which rewards become returns-to-go.
        stacked: see `Episode.conform`.
        outcomes: see `EpisodePool.from_episodes`.
        join_files: see `Assembler`.
        left_out: the copies of episodes that the first pass left out; see `Duplicates`.
        min_return: episodes with a smaller return are left out.
        share_of_ties: the share to keep of episodes with exactly that return, chosen by name.
    """

    groups: Sequence[Sequence[str]]
    options: ReadOptions
    filesystem: pafs.FileSystem | None
    incomplete: IncompletePolicy
    observation_space: gym.Space
    action_space: gym.Space
    actions_normalized: bool
    max_ep_len: int
    rule: ReturnRule
    stacked: tuple[str, ...] = ()
    outcomes: bool = False
    join_files: bool = False
    left_out: frozenset[EpisodeName] = frozenset()
    min_return: float | None = None
    share_of_ties: float = 1.0

    def pools(
        self,
        steps: int,
        *,
        order: Sequence[int] | None = None,
        assembler: Assembler | None = None,
        unique: EpisodeFilter = iter,
        keep: EpisodeFilter = iter,
        quiet: bool = False,
    ) -> Iterator[EpisodePool]:
        """Reads everything once and yields pools of checked episodes.

        Args:
            steps: the least number of steps in a pool; the last pool may be smaller.
            order: the order of the groups, by index; as given by default.
            assembler: joins the fragments; its attributes can be read afterwards.
            unique: filters episodes, to leave out copies of others in the first pass.
            keep: filters episodes, to hold some out for validation.
            quiet: log neither progress nor which episodes were left out.

        Raises:
            DataError: naming file, episode and remedy, for data that cannot be trained on.
        """
        assembler = assembler or self.assembler()
        groups = self.groups if order is None else [self.groups[i] for i in order]
        fragments = read_fragments(groups, self.options, self.filesystem, quiet=quiet)
        episodes = assemble(fragments, assembler)
        checked = map(self._checked, episodes)
        once = without(unique(checked), self.left_out) if self.left_out else unique(checked)
        wanted = keep(filter(self._is_wanted, once))
        yield from pack(wanted, steps, self.rule, stacked=self.stacked, outcomes=self.outcomes)
        for message in [] if quiet else assembler.dropped:
            logger.warning("left out: %s", message)

    def assembler(self, max_open_steps: int | None = None) -> Assembler:
        """Returns a new assembler for one pass."""
        return Assembler(self.incomplete, max_open_steps, join_files=self.join_files)

    def best(self, min_return: float, share_of_ties: float) -> "Passes":
        """Returns passes over episodes above a return, and over a share of those that equal it."""
        return replace(self, min_return=min_return, share_of_ties=share_of_ties)

    def _checked(self, episode: Episode) -> Episode:
        episode = episode.conform(
            self.observation_space,
            self.action_space,
            actions_normalized=self.actions_normalized,
            stacked=self.stacked,
            ignore=self.options.observed.ignore,
        )
        if len(episode) > self.max_ep_len:
            raise episode.error(
                f"it has {len(episode)} steps, max_ep_len is {self.max_ep_len}",
                "raise model_config.max_ep_len or split the episode",
            )
        return episode

    def _is_wanted(self, episode: Episode) -> bool:
        if self.min_return is None or episode.undiscounted_return > self.min_return:
            return True
        is_tie = episode.undiscounted_return == self.min_return
        return is_tie and draw_by_name(episode, "ties") < self.share_of_ties
