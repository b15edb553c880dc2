"""Frame stacks that store each frame once, and reuse of the memory of batches."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rllib_dt import write_episodes
from rllib_dt.episodes.buffers import Buffers
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.episodes.frames import FrameStacks, stack_frames
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.samplers import Draws, FixedSampler, RollingSampler, chunk_steps
from rllib_dt.episodes.windows import gather_windows
from tests.conftest import tiny_config
from tests.test_streaming import ListedChunks
from tests.training import learner_results
from tests.windows import assert_same

F, H, W, K = 3, 5, 7, 4


def stacked_episode(number, length):
    """An episode stacked as by gymnasium's FrameStackObservation, which repeats the first frame."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 255, (length, H, W), dtype=np.uint8)
    padded = np.concatenate([frames[:1]] * (F - 1) + [frames])
    return Episode(
        id=str(number),
        source="here",
        observations=np.stack([padded[t : t + F] for t in range(length)]),
        actions=np.arange(length),
        rewards=np.ones(length),
        terminated=True,
        truncated=False,
    )


EPISODES = [stacked_episode(i, n) for i, n in enumerate([5, 1, 11, 2, 8])]


def test_windows_of_frame_stacks_equal_those_of_the_full_array():
    once = EpisodePool.from_episodes(EPISODES, stacked=[""])
    whole = EpisodePool.from_episodes(EPISODES)
    last = np.arange(len(whole))
    timestep = whole.timesteps.astype(np.int64)
    got = gather_windows(once.columns, last, timestep, K)
    want = gather_windows(whole.columns, last, timestep, K)
    assert_same(got, want)
    assert got.observations.shape == (27, K, F, H, W)


def test_each_frame_is_stored_once():
    column = EpisodePool.from_episodes(EPISODES, stacked=[""]).columns["obs"]
    assert len(column.frames) == 27 + (F - 1) * 5
    assert column.shape == (27, F, H, W)
    assert column.nbytes == column.frames.nbytes + 27 * 8


CUTS = ((0, 2), (2, 3), (3, 5))


def test_pools_of_frame_stacks_concatenate_and_select():
    parts = [EpisodePool.from_episodes(EPISODES[a:b], stacked=[""]) for a, b in CUTS]
    chosen = np.array([True, False, True, False, True])
    got = EpisodePool.concatenate(parts).select(chosen)
    want = EpisodePool.from_episodes([EPISODES[i] for i in np.flatnonzero(chosen)], stacked=[""])
    np.testing.assert_array_equal(got.columns["obs"].frames, want.columns["obs"].frames)
    np.testing.assert_array_equal(got.columns["obs"].first, want.columns["obs"].first)


def test_stacks_that_do_not_continue_the_previous_stack_are_refused():
    broken = stacked_episode(0, 6)
    broken.observations[4] = 0
    with pytest.raises(ValueError, match="episode 1: the stack at step 4 is not the one before"):
        FrameStacks.from_episodes([EPISODES[0].observations, broken.observations])


DRAWS = Draws(window_length=K, batch_size=9, seed=1)


def sampler(pool):
    return FixedSampler(pool.columns, pool.timesteps, DRAWS)


def test_samplers_draw_the_same_windows_from_frame_stacks_and_full_arrays():
    whole = sampler(EpisodePool.from_episodes(EPISODES))
    once = sampler(EpisodePool.from_episodes(EPISODES, stacked=[""]))
    for update in range(5):
        a, b = whole.sample(update), once.sample(update)
        np.testing.assert_array_equal(a.observations, b.observations)
    feeds = []
    for stacked in (False, True):
        feed = ListedChunks(EPISODES * 4, chunk_steps(50))
        feed.pools = [
            EpisodePool.from_episodes([e], stacked=[""] if stacked else []) for e in EPISODES * 4
        ]
        feeds.append(RollingSampler(feed, capacity=50, draws_per_step=0.5, draws=DRAWS))
    for update in range(20):
        a, b = (feed.sample(update) for feed in feeds)
        assert_same(a, b)


# ---- reuse of memory

