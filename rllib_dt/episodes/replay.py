"""`Replay`: whole episodes that online training draws from."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from rllib_dt.episodes.frames import FrameStacks
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.types import State


class Replay:
    """The latest episodes, at most `capacity` of them; the oldest leaves first.

    It begins with the best recorded episodes, the worst of which leaves first (Zheng et al. 2022,
    arXiv:2202.05607, §4). Their returns-to-go are those that were achieved.

    Args:
        capacity: the most episodes.
    """

    def __init__(self, capacity: int):
        self._episodes: deque[EpisodePool] = deque(maxlen=capacity)

    def begin(self, recorded: EpisodePool) -> None:
        """Fills it with the best of some episodes, best last; none of their arrays is shared."""
        self._episodes.clear()
        kept = recorded.best(self._episodes.maxlen or 0, len(recorded))
        episodes = kept.episodes()
        self._episodes.extend(episodes[n] for n in np.argsort(kept.targets, kind="stable"))

    def extend(self, episodes: Sequence[EpisodePool]) -> None:
        """Appends new episodes, a pool of one each."""
        self._episodes.extend(episodes)

    def pool(self) -> EpisodePool:
        """Returns all of them as one pool."""
        return EpisodePool.concatenate(list(self._episodes))

    def __len__(self) -> int:
        return len(self._episodes)

    def state(self) -> State:
        """Returns plain values and arrays for a checkpoint."""
        if not self._episodes:
            return {}
        pool = self.pool()
        columns = {
            name: {"frames": column.frames, "first": column.first, "size": column.size}
            if isinstance(column, FrameStacks)
            else column
            for name, column in pool.columns.items()
        }
        rest = {name: value for name, value in vars(pool).items() if name != "columns"}
        return {"columns": columns, **rest}

    def set_state(self, state: State) -> None:
        """Restores `state()`."""
        self._episodes.clear()
        if not state:
            return
        columns = {
            name: FrameStacks(**column) if isinstance(column, dict) else column
            for name, column in state["columns"].items()
        }
        pool = EpisodePool(**{**state, "columns": columns})
        self._episodes.extend(pool.episodes())
