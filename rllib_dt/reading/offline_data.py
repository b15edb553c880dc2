"""`DTOfflineData`: reads the input once, then holds it for the learners or streams it."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import ray
from numpy.typing import NDArray
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.annotations import override

from rllib_dt.episodes.episode import DataError
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.samplers import Draws, chunk_steps
from rllib_dt.episodes.statistics import DataSummary, Normalization
from rllib_dt.formats.remote_files import RemoteReadError
from rllib_dt.reading.stream import ChunkRecipe, start_feeder
from rllib_dt.reading.supply import ResidentSupply, StreamedSupply, Supply
from rllib_dt.reading.survey import ReadingSettings, Survey, survey
from rllib_dt.spaces.composites import step_bytes
from rllib_dt.types import ActorHandle

logger = logging.getLogger(__name__)

_READ = (
    "summary",
    "returns",
    "normalization",
    "derived_targets",
    "validation",
    "capacity",
    "is_streamed",
    "supply",
    "recipe",
)
"""The attributes that reading sets."""

DEFAULT_SHARE_OF_OBJECT_STORE = 0.5
"""The default capacity, as a share of the smallest object store among the cluster's nodes."""

_LARGEST_SENSIBLE_RETURN = 1e4
"""Returns-to-go beyond this many times the scale are warned of."""

_BYTES_BESIDE_SPACES = 8
"""Bytes of a step's return-to-go and timestep."""

_REUSE_BY_CRITIC = 10
"""How many times as often a critic is trained on a step each time it is read: it does as many times
as many updates in the same time."""

_BYTES_OF_OUTCOMES = 9
"""Bytes of a step's reward, termination and episode return, where an objective reads them."""


class DataSettings(ReadingSettings, Protocol):
    """The settings that holding and streaming data need; `DTConfig` has them."""

    pool_capacity_steps: int | None
    pool_capacity_bytes: int | None
    pool_reuse: float
    q_best_return: float | None
    return_scale: float | None
    num_learners: int

    @property
    def windows_per_learner(self) -> int: ...

    @property
    def is_without_data(self) -> bool: ...


_Reading = Literal["required", "if there", "no"]
_reading: ContextVar[_Reading] = ContextVar("rllib_dt_reading", default="required")


def is_restoring() -> bool:
    """Returns whether this is within a `restoring` block."""
    return _reading.get() != "required"


@contextmanager
def restoring(reading: _Reading) -> Iterator[None]:
    """Sets whether a `DTOfflineData` that is made in the block needs its data.

    Args:
        reading: "if there" logs that the data cannot be read, and goes on without; "no" does not
            try. Whoever needs the data then gets an error that says so.
    """
    token = _reading.set(reading)
    try:
        yield
    finally:
        _reading.reset(token)