SHAPE = (300, 1000)  # 1.2 MB of float32


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("hold", ["array", "slice", "reshaped", "tensor", "tensor's slice"])
def test_memory_is_reused_only_once_nothing_holds_any_part_of_it(hold):
    buffers = Buffers()
    first = buffers.empty(SHAPE, np.float32)
    first[:] = 7
    first_address = address(first)
    held = {
        "array": lambda a: a,
        "slice": lambda a: a[3:5, ::2],
        "reshaped": lambda a: a.reshape(-1)[10:],
        "tensor": torch.from_numpy,
        "tensor's slice": lambda a: torch.from_numpy(a)[5:, 1],
    }[hold](first)
    del first
    second = buffers.empty(SHAPE, np.float32)
    second[:] = 8
    assert address(second) != first_address
    assert (np.asarray(held) == 7).all()
    del held
    assert address(buffers.empty(SHAPE, np.float32)) == first_address


def test_small_arrays_and_arrays_of_earlier_sizes_are_not_kept():
    buffers = Buffers()
    buffers.empty((10, 10), np.float32)
    assert buffers._kept == []
    for rows in (300, 400, 500):
        buffers.empty((rows, 1000), np.float32)
    assert len(buffers._kept) == 1


def test_large_batches_reuse_memory_but_never_that_of_a_held_batch():
    rows = np.arange(40_000, dtype=np.float32).reshape(-1, 1).repeat(50, 1)
    drawn = FixedSampler(
        {"obs": rows, "actions": rows[:, 0], "returns_to_go": rows[:, :1]},
        np.arange(40_000, dtype=np.int32),
        Draws(window_length=20, batch_size=512, seed=0),
    )
    kept = drawn.sample(0).observations
    copy = kept.copy()
    addresses = {address(drawn.sample(update).observations) for update in range(1, 6)}
    assert len(addresses) <= 2
    assert address(kept) not in addresses
    np.testing.assert_array_equal(kept, copy)


# ---- offline_data(frame_stack=…)

STACKS, ACTIONS = Box(0, 255, (F, 9, 8), np.uint8), Discrete(2)


def frames_of(length, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (length + 1, 9, 8), dtype=np.uint8)


def record_frames(folder, lengths=(7, 5, 3, 6), *, stacked=False):
    space = STACKS if stacked else Box(0, 255, (9, 8), np.uint8)
    episodes = [
        dict(
            obs=stack_frames(frames_of(n, n), F) if stacked else frames_of(n, n),
            actions=np.arange(n) % 2,
            rewards=np.ones(n),
            terminated=True,
            truncated=False,
        )
        for n in lengths
    ]
    write_episodes(episodes, folder, space, ACTIONS)
    return str(folder)


def frame_config(data, **settings):
    config = tiny_config(data).offline_data(frame_stack=F, **settings)
    return config.environment(observation_space=STACKS, action_space=ACTIONS)


def test_stacks_are_those_of_gymnasiums_wrapper():
    class Frames(gym.Env):
        observation_space, action_space = Box(0, 255, (9, 8), np.uint8), ACTIONS

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return frames_of(6, 1)[0], {}

        def step(self, action):
            self.t += 1
            return frames_of(6, 1)[self.t], 0.0, False, False, {}

    env = gym.wrappers.FrameStackObservation(Frames(), F)
    seen = [env.reset()[0], *(env.step(0)[0] for _ in range(6))]
    np.testing.assert_array_equal(stack_frames(frames_of(6, 1), F), seen)


@pytest.mark.parametrize("capacity", [None, pytest.param(12, marks=pytest.mark.slow)])
def test_frames_and_stacks_are_trained_on_alike_and_held_once(cluster, tmp_path, capacity):
    losses, held = [], []
    for stacked in (False, True):
        data = record_frames(tmp_path / str(stacked), stacked=stacked)
        algo = frame_config(data, pool_capacity_steps=capacity).build_algo()
        losses.append(learner_results(algo)["action_loss"])
        if capacity is None:
            (supply,) = algo.offline_data.sample(1)
            held.append(supply.sampler(0, 1).columns["obs"].nbytes)
        algo.stop()
    assert losses[0] == losses[1]
    assert held in ([], [(21 + (F - 1) * 4) * 9 * 8 + 21 * 8] * 2)


