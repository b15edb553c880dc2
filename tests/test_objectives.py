"""What holds for every objective of the table: resuming, streaming, bf16, compilation, learners."""

from functools import partial

import pytest
import torch

from rllib_dt import DT
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.learning.objectives import OBJECTIVES, objectives_in
from tests.conftest import tiny_config
from tests.training import learner_results, same, weights

SETTINGS = {
    "action_loss": {},
    "state_loss": dict(state_loss_weight=0.5),
    "return_loss": dict(return_loss_weight=2.0),
    "entropy_loss": dict(),
    "max_return_loss": dict(max_return_expectile=0.9),
    "q_loss": dict(q_weight=0.5, critic_updates=20),
}
"""What turns each objective on."""

every = pytest.mark.parametrize("name", SETTINGS)


MODEL = {"entropy_loss": dict(action_distribution="squashed_gaussian")}
"""What turns it on among the network's settings."""


def config_of(name, data, **model):
    model |= MODEL.get(name, {})
    config = tiny_config(data, **model).training(**SETTINGS[name]).debugging(seed=3)
    assert name in [kind.name for kind in objectives_in(config)]
    return config


def test_the_table_is_whole_and_only_the_first_is_on_by_default(tiny_data):
    assert [kind.name for kind in OBJECTIVES] == list(SETTINGS)
    config = tiny_config(tiny_data[0])
    assert [kind.name for kind in objectives_in(config)] == ["action_loss"]


@every
def test_a_resumed_run_goes_on_bit_for_bit_and_reports_the_loss(cluster, tiny_data, tmp_path, name):
    config = config_of(name, tiny_data[0], resid_pdrop=0.3)
    algo = config.build_algo()
    assert learner_results(algo, config.critic_iterations + 2)[name] != 0
    path = algo.save_to_path(tmp_path / "ck")
    want = learner_results(algo)[name]
    final = weights(algo)
    algo.stop()
    resumed = DT.from_checkpoint(path)
    assert learner_results(resumed)[name] == want
    assert same(weights(resumed), final)
    resumed.stop()


@every
def test_its_own_head_alone_is_trained_for_it(cluster, tiny_data, name):
    config = config_of(name, tiny_data[0])
    config.validate()
    algo = config.build_algo()
    before = weights(algo)
    learner_results(algo, config.critic_iterations + 1)
    after = weights(algo)
    heads = {"state_loss": "predict_state.", "return_loss": "predict_return.",
             "max_return_loss": "estimate_return."}  # fmt: skip
    for kind, prefix in heads.items():
        own = [key for key in before if key.startswith(prefix)]
        moved = any(not torch.equal(before[key], after[key]) for key in own)
        assert moved is (kind == name)
    algo.stop()


NO_CHANCE = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


class Poisoned(DTTorchLearner):
    """While `fails` is set, the loss of an update's second part is not finite."""

    fails = False

    def compute_loss_for_module(self, **given):
        loss = super().compute_loss_for_module(**given)
        return loss * float("nan") if self.fails and not self._call.part.is_first else loss


class Raising(Poisoned):
    """Raises there instead."""

    def compute_loss_for_module(self, **given):
        loss = super().compute_loss_for_module(**given)
        if not loss.isfinite():
            raise ValueError("the second part fails")
        return loss


def set_fails(learner, value):
    learner.fails = value


def in_parts(config, size):
    """Trains for three calls; returns the last result, the weights, and the windows at a time."""
    algo = config.training(micro_batch_size=size, train_batch_size_per_learner=8).build_algo()
    seen = []
    learner = algo.learner_group._learner
    if learner is not None:
        module = learner.module["default_policy"]
        forward = module._forward_train
        module._forward_train = lambda batch: seen.append(len(batch["obs"])) or forward(batch)
    results = learner_results(algo, config.critic_iterations + 3)
    found = weights(algo)
    algo.stop()
    return results, found, seen


@every
def test_micro_batches_add_up_to_the_same_update(cluster, tiny_data, name):
    whole, wanted, at_once = in_parts(config_of(name, tiny_data[0], **NO_CHANCE), None)
    parts, found, seen = in_parts(config_of(name, tiny_data[0], **NO_CHANCE), 3)
    assert set(at_once) == {8}
    assert seen == [3, 3, 2] * len(at_once)
    same_steps = {"num_updates_lifetime", "num_steps_trained_lifetime", "num_windows_trained"}
    assert {k: whole[k] for k in same_steps} == {k: parts[k] for k in same_steps}
    if name == "entropy_loss":  # estimated by draws, but α moves once an update
        assert parts["entropy_alpha"] == pytest.approx(whole["entropy_alpha"], rel=1e-3)
        assert parts["entropy_alpha"] != config_of(name, tiny_data[0]).initial_alpha
        return
    for key in (name, "action_loss", "gradient_norm", "total_loss"):
        assert parts[key] == pytest.approx(whole[key], rel=1e-5)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@every