class DTOfflineData(OfflineData):
    """Reads the input once, checks it, and holds it for the learners or streams it to them.

    Deliberately does not run `OfflineData.__init__`, which would set up RLlib's own pipeline
    (an object for each row, a sample frozen for the whole run).

    An algorithm that is restored from a checkpoint, or built from pretrained weights, may lack its
    data (`is_missing`); it can then evaluate and act, and all other attributes raise a `DataError`.

    Attributes:
        is_missing: whether the data could not be read.
        summary: a `DataSummary` of the training data.
        returns: (E,) float64, each training episode's undiscounted return.
        normalization: the `Normalization` for the network.
        derived_targets: the target returns to evaluate if none are given.
        validation: an `EpisodePool` of the held-out episodes, or None.
        capacity: the pool's capacity in steps.
        is_streamed: whether the data exceeds the capacity.
        sampling_seed: the seed that windows are drawn with.
        supply: the `Supply` that learners draw from.
        recipe: what streamed chunks follow from, or None if the data is not streamed.
    """

    def __init__(self, config: DataSettings):
        self.config = config
        self.iter_batches_kwargs: dict[str, Any] = {}
        self.locality_hints = None
        self.learner_handles = None
        self.module_spec = None
        self.spaces = None
        self.is_missing = False
        self.sampling_seed = _seed(config.seed)
        self._feeder: ActorHandle = None
        self._critic_feeder: ActorHandle = None
        self._why_missing = "it was asked for none"
        if config.is_without_data:
            self.is_missing, self._why_missing = True, "offline_data(input_=…) is not set"
        elif _reading.get() == "no":
            self.is_missing = True
        elif _reading.get() == "if there":
            try:
                self._read(config)
            except (ValueError, OSError, RemoteReadError) as error:
                logger.warning("the training data cannot be read, so only acting works: %s", error)
                self.is_missing, self._why_missing = True, str(error)
        else:
            self._read(config)

    def __getattr__(self, name: str) -> Any:
        if name not in _READ or not self.__dict__.get("is_missing"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        raise DataError(
            "the training data",
            f"the algorithm was built or restored without it ({self._why_missing})",
            "set offline_data(input_=…), or restore with DT.from_checkpoint(path, input_=…)",
        )

    def __repr__(self) -> str:
        if self.is_missing:
            return f"{type(self).__name__}(not read: {self._why_missing})"
        where = "streamed" if self.is_streamed else "in memory"
        held = f"; {len(self.validation)} steps held out" if self.validation is not None else ""
        return f"{type(self).__name__}({where}: {self.summary}{held})"

    def _read(self, config: DataSettings) -> None:
        self.capacity = _capacity(config)
        found = survey(config, self.capacity)
        statistics = found.statistics
        self.summary: DataSummary = replace(statistics.summary(), choices=found.choices)
        self.normalization: Normalization = statistics.normalization(config.return_scale)
        _check_scale(self.normalization.return_scale, statistics.targets)
        self.returns = statistics.returns
        self.derived_targets = statistics.derived_targets()
        self.validation: EpisodePool | None = found.validation
        self.recipe: ChunkRecipe | None = None
        self.supply: Supply = self._supply(found)
        self.is_streamed = self.supply.is_streamed
        logger.info("data: %s", self.summary)

    @override(OfflineData)
    def sample(
        self, num_samples: int, return_iterator: bool = True, num_shards: int = 1, **kwargs: Any
    ) -> list[Supply]:
        """Returns the supply once for each learner; each draws different windows, by its number.

        Raises:
            DataError: the algorithm was restored without its data.
        """
        return [self.supply] * max(1, num_shards)

    def best_episodes(self, count: int) -> EpisodePool:
        """Returns the training episodes with the largest returns, as many as fit the capacity.

        Streamed data is read once more.

        Args:
            count: the most episodes.
        """
        if isinstance(self.supply, ResidentSupply):
            pool: EpisodePool = ray.get(self.supply.pool)
            return pool.best(count, self.capacity)
        assert self.recipe is not None
        passes, holdout = self.recipe.passes, self.recipe.holdout
        keep = holdout.skip if holdout is not None else iter
        best: EpisodePool | None = None
        for part in passes.pools(chunk_steps(self.capacity), keep=keep, quiet=True):
            joined = part if best is None else EpisodePool.concatenate([best, part])
            best = joined.best(count, self.capacity)
        assert best is not None
        return best

    def critic_supply(self) -> Supply:
        """Returns a supply of the same data whose stream, if it is one, is its own."""
        if not isinstance(self.supply, StreamedSupply) or self.recipe is None:
            return self.supply
        if self._critic_feeder is None:
            self._critic_feeder = start_feeder(self.recipe, max(1, self.config.num_learners))
        reuse = _REUSE_BY_CRITIC * self.supply.reuse
        return replace(self.supply, feeder=self._critic_feeder, reuse=reuse)

    def stop_critic_supply(self) -> None:
        """Ends the process that streams the data for a critic, if there is one."""
        if self._critic_feeder is not None:
            ray.kill(self._critic_feeder)
            self._critic_feeder = None

    def stop(self) -> None:
        """Ends the processes that stream the data, if there are any."""
        self.stop_critic_supply()
        if self._feeder is not None:
            ray.kill(self._feeder)
            self._feeder = None

    def _supply(self, found: Survey) -> Supply:
        config = self.config
        draws = Draws(
            window_length=config.dt_model_config.window_length,
            batch_size=config.windows_per_learner,
            seed=self.sampling_seed,
        )
        targets = found.statistics.targets
        facts: dict[str, Any] = {
            "draws": draws,
            "num_steps": self.summary.num_steps,
            "return_range": (float(targets.min()), float(targets.max())),
        }
        if config.reads_outcomes:
            _check_best_return(config.q_best_return, *facts["return_range"])
        if found.pool is not None:
            return ResidentSupply(pool=ray.put(found.pool), **facts)
        _check_reuse(config.pool_reuse, draws, config.num_learners, self.summary.num_steps)
        self.recipe = ChunkRecipe(
            passes=found.passes,
            holdout=found.holdout,
            seed=config.seed or 0,
            shuffle=found.may_shuffle,
        )
        self._feeder = start_feeder(self.recipe, max(1, config.num_learners))
        return StreamedSupply(
            feeder=self._feeder, capacity=self.capacity, reuse=config.pool_reuse, **facts
        )


def _capacity(config: DataSettings) -> int:
    """Returns the pool's capacity in steps, from the settings or else from the cluster."""
    if config.pool_capacity_steps is not None:
        return int(config.pool_capacity_steps)
    observed = step_bytes(
        config.observation_space, config.dt_model_config.ignore, config.frame_stack
    )
    size: float | None = config.pool_capacity_bytes
    if size is None:
        stores = [
            node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]
        ]
        size = DEFAULT_SHARE_OF_OBJECT_STORE * min(store for store in stores if store)
        # rounded down to a power of two: Ray sizes its store by the memory that happens to be
        # free, and a resumed run should get the same capacity
        size = 2.0 ** math.floor(math.log2(size))
    beside = _BYTES_BESIDE_SPACES + (_BYTES_OF_OUTCOMES if config.reads_outcomes else 0)
    return max(1, int(size / (observed + step_bytes(config.action_space) + beside)))


