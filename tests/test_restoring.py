"""Saving, restoring, and starting from a folder of pretrained weights."""

import pickle
import shutil

import pytest
import torch
from gymnasium.spaces import Box
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_dt import DT, DTConfig, DTModelConfig
from rllib_dt.algorithm.environment import completed_config
from rllib_dt.huggingface import load_pretrained, save_pretrained
from rllib_dt.network.network import DecisionTransformer
from tests.conftest import TINY, cartpole_config, tiny_config
from tests.training import NO_DROPOUT, learner_results, same, weights


@pytest.mark.trap(1)
@pytest.mark.semantics(27, 28)
@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_evaluation_after_restoring_equals_the_one_before_saving(cluster, tmp_path, runners):
    config = cartpole_config().evaluation(evaluation_num_env_runners=runners)
    algo = config.training(return_scale=77.0).build_algo()
    algo.train()
    before, kept = algo.evaluate(), weights(algo)
    path = algo.save_to_path(tmp_path / "ck")
    algo.train()
    moved = weights(algo)
    assert not same(kept, moved)
    # restores into the same algorithm, whose weights are newer than the checkpoint's
    algo.restore_from_path(path)
    assert same(weights(algo), kept)
    assert algo.evaluate() == before
    assert algo.iteration == 1
    algo.stop()
    for restore in (DT.from_checkpoint, Algorithm.from_checkpoint):
        other = restore(path)
        assert type(other) is DT
        assert same(weights(other), kept)
        assert weights(other)["return_scale"] == 77.0
        assert other.evaluate() == before
        assert other.train()["training_iteration"] == 2
        other.stop()


@pytest.mark.trap(1)
def test_get_state_and_set_state_copy_an_algorithm(cluster, tiny_data):
    algo, other = (tiny_config(tiny_data[0]).debugging(seed=s).build_algo() for s in (0, 1))
    algo.train()
    assert not same(weights(algo), weights(other))
    other.set_state(algo.get_state())
    assert same(weights(algo), weights(other))
    assert other.iteration == 1
    algo.stop()
    other.stop()


@pytest.mark.parametrize(
    ("seed", "num_learners"),
    [(5, 0), (None, 0), pytest.param(5, 2, marks=pytest.mark.slow)],
)
def test_a_resumed_run_trains_as_if_it_had_never_stopped(
    cluster, tiny_data, tmp_path, seed, num_learners
):
    """Dropout is on; the update determines its random numbers, as it does the windows."""
    config = tiny_config(tiny_data[0], resid_pdrop=0.3)
    config.training(warmup_steps=20, lr=[[0, 1e-3], [500, 1e-4]])
    config.debugging(seed=seed).learners(num_learners=num_learners)
    whole = config.build_algo()
    learner_results(whole, 2)
    path = whole.save_to_path(tmp_path / "ck")
    want = [whole.train() for _ in range(2)]
    final = weights(whole)
    whole.stop()
    torch.manual_seed(1234)  # a new process has another random state
    resumed = DT.from_checkpoint(path)
    for wanted in want:
        result = resumed.train()
        got, learned = result["learners"]["default_policy"], wanted["learners"]["default_policy"]
        for name in ("action_loss", "gradient_norm", "learning_rate"):
            assert got[name] == pytest.approx(learned[name], rel=1e-6 if num_learners else 0, abs=0)
        for name in (n for n in learned if n.endswith("_lifetime")):
            assert got[name] == learned[name], name
        assert got["num_passes_over_data"] == learned["num_passes_over_data"]
        lifetime = "num_env_steps_sampled_lifetime"
        assert result[lifetime] == wanted[lifetime]
    if not num_learners:
        assert same(weights(resumed), final)
    resumed.stop()


def test_training_does_not_change_the_users_random_state(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    algo.train()
    assert torch.equal(torch.get_rng_state(), before)
    algo.stop()


@pytest.mark.semantics(28, 31)
def test_training_and_evaluation_start_from_a_hugging_face_folder(cluster, tmp_path):
    torch.manual_seed(4)
    model = DTModelConfig(**(TINY | dict(max_ep_len=500, context_length=7) | NO_DROPOUT))
    config = completed_config(cartpole_config())
    source = DecisionTransformer(model, config.observation_space, config.action_space)
    source.set_normalization(torch.rand(4), torch.rand(4) + 0.5, 123.0)
    save_pretrained(source, tmp_path / "hf")
    algo = (
        cartpole_config().rl_module(model_config={"pretrained": str(tmp_path / "hf")}).build_algo()
    )
    assert algo.config.dt_model_config.context_length == 7
    assert algo.config.dt_model_config.hidden_size == TINY["hidden_size"]
    assert same(weights(algo), load_pretrained(tmp_path / "hf").state_dict())
    before = algo.evaluate()
    algo.train()
    assert not same(weights(algo), source.state_dict())
    path = algo.save_to_path(tmp_path / "ck")
    algo.stop()
    shutil.rmtree(tmp_path / "hf")
    restored = DT.from_checkpoint(path)  # the folder is no longer needed
    assert weights(restored)["return_scale"] == 123.0
    restored.train()
    config = restored.config.copy(copy_frozen=False)
    restored.stop()
    by_component = config.build_algo()
    with pytest.raises(FileNotFoundError, match="no checkpoint was restored"):
        by_component.train()
    by_component.restore_from_path(f"{path}/learner_group", component="learner_group")
    assert weights(by_component)["return_scale"] == 123.0
    by_component.train()
    by_component.stop()
    assert before["env_runners"]["num_episodes"] == 8
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        cartpole_config().rl_module(model_config={"pretrained": str(tmp_path / "hf")}).build_algo()


def test_pretrained_weights_for_other_spaces_are_refused(cluster, tmp_path):
    model = DTModelConfig(**TINY)
    source = DecisionTransformer(model, Box(-1, 1, (3,)), Box(-1.0, 1.0, (2,)))
    save_pretrained(source, tmp_path / "hf")
    model_config = {"pretrained": str(tmp_path / "hf"), "max_ep_len": 500}
    config = cartpole_config().rl_module(model_config=model_config)
    with pytest.raises(ValueError, match="do not fit the environment's spaces"):
        config.build_algo()


@pytest.mark.trap(16)
def test_a_config_survives_a_round_trip_through_its_state(tiny_data):
    config = tiny_config(tiny_data[0]).evaluation(target_returns=(5, 6), score_reference=(0, 1))
    config.training(adam_betas=(0.9, 0.95), lr=[[0, 0.1], [10, 0.2]])
    again = DTConfig.from_state(pickle.loads(pickle.dumps(config.get_state())))
    ours = {
        k: v for k, v in vars(config).items() if k not in ("algo_class", "_is_frozen", "policies")
    }
    theirs = vars(again)
    assert {k for k, v in ours.items() if theirs[k] != v} == set()
