"""The first pass over the input: checks, statistics, and the pool if the data fits it."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import gymnasium as gym

from rllib_dt.episodes.duplicates import Duplicates, DuplicatesPolicy
from rllib_dt.episodes.episode import DataError
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.statistics import Statistics, top_episodes
from rllib_dt.formats.assembly import IncompletePolicy
from rllib_dt.formats.files import find_files
from rllib_dt.formats.fragments import LastRow, MissingEnds, MissingRewards, ReadOptions
from rllib_dt.network.config import DTModelConfig
from rllib_dt.reading.credentials import resolve_filesystem
from rllib_dt.reading.holdout import Holdout, distinct_places
from rllib_dt.reading.passes import Passes
from rllib_dt.reading.tasks import group_files
from rllib_dt.spaces.composites import (
    column_shapes,
    image_leaves,
    look_normalized,
    number_leaves,
    stacked_leaves,
    step_bytes,
    wanted,
)
from rllib_dt.types import Paths

logger = logging.getLogger(__name__)

MAX_VALIDATION_SHARE = 0.25
"""The share of the pool's capacity that validation episodes may take."""

_STEPS_AT_ONCE = 2**16
_BYTES_AT_ONCE = 64 * 2**20
"""Steps packed at a time, and the most bytes; they are in memory in addition to the pool."""


