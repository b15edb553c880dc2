"""Finds episodes that the data holds more than once.

RLlib's own recorder writes its whole buffer again and again, so one episode can be there dozens of
times, under the same or another id: training would weigh it accordingly, and a held-out copy would
be trained on.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from rllib_dt.episodes.episode import DataError, Episode, EpisodeName, named
from rllib_dt.spaces.trees import by_leaf

DuplicatesPolicy = Literal["keep", "drop", "error"]
"""What to do with an episode whose observations, actions and rewards equal an earlier one's."""


class Duplicates:
    """Recognises repeated episodes in the first pass over the data.

    Args:
        policy: what to do with them.

    Attributes:
        num_episodes: the episodes seen.
        left_out: the name of each episode that was dropped; `without` leaves out the same ones in
            later passes, in any order of the files.
    """

    def __init__(self, policy: DuplicatesPolicy):
        self.num_episodes = 0
        self.left_out: set[EpisodeName] = set()
        self._policy = policy
        self._first: dict[bytes, tuple[str, str]] = {}

    @property
    def num_distinct(self) -> int:
        """The number of different episodes."""
        return len(self._first)

    def check(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """Yields the episodes to keep.

        Raises:
            DataError: the policy is "error", and an episode is there twice.
        """
        for name, episode in named(episodes):
            self.num_episodes += 1
            content = _digest(episode)
            if content not in self._first:
                self._first[content] = episode.source, episode.id
            elif self._policy == "error":
                raise self._error(episode, *self._first[content])
            elif self._policy == "drop":
                self.left_out.add(name)
                continue
            yield episode

    def _error(self, episode: Episode, source: str, name: str) -> DataError:
        return episode.error(
            f"its observations, actions and rewards are those of episode {name} in {source}",
            'remove one of them, or set offline_data(duplicates="drop") to leave copies out or '
            '"keep" to train on them',
        )


def without(episodes: Iterator[Episode], left_out: frozenset[EpisodeName]) -> Iterator[Episode]:
    """Yields the episodes that the first pass did not leave out."""
    return (episode for name, episode in named(episodes) if name not in left_out)


def _digest(episode: Episode) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    steps = len(episode)
    for tree in (episode.observations, episode.actions, episode.rewards):
        for array in by_leaf(tree).values():
            values = array[:steps]
            digest.update(f"{values.dtype.str}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.digest()
