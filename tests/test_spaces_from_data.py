"""Without an environment, spaces that are not given are those that the data describes."""

import json

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from rllib_dt import DT, DTConfig, DTModelConfig, write_episodes
from rllib_dt.formats.recorded_spaces import recorded_spaces
from tests import other_recordings as other
from tests.recordings import ACTIONS, OBSERVATIONS, arrays, refused, write_d4rl

MODEL = DTModelConfig(context_length=3, n_layer=1, n_head=1, hidden_size=8)


def make_config(path):
    return (
        DTConfig()
        .offline_data(input_=str(path), dataset_num_iters_per_learner=1)
        .training(train_batch_size_per_learner=4)
        .rl_module(model_config=MODEL)
        .debugging(seed=0)
    )


def write(folder, spaces=(OBSERVATIONS, ACTIONS), **changes):
    episode = arrays(2, 5) | dict(terminated=True, truncated=False) | changes
    write_episodes([episode], folder, *spaces)
    return folder


@pytest.mark.parametrize("kind", ["canonical", "hdf5", "arrow", "parquet"])
def test_a_run_needs_no_environment_and_restores_without_its_data(tmp_path, kind, cluster):
    data = tmp_path / "walk-v0"
    if kind == "canonical":
        write(data)
    elif kind == "hdf5":
        other.write_minari_hdf5(data)
    else:
        other.write_minari_tables(data, kind)
    algo = make_config(data).build_algo()
    try:
        assert algo.config.observation_space == OBSERVATIONS
        assert algo.config.action_space == ACTIONS
        learner = algo.train()["learners"]["default_policy"]
        assert np.isfinite(learner["action_loss"])
        checkpoint = algo.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algo.stop()
    data.rename(tmp_path / "elsewhere")
    restored = DT.from_checkpoint(checkpoint)
    try:
        assert restored.config.observation_space == OBSERVATIONS
    finally:
        restored.stop()


def test_given_spaces_come_first(tmp_path):
    wider = Box(-9.0, 9.0, (3,))
    config = make_config(write(tmp_path / "data")).environment(observation_space=wider)
    from rllib_dt.algorithm.environment import completed_config

    completed = completed_config(config)
    assert (completed.observation_space, completed.action_space) == (wider, ACTIONS)


def test_a_minari_set_may_be_named_by_its_id(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    other.write_minari_hdf5(tmp_path / "walk" / "far-v0")
    config = DTConfig().offline_data(input_="walk/far-v0", validation_input=["walk/far-v0"])
    assert config.input_ == str(tmp_path / "walk" / "far-v0")
    assert config.validation_input == [str(tmp_path / "walk" / "far-v0")]


def test_spaces_of_every_kind_come_back_from_the_canonical_format(tmp_path):
    spaces = Dict(a=Box(0, 255, (3, 2), np.uint8), b=Discrete(9)), Discrete(4, start=2)
    obs = {"a": np.zeros((6, 3, 2), np.uint8), "b": np.arange(6)}
    write(tmp_path, spaces, obs=obs, actions=[2, 3, 4, 5, 2])
    assert recorded_spaces(str(tmp_path)) == spaces


def test_data_that_describes_no_spaces_is_refused(tmp_path, cluster):
    path = write_d4rl(tmp_path / "a.hdf5", (5,), terminals=(4,))
    assert recorded_spaces(str(path)) is None
    with pytest.raises(ValueError, match=r"the data does not describe its spaces.*set environment"):
        make_config(path).build_algo()


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        ("{}", 3),
        ('{"type": "Discrete", "n": 1' + 30 * "0" + ', "start": 0}', "{}"),
        ('{"type": "Tuple", "subspaces": [' * 10**5, "{}"),
    ],
    ids=["no types", "beyond integers", "too deep"],
)
def test_damaged_descriptions_are_refused_by_name(tmp_path, observation, action):
    folder = other.write_minari_hdf5(tmp_path)
    described = json.dumps({"observation_space": observation, "action_space": action})
    (tmp_path / "data" / "metadata.json").write_text(described)
    with refused(r"main_data.hdf5.*the description of its spaces cannot be read"):
        recorded_spaces(str(folder))