class ReadingSettings(Protocol):
    """The settings that reading needs; `DTConfig` has them, and documents each."""

    input_: Paths
    input_filesystem: Any
    input_filesystem_kwargs: Any
    input_read_schema: dict[str, str] | None
    time_limit: int | None
    incomplete: IncompletePolicy
    top_fraction: float | None
    validation_fraction: float | None
    validation_input: Paths
    actions_in_input_normalized: bool | None
    duplicates: DuplicatesPolicy
    join_files: bool
    frame_stack: int | None
    max_expansion: float
    missing_rewards: MissingRewards | None
    missing_ends: MissingEnds | None
    last_row: LastRow | None
    observation_space: gym.Space
    action_space: gym.Space
    seed: int | None

    @property
    def dt_model_config(self) -> DTModelConfig: ...

    @property
    def return_rule(self) -> ReturnRule: ...

    @property
    def reads_outcomes(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The result of the first pass over the input.

    Attributes:
        pool: all training episodes, or None if they exceed the capacity.
        statistics: the statistics of the training episodes.
        validation: the held-out episodes, or None.
        passes: how to read the training episodes again.
        holdout: the choice of episodes to hold out of `passes`, or None.
        choices: what settings did to the data; see `DataSummary`.
        may_shuffle: whether files may be read in any order; false if episodes were joined only by
            the order of their files.
    """

    pool: EpisodePool | None
    statistics: Statistics
    validation: EpisodePool | None
    passes: Passes
    holdout: Holdout | None
    choices: dict[str, int]
    may_shuffle: bool


def survey(config: ReadingSettings, capacity: int) -> Survey:
    """Reads and checks all the data that a config names.

    Args:
        config: names the input and how to read it.
        capacity: the pool's capacity in steps.

    Raises:
        DataError: naming file, episode and remedy, for data that cannot be trained on.
    """
    max_validation_steps = int(capacity * MAX_VALIDATION_SHARE)
    source = str(config.input_)
    passes = _passes(config, config.input_)
    holdout = None
    if config.validation_fraction is not None:
        holdout = Holdout(
            config.validation_fraction,
            config.seed or 0,
            distinct_places(file for group in passes.groups for file in group),
            max_validation_steps,
        )
    assembler = passes.assembler(max_open_steps=capacity)
    duplicates = Duplicates(config.duplicates)
    statistics = _statistics(config)
    pool = _collect(
        passes.pools(
            _steps_at_once(config),
            assembler=assembler,
            unique=duplicates.check,
            keep=holdout.train if holdout else iter,
        ),
        statistics,
        capacity,
        source,
    )
    _report(duplicates, config)
    _ask_for_unit(config, statistics, source)
    passes = replace(passes, left_out=frozenset(duplicates.left_out))
    validation = None
    if holdout is not None:
        validation = _validation_pool(holdout, config, source)
    elif config.validation_input is not None:
        validation = _read_validation(config, max_validation_steps)
    if config.top_fraction is not None:
        pool, statistics, passes = _only_best(
            config, pool, statistics, passes, holdout, config.top_fraction, capacity
        )
    return Survey(
        pool=pool,
        statistics=statistics,
        validation=validation,
        passes=passes,
        holdout=holdout.rule() if holdout is not None else None,
        choices=dict(assembler.notes),
        may_shuffle=not assembler.joins_by_order,
    )


def _report(duplicates: Duplicates, config: ReadingSettings) -> None:
    """Says how many episodes are copies of others."""
    num_copies = duplicates.num_episodes - duplicates.num_distinct
    if not num_copies:
        return
    counts = (
        f"{duplicates.num_episodes} episodes were read, of which {duplicates.num_distinct} differ"
    )
    if config.duplicates == "drop":
        logger.info("%s: %d copies are left out", counts, num_copies)
        return
    logger.warning(
        "%s: %d copies are trained on as well%s (RLlib's recorder writes its buffer repeatedly); "
        'offline_data(duplicates="drop") leaves copies out',
        counts,
        num_copies,
        "" if config.validation_fraction is None else ", also of held-out episodes",
    )


def _ask_for_unit(config: ReadingSettings, statistics: Statistics, source: str) -> None:
    """Refuses to guess whether recorded actions are in the environment's units."""
    if config.actions_in_input_normalized is None and look_normalized(
        config.action_space, statistics.largest_action
    ):
        raise DataError(
            source,
            f"all recorded actions lie in [-1, 1], but the action space is {config.action_space}, "
            "so they may be normalised, as RLlib records them by default",
            "set offline_data(actions_in_input_normalized=True) if they are, or "
            "offline_data(actions_in_input_normalized=False) if they are in the environment's "
            "units",
        )


def _passes(config: ReadingSettings, inputs: str | list[str]) -> Passes:
    filesystem = resolve_filesystem(config.input_filesystem, config.input_filesystem_kwargs)
    return Passes(
        groups=group_files(find_files(inputs, filesystem)),
        options=ReadOptions(
            names=config.input_read_schema or {},
            time_limit=config.time_limit,
            max_expansion=config.max_expansion,
            observed=wanted(config.observation_space, config.dt_model_config.choice),
            acted=wanted(config.action_space),
            shapes=column_shapes(
                config.observation_space, config.action_space, config.dt_model_config.ignore
            ),
            missing_rewards=config.missing_rewards,
            missing_ends=config.missing_ends,
            last_row=config.last_row,
        ),
        filesystem=filesystem,
        incomplete=config.incomplete,
        observation_space=config.observation_space,
        action_space=config.action_space,
        actions_normalized=bool(config.actions_in_input_normalized),
        max_ep_len=config.dt_model_config.max_ep_len,
        rule=config.return_rule,
        join_files=config.join_files,
        stacked=_stacked(config),
        outcomes=config.reads_outcomes,
    )


def _stacked(config: ReadingSettings) -> tuple[str, ...]:
    ignore = config.dt_model_config.ignore
    return tuple(stacked_leaves(config.observation_space, config.frame_stack, ignore))


def _statistics(config: ReadingSettings) -> Statistics:
    model = config.dt_model_config
    read = config.observation_space, model.image_encoder, model.choice
    return Statistics(number_leaves(*read), image_leaves(*read) if model.normalize_images else ())


def _steps_at_once(config: ReadingSettings) -> int:
    size = step_bytes(config.observation_space, config.dt_model_config.ignore, config.frame_stack)
    return max(1, min(_STEPS_AT_ONCE, _BYTES_AT_ONCE // max(1, size)))


def _collect(
    pools: Iterator[EpisodePool], statistics: Statistics, capacity: int, source: str
) -> EpisodePool | None:
    """Adds to the statistics; returns everything as one pool, or None beyond the capacity."""
    kept: list[EpisodePool] | None = []
    for pool in pools:
        statistics.add(pool)
        if statistics.num_steps > capacity:
            if kept:
                logger.info("more than %d steps: the data will be streamed", capacity)
            kept = None
        if kept is not None:
            kept.append(pool)
    if not statistics.num_steps:
        raise DataError(
            source,
            "no whole episode is left to train on",
            'record whole episodes, set offline_data(incomplete="keep"), or keep fewer for '
            "validation",
        )
    return EpisodePool.concatenate(kept) if kept is not None else None


def _only_best(
    config: ReadingSettings,
    pool: EpisodePool | None,
    statistics: Statistics,
    passes: Passes,
    holdout: Holdout | None,
    fraction: float,
    capacity: int,
) -> tuple[EpisodePool | None, Statistics, Passes]:
    """Restricts all three to the best episodes; reads the data again if it is not in memory."""
    of_best = _statistics(config)
    best = top_episodes(statistics.returns, statistics.lengths, fraction)
    if pool is not None:
        pool = pool.select(best)
        of_best.add(pool)
        return pool, of_best, passes
    least = statistics.returns[best].min()
    ties = statistics.returns == least
    passes = passes.best(float(least), share_of_ties=float(best[ties].mean()))
    keep = holdout.skip if holdout is not None else iter
    pools = passes.pools(_steps_at_once(config), keep=keep, quiet=True)
    return _collect(pools, of_best, capacity, str(config.input_)), of_best, passes


def _read_validation(config: ReadingSettings, max_steps: int) -> EpisodePool:
    """Reads `validation_input`, whose episodes are all held out."""
    everything = Holdout(1.0, 0, max_steps=max_steps)
    passes = _passes(config, config.validation_input)
    for _ in passes.pools(_steps_at_once(config), keep=everything.train):
        pass
    return _validation_pool(everything, config, str(config.validation_input))


def _validation_pool(holdout: Holdout, config: ReadingSettings, source: str) -> EpisodePool:
    if not holdout.episodes:
        raise DataError(
            source,
            "no episode can be held for validation "
            f"({holdout.left_out} do not fit beside the pool)",
            "give whole episodes, or raise offline_data(pool_capacity_steps=…)",
        )
    pool = EpisodePool.from_episodes(holdout.episodes, config.return_rule, stacked=_stacked(config))
    logger.info(
        "validation: %d episodes, %d steps%s",
        len(pool.lengths),
        len(pool),
        f"; {holdout.left_out} more do not fit beside the pool" if holdout.left_out else "",
    )
    return pool
