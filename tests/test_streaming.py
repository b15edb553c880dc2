"""Streaming of data larger than the pool: chunks, draws, held-out episodes, resuming, faults."""

import contextlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from gymnasium.spaces import Box

from rllib_dt import write_episodes
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.episodes.pool import EpisodePool, pack
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.samplers import CHUNKS_PER_POOL, Draws, RollingSampler, chunk_steps
from rllib_dt.episodes.statistics import Statistics
from rllib_dt.episodes.windows import gather_windows
from rllib_dt.reading.holdout import Holdout, distinct_places
from rllib_dt.reading.stream import ChunkFeeder

from .conftest import make_episodes, tiny_config
from .training import learner_results, same, weights
from .windows import assert_same

K = 4


def numbered(lengths):
    """Episodes whose observations are (episode, timestep)."""
    return [
        Episode(
            id=str(i),
            source="here",
            observations=np.stack([np.full(n, i), np.arange(n)], 1).astype(np.float32),
            actions=np.zeros((n, 1), np.float32),
            rewards=np.full(n, float(i)),
            terminated=True,
            truncated=False,
        )
        for i, n in enumerate(lengths)
    ]


class ListedChunks:
    """A feed of chunks of episodes in memory, repeated pass after pass."""

    def __init__(self, episodes, steps, first=(0, 0)):
        self.pools = list(pack(episodes, steps, ReturnRule()))
        number, index = first
        self.positions = itertools.chain(
            ((number, i) for i in range(index, len(self.pools))),
            ((p, i) for p in itertools.count(number + 1) for i in range(len(self.pools))),
        )

    def next(self):
        position = next(self.positions)
        return position, self.pools[position[1]]


def positions(sampler):
    """The positions of the chunks that a rolling sampler holds, oldest first."""
    return [chunk.position for chunk in sampler._resident]


def rolling(
    episodes, capacity, *, first=(0, 0), batch_size=16, draws_per_step=1 / K, state=None, **draws
):
    return RollingSampler(
        ListedChunks(episodes, chunk_steps(capacity), first),
        capacity=capacity,
        draws_per_step=draws_per_step,
        draws=Draws(window_length=K, batch_size=batch_size, seed=3, **draws),
        state=state,
    )


def test_a_drawn_window_equals_that_of_the_whole_episode():
    episodes = numbered([5, 1, 30, 2, 9, 17, 3] * 3)
    whole = EpisodePool.from_episodes(episodes)
    starts = np.cumsum(whole.lengths) - whole.lengths
    sampler = rolling(episodes, capacity=40)
    for update in range(60):
        got = sampler.sample(update)
        ends = got.observations[:, -1].astype(int)
        want = gather_windows(whole.columns, starts[ends[:, 0]] + ends[:, 1], ends[:, 1], K)
        assert_same(got, want)


def test_the_pool_stays_within_its_capacity_and_reads_the_data_in_order():
    episodes = numbered([5, 1, 30, 2, 9, 17, 3] * 3)
    sampler = rolling(episodes, capacity=120, batch_size=4)
    seen = []
    for update in range(1200):
        sampler.sample(update)
        assert sampler.num_steps + chunk_steps(120) <= 120 + 30  # 30: the longest episode
        seen.extend(p for p in positions(sampler) if p not in seen)
    passes = {number for number, _ in seen}
    assert len(passes) > 3
    assert seen == sorted(seen)
    each = [sum(number == p for number, _ in seen) for p in sorted(passes)[:-1]]
    assert len(set(each)) == 1


@pytest.mark.parametrize("num_learners", [1, 2])
def test_a_pass_over_the_chunks_trains_as_many_steps_as_the_data_has(num_learners):
    episodes = numbered([20] * 50)
    sampler = rolling(episodes, capacity=300, num_learners=num_learners, batch_size=10)
    for update in itertools.count():
        sampler.sample(update)
        if positions(sampler)[0][0] == 10:
            break
    # each window trains K steps; the first pass draws half as often from the pool's first fill
    trained = update * 10 * K * num_learners
    assert trained / 1000 == pytest.approx(10, rel=0.05)


