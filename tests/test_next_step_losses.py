"""`state_loss_weight` and `return_loss_weight`: the heads that the paper leaves untrained."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_dt import DecisionTransformer, DTModelConfig, Window, write_episodes
from rllib_dt.learning.objectives import objectives_in
from rllib_dt.learning.objectives.next_step import ReturnObjective, StateObjective
from tests.composites import ARM, ROBOT, config_of, make
from tests.conftest import TINY, tiny_config
from tests.environments import Sampled
from tests.training import NO_DROPOUT, learner_results, same, weights

B, K, S, A = 3, 5, 2, 2


def network(observation_space=None):
    torch.manual_seed(0)
    space = observation_space or Box(-np.inf, np.inf, (S,))
    config = DTModelConfig(**(TINY | NO_DROPOUT | dict(context_length=K)))
    net = DecisionTransformer(config, space, Box(-1.0, 1.0, (A,))).eval()
    net.observation_mean.copy_(torch.arange(net.observation_mean.numel()) + 1.0)
    net.observation_std.copy_(torch.arange(net.observation_std.numel()) * 2.0 + 3.0)
    net.return_scale.fill_(7.0)
    return net


def window(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(K) >= K - torch.tensor(lengths)[:, None]
    return Window(
        observations=torch.randn(B, K, S, generator=g) * 5,
        actions=torch.rand(B, K, A, generator=g) * 2 - 1,
        returns_to_go=torch.randn(B, K, 1, generator=g) * 20,
        timesteps=torch.arange(K).expand(B, K) * mask,
        mask=mask,
    )


@torch.no_grad()
def losses_of(net, data, **given):
    output = net.predict(data)
    outputs = {"state_outputs": output.state_outputs, "return_outputs": output.return_outputs}
    kinds = {"state_weight": StateObjective, "return_weight": ReturnObjective}
    objectives = [kinds[name](net, weight, None) for name, weight in given.items()]
    return output, [objective.term(outputs, data) for objective in objectives]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, K), min_size=B, max_size=B), st.integers(0, 2**16))
def test_each_prediction_is_compared_with_the_value_of_the_next_step(lengths, seed):
    net, data = network(), window(lengths, seed)
    output, (state, returns) = losses_of(net, data, state_weight=0.5, return_weight=2.0)
    want_state = want_return = 0.0
    for b, length in enumerate(lengths):
        for k in range(K - length, K - 1):
            error = output.state_preds[b, k] - data.observations[b, k + 1]
            want_state += float((error / net.observation_std).square().mean())
            gap = output.return_preds[b, k] - data.returns_to_go[b, k + 1]
            want_return += float((gap / 7.0).square().mean())
    assert float(state.loss_sum) == pytest.approx(want_state, rel=1e-4, abs=1e-5)
    assert float(returns.loss_sum) == pytest.approx(want_return, rel=1e-4, abs=1e-5)
    assert (state.name, state.weight) == ("state_loss", 0.5)
    assert (returns.name, returns.weight) == ("return_loss", 2.0)


def test_a_loss_with_weight_0_is_not_computed():
    config = tiny_config("data").training(return_loss_weight=1.0)
    assert [kind.name for kind in objectives_in(config)] == ["action_loss", "return_loss"]
    assert [kind.name for kind in objectives_in(tiny_config("data"))] == ["action_loss"]


def test_of_a_composite_observation_the_numbers_are_predicted():
    space = Dict(a=Box(-1.0, 1.0, (2,)), b=Discrete(3), c=Box(-1.0, 1.0, (1, 3)))
    net = network(space)
    observations = {"a": torch.ones(B, K, 2), "b": torch.zeros(B, K).long()}
    observations["c"] = torch.full((B, K, 1, 3), 2.0)
    numbers = net.normalized_numbers(observations)
    assert numbers.shape == (B, K, 5)
    values = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0])
    expected = (values - net.observation_mean) / net.observation_std
    torch.testing.assert_close(numbers[1, 2], expected)


@pytest.mark.parametrize("attention", ["context", "window"])
def test_both_are_trained_and_reported(cluster, tiny_data, attention):
    config = tiny_config(tiny_data[0], attention=attention)
    algo = config.training(state_loss_weight=1.0, return_loss_weight=1.0).build_algo()
    before = weights(algo)
    first = learner_results(algo)
    later = learner_results(algo, times=20)
    assert later["state_loss"] < first["state_loss"]
    assert later["return_loss"] < first["return_loss"]
    after = weights(algo)
    for head in ("predict_state", "predict_return"):
        assert not torch.equal(before[f"{head}.weight"], after[f"{head}.weight"])
    algo.stop()


def test_the_weighted_losses_add_up(cluster, tiny_data):
    config = tiny_config(tiny_data[0]).training(state_loss_weight=0.5, return_loss_weight=2.0)
    algo = config.offline_data(dataset_num_iters_per_learner=1).build_algo()
    found = learner_results(algo)
    total = found["action_loss"] + 0.5 * found["state_loss"] + 2.0 * found["return_loss"]
    assert found["total_loss"] == pytest.approx(total, rel=1e-5)
    algo.stop()


def test_only_the_head_whose_loss_counts_is_trained(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).training(return_loss_weight=1.0).build_algo()
    before, result = weights(algo), learner_results(algo, times=2)
    after = weights(algo)
    assert "return_loss" in result
    assert "state_loss" not in result
    assert torch.equal(before["predict_state.weight"], after["predict_state.weight"])
    assert not torch.equal(before["predict_return.weight"], after["predict_return.weight"])
    algo.stop()


def test_without_them_nothing_changes(cluster, tiny_data):
    """A weight of 0 is bit for bit the run without the setting."""

    def trained(**given):
        algo = tiny_config(tiny_data[0]).training(**given).build_algo()
        learner_results(algo, times=2)
        found = weights(algo)
        algo.stop()
        return found

    base = trained()
    assert same(base, trained(state_loss_weight=0.0, return_loss_weight=0.0))
    assert not same(base, trained(state_loss_weight=1.0))


def test_a_composite_space_trains_with_both(cluster, tmp_path):
    write_episodes(make(ROBOT, ARM), tmp_path / "data", ROBOT, ARM)
    spaces = {"observation_space": ROBOT, "action_space": ARM}
    config = config_of(Sampled, spaces, tmp_path / "data")
    config.offline_data(actions_in_input_normalized=False).training(
        state_loss_weight=1.0, return_loss_weight=1.0
    )
    algo = config.build_algo()
    assert set(learner_results(algo)) >= {"state_loss", "return_loss", "action_loss"}
    algo.stop()


def test_a_state_loss_without_numbers_is_refused(tmp_path):
    config = tiny_config("nowhere").training(state_loss_weight=1.0)
    config.environment(observation_space=gym.spaces.Discrete(4))
    with pytest.raises(ValueError, match=r"state_loss_weight=1.0\) predicts observations that"):
        config.validate()
    config = tiny_config("nowhere", context_length=1).training(return_loss_weight=1.0)
    with pytest.raises(ValueError, match=r"return_loss_weight=1.0\) predicts the next step of a"):
        config.validate()
    config = tiny_config("nowhere", condition_on_return=False).training(return_loss_weight=1.0)
    with pytest.raises(ValueError, match=r"which the network is not given with condition_on_ret"):
        config.validate()
