"""Restoring without the training data, with other settings, or into another network."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_dt import DT, DTTorchRLModule
from rllib_dt.algorithm.compatibility import check_same_network
from rllib_dt.episodes.episode import DataError
from rllib_dt.huggingface import save_pretrained
from rllib_dt.policy.manifest import MANIFEST, CheckpointError
from tests.conftest import SHIPPED, TINY, cartpole_config, tiny_config
from tests.training import same, weights

MODULE = "learner_group/learner/rl_module"


@pytest.fixture(scope="module")
def moved(cluster, tmp_path_factory):
    """A checkpoint whose training data is gone, what it evaluated to, and its weights."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(SHIPPED, folder / "data")
    config = cartpole_config(folder / "data").evaluation(target_returns=None)
    algo = config.build_algo()
    algo.train()
    want, targets, kept = algo.evaluate(), algo.target_returns, weights(algo)
    path = algo.save_to_path(folder / "checkpoint")
    algo.stop()
    shutil.rmtree(folder / "data")
    return path, want, targets, kept


def test_an_algorithm_restores_and_evaluates_without_its_data(moved, caplog):
    path, want, targets, kept = moved
    with caplog.at_level("WARNING", "rllib_dt"):
        algo = DT.from_checkpoint(path)
    assert "the training data cannot be read" in caplog.text
    assert algo.target_returns == targets
    assert same(weights(algo), kept)
    assert algo.evaluate() == want
    with pytest.raises(DataError, match=r"restored without it .*no such file.*input_="):
        algo.train()
    with pytest.raises(DataError, match="the training data: the algorithm was built or rest"):
        _ = algo.offline_data.summary
    assert repr(algo.offline_data).startswith("DTOfflineData(not read: ")
    algo.stop()


def test_a_restored_algorithm_takes_other_data_and_settings(moved):
    path, _, targets, kept = moved
    algo = DT.from_checkpoint(
        path, input_=str(SHIPPED), evaluation=dict(target_returns=[7.0], evaluation_duration=2)
    )
    assert same(weights(algo), kept)
    result = algo.evaluate()["env_runners"]
    assert (list(result["by_target"]), result["num_episodes"]) == (["7"], 2)
    learned = algo.train()["learners"]["default_policy"]
    assert learned["num_updates_lifetime"] == 6
    assert targets != algo.target_returns
    algo.stop()


def test_no_data_may_be_asked_for(moved):
    algo = DT.from_checkpoint(moved[0], input_=None)
    assert algo.evaluate() == moved[1]
    with pytest.raises(DataError, match="restored without it"):
        algo.train()
    algo.stop()


def test_unknown_keywords_are_refused(moved):
    with pytest.raises(TypeError, match=r"no keywords \['polices', 'policy_ids'\]; it takes"):
        DT.from_checkpoint(moved[0], policy_ids=["a"], polices=1)


def test_a_configs_own_build_still_needs_its_data(moved):
    config = cartpole_config("/nowhere")
    with pytest.raises(DataError, match="no such file or folder"):
        config.build_algo()


# ---- another network


@pytest.fixture(scope="module")
def checkpoint(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    algo = cartpole_config().build_algo()
    path = algo.save_to_path(folder / "checkpoint")
    algo.stop()
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layer", 1),
        ("n_head", 2),
        ("context_length", 4),
        ("attention", "window"),
        ("activation_function", "gelu"),
        ("hidden_size", 24),
        ("layer_norm_epsilon", 1e-3),
        ("action_tanh", False),
    ],
)
def test_each_setting_of_the_network_is_compared(checkpoint, name, value):
    theirs = TINY.get(name, cartpole_config().dt_model_config.__dict__[name])
    with pytest.raises(
        CheckpointError, match=f"network: {name} is {theirs} there and {value} here"
    ):
        check_same_network(checkpoint, None, None, cartpole_config(**{name: value}))