def test_draws_are_proportional_to_episode_length():
    lengths = [3, 40, 1, 12, 150, 7, 2, 25] * 4
    episodes = numbered(lengths)
    sampler = rolling(episodes, capacity=220, batch_size=64, draws_per_step=1.0)
    counts = np.zeros(len(lengths))
    # the first pass draws less often from the pool's first fill, so counting starts after it
    update = 0
    while positions(sampler)[0] < (1, 0):
        sampler.sample(update)
        update += 1
    while positions(sampler)[0] < (201, 0):
        ends = sampler.sample(update).observations[:, -1, 0].astype(int)
        np.add.at(counts, ends, 1)
        update += 1
    want = counts.sum() * np.array(lengths) / sum(lengths)
    # at most one pool of draws, 1/4 of a pass, straddles the ends of the 200 passes
    z = (counts - want) / np.sqrt(want + (0.25 * want / 200) ** 2)
    # 32 counts within 5 standard deviations: one false alarm in 50,000 runs, and the seed is fixed
    assert np.abs(z).max() < 5
    assert (z**2).mean() < 3


def test_every_episode_is_seen_in_every_pass():
    episodes = numbered([1, 300, 2, 2, 1, 80, 5] * 3)
    sampler = rolling(episodes, capacity=400, draws_per_step=0.5)
    held = {}
    for update in itertools.count():
        sampler.sample(update)
        for chunk in sampler._resident:
            held.setdefault(chunk.position[0], set()).update(chunk.pool.columns["obs"][:, 0])
        if positions(sampler)[0][0] == 3:
            break
    assert all(held[p] == set(range(21)) for p in range(3))


def test_a_sampler_resumed_from_a_state_draws_the_same_batches():
    episodes = numbered([5, 1, 30, 2, 9, 17, 3] * 3)
    uninterrupted = rolling(episodes, capacity=60)
    for update in range(25):
        uninterrupted.sample(update)
    state = uninterrupted.state()
    resumed = rolling(episodes, capacity=60, first=state["first"], state=state)
    for update in range(25, 60):
        a, b = uninterrupted.sample(update), resumed.sample(update)
        assert_same(a, b)
        assert positions(uninterrupted) == positions(resumed)


def test_learners_hold_the_same_chunks_and_draw_different_windows():
    episodes = numbered([5, 1, 30, 2, 9, 17, 3] * 3)
    first, second = (rolling(episodes, 60, learner=i, num_learners=2) for i in (0, 1))
    for update in range(50):
        a, b = first.sample(update), second.sample(update)
        assert positions(first) == positions(second)
        assert not np.array_equal(a.observations, b.observations)


def test_one_giant_episode_among_tiny_ones_is_one_chunk():
    sampler = rolling(numbered([1] * 50 + [500] + [1] * 50), capacity=45, batch_size=2)
    sizes = {sampler.sample(u) and sampler.num_steps for u in range(3000)}
    assert max(sizes) <= 500 + 45
    assert min(sizes) >= 1


def test_statistics_added_up_over_parts_equal_those_of_the_whole():
    rng = np.random.default_rng(0)
    episodes = [
        replace(e, observations=(1e3 + rng.standard_normal((len(e), 2))).astype(np.float32))
        for e in numbered(rng.integers(1, 40, 200))
    ]
    parts = Statistics()
    for pool in pack(episodes, 100, ReturnRule()):
        parts.add(pool)
    whole = Statistics.of(EpisodePool.from_episodes(episodes))
    assert parts.summary() == whole.summary()
    got, want = parts.normalization(), whole.normalization()
    np.testing.assert_allclose(got.observation_mean, want.observation_mean, rtol=1e-12)
    np.testing.assert_allclose(got.observation_std, want.observation_std, rtol=1e-9)


# ---- holding episodes out


def test_a_holdout_is_the_same_in_every_pass_and_for_any_subset_of_the_data():
    episodes = numbered([3] * 400)
    holdout = Holdout(0.1, seed=5)
    train = {e.id for e in holdout.train(iter(episodes))}
    kept = {e.id for e in holdout.episodes}
    assert train | kept == {e.id for e in episodes}
    assert not train & kept
    # binomial(400, 0.1): only one in 10 million seeds falls outside 10 … 75
    assert 10 < len(kept) < 75
    assert {e.id for e in holdout.rule().skip(iter(episodes[::-1]))} == train
    fewer = Holdout(0.1, seed=5)
    assert {e.id for e in fewer.train(iter(episodes[:200]))} == train & {
        e.id for e in episodes[:200]
    }


def test_a_holdout_of_few_episodes_holds_at_least_one():
    for seed in range(20):
        holdout = Holdout(0.01, seed)
        train = {e.id for e in holdout.train(iter(numbered([2] * 4)))}
        assert len(holdout.episodes) >= 1
        assert len(train) == 4 - len(holdout.episodes)
        assert {e.id for e in holdout.rule().skip(iter(numbered([2] * 4)))} == train


