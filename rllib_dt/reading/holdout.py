"""Holds out episodes for validation, the same ones in every pass and every run."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rllib_dt.episodes.episode import Episode, named


def draw_by_name(
    episode: Episode, seed: int | str, place: str | None = None, number: int = 0
) -> float:
    """Draws a number in [0, 1) that follows from where the episode is and what it is called.

    So it is the same in every pass and process, and does not change if the data moves as a whole.

    Args:
        episode: names its file and itself.
        seed: of the draw.
        place: the file's place; the last two parts of its path by default.
        number: how many episodes of that name come before it in the file.
    """
    place = _end_of(episode.source) if place is None else place
    name = episode.id if not number else f"{episode.id}#{number}"
    digest = hashlib.blake2b(f"{seed}/{place}/{name}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def distinct_places(files: Iterable[str]) -> dict[str, str]:
    """Names each file by the last two parts of its path, and a number if others end alike."""
    counts: Counter[str] = Counter()
    places = {}
    for file in files:
        end = _end_of(file)
        places[file] = f"{end}#{counts[end]}" if counts[end] else end
        counts[end] += 1
    return places


def _end_of(path: str) -> str:
    return "/".join(path.split("/")[-2:])


class Holdout:
    """Chooses episodes by their names and holds them out of training.

    The choice of an episode does not depend on the other data, so adding data reassigns none. If
    none falls under the fraction, the nearest one is held out.

    Args:
        fraction: the expected share of episodes.
        seed: the seed of the choice.
        places: what to call each file; see `distinct_places`.
        max_steps: the most steps to hold; further chosen episodes are left out.

    Attributes:
        episodes: the episodes held out by `train`.
        left_out: the number of episodes that were chosen but not held.
    """

    def __init__(
        self,
        fraction: float,
        seed: int,
        places: Mapping[str, str] | None = None,
        max_steps: int | None = None,
    ):
        self.episodes: list[Episode] = []
        self.left_out = 0
        self._seed = seed
        self._threshold = fraction
        self._places = places or {}
        self._max_steps = max_steps

    def train(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """Yields the episodes to train on in the first pass, and keeps the others."""
        nearest: tuple[float, Episode] | None = None  # held out if none falls under the fraction
        steps = 0
        for draw, episode in self._drawn(episodes):
            if draw < self._threshold:
                if self._max_steps is None or steps + len(episode) <= self._max_steps:
                    self.episodes.append(episode)
                    steps += len(episode)
                else:
                    self.left_out += 1
            elif self.episodes:
                yield episode
            elif nearest is None:
                nearest = draw, episode
            else:
                nearest, other = sorted((nearest, (draw, episode)), key=lambda pair: pair[0])
                yield other[1]
        if nearest is not None and self.episodes:
            yield nearest[1]
        elif nearest is not None:
            self.episodes.append(nearest[1])
            self._threshold = math.nextafter(nearest[0], 2.0)

    def skip(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """Yields the episodes to train on in a later pass."""
        return (e for draw, e in self._drawn(episodes) if draw >= self._threshold)

    def rule(self) -> "Holdout":
        """Returns the same choice without the episodes, small enough to send."""
        return Holdout(self._threshold, self._seed, self._places)

    def _drawn(self, episodes: Iterator[Episode]) -> Iterator[tuple[float, Episode]]:
        """Each episode's draw."""
        for (source, _, number), episode in named(episodes):
            yield draw_by_name(episode, self._seed, self._places.get(source), number), episode