def _check_scale(scale: float, returns: NDArray[np.float64]) -> None:
    """Raises a ValueError if the data's returns, divided by the scale, exceed float32."""
    largest = float(np.abs(returns).max(initial=0.0))
    if largest / scale > float(np.finfo(np.float32).max):
        raise ValueError(
            f"training(return_scale={scale:g}) is too small: the data's returns reach {largest:g}, "
            "and their ratio exceeds float32; set it near the largest return, or leave it out"
        )
    if largest / scale > _LARGEST_SENSIBLE_RETURN:
        logger.warning(
            "return_scale=%g: the network sees returns-to-go of up to %.3g, on which it hardly "
            "trains; the data's largest return is %g",
            scale,
            largest / scale,
            largest,
        )


def _check_best_return(best: float | None, least: float, largest: float) -> None:
    """Raises a ValueError if no trajectory returns less than `q_best_return`.

    Warns if that is not set, and all return the same.
    """
    if best is None and least == largest:
        logger.warning(
            "all episodes of the data return %g, so q_weight has no effect: it improves on the "
            "trajectories that are worse than the best; set a larger q_best_return",
            least,
        )
    elif best is not None and best <= least:
        raise ValueError(
            f"training(q_best_return={best:g}): all episodes of the data return {least:g} or more, "
            "so q_weight would have no effect; set it above, or None for the data's best"
        )


def _check_reuse(reuse: float, draws: Draws, num_learners: int, num_steps: int) -> None:
    """Raises a ValueError if each update would read more than all the data."""
    trained = draws.batch_size * draws.window_length * max(1, num_learners)
    least = min(1.0, trained / num_steps)
    if reuse < least:
        raise ValueError(
            f"offline_data(pool_reuse={reuse:g}) asks for {trained / reuse:.0f} new steps in each "
            f"update, which trains on {trained}, and the data has only {num_steps}; set it to "
            f"{least:.2g} or more"
        )


def _seed(seed: int | None) -> int:
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