def test_a_holdout_holds_at_most_max_steps():
    holdout = Holdout(0.5, seed=0, max_steps=50)
    train = list(holdout.train(iter(numbered([10] * 100))))
    assert sum(map(len, holdout.episodes)) == 50
    assert holdout.left_out == 100 - len(train) - 5


def test_episodes_of_one_name_are_told_apart_by_their_place():
    def named_alike(source):
        return [replace(e, id="same", source=source) for e in numbered([3] * 40)]

    files = ["a/x/part.parquet", "b/x/part.parquet"]
    episodes = named_alike(files[0]) + named_alike(files[1])
    holdout = Holdout(0.25, seed=0, places=distinct_places(files))
    train = [e.observations[0, 0] for e in holdout.train(iter(episodes))]
    # binomial(80, 0.25): 3 … 45 but for one in 10 million seeds
    assert 3 < len(holdout.episodes) < 45
    assert len(train) + len(holdout.episodes) == 80
    # whatever the order of the files, a later pass makes the same choice
    again = list(holdout.rule().skip(iter(episodes[40:] + episodes[:40])))
    assert sorted(e.observations[0, 0] for e in again) == sorted(train)
    first = {e.observations[0, 0] for e in holdout.episodes if e.source == files[0]}
    second = {e.observations[0, 0] for e in holdout.episodes if e.source == files[1]}
    assert first != second


# ---- in the algorithm


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """A folder of 12 files with 240 episodes in all, and those episodes."""
    folder = tmp_path_factory.mktemp("many")
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    rng = np.random.default_rng(1)
    episodes = []
    for part in range(12):
        of_part = make_episodes(rng.integers(1, 40, 20), seed=part)
        write_episodes(of_part, folder / f"{part}", *spaces)
        episodes += of_part
    return str(folder), episodes


def streamed(data, capacity=1200, **kwargs):
    return tiny_config(data, **kwargs).offline_data(pool_capacity_steps=capacity)


def test_data_beyond_the_capacity_is_streamed_with_statistics_of_all_episodes(cluster, many_files):
    folder, episodes = many_files
    resident = tiny_config(folder).build_algo()
    algo = streamed(folder).build_algo()
    assert algo.offline_data.is_streamed
    assert not resident.offline_data.is_streamed
    assert algo.offline_data.summary == resident.offline_data.summary
    assert algo.offline_data.summary.num_episodes == len(episodes)
    for name in ("observation_mean", "observation_std", "return_scale"):
        np.testing.assert_allclose(
            getattr(algo.offline_data.normalization, name),
            getattr(resident.offline_data.normalization, name),
        )
    results = learner_results(algo, times=5)
    assert math.isfinite(results["action_loss"])
    assert results["num_passes_over_data"] > 0
    feeder = algo.offline_data._feeder
    algo.stop()
    resident.stop()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(feeder.after.remote(None, 0, 500))


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streaming_resumes_after_a_restore_with_the_same_losses(
    cluster, many_files, tmp_path, num_learners
):
    config = (
        streamed(many_files[0], 700)
        .learners(num_learners=num_learners)
        .training(train_batch_size_per_learner=16)
        .offline_data(dataset_num_iters_per_learner=7)
    )
    uninterrupted = config.build_algo()
    losses = [learner_results(uninterrupted)["action_loss"] for _ in range(6)]
    final = weights(uninterrupted)
    uninterrupted.stop()
    first = config.build_algo()
    assert [learner_results(first)["action_loss"] for _ in range(3)] == losses[:3]
    path = first.save_to_path(str(tmp_path / "saved"))
    first.stop()
    second = config.build_algo()
    second.restore_from_path(path)
    again = [learner_results(second)["action_loss"] for _ in range(3)]
    if num_learners == 0:
        assert again == losses[3:]
        assert same(weights(second), final)
    else:
        np.testing.assert_allclose(again, losses[3:], rtol=1e-6)
    second.stop()


@pytest.mark.slow
def test_a_killed_feeder_does_not_change_the_losses(cluster, many_files):
    config = streamed(many_files[0], 300).training(train_batch_size_per_learner=64)
    config.offline_data(dataset_num_iters_per_learner=2)
    losses = []
    for kill in (False, True):
        algo = config.build_algo()
        results = []
        for iteration in range(6):
            if kill and iteration in (1, 3):
                feeder = algo.offline_data._feeder
                ray.kill(feeder, no_restart=False)
            results.append(learner_results(algo)["action_loss"])
        losses.append(results)
        algo.stop()
    assert losses[0] == losses[1]


