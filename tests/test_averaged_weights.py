"""`training(ema_decay=…)`: evaluation, export and `get_module` use the average of the weights."""

import numpy as np
import pytest
import torch
from torch import nn

from rllib_dt import DT, load_policy
from rllib_dt.learning.averages import AveragedWeights, raw_weights, set_raw_weights
from tests.conftest import tiny_config
from tests.training import learner_results, same, weights

DECAY = 0.9


def raw(algo):
    """The weights that are trained, on every learner; all have the same."""
    found = algo.learner_group.foreach_learner(lambda learner, **_: raw_weights(learner.network))
    return [result.get() for result in found]


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_average_follows_its_formula():
    layer = nn.Linear(1, 1, bias=False)
    values = [0.0, 2.0, -1.0, 5.0, 3.0]
    with torch.no_grad():
        layer.weight.fill_(values[0])
    averages, want = AveragedWeights(layer, 0.35), values[0]
    # the decay rises: 2/11, 3/12, 4/13, and then stops at 0.35 (5/14 would be 0.357)
    for update, (value, decay) in enumerate(
        zip(values[1:], (2 / 11, 3 / 12, 4 / 13, 0.35), strict=True), 1
    ):
        with torch.no_grad():
            layer.weight.fill_(value)
        averages.update(update)
        want = decay * want + (1 - decay) * value
        with averages.applied():
            assert layer.weight.item() == pytest.approx(want, rel=1e-6)
        assert layer.weight.item() == value
    averages.reset()
    with averages.applied():
        assert layer.weight.item() == values[-1]


def test_weights_can_be_taken_and_set():
    layer = nn.Linear(3, 2)
    kept = raw_weights(layer)
    with torch.no_grad():
        layer.weight.zero_()
    set_raw_weights(layer, kept)
    assert equal(raw_weights(layer), kept)
    assert kept["weight"].any()


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_evaluated_saved_and_exported_is_the_average(
    cluster, tiny_data, tmp_path, num_learners
):
    config = tiny_config(tiny_data[0]).training(ema_decay=DECAY, lr=0.01, warmup_steps=0)
    config.debugging(seed=3).learners(num_learners=num_learners)
    config.offline_data(validation_fraction=0.3)
    algo = config.build_algo()
    start = raw(algo)[0]
    learner_results(algo, 2)
    trained = raw(algo)
    assert all(equal(each, trained[0]) for each in trained)
    average = {name: value.numpy() for name, value in weights(algo).items()}
    for name, value in trained[0].items():
        if not np.array_equal(start[name], value):  # heads that are not trained stay
            assert not np.array_equal(average[name], value), name
    # what validates is the average too
    module = algo.get_module()
    held_out = algo.validate()["action_loss"]
    path = algo.save_to_path(tmp_path / "ck")
    assert same(load_policy(path).network.state_dict(), module.network.state_dict())
    want = [learner_results(algo)["action_loss"] for _ in range(2)]
    final, final_average = raw(algo)[0], weights(algo)
    algo.stop()
    resumed = DT.from_checkpoint(path)
    assert equal(raw(resumed)[0], trained[0])
    assert resumed.validate()["action_loss"] == pytest.approx(held_out, rel=1e-6)
    got = [learner_results(resumed)["action_loss"] for _ in range(2)]
    assert got == pytest.approx(want, rel=1e-6 if num_learners else 0, abs=0)
    if not num_learners:
        assert equal(raw(resumed)[0], final)
        assert same(weights(resumed), final_average)
    resumed.stop()


def test_training_itself_is_unchanged(cluster, tiny_data):
    found = []
    for decay in (None, DECAY):
        config = tiny_config(tiny_data[0]).training(ema_decay=decay).debugging(seed=3)
        algo = config.build_algo()
        loss = learner_results(algo, 2)["action_loss"]
        found.append((loss, raw(algo)[0]))
        algo.stop()
    assert found[0][0] == found[1][0]
    assert equal(found[0][1], found[1][1])


def test_a_checkpoint_with_an_average_goes_on_without_and_the_other_way_round(
    cluster, tiny_data, tmp_path
):
    config = tiny_config(tiny_data[0]).debugging(seed=3)
    for first, then in ((DECAY, None), (None, DECAY)):
        algo = config.copy(copy_frozen=False).training(ema_decay=first).build_algo()
        learner_results(algo)
        trained = raw(algo)[0]
        path = algo.save_to_path(tmp_path / f"ck {first}")
        algo.stop()
        other = DT.from_checkpoint(path, training=dict(ema_decay=then))
        assert equal(raw(other)[0], trained)
        learner_results(other)
        other.stop()


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, "0.9", True])
def test_other_decays_are_refused(decay, tiny_data):
    with pytest.raises(ValueError, match="ema_decay"):
        tiny_config(tiny_data[0]).training(ema_decay=decay).validate()
