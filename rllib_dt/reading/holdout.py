"""Holds out episodes for validation, the same ones in every pass and every run."""

import hashlib
import math
from collections.abc import Iterator

from rllib_dt.episodes.episode import Episode


def draw_by_name(episode: Episode, seed: int | str) -> float:
    """Returns a number in [0, 1) that depends only on seed, episode name and end of the path.

    It is the same in every pass and process, and does not change if the whole data set is moved.
    """
    place = "/".join(episode.source.split("/")[-2:])
    digest = hashlib.blake2b(f"{seed}/{place}/{episode.id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


class Holdout:
    """Chooses episodes by their names and holds them out of training.

    The choice of an episode does not depend on the other data, so adding data reassigns none. If
    none falls under the fraction, the nearest one is held out.

    Args:
        fraction: the expected share of episodes.
        seed: the seed of the choice.
        max_steps: the most steps to hold; further chosen episodes are left out.

    Attributes:
        episodes: the episodes held out by `train`.
        left_out: the number of episodes that were chosen but not held.
    """

    def __init__(self, fraction: float, seed: int, max_steps: int | None = None):
        self.episodes: list[Episode] = []
        self.left_out = 0
        self._seed = seed
        self._threshold = fraction
        self._max_steps = max_steps

    def train(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """Yields the episodes to train on in the first pass, and keeps the others."""
        nearest: Episode | None = None  # held out if no episode falls under the fraction
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
        """Yields the episodes to train on in a later pass."""
        return (e for e in episodes if self._draw(e) >= self._threshold)

    def rule(self) -> "Holdout":
        """Returns the same choice without the episodes, small enough to send."""
        return Holdout(self._threshold, self._seed)

    def _draw(self, episode: Episode) -> float:
        return draw_by_name(episode, self._seed)