def test_streaming_skips_held_out_episodes_and_those_below_the_top_fraction(cluster, many_files):
    folder, episodes = many_files
    algo = (
        streamed(folder, 500).offline_data(validation_fraction=0.2, top_fraction=0.5).build_algo()
    )
    data = algo.offline_data
    assert 0 < len(data.validation) <= 0.25 * 500
    returns = np.array([sum(e["rewards"]) for e in episodes])
    assert data.summary.num_steps <= 0.5 * sum(len(e["rewards"]) for e in episodes)
    assert data.summary.return_min > np.median(returns) - 1
    assert data.is_streamed
    held_out = {row.tobytes() for row in data.validation.columns["obs"]}
    for _, pool in itertools.islice(data.recipe.chunks((0, 0), 500), 20):
        assert not held_out & {row.tobytes() for row in pool.columns["obs"]}
    feeder = data.supply.feeder
    position, reference = ray.get(feeder.after.remote(None, 0, 500))
    assert position == (0, 0)
    assert ray.get(reference).returns.min() >= data.summary.return_min
    algo.stop()


def test_episodes_that_never_end_are_refused_before_they_fill_the_memory(cluster, tmp_path):
    for part in range(3):  # ids continue from file to file without an end
        rows = 200
        pq.write_table(
            pa.table(
                {
                    "eps_id": np.arange(rows),
                    "t": np.full(rows, part),
                    "obs": list(np.zeros((rows, 3), np.float32)),
                    "actions": list(np.zeros((rows, 2), np.float32)),
                    "rewards": np.zeros(rows),
                    "terminateds": np.full(rows, part == 2),
                    "truncateds": np.zeros(rows, bool),
                }
            ),
            tmp_path / f"{part}.parquet",
        )
    with pytest.raises(DataError, match="whose end has not been read yet, more than the pool"):
        streamed(str(tmp_path), 100).build_algo()


def test_a_batch_larger_than_the_pool_is_still_drawn_evenly():
    """The pool then holds as much as one update draws, even beyond its capacity."""
    lengths = [100] * 40 + [1000]
    sampler = rolling(numbered(lengths), capacity=90, batch_size=256)
    counts = np.zeros(len(lengths))
    update = 0
    while positions(sampler)[0] < (61, 0):
        if positions(sampler)[0] >= (1, 0):
            np.add.at(counts, sampler.sample(update).observations[:, -1, 0].astype(int), 1)
        else:
            sampler.sample(update)
        update += 1
    share = counts / counts.sum() / (np.array(lengths) / sum(lengths))
    assert np.abs(share - 1).max() < 0.15
    assert abs(share[-1] - 1) < 0.05


def test_an_order_of_files_that_separates_episodes_is_kept(cluster, tmp_path):
    """Without timesteps, an episode that continues in the next file depends on the files' order."""
    for part in range(6):
        rows = 200
        index = np.arange(part * rows, (part + 1) * rows)
        ends = index % 50 == 24  # never at a file's end, so episodes span files
        pq.write_table(
            pa.table(
                {
                    "eps_id": (index + 25) // 50,
                    "obs": list(index.repeat(3).reshape(-1, 3).astype(np.float32)),
                    "actions": list(np.zeros((rows, 2), np.float32)),
                    "rewards": np.ones(rows),
                    "terminateds": ends | (index == 1199),
                    "truncateds": np.zeros(rows, bool),
                }
            ),
            tmp_path / f"{part}.parquet",
        )
    one_each = [[str(tmp_path / f"{part}.parquet")] for part in range(6)]
    config = streamed(str(tmp_path), 300).offline_data(dataset_num_iters_per_learner=40)
    algo = config.offline_data(join_files=True).build_algo()
    recipe = algo.offline_data.recipe
    recipe = replace(recipe, passes=replace(recipe.passes, groups=one_each))
    assert not recipe.shuffle
    lengths = [
        n for _, pool in itertools.islice(recipe.chunks((1, 0), 300), 36) for n in pool.lengths
    ]
    assert set(lengths) == {25, 50}
    assert math.isfinite(learner_results(algo)["action_loss"])
    algo.stop()


def test_the_pools_chunks_and_the_waiting_one_fill_the_capacity():
    assert chunk_steps(900) * (CHUNKS_PER_POOL + 1) == 900
    assert chunk_steps(1) == 1


# ---- faults while streaming


