"""What users may put in place of our parts: losses, weights of steps, readers of data, modules."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

import rllib_dt
from rllib_dt import DTTorchLearner, DTTorchRLModule, Window, write_episodes
from rllib_dt.policy.manifest import CheckpointError
from rllib_dt.reading.offline_data import DTOfflineData
from tests.conftest import TINY, make_episodes, tiny_config
from tests.training import NO_DROPOUT, learner_results, same, weights


class Absolute(DTTorchLearner):
    """A loss of its own, without `super()`."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        window = Window.from_columns(batch)
        outputs = fwd_out[Columns.ACTION_DIST_INPUTS]
        targets = self.network.action_head.features(window.actions)
        errors = (outputs - targets).abs().mean(dim=-1)
        return errors[window.mask].mean()


class Doubled(DTTorchLearner):
    def step_weights(self, window):
        return torch.full_like(window.returns_to_go[..., 0], 2.0)


class OnlyGood(DTTorchLearner):
    """Weighs steps by their return-to-go; shapes and device are those of the batch."""

    def step_weights(self, window):
        assert window.returns_to_go.shape[:2] == window.mask.shape
        return (window.returns_to_go[..., 0] > 0).float()


class Wrong(DTTorchLearner):
    def step_weights(self, window):
        return torch.ones(3)


class NanWherePadded(DTTorchLearner):
    def step_weights(self, window):
        return torch.where(window.mask, 1.0, float("nan"))


class NotFinite(DTTorchLearner):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        return fwd_out[Columns.ACTION_DIST_INPUTS].sum() * float("nan")


def config_with(data, learner, **model):
    return (
        tiny_config(data, **(NO_DROPOUT | model))
        .learners(num_learners=0)
        .training(learner_class=learner)
    )


def test_a_learner_with_its_own_loss_trains_and_counts(cluster, tiny_data):
    algo = config_with(tiny_data[0], Absolute).build_algo()
    before = weights(algo)
    first = learner_results(algo)
    assert "action_loss" not in first
    assert first["num_steps_trained"] > 24
    assert first["num_updates"] == 3
    losses = [learner_results(algo)["total_loss"] for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert not same(weights(algo), before)
    algo.stop()


class Small(DTTorchLearner):
    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        return fwd_out[Columns.ACTION_DIST_INPUTS].square().mean()


def test_a_loss_of_its_own_leaves_the_entropys_weight_alone(cluster, tiny_data):
    config = config_with(tiny_data[0], Small, action_distribution="squashed_gaussian")
    algo = config.build_algo()
    assert learner_results(algo, 2)["entropy_alpha"] == pytest.approx(config.initial_alpha)
    algo.stop()


class EachWindow(DTTorchLearner):
    """The windows' losses have equal weights, however many steps they have."""

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        window = Window.from_columns(batch)
        outputs = fwd_out[Columns.ACTION_DIST_INPUTS]
        errors = (outputs - self.network.action_head.features(window.actions)).abs().mean(dim=-1)
        return ((errors * window.mask).sum(dim=1) / window.mask.sum(dim=1)).mean()


def test_a_loss_of_its_own_is_averaged_over_micro_batches(cluster, tiny_data):
    found = []
    for size in (None, 3):
        algo = config_with(tiny_data[0], EachWindow).training(micro_batch_size=size).build_algo()
        found.append((learner_results(algo, 2)["gradient_norm"], weights(algo)))
        algo.stop()
    (norm, wanted), (in_parts, state) = found
    assert in_parts == pytest.approx(norm, rel=1e-5)
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_learners_with_their_own_loss_agree(cluster, tiny_data):
    algo = config_with(tiny_data[0], Absolute).learners(num_learners=2).build_algo()
    result = learner_results(algo, 2)
    states = algo.learner_group.foreach_learner(
        lambda learner: {k: v.clone() for k, v in learner.network.state_dict().items()}
    )
    one, other = (state.get() for state in states)
    assert same(one, other)
    assert result["num_updates_lifetime"] == 6
    algo.stop()


def test_a_loss_of_its_own_that_is_not_finite_ends_the_run(cluster, tiny_data):
    algo = config_with(tiny_data[0], NotFinite).build_algo()
    with pytest.raises(RuntimeError, match="the loss is not finite at update 0"):
        algo.train()
    algo.stop()


class Returns(DTTorchLearner):
    """Returns what its setting says instead of a loss."""

    def compute_loss_for_module(self, *, fwd_out, **kwargs):
        return self.config.returned(fwd_out[Columns.ACTION_DIST_INPUTS])


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (lambda outputs: 0.5, "a float"),
        (lambda outputs: None, "a NoneType"),
        (lambda outputs: (outputs.sum(), 1), "a tuple"),
        (lambda outputs: outputs.mean(dim=(1, 2)), r"a tensor of shape \(8,\) and torch.float32"),
        (lambda outputs: (outputs > 0).sum(), r"a tensor of shape \(\) and torch.int64"),
        (lambda outputs: outputs.detach().sum(), "a tensor without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_refused(cluster, tiny_data, returned, found):
    config = config_with(tiny_data[0], Returns)
    config.returned = returned
    algo = config.build_algo()
    with pytest.raises(ValueError, match=f"compute_loss_for_module returned {found}; wanted one"):
        algo.train()
    algo.stop()


def test_weights_multiply_each_steps_loss(cluster, tiny_data):
    losses = {}
    for learner in (DTTorchLearner, Doubled, OnlyGood):
        algo = config_with(tiny_data[0], learner).build_algo()
        algo.offline_data.config  # noqa: B018  the data is read
        losses[learner] = learner_results(algo)["action_loss"]
        algo.stop()
    # the first three updates start from equal weights, and Adam's first steps do not depend on
    # the gradient's scale, so a doubled loss is nearly twice as large
    assert losses[Doubled] == pytest.approx(2 * losses[DTTorchLearner], rel=1e-3)
    assert 0 < losses[OnlyGood] < losses[DTTorchLearner]


class Reversed(DTOfflineData):
    """Asks for the worst episode's return too."""

    def __init__(self, config):
        super().__init__(config)
        self.derived_targets = [*self.derived_targets, float(self.returns.min())]


def test_a_subclass_of_the_offline_data_is_used(cluster, tiny_data):
    config = tiny_config(tiny_data[0]).offline_data(offline_data_class=Reversed)
    algo = config.build_algo()
    assert isinstance(algo.offline_data, Reversed)
    assert algo.target_returns[-1] == pytest.approx(algo.offline_data.returns.min())
    algo.stop()


def test_a_loaded_modules_normalisation_is_kept(cluster, tiny_data, tmp_path):
    """The new data's statistics belong to other inputs than the loaded weights were trained on."""
    algo = tiny_config(tiny_data[0]).training(return_scale=77.0).build_algo()
    algo.train()
    want = weights(algo)
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()
    episodes = make_episodes([5, 9], seed=7)
    for episode in episodes:
        episode["obs"] = 3 + episode["obs"]
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    write_episodes(episodes, tmp_path / "other", *spaces)
    module = f"{path}/learner_group/learner/rl_module/default_policy"
    config = tiny_config(str(tmp_path / "other")).rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=DTTorchRLModule, model_config=TINY, load_state_path=module
        )
    )
    algo = config.build_algo()
    assert same(weights(algo), want)
    assert float(weights(algo)["return_scale"]) == 77.0
    algo.stop()


