"""The shared recordings hold exactly the episodes, steps and returns that their README states."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rllib_dt.formats.recorded_spaces import recorded_spaces
from rllib_dt.spaces.composites import wanted
from rllib_dt.spaces.trees import LeafChoice
from tests.recordings import read, refused

PENDULUM = Box(-np.inf, np.inf, (3,)), Box(-2.0, 2.0, (1,))


def returns(episodes):
    return np.array([np.sum(e.rewards, dtype=np.float64) for e in episodes])


def whole_episodes(path):
    assembly = read(path)
    assert assembly.dropped == []
    return assembly.episodes


@pytest.mark.parametrize(
    ("name", "steps", "number", "mean", "std", "low", "high"),
    [
        ("hopper-medium", 200_571, 215, 2636, 497, 290, 2959),
        ("hopper-medium-replay", 200_075, 392, 1430, 1204, 4, 3003),
        ("hopper-expert", 100_586, 108, 3481, 521, 1339, 3773),
        ("halfcheetah-medium", 200_000, 200, 2140, 229, 227, 2444),
        ("halfcheetah-medium-replay", 200_000, 200, 932, 939, -571, 2398),
        ("halfcheetah-expert", 100_000, 100, 3618, 109, 3271, 3892),
    ],
)
@pytest.mark.semantics(30)
def test_mujoco_files_read_as_their_readme_states(
    shared_data, name, steps, number, mean, std, low, high
):
    episodes = whole_episodes(shared_data / "mujoco" / f"{name}.hdf5")
    assert (len(episodes), sum(map(len, episodes))) == (number, steps)
    got = returns(episodes)
    assert np.rint([got.mean(), got.std(), got.min(), got.max()]).tolist() == [mean, std, low, high]
    sizes = (11, 3) if name.startswith("hopper") else (17, 6)
    spaces = Box(-np.inf, np.inf, sizes[:1]), Box(-1.0, 1.0, sizes[1:])
    assert all(e.conform(*spaces).actions.shape == (len(e), sizes[1]) for e in episodes)


def test_both_formats_of_cartpole_read_to_the_same_episodes(shared_data):
    spaces = Box(-np.inf, np.inf, (4,)), Discrete(2)
    old, steps = (
        [e.conform(*spaces) for e in whole_episodes(shared_data / "rllib" / name)]
        for name in ("cartpole-large.json", "cartpole-v1_large")
    )
    assert (len(old), sum(map(len, old))) == (21, 4137)
    got = returns(old)
    assert (got.min(), got.max(), got.mean()) == (137, 200, 197)
    by_id = {e.id: e for e in steps}
    assert len(by_id) == len(steps) == 21
    for episode in old:
        other = by_id[episode.id]
        assert (episode.terminated, episode.truncated) == (other.terminated, other.truncated)
        np.testing.assert_array_equal(episode.observations, other.observations)
        np.testing.assert_array_equal(episode.actions, other.actions)
        np.testing.assert_array_equal(episode.rewards, np.ones(len(episode)))


@pytest.mark.parametrize(("quality", "mean"), [("medium", -524), ("expert", -175)])
def test_pendulum_recordings_read_to_normalised_actions(shared_data, quality, mean):
    episodes = whole_episodes(shared_data / "rllib" / f"pendulum_{quality}_sac_50eps.zip")
    assert [len(e) for e in episodes] == [200] * 50
    assert round(returns(episodes).mean()) == mean
    assert not any(e.terminated for e in episodes)
    for episode in episodes:
        assert np.abs(episode.actions).max() <= 1
        conforming = episode.conform(*PENDULUM, actions_normalized=True)
        np.testing.assert_allclose(conforming.actions, 2 * episode.actions, atol=1e-6)


@pytest.mark.slow
def test_pendulum_replay_reads_to_actions_in_the_environments_units(shared_data):
    episodes = whole_episodes(shared_data / "rllib" / "pendulum_replay_v1.1.0.zip")
    assert [len(e) for e in episodes] == [199] * 500
    assert all(e.terminated for e in episodes)
    got = returns(episodes)
    assert (round(got.min()), round(got.max(), 1)) == (-1778, -0.7)
    largest = max(np.abs(e.conform(*PENDULUM).actions).max() for e in episodes)
    assert 1.9 < largest <= 2


# ---- made by the formats' own packages


FORMATS = [
    # name, episodes, steps, truncated ones, lowest and highest return
    ("minari/lunarlander/mixed-hdf5-v0", 131, 20_548, 4, -461.6, 309.5),
    ("minari/lunarlander/mixed-arrow-v0", 131, 20_548, 4, -461.6, 309.5),
    ("minari/pointmaze/umaze-mixed-hdf5-v0", 66, 19_800, 66, 0.0, 281.0),
    ("minari/minigrid/doorkey-6x6-hdf5-v0", 110, 4_228, 2, 0.0, 0.98),
    ("minari/mobile/small-central-mixed-hdf5-v0", 180, 18_000, 180, -77.1, 38.4),
    ("minari/platform/mixed-parquet-v0", 181, 505, 0, 0.0, 0.78),
]


@pytest.mark.parametrize(("name", "number", "steps", "truncated", "low", "high"), FORMATS)
@pytest.mark.semantics(30)
def test_minaris_own_files_read_as_their_readme_states(
    shared_data, name, number, steps, truncated, low, high
):
    path = str(shared_data / "formats" / name)
    observation_space, action_space = recorded_spaces(path)
    options = dict(observed=wanted(observation_space), acted=wanted(action_space))
    assembly = read(path, **options)
    episodes = [e.conform(observation_space, action_space) for e in assembly.episodes]
    assert (len(episodes), sum(map(len, episodes))) == (number, steps)
    assert sum(e.truncated for e in episodes) == truncated
    assert all(e.truncated != e.terminated for e in episodes)
    got = returns(episodes)
    np.testing.assert_allclose([got.min(), got.max()], [low, high], atol=0.06)


def test_three_programs_files_of_lunar_lander_hold_the_same_episodes(shared_data):
    folder = shared_data / "formats"
    hdf5 = read(folder / "minari/lunarlander/mixed-hdf5-v0").episodes
    arrow = {e.id: e for e in read(folder / "minari/lunarlander/mixed-arrow-v0").episodes}
    d3rlpy = {e.id: e for e in read(folder / "d3rlpy/lunarlander_d3rlpy_2.8.1.h5").episodes}
    assert len(hdf5) == len(arrow) == len(d3rlpy) == 131
    for episode in hdf5:
        for other in (arrow[episode.id], d3rlpy[episode.id]):
            np.testing.assert_array_equal(
                episode.observations[: len(episode)], other.observations[: len(episode)]
            )
            np.testing.assert_array_equal(episode.actions, other.actions.reshape(len(episode)))
            np.testing.assert_allclose(episode.rewards, other.rewards, rtol=1e-6)
            assert episode.terminated == other.terminated


@pytest.mark.parametrize(
    ("name", "number", "steps", "mean"),
    [("imitation_cartpole_final", 57, 26_964, 473), ("expert_cartpole", 100, 49_527, 495)],
)
def test_npz_files_read_as_their_readme_states(shared_data, name, number, steps, mean):
    episodes = read(shared_data / "formats" / "npz" / f"{name}.npz").episodes
    assert (len(episodes), sum(map(len, episodes))) == (number, steps)
    assert int(returns(episodes).mean()) == mean
    spaces = Box(-np.inf, np.inf, (4,)), Discrete(2)
    assert all(e.conform(*spaces).actions.shape == (len(e),) for e in episodes)


def test_bridges_cut_episodes_have_no_end(shared_data):
    path = shared_data / "formats" / "rlds"
    choice = LeafChoice(only=("state", "image_0"))
    with refused("episode 0: the last of its 10 steps is neither terminated nor truncated"):
        read(path, observed=choice)
    episodes = read(path, observed=choice, missing_ends="truncated").episodes
    assert (len(episodes), sum(map(len, episodes))) == (25, 250)
    assert episodes[0].observations["image_0"].shape == (10, 64, 64, 3)
    assert (episodes[0].observations["state"].shape, episodes[0].actions.shape) == (
        (10, 7),
        (10, 7),
    )


def test_genuine_d4rl_files_are_read(shared_data):
    folder = shared_data / "formats" / "d4rl"
    assert len(read(folder / "hopper_medium-v2.hdf5").episodes) == 2
    assert len(read(folder / "halfcheetah_medium_replay-v1.hdf5", time_limit=1000).episodes) == 2