def test_a_stack_that_does_not_move_is_refused_by_episode_and_step(cluster, tmp_path):
    obs = stack_frames(frames_of(5, 5), F).copy()
    obs[3, 0, 0, 0] += 1
    episode = dict(
        obs=obs, actions=np.zeros(5, int), rewards=np.ones(5), terminated=True, truncated=False
    )
    write_episodes([episode], tmp_path, STACKS, ACTIONS)
    with pytest.raises(DataError, match="episode 0: the stack of frames at step 3 is not the one"):
        frame_config(str(tmp_path)).build_algo()


def test_frames_of_another_size_and_spaces_without_frames_are_refused(cluster, tmp_path):
    data = record_frames(tmp_path / "data")
    config = frame_config(data).environment(observation_space=Box(0, 255, (F, 8, 9), np.uint8))
    with pytest.raises(DataError, match=r"observations have the shape \(9, 8\) at each step, but"):
        config.build_algo()
    config = frame_config(data).environment(observation_space=Box(0, 255, (9, 8), np.uint8))
    with pytest.raises(ValueError, match=r"frame_stack=3\) needs observations with 3 frames"):
        config.validate()


MIXED = gym.spaces.Dict(camera=STACKS, speed=Box(-1.0, 1.0, (F,)), gear=Discrete(3))


@pytest.mark.parametrize("capacity", [None, pytest.param(12, marks=pytest.mark.slow)])
def test_among_other_leaves_the_stacks_alone_are_stacked(cluster, tmp_path, capacity):
    """A vector of F numbers is no stack."""
    losses = []
    for stacked in (False, True):
        space = gym.spaces.Dict(
            {**MIXED, "camera": STACKS if stacked else Box(0, 255, (9, 8), np.uint8)}
        )
        episodes = [
            dict(
                obs={
                    "camera": stack_frames(frames_of(n, n), F) if stacked else frames_of(n, n),
                    "speed": np.linspace(-1, 1, (n + 1) * F).reshape(n + 1, F),
                    "gear": np.arange(n + 1) % 3,
                },
                actions=np.arange(n) % 2,
                rewards=np.ones(n),
                terminated=True,
                truncated=False,
            )
            for n in (7, 5, 3, 6)
        ]
        folder = tmp_path / str(stacked)
        write_episodes(episodes, folder, space, ACTIONS)
        config = frame_config(str(folder), pool_capacity_steps=capacity)
        algo = config.environment(observation_space=MIXED).build_algo()
        losses.append(learner_results(algo)["action_loss"])
        if capacity is None:
            (supply,) = algo.offline_data.sample(1)
            columns = supply.sampler(0, 1).columns
            assert isinstance(columns["obs/camera"], FrameStacks)
            assert columns["obs/speed"].shape == (21, F)
            assert columns["obs/camera"].frames.shape == (21 + (F - 1) * 4, 9, 8)
        algo.stop()
    assert losses[0] == losses[1]


def test_a_stack_among_other_leaves_that_does_not_move_is_named(cluster, tmp_path):
    camera = stack_frames(frames_of(5, 5), F).copy()
    camera[3, 0, 0, 0] += 1
    obs = {"camera": camera, "speed": np.zeros((6, F)), "gear": np.zeros(6, int)}
    episode = dict(
        obs=obs, actions=np.zeros(5, int), rewards=np.ones(5), terminated=True, truncated=False
    )
    write_episodes([episode], tmp_path, MIXED, ACTIONS)
    config = frame_config(str(tmp_path)).environment(observation_space=MIXED)
    with pytest.raises(
        DataError, match=r"stack of frames at step 3 \(leaf 'camera'\) is not the one"
    ):
        config.build_algo()
    none = gym.spaces.Dict(speed=Box(-1.0, 1.0, (F,)))
    with pytest.raises(ValueError, match=r"frame_stack=3\) needs observations with 3 frames"):
        config.environment(observation_space=none).validate()
