"""What carries data to the learners: the pool in Ray's object store, and `OfflineData`."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.annotations import override

from rllib_dt.episodes.pool import DataSummary, EpisodePool, Normalization, top_episodes
from rllib_dt.episodes.record import DataError, Episode
from rllib_dt.episodes.windows import WindowSampler
from rllib_dt.runtime.ingest import read_episodes
from rllib_dt.runtime.readers.files import ReadOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WindowSource:
    """A learner's way to its windows: small to pickle, and the pool is fetched once.

    Attributes:
        pool: (columns, timesteps) in the object store; numpy reads them there, uncopied.
        context_length, batch_size, seed: see `WindowSampler`.
        num_steps: steps in the pool.
    """

    pool: ray.ObjectRef
    context_length: int
    batch_size: int
    seed: int
    num_steps: int

    def sampler(self, stream: int) -> WindowSampler:
        """The sampler of learner number `stream`."""
        columns, timesteps = ray.get(self.pool)
        return WindowSampler(
            columns=columns,
            timesteps=timesteps,
            context_length=self.context_length,
            batch_size=self.batch_size,
            seed=self.seed,
            stream=stream,
        )


class DTOfflineData(OfflineData):
    """Reads the input once, checks it, and holds it for the learners.

    Deliberately does not run `OfflineData.__init__`, which would set up RLlib's own pipeline
    (an object for each row, a sample frozen for the whole run).

    Attributes:
        summary: a `DataSummary` of what was read.
        returns: (E,) float64, each episode's undiscounted return.
        normalization: what the network is to normalise with.
    """

    def __init__(self, config: Any):
        self.config = config
        self.iter_batches_kwargs: dict[str, Any] = {}
        self.locality_hints = None
        self.learner_handles = None
        self.module_spec = None
        self.spaces = None
        pool = self._read()
        self.summary: DataSummary = pool.summary()
        self.normalization: Normalization = pool.normalization(config.return_scale)
        self.returns = pool.returns
        self.derived_targets = pool.derived_targets()
        self._source = WindowSource(
            pool=ray.put((dict(pool.columns), pool.timesteps)),
            context_length=config.dt_model_config.context_length,
            batch_size=config.train_batch_size_per_learner,
            seed=_seed(config.seed),
            num_steps=len(pool),
        )
        logger.info("data: %s", self.summary)

    @override(OfflineData)
    def sample(
        self, num_samples: int, return_iterator: bool = True, num_shards: int = 1, **kwargs: Any
    ) -> list[WindowSource]:
        """One source for each learner; they draw different windows by their index."""
        return [self._source] * max(1, num_shards)

    def _read(self) -> EpisodePool:
        config = self.config
        assembly = read_episodes(
            config.input_,
            ReadOptions(names=config.input_read_schema or {}, time_limit=config.time_limit),
            filesystem=resolve_filesystem(config.input_filesystem, config.input_filesystem_kwargs),
            incomplete=config.incomplete,
        )
        episodes = [
            episode.conform(
                config.observation_space,
                config.action_space,
                actions_normalized=config.actions_in_input_normalized,
            )
            for episode in assembly.episodes
        ]
        if not episodes:
            raise DataError(
                str(config.input_),
                f"no whole episode is left ({len(assembly.dropped)} were incomplete)",
                'record whole episodes, or set offline_data(incomplete="keep")',
            )
        if config.top_fraction is not None:
            episodes = top_episodes(episodes, config.top_fraction)
        check_lengths(episodes, config.dt_model_config.max_ep_len)
        return EpisodePool.from_episodes(
            episodes,
            gamma=config.gamma,
            delayed=config.delayed_reward,
            clip_rewards=config.clip_rewards,
        )


def check_lengths(episodes: list[Episode], max_ep_len: int) -> None:
    """Raises a DataError for the first episode that the timestep embedding cannot count."""
    for episode in episodes:
        if len(episode) > max_ep_len:
            raise episode.error(
                f"it has {len(episode)} steps, max_ep_len is {max_ep_len}",
                "raise model_config.max_ep_len or split the episode",
            )


def resolve_filesystem(name: Any, kwargs: dict | None) -> pafs.FileSystem | None:
    """RLlib's `input_filesystem`: "s3", "gcs", "abs", a pyarrow filesystem, or None."""
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
