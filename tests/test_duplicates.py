"""Episodes that the data holds more than once, and actions whose unit the data does not say."""

import logging

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rllib_dt import write_episodes
from rllib_dt.episodes.episode import DataError
from rllib_dt.spaces.leaves import looks_normalized
from tests.conftest import make_episodes, tiny_config

SPACES = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))


@pytest.fixture
def copies(tmp_path):
    """Four episodes, written as RLlib's recorder does: each file repeats what came before."""
    episodes = make_episodes([5, 9, 9, 20])
    for stop in (2, 3, 4):
        named = [e | dict(episode_id=f"{stop}-{i}") for i, e in enumerate(episodes[:stop])]
        write_episodes(named, tmp_path / str(stop), *SPACES)
    return str(tmp_path), episodes


def trained(algo):
    """The observations that are trained on, as bytes for each step."""
    (supply,) = algo.offline_data.sample(1)
    return [row.tobytes() for row in supply.sampler(0, 1).columns["obs"]]


def test_copies_are_kept_with_a_warning_that_has_the_numbers(cluster, copies, caplog):
    with caplog.at_level(logging.WARNING, "rllib_dt"):
        algo = tiny_config(copies[0]).build_algo()
    assert "9 episodes were read, of which 4 differ: 5 copies are trained on as well" in caplog.text
    assert algo.offline_data.summary.num_episodes == 9
    algo.stop()


def test_copies_can_be_left_out(cluster, copies):
    folder, episodes = copies
    algo = tiny_config(folder).offline_data(duplicates="drop").build_algo()
    want = sorted(row.tobytes() for e in episodes for row in e["obs"][:-1])
    assert sorted(trained(algo)) == want
    assert algo.offline_data.summary.num_episodes == 4
    algo.stop()


def test_copies_can_be_refused(cluster, copies):
    config = tiny_config(copies[0]).offline_data(duplicates="error")
    with pytest.raises(DataError, match=r"episode 3-0: its observations, actions and rewards are"):
        config.build_algo()
    with pytest.raises(ValueError, match="duplicates='remove' is not one of"):
        tiny_config(copies[0]).offline_data(duplicates="remove").validate()


def test_every_pass_of_streamed_data_leaves_out_the_same_copies(cluster, tmp_path):
    """In each pass files come in another order, so other copies come first."""
    episodes = make_episodes([7] * 12)
    for file in range(6):
        chosen = [episodes[(file * 2 + i) % 12] for i in range(4)]
        named = [e | dict(episode_id=f"{file}-{i}") for i, e in enumerate(chosen)]
        write_episodes(named, tmp_path / str(file), *SPACES)
    config = tiny_config(str(tmp_path)).offline_data(
        duplicates="drop", pool_capacity_steps=30, validation_fraction=0.2
    )
    algo = config.build_algo()
    held = {row.tobytes() for row in algo.offline_data.validation.columns["obs"]}
    recipe = algo.offline_data.recipe
    seen = {}
    for (number, _), pool in recipe.chunks((0, 0), 30):
        if number == 5:
            break
        seen.setdefault(number, []).extend(row.tobytes() for row in pool.columns["obs"])
    algo.stop()
    everything = {row.tobytes() for e in episodes for row in e["obs"][:-1]}
    for rows in seen.values():
        assert len(rows) == len(set(rows))
        assert set(rows) == everything - held


# ---- the unit of actions


WIDE = Box(np.array([-2.0, -1.0], np.float32), np.array([2.0, 1.0], np.float32))


def record(folder, scale):
    episodes = make_episodes([5, 9], action_space=WIDE)
    for episode in episodes:
        episode["actions"] = episode["actions"] / np.abs(episode["actions"]).max(axis=0) * scale
    write_episodes(episodes, folder, SPACES[0], WIDE)
    return tiny_config(str(folder)).environment(observation_space=SPACES[0], action_space=WIDE)


def test_actions_that_look_normalised_are_asked_about(cluster, tmp_path):
    config = record(tmp_path / "small", 1.0)
    with pytest.raises(DataError, match=r"all recorded actions lie in \[-1, 1\]") as refused:
        config.build_algo()
    for choice in (True, False):
        assert f"actions_in_input_normalized={choice}" in str(refused.value)
    largest = {}
    for choice in (True, False):
        algo = config.copy().offline_data(actions_in_input_normalized=choice).build_algo()
        (supply,) = algo.offline_data.sample(1)
        largest[choice] = np.abs(supply.sampler(0, 1).columns["actions"]).max(axis=0)
        algo.stop()
    np.testing.assert_allclose(largest[True], [2, 1], rtol=1e-6)
    np.testing.assert_allclose(largest[False], [1, 1], rtol=1e-6)


def test_actions_that_use_the_range_are_not_asked_about(cluster, tmp_path):
    algo = record(tmp_path / "wide", np.array([1.5, 1.0])).build_algo()
    assert algo.config.actions_in_input_normalized is None
    algo.stop()


def test_only_components_wider_than_one_count():
    assert looks_normalized(WIDE, np.array([1.0, 1.0]))
    assert not looks_normalized(WIDE, np.array([1.1, 0.5]))
    assert not looks_normalized(SPACES[1], np.array([0.5, 0.5]))
    assert not looks_normalized(Box(-0.5, 0.5, (1,)), np.array([0.5]))
    assert not looks_normalized(Discrete(2), np.array(1))