def test_weights_of_steps_must_have_the_shape_of_the_mask(cluster, tiny_data):
    algo = config_with(tiny_data[0], Wrong).build_algo()
    with pytest.raises(ValueError, match=r"step_weights returned \(3,\), wanted a tensor \(8, "):
        algo.train()
    algo.stop()


def test_weights_of_padded_steps_do_not_count(cluster, tiny_data):
    trained = []
    for learner in (DTTorchLearner, NanWherePadded):
        algo = config_with(tiny_data[0], learner).build_algo()
        algo.train()
        trained.append(weights(algo))
        algo.stop()
    assert same(*trained)


def test_settings_in_the_spec_of_the_module_count(tiny_data):
    spec = RLModuleSpec(module_class=DTTorchRLModule, model_config=TINY | {"n_layer": 3})
    config = tiny_config(tiny_data[0])
    config.rl_module(model_config={}, rl_module_spec=spec).validate()
    assert config.dt_model_config.n_layer == 3
    config = tiny_config(tiny_data[0]).rl_module(rl_module_spec=spec)
    with pytest.raises(ValueError, match=r"RLModuleSpec\(model_config=.* differs from rl_module"):
        config.validate()


def test_a_state_path_of_another_network_is_refused(cluster, tiny_data, tmp_path):
    algo = tiny_config(tiny_data[0]).build_algo()
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()
    module = f"{path}/learner_group/learner/rl_module/default_policy"
    spec = RLModuleSpec(module_class=DTTorchRLModule, load_state_path=module)
    config = tiny_config(tiny_data[0], n_layer=3).rl_module(rl_module_spec=spec)
    with pytest.raises(CheckpointError, match="another network: n_layer is 2 there and 3 here"):
        config.build_algo()


def test_what_extensions_need_is_exported():
    for name in ("DTTorchLearner", "DTTorchRLModule", "Window"):
        assert name in rllib_dt.__all__
        assert getattr(rllib_dt, name).__doc__