class Stumbling:
    """A recipe that fails once, at its third chunk."""

    def __init__(self):
        self.failed = False

    def chunks(self, first, capacity):
        for index in range(first[1], 10):
            if index == 2 and not self.failed:
                self.failed = True
                raise OSError("the storage is away")
            yield (0, index), EpisodePool.from_episodes(numbered([capacity + index]))


def test_a_failed_read_raises_for_every_learner_and_is_then_retried(cluster):
    feeder = ChunkFeeder(Stumbling(), num_learners=2)
    at = {0: None, 1: None}
    for index in range(2):
        for learner in at:
            at[learner], _ = feeder.after(at[learner], learner, 5)
            assert at[learner] == (0, index)
    for learner in at:
        with pytest.raises(OSError, match="the storage is away"):
            feeder.after(at[learner], learner, 5)
    for learner in at:
        position, reference = feeder.after(at[learner], learner, 5)
        assert position == (0, 2)
        assert len(ray.get(reference)) == 7


def test_vanished_files_are_named_and_the_run_resumes_once_they_are_back(cluster, tmp_path):
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    for part in range(4):
        write_episodes(make_episodes([30] * 5), tmp_path / f"d/{part}", *spaces)
    config = tiny_config(str(tmp_path / "d")).offline_data(pool_capacity_steps=150, pool_reuse=0.2)
    algo = config.build_algo()
    assert algo.offline_data.is_streamed
    algo.train()
    (tmp_path / "d").rename(tmp_path / "away")
    with pytest.raises(DataError, match="it has disappeared since the run began"):
        learner_results(algo, times=100)
    (tmp_path / "away").rename(tmp_path / "d")
    before = algo.iteration
    with contextlib.suppress(DataError):  # from a read requested while the files were away
        algo.train()
    assert all(np.isfinite(learner_results(algo)["action_loss"]) for _ in range(10))
    assert algo.iteration > before
    algo.stop()


def test_a_run_resumed_with_another_capacity_draws_the_same_batches(cluster, tmp_path):
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    write_episodes(make_episodes([10] * 60), tmp_path / "d", *spaces)

    def build(capacity):
        config = tiny_config(str(tmp_path / "d")).offline_data(pool_capacity_steps=capacity)
        return config.build_algo()

    algo = build(300)
    learner_results(algo, 6)
    path = algo.save_to_path(tmp_path / "c")
    want = [learner_results(algo)["action_loss"] for _ in range(6)]
    algo.stop()
    again = build(130)
    again.restore_from_path(path)
    assert [learner_results(again)["action_loss"] for _ in range(6)] == want
    again.stop()


def test_a_resumed_run_that_no_longer_streams_its_data_logs_a_warning(cluster, tiny_data, caplog):
    algo = tiny_config(tiny_data[0]).offline_data(pool_capacity_steps=30).build_algo()
    assert algo.offline_data.is_streamed
    algo.train()
    state = algo.get_state()
    algo.stop()
    again = tiny_config(tiny_data[0]).build_algo()
    again.set_state(state)
    with caplog.at_level("WARNING", logger="rllib_dt"):
        again.train()
    again.stop()
    assert "had its data streamed, now it is held in memory" in caplog.text


def test_streamed_episodes_of_one_name_train_beside_those_held_out(cluster, tmp_path):
    for part in range(2):
        episodes = [e | dict(episode_id="same") for e in make_episodes([20] * 20, seed=part)]
        spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
        write_episodes(episodes, tmp_path / f"{part}/d", *spaces)
    config = streamed(str(tmp_path), 300).offline_data(validation_fraction=0.2)
    algo = config.build_algo()
    assert algo.offline_data.is_streamed
    assert 0 < len(algo.offline_data.validation.lengths) < 20
    assert math.isfinite(learner_results(algo)["action_loss"])
    algo.stop()


def test_a_pass_without_any_episode_raises_instead_of_reading_forever(cluster, many_files):
    algo = streamed(many_files[0]).build_algo()
    recipe = algo.offline_data.recipe
    algo.stop()
    everything = replace(recipe, holdout=Holdout(1.0, 0))
    with pytest.raises(DataError, match="gave no episode to train on; restore the files"):
        next(everything.chunks((0, 0), 1200))


def test_a_reuse_that_reads_all_data_for_one_update_is_refused(cluster, tiny_data):
    config = streamed(tiny_data[0], 40).offline_data(pool_reuse=1e-4)
    with pytest.raises(ValueError, match=r"pool_reuse=0.0001\) asks for \d+ new steps in each"):
        config.build_algo()