def test_another_network_is_refused_before_anything_changes(checkpoint):
    algo = cartpole_config(n_head=2).build_algo()
    before = weights(algo)
    message = "another network: n_head is 1 there and 2 here"
    with pytest.raises(CheckpointError, match=message):
        algo.restore_from_path(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        algo.restore_from_path(f"{checkpoint}/{MODULE}", component=MODULE)
    assert same(weights(algo), before)
    assert algo.iteration == 0
    algo.stop()


def test_unknown_components_are_refused(checkpoint):
    algo = cartpole_config().build_algo()
    for component in ("lerner_group", "learner_group/learner/rl_modul", f"{MODULE}/network"):
        with pytest.raises(ValueError, match=r"there is no .* but .*; nothing was restored"):
            algo.restore_from_path(f"{checkpoint}/learner_group", component=component)
    algo.restore_from_path(f"{checkpoint}/{MODULE}", component=MODULE)
    algo.stop()


def test_a_state_of_another_network_is_refused(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    state = algo.get_state()
    algo.stop()
    algo = tiny_config(tiny_data[0], n_head=2).build_algo()
    before = weights(algo)
    with pytest.raises(CheckpointError, match="another network: n_head is 1 there and 2 here"):
        algo.set_state(state)
    assert same(weights(algo), before)
    algo.stop()


def test_the_optimiser_keeps_the_settings_of_the_new_run(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).training(weight_decay=0.5, adam_betas=(0.8, 0.9)).build_algo()
    algo.train()
    state = algo.get_state()
    algo.stop()
    algo = tiny_config(tiny_data[0]).training(weight_decay=0.125).build_algo()
    algo.set_state(state)
    optimizer = algo.learner_group._learner.get_optimizer()
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.125
    assert group["betas"] == tuple(algo.config.adam_betas)
    assert optimizer.state  # its moments are the saved ones
    algo.stop()


def test_windows_are_counted_as_they_are_drawn(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    first = algo.train()["learners"]["default_policy"]
    assert first["num_windows_trained_lifetime"] == 3 * 8
    state = algo.get_state()
    algo.stop()
    algo = tiny_config(tiny_data[0]).training(train_batch_size_per_learner=16).build_algo()
    algo.set_state(state)
    result = algo.train()
    assert result["learners"]["default_policy"]["num_windows_trained_lifetime"] == 3 * 8 + 3 * 16
    learners = result["learners"]["default_policy"]
    sampled = result["num_env_steps_sampled_lifetime"]
    assert sampled == learners["num_steps_trained_lifetime"] > 0
    algo.stop()


def test_measurements_under_other_conditions_are_not_repeated(cluster):
    config = cartpole_config().evaluation(evaluation_interval=1, evaluation_duration=2)
    algo = config.build_algo()
    algo.train()
    state = algo.get_state()
    algo.stop()
    for duration, is_kept in ((2, True), (3, False)):
        config = cartpole_config().evaluation(evaluation_interval=5, evaluation_duration=duration)
        algo = config.build_algo()
        algo.set_state(state)
        assert ("evaluation" in algo.train()) is is_kept
        algo.stop()


def test_other_spaces_are_refused(checkpoint, tiny_data):
    algo = tiny_config(tiny_data[0], max_ep_len=500).build_algo()
    with pytest.raises(CheckpointError, match=r"observation_space is .*action_space is D"):
        algo.restore_from_path(checkpoint)
    algo.stop()


def test_dropout_and_learning_rate_may_differ(checkpoint):
    algo = cartpole_config(resid_pdrop=0.0, attn_pdrop=0.3).training(lr=1e-5).build_algo()
    algo.restore_from_path(checkpoint)
    algo.train()
    algo.stop()


def test_other_settings_of_the_network_are_refused_by_from_checkpoint(checkpoint):
    config = cartpole_config(n_head=2)
    with pytest.raises(CheckpointError, match="n_head is 1 there and 2 here"):
        DT.from_checkpoint(checkpoint, config=config)


# ---- what a checkpoint may hold


def damaged_copy(checkpoint, folder):
    shutil.copytree(checkpoint, folder)
    return folder


def test_restoring_a_component_verifies_it(checkpoint, tmp_path):
    folder = damaged_copy(checkpoint, tmp_path / "damaged")
    (state,) = (folder / MODULE / "default_policy").glob("module_state.*")
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    algo = cartpole_config().build_algo()
    for component in (MODULE, "learner_group"):
        with pytest.raises(CheckpointError, match=r"module_state.* contains other bytes"):
            algo.restore_from_path(folder / component, component=component)
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        algo.restore_from_path(folder / MODULE, component=MODULE)
    algo.restore_from_path(f"{checkpoint}/{MODULE}", component=MODULE)
    algo.stop()


@pytest.mark.parametrize("place", ["", f"{MODULE}/default_policy/"])
def test_a_state_that_the_manifest_does_not_list_is_refused(checkpoint, tmp_path, place):
    """RLlib would load a .msgpack in place of the .pkl that was verified."""
    folder = damaged_copy(checkpoint, tmp_path / "other")
    (folder / f"{place}algorithm_state.msgpack").write_bytes(b"")
    (folder / "notes.txt").write_text("users may add notes")
    with pytest.raises(CheckpointError, match=f"holds {place}algorithm_state.msgpack, which"):
        DT.from_checkpoint(folder)
    (folder / f"{place}algorithm_state.msgpack").unlink()
    DT.from_checkpoint(folder, input_=None).stop()


def test_newer_checkpoints_are_refused(checkpoint, tmp_path):
    folder = damaged_copy(checkpoint, tmp_path / "newer")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(CheckpointError, match=r"has version 99 .*upgrade rllib_dt"):
        DT.from_checkpoint(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    metadata = json.loads((folder / "rllib_checkpoint.json").read_text())
    (folder / "rllib_checkpoint.json").write_text(
        json.dumps(metadata | {"checkpoint_version": "9.0"})
    )
    with pytest.raises(CheckpointError, match=r"RLlib's version 9.0, .*upgrade Ray"):
        DT.from_checkpoint(folder)


def test_a_link_is_written_through(checkpoint, tmp_path):
    algo = DT.from_checkpoint(checkpoint, input_=None)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "target")
    for _ in range(2):  # new, and in place of the first
        algo.save_to_path(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "target" / MANIFEST).is_file()
        assert os.listdir(tmp_path / "disk") == ["target"]
        assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    algo.stop()
    DT.from_checkpoint(tmp_path / "link", input_=None).stop()


def test_a_folder_that_cannot_be_replaced_is_written_into(checkpoint, tmp_path, monkeypatch):
    """As where another file system is mounted: it can be neither renamed nor renamed over."""
    algo = DT.from_checkpoint(checkpoint, input_=None)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    monkeypatch.setattr("pathlib.Path.is_mount", lambda self: self == mounted)
    place = mounted.stat().st_ino
    for _ in range(2):
        algo.save_to_path(mounted)
        assert mounted.stat().st_ino == place
        assert os.listdir(tmp_path) == ["mounted"]
        assert not [name for name in os.listdir(mounted) if "unfinished" in name]
        DT.from_checkpoint(mounted, input_=None).stop()
    algo.stop()


# ---- ends


def test_training_after_a_stop_says_so(cluster, tiny_data):
    for capacity in (None, 20):
        config = tiny_config(tiny_data[0]).offline_data(pool_capacity_steps=capacity)
        algo = config.build_algo()
        algo.train()
        algo.stop()
        with pytest.raises(RuntimeError, match="this algorithm was stopped; build another"):
            algo.train()


@pytest.mark.slow
def test_saving_beside_training_waits_for_the_iterations_end(cluster, tiny_data, tmp_path):
    algo = tiny_config(tiny_data[0]).build_algo()
    paths = []
    threads = [
        threading.Thread(target=lambda n=n: paths.append(algo.save_to_path(tmp_path / str(n))))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
        algo.train()
    for thread in threads:
        thread.join()
    algo.stop()
    assert len(paths) == 3
    for path in paths:
        DT.from_checkpoint(path, input_=None).stop()


def test_spaces_are_those_of_the_checkpoint(checkpoint):
    algo = DT.from_checkpoint(checkpoint, input_=None)
    assert isinstance(algo.config.observation_space, Box)
    assert algo.config.action_space == Discrete(2)
    assert np.isfinite(algo.evaluate()["env_runners"]["episode_return_mean"])
    algo.stop()


# ---- settings that a checkpoint decides


def test_another_return_scale_is_refused_before_anything_changes(cluster, tiny_data, tmp_path):
    algo = tiny_config(tiny_data[0]).training(return_scale=50.0).build_algo()
    algo.train()
    path, state = algo.save_to_path(tmp_path / "checkpoint"), algo.get_state()
    packed = algo.save_to_path(tmp_path / "packed", use_msgpack=True)
    algo.stop()
    algo = tiny_config(tiny_data[0]).training(return_scale=60.0).build_algo()
    before, message = weights(algo), r"with return_scale=50, .* training\(return_scale=60\) is set"
    for restore in (
        lambda: algo.restore_from_path(path),
        lambda: algo.restore_from_path(packed),
        lambda: algo.restore_from_path(f"{path}/{MODULE}", component=MODULE),
        lambda: algo.set_state(state),
    ):
        with pytest.raises(CheckpointError, match=message):
            restore()
    assert same(weights(algo), before)
    assert algo.iteration == 0
    algo.stop()
    with pytest.raises(CheckpointError, match=message):
        DT.from_checkpoint(path, training=dict(return_scale=60.0))
    for settings in ({}, {"training": dict(return_scale=50.0)}, {"training": dict(lr=1e-5)}):
        algo = DT.from_checkpoint(path, **settings)
        assert float(weights(algo)["return_scale"]) == 50.0
        algo.stop()


def test_a_scale_is_that_of_a_folder_that_has_one(cluster, tiny_data, tmp_path):
    algo = tiny_config(tiny_data[0]).training(return_scale=50.0).build_algo()
    save_pretrained(algo.get_module().network, tmp_path / "ours")
    save_pretrained(algo.get_module().network, tmp_path / "theirs")
    algo.stop()
    for name in ("rllib_dt.safetensors", "rllib_dt.json"):
        (tmp_path / "theirs" / name).unlink()  # as folders of others are
    config = tiny_config(tiny_data[0], pretrained=str(tmp_path / "ours")).training(return_scale=60)
    with pytest.raises(
        ValueError, match=r"rely on return_scale=50, but .*return_scale=60\) is set"
    ):
        config.build_algo()
    config = tiny_config(tiny_data[0], pretrained=str(tmp_path / "theirs")).training(
        return_scale=60
    )
    algo = config.build_algo()
    assert float(weights(algo)["return_scale"]) == 60.0
    algo.stop()


def test_a_state_path_may_be_gone_when_restoring(cluster, tiny_data, tmp_path, caplog):
    algo = tiny_config(tiny_data[0]).build_algo()
    path = algo.save_to_path(tmp_path / "first")
    algo.stop()
    spec = RLModuleSpec(
        module_class=DTTorchRLModule, load_state_path=f"{path}/{MODULE}/default_policy"
    )
    algo = tiny_config(tiny_data[0]).rl_module(rl_module_spec=spec).build_algo()
    algo.train()
    second, want = algo.save_to_path(tmp_path / "second"), weights(algo)
    algo.stop()
    shutil.rmtree(path)
    with caplog.at_level("WARNING", "rllib_dt"):
        algo = DT.from_checkpoint(second)
    assert "is gone; the weights are the checkpoint's" in caplog.text
    assert same(weights(algo), want)
    algo.train()
    algo.stop()
    config = tiny_config(tiny_data[0]).rl_module(rl_module_spec=spec)
    with pytest.raises(FileNotFoundError, match=r"load_state_path='.*first.* does not exist; give"):
        config.build_algo()


def test_another_seed_is_warned_of(moved, caplog):
    with caplog.at_level("WARNING", "rllib_dt"):
        DT.from_checkpoint(moved[0], input_=None).stop()
    assert "was 0 when the state was saved" not in caplog.text
    with caplog.at_level("WARNING", "rllib_dt"):
        DT.from_checkpoint(moved[0], input_=None, debugging=dict(seed=3)).stop()
    assert "seed=3 was 0 when the state was saved: training goes on with the draws" in caplog.text


def test_counts_go_on_when_the_learners_alone_are_restored(cluster, tiny_data, tmp_path):
    algo = tiny_config(tiny_data[0]).build_algo()
    algo.train()
    want = algo.train()["learners"]["default_policy"]
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()
    algo = tiny_config(tiny_data[0]).build_algo()
    algo.restore_from_path(f"{path}/learner_group/learner", component="learner_group/learner")
    learned = algo.train()["learners"]["default_policy"]
    algo.stop()
    for name in ("num_updates", "num_windows_trained", "num_steps_trained"):
        assert learned[name] == learned[f"{name}_lifetime"] - want[f"{name}_lifetime"]
    assert learned["num_updates"] == 3