def test_two_learners_add_micro_batches_up_to_the_same_update(cluster, tiny_data, name):
    def config():
        return config_of(name, tiny_data[0], **NO_CHANCE).learners(num_learners=2)

    (whole, wanted, _), (parts, found, _) = in_parts(config(), None), in_parts(config(), 3)
    if name != "entropy_loss":
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)
        # a hundredth of one of the nine updates' steps of 1e-3: two learners' gradients are added
        # up in no fixed order, and Adam divides a tiny one by its own size
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    else:
        assert parts["entropy_alpha"] == pytest.approx(whole["entropy_alpha"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["streamed", "bf16", "compiled", "window"])
def test_micro_batches_hold_in_every_way_to_train(cluster, tiny_data, way):
    def config():
        given = dict(attention="window") if way == "window" else {}
        config = config_of("action_loss", tiny_data[0], **NO_CHANCE, **given)
        if way == "streamed":
            config.offline_data(pool_capacity_steps=30, pool_reuse=20)
        if way == "bf16":
            config.training(precision="bf16")
        if way == "compiled":
            config.framework(
                torch_compile_learner=True, torch_compile_learner_dynamo_backend="eager"
            )
        return config

    whole, _, _ = in_parts(config(), None)
    parts, _, seen = in_parts(config(), 4)
    assert parts["action_loss"] == pytest.approx(
        whole["action_loss"], rel=1e-2 if way == "bf16" else 1e-5
    )
    model = config().dt_model_config
    segments = [round(n * model.context_length / model.window_length) for n in (8, 4)]
    assert sum(seen) == segments[0] * whole["num_updates_lifetime"]
    assert max(seen) == segments[1]


@pytest.mark.parametrize("learner", [Poisoned, Raising])
def test_a_failed_part_leaves_nothing_behind(cluster, tiny_data, tmp_path, learner):
    """An entropy that failed is not in the next update's."""
    config = config_of("entropy_loss", tiny_data[0]).training(micro_batch_size=3)
    algo = config.training(learner_class=learner).build_algo()
    learner_results(algo, 1)
    path = algo.save_to_path(tmp_path / "ck")
    algo.learner_group.foreach_learner(partial(set_fails, value=True))
    with pytest.raises((RuntimeError, ValueError), match=r"not finite|second part fails"):
        algo.train()
    algo.learner_group.foreach_learner(partial(set_fails, value=False))
    algo.restore_from_path(path)
    again = learner_results(algo)
    algo.stop()
    untouched = DT.from_checkpoint(path)
    assert learner_results(untouched)["entropy_alpha"] == again["entropy_alpha"]
    untouched.stop()


@pytest.mark.slow
def test_a_part_that_fails_on_two_learners_ends_the_run(cluster, tiny_data):
    config = config_of("state_loss", tiny_data[0]).training(micro_batch_size=3)
    algo = config.training(learner_class=Poisoned).learners(num_learners=2).build_algo()
    learner_results(algo)
    algo.learner_group.foreach_learner(partial(set_fails, value=True))
    with pytest.raises(RuntimeError, match="the loss is not finite at update 3"):
        algo.train()
    algo.stop()


def test_a_run_in_micro_batches_resumes_bit_for_bit(cluster, tiny_data, tmp_path):
    config = config_of("state_loss", tiny_data[0], resid_pdrop=0.3)
    algo = config.training(micro_batch_size=3).build_algo()
    learner_results(algo, 2)
    path = algo.save_to_path(tmp_path / "ck")
    want = learner_results(algo)["state_loss"]
    final = weights(algo)
    algo.stop()
    resumed = DT.from_checkpoint(path)
    assert learner_results(resumed)["state_loss"] == want
    assert same(weights(resumed), final)
    resumed.stop()


@pytest.mark.slow
@every
@pytest.mark.parametrize("way", ["streamed", "bf16", "compiled", "two learners"])
def test_it_holds_in_every_way_to_train(cluster, tiny_data, name, way):
    config = config_of(name, tiny_data[0], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    if way == "streamed":
        config.offline_data(pool_capacity_steps=30, pool_reuse=20)
    if way == "bf16":
        config.training(precision="bf16")
    if way == "compiled":
        config.framework(torch_compile_learner=True, torch_compile_learner_dynamo_backend="eager")
    if way == "two learners":
        config.learners(num_learners=2)
    algo = config.build_algo()
    first = learner_results(algo, config.critic_iterations + 1)[name]
    last = learner_results(algo)[name]
    assert last < 2 * abs(first) + 0.1
    assert last != 0
    algo.stop()
