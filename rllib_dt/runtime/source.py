"""What carries data to the learners: read and checked once, then held or streamed."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.annotations import override

from rllib_dt.episodes.pool import (
    DataSummary,
    EpisodePool,
    Normalization,
    PoolOptions,
    Statistics,
    pack,
    top_episodes,
)
from rllib_dt.episodes.record import DataError, Episode
from rllib_dt.episodes.spaces import step_layout
from rllib_dt.episodes.windows import WindowSampler
from rllib_dt.runtime.ingest import group_files
from rllib_dt.runtime.readers.files import ReadOptions, find_files
from rllib_dt.runtime.readers.fragments import Assembler
from rllib_dt.runtime.reading import EpisodeReader, Holdout
from rllib_dt.runtime.remote_files import Sealed
from rllib_dt.runtime.stream import ChunkRecipe, StreamSource, start_feeder

logger = logging.getLogger(__name__)

DEFAULT_SHARE_OF_OBJECT_STORE = 0.5
"""The pool's capacity at most, of the smallest object store among the cluster's nodes."""

MAX_VALIDATION_SHARE = 0.25
"""Of the capacity: what validation episodes may take."""

_SURVEY_STEPS = 2**16


@dataclass(frozen=True, kw_only=True)
class ResidentSource:
    """A learner's way to the windows of a pool that holds everything; it is fetched once.

    Attributes:
        pool: the `EpisodePool` in the object store; numpy reads it there, uncopied.
        window_length, batch_size, seed: see `WindowSampler`.
        num_steps: steps in the pool.
    """

    pool: ray.ObjectRef
    window_length: int
    batch_size: int
    seed: int
    num_steps: int

    def sampler(
        self, stream: int, num_streams: int, state: dict[str, Any] | None = None
    ) -> WindowSampler:
        """The sampler of learner number `stream`; it has no state."""
        pool: EpisodePool = ray.get(self.pool)
        return WindowSampler(
            columns=pool.columns,
            timesteps=pool.timesteps,
            window_length=self.window_length,
            batch_size=self.batch_size,
            seed=self.seed,
            stream=stream,
        )


class DTOfflineData(OfflineData):
    """Reads the input once, checks it, and holds it for the learners, or streams it to them.

    Deliberately does not run `OfflineData.__init__`, which would set up RLlib's own pipeline
    (an object for each row, a sample frozen for the whole run).

    Attributes:
        summary: a `DataSummary` of what is trained on.
        returns: (E,) float64, each episode's undiscounted return.
        normalization: what the network is to normalise with.
        validation: an `EpisodePool` of the episodes that were kept back, or None.
        capacity: of the pool, in steps.
        is_streamed: whether the data exceeds the capacity.
        sampling_seed: what windows are drawn from.
    """

    def __init__(self, config: Any):
        self.config = config
        self.iter_batches_kwargs: dict[str, Any] = {}
        self.locality_hints = None
        self.learner_handles = None
        self.module_spec = None
        self.spaces = None
        self._options = PoolOptions(
            gamma=config.gamma, delayed=config.delayed_reward, clip_rewards=config.clip_rewards
        )
        self.validation: EpisodePool | None = None
        self.capacity = self._capacity()
        self._feeder: Any = None
        pool, statistics = self._read()
        self.summary: DataSummary = statistics.summary()
        self.normalization: Normalization = statistics.normalization(config.return_scale)
        self.returns = statistics.returns
        self.derived_targets = statistics.derived_targets()
        self.is_streamed = pool is None
        self.sampling_seed = _seed(config.seed)
        self._source = self._resident(pool) if pool is not None else self._streamed()
        logger.info("data: %s", self.summary)

    @override(OfflineData)
    def sample(
        self, num_samples: int, return_iterator: bool = True, num_shards: int = 1, **kwargs: Any
    ) -> list[ResidentSource | StreamSource]:
        """One source for each learner; they draw different windows by their index."""
        return [self._source] * max(1, num_shards)

    def stop(self) -> None:
        """Ends what was started to stream the data."""
        if self._feeder is not None:
            ray.kill(self._feeder)
            self._feeder = None

    # --- reading

    def _read(self) -> tuple[EpisodePool | None, Statistics]:
        """All training episodes, or None where they exceed the pool; and what they are like."""
        config = self.config
        most = int(self.capacity * MAX_VALIDATION_SHARE)
        self._reader = self._reader_of(config.input_)
        self._holdout: Holdout | None = None
        assembler = Assembler(config.incomplete)
        episodes = self._reader.episodes(assembler=assembler, max_open_steps=self.capacity)
        if config.validation_fraction is not None:
            self._holdout = Holdout(config.validation_fraction, config.seed or 0, most)
            episodes = self._holdout.train(episodes)
        pool, statistics = self._survey(episodes)
        # episodes whose parts are told by their order alone are lost in any other order
        self._may_shuffle = not assembler.joins_by_order
        if self._holdout is not None:
            self._keep(self._holdout.episodes, self._holdout.left_out)
        if config.validation_input is not None:
            other = Holdout(1.0, 0, most)
            for _ in other.train(self._reader_of(config.validation_input).episodes()):
                pass
            self._keep(other.episodes, other.left_out)
        if config.top_fraction is None:
            return pool, statistics
        best = top_episodes(statistics.returns, statistics.lengths, config.top_fraction)
        if pool is not None:
            pool = pool.select(best)
            return pool, pool.statistics()
        least = statistics.returns[best].min()
        ties = statistics.returns == least
        self._reader = self._reader.best(least, share_of_ties=float(best[ties].mean()))
        episodes = self._reader.episodes(quiet=True)
        return self._survey(self._holdout.skip(episodes) if self._holdout else episodes)

    def _reader_of(self, inputs: Any) -> EpisodeReader:
        config = self.config
        filesystem = resolve_filesystem(config.input_filesystem, config.input_filesystem_kwargs)
        return EpisodeReader(
            groups=group_files(find_files(inputs, filesystem)),
            options=ReadOptions(names=config.input_read_schema or {}, time_limit=config.time_limit),
            filesystem=filesystem,
            incomplete=config.incomplete,
            observation_space=config.observation_space,
            action_space=config.action_space,
            actions_normalized=config.actions_in_input_normalized,
            max_ep_len=config.dt_model_config.max_ep_len,
        )

    def _survey(self, episodes: Iterator[Episode]) -> tuple[EpisodePool | None, Statistics]:
        statistics = Statistics()
        kept: list[EpisodePool] | None = []
        for pool in pack(episodes, _SURVEY_STEPS, self._options):
            statistics.add(pool)
            if statistics.num_steps > self.capacity:
                if kept:
                    logger.info("more than %d steps: the data will be streamed", self.capacity)
                kept = None
            if kept is not None:
                kept.append(pool)
        if not statistics.num_steps:
            raise DataError(
                str(self.config.input_),
                "no whole episode is left to train on",
                'record whole episodes, set offline_data(incomplete="keep"), or keep fewer for '
                "validation",
            )
        return (EpisodePool.concatenate(kept) if kept is not None else None), statistics

    def _keep(self, episodes: list[Episode], left_out: int) -> None:
        if not episodes:
            raise DataError(
                str(self.config.validation_input or self.config.input_),
                f"no episode can be held for validation ({left_out} do not fit beside the pool)",
                "give whole episodes, or raise offline_data(pool_capacity_steps=…)",
            )
        self.validation = EpisodePool.from_episodes(episodes, self._options)
        logger.info(
            "validation: %d episodes, %d steps%s",
            len(episodes),
            len(self.validation),
            f"; {left_out} more do not fit beside the pool" if left_out else "",
        )

    def _capacity(self) -> int:
        """In steps, from the settings."""
        config = self.config
        layouts = map(step_layout, (config.observation_space, config.action_space))
        arrays = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in layouts]
        bytes_per_step = sum(arrays) + 8  # its return-to-go and its timestep
        if config.pool_capacity_steps is not None:
            return int(config.pool_capacity_steps)
        size = config.pool_capacity_bytes
        if size is None:
            stores = [
                node["Resources"].get("object_store_memory", 0)
                for node in ray.nodes()
                if node["Alive"]
            ]
            size = DEFAULT_SHARE_OF_OBJECT_STORE * min(store for store in stores if store)
            # to a power of two: Ray sizes its store by the memory that happens to be free, and a
            # resumed run wants the same capacity
            size = 2.0 ** math.floor(math.log2(size))
        return max(1, int(size / bytes_per_step))

    # --- handing over

    def _resident(self, pool: EpisodePool) -> ResidentSource:
        return ResidentSource(
            pool=ray.put(pool),
            window_length=self.config.dt_model_config.window_length,
            batch_size=self.config.windows_per_learner,
            seed=self.sampling_seed,
            num_steps=len(pool),
        )

    def _streamed(self) -> StreamSource:
        config = self.config
        self._recipe = ChunkRecipe(
            reader=self._reader,
            holdout=self._holdout.rule() if self._holdout is not None else None,
            options=self._options,
            seed=config.seed or 0,
            shuffle=self._may_shuffle,
        )
        self._feeder = start_feeder(self._recipe, max(1, config.num_learners))
        return StreamSource(
            feeder=self._feeder,
            capacity=self.capacity,
            reuse=config.pool_reuse,
            window_length=config.dt_model_config.window_length,
            batch_size=config.windows_per_learner,
            seed=self.sampling_seed,
            num_steps=self.summary.num_steps,
        )


def resolve_filesystem(name: Any, kwargs: Any) -> pafs.FileSystem | None:
    """RLlib's `input_filesystem`: "s3", "gcs", "abs", a pyarrow filesystem, or None."""
    name, kwargs = Sealed.unseal(name), Sealed.unseal(kwargs)
    if name is None or isinstance(name, pafs.FileSystem):
        return name
    if name == "s3":
        return pafs.S3FileSystem(**(kwargs or {}))
    if name == "gcs":
        return pafs.GcsFileSystem(**(kwargs or {}))
    if name == "abs":
        return pafs.AzureFileSystem(**(kwargs or {}))
    raise ValueError(f'input_filesystem={name!r}: wanted "s3", "gcs", "abs" or a pyarrow one')


def _seed(seed: int | None) -> int:
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
