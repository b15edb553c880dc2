"""`training(max_return_expectile=…)`: "max" asks for the most that the data show."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_dt import DT, DecisionTransformer, DTModelConfig, TrainedPolicy, load_policy
from rllib_dt.episodes.targets import target_name, target_value
from rllib_dt.episodes.windows import Window
from rllib_dt.huggingface import load_pretrained, save_pretrained
from rllib_dt.learning.expectiles import expectile_losses
from rllib_dt.plots import calibration, plot_targets, target_table
from tests.conftest import cartpole_config, tiny_config
from tests.test_actor import played
from tests.training import learner_results, same, weights

B, K, S, A = 3, 5, 4, 2


def network(attention="context", seed=0, **given):
    torch.manual_seed(seed)
    config = DTModelConfig(hidden_size=16, n_layer=2, n_head=2, context_length=K, max_ep_len=60,
                           attention=attention, **({"estimates_return": True} | given))  # fmt: skip
    net = DecisionTransformer(config, Box(-np.inf, np.inf, (S,)), Box(-1.0, 1.0, (A,))).eval()
    net.return_scale.fill_(7.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def window(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(K) >= K - torch.tensor(lengths)[:, None]
    return Window(
        observations=torch.randn(B, K, S, generator=g),
        actions=torch.rand(B, K, A, generator=g) * 2 - 1,
        returns_to_go=torch.randn(B, K, 1, generator=g) * 20,
        timesteps=torch.arange(K).expand(B, K) * mask,
        mask=mask,
    )


@given(st.floats(0.5, 0.99), st.lists(st.floats(-5, 5), min_size=3, max_size=30))
@settings(deadline=None)
def test_the_loss_is_least_at_the_expectile(expectile, values):
    returns = torch.tensor(values, dtype=torch.float64)
    # by bisection: the weighted sums of deviations above and below are equal
    low, high = returns.min(), returns.max()
    for _ in range(80):
        middle = (low + high) / 2
        above = expectile * (returns - middle).clamp(min=0).sum()
        below = (1 - expectile) * (middle - returns).clamp(min=0).sum()
        low, high = (middle, high) if above > below else (low, middle)
    loss = lambda at: expectile_losses(returns - at, expectile).sum()  # noqa: E731
    for step in (-0.01, 0.01):
        assert loss(low) <= loss(low + step) + 1e-12
    assert expectile_losses(torch.tensor([2.0, -2.0]), 0.9).tolist() == pytest.approx([3.6, 0.4])


@pytest.mark.parametrize("lengths", [[5, 1, 3], [5, 5, 5], [1, 1, 1]])
def test_an_estimate_sees_nothing_of_its_own_step_but_the_state(lengths):
    net, data = network(), window(lengths)
    want = net.predict(data).max_return_outputs
    assert want.shape == (B, K, 1)
    for name in ("returns_to_go", "actions"):
        changed = {n: v.clone() for n, v in data.columns().items()}
        changed[name][:, -1] += 3.0
        got = net.predict(Window.from_columns(changed)).max_return_outputs
        torch.testing.assert_close(got, want)
    changed = {n: v.clone() for n, v in data.columns().items()}
    changed["obs"][:, -1] += 3.0
    got = net.predict(Window.from_columns(changed)).max_return_outputs
    assert not torch.allclose(got[:, -1], want[:, -1])
    torch.testing.assert_close(got[:, :-1], want[:, :-1])


@pytest.mark.parametrize("lengths", [[5, 1, 3], [2, 4, 5]])
def test_acting_asks_for_the_estimate_where_the_return_is_infinite(lengths):
    net, data = network(), window(lengths)
    estimates = net.predict(data).max_return_outputs[:, -1, 0] * net.return_scale
    columns = {n: v.clone() for n, v in data.columns().items()}
    columns["returns_to_go"][:2, -1] = torch.inf
    actions, asked = net.act_and_ask(Window.from_columns(columns))
    want = torch.cat([estimates[:2], data.returns_to_go[2:, -1, 0]])
    torch.testing.assert_close(asked, want)
    columns["returns_to_go"][:, -1, 0] = want
    torch.testing.assert_close(actions, net.act(Window.from_columns(columns)), atol=1e-5, rtol=0)


def test_without_an_estimate_the_network_is_the_same():
    plain, net = network(estimates_return=False), network()
    own = {name for name in net.state_dict() if name.startswith("estimate_return.")}
    assert set(net.state_dict()) - set(plain.state_dict()) == own
    net.load_state_dict(net.state_dict() | plain.state_dict())
    data = window([5, 1, 3])
    torch.testing.assert_close(net.act(data), plain.act(data), atol=1e-6, rtol=0)
    net.predict(data).max_return_outputs.sum().backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    assert trained == own


@pytest.mark.parametrize("attention", ["context", "window"])
def test_an_actor_asks_for_the_most_at_every_step(attention):
    """Earlier steps keep what they were asked for; rewards do not matter."""
    net = network(attention)
    actor = TrainedPolicy(network=net).actor(["max", 30.0], num_envs=2)
    g = np.random.default_rng(0)
    observed = g.normal(size=(12, 2, S)).astype(np.float32)
    rewards = g.normal(size=(12, 2))
    actions, asked = [], []
    for t in range(12):
        got = actor.predict(observed[t], rewards[t])
        # from the whole episode so far, with infinity at the last step
        n = t + 1
        first = 0 if attention == "window" else max(0, n - K)
        columns = dict(
            obs=torch.tensor(observed[first:n, :1]).transpose(0, 1),
            actions=torch.tensor(np.array([*actions, np.zeros((1, A), np.float32)])[first:n]),
            returns_to_go=torch.tensor([*asked, np.inf][first:n], dtype=torch.float32),
            t=torch.arange(first, n)[None],
            loss_mask=torch.ones(1, n - first, dtype=torch.bool),
        )
        columns["actions"] = columns["actions"].transpose(0, 1)
        columns["returns_to_go"] = columns["returns_to_go"][None, :, None]
        want, estimate = net.act_and_ask(Window.from_columns(columns))
        np.testing.assert_allclose(got[:1], want, atol=1e-5)
        actions.append(got[:1])
        asked.append(float(estimate))
    assert len(set(np.round(asked, 4))) > 6


def test_targets_have_names_and_values():
    assert target_value("max") == np.inf
    assert target_name(target_value("max")) == "max"
    assert [target_name(t) for t in (3600.0, -120.5)] == ["3600", "-120.5"]
    for wrong in ("most", None, True, [1.0]):
        with pytest.raises(ValueError, match='neither a number nor "max"'):
            target_value(wrong)
    with pytest.raises(ValueError, match="asks for the most, which the network does not"):
        TrainedPolicy(network=network(estimates_return=False)).actor("max")


@pytest.mark.parametrize("attention", ["context", "window"])
def test_evaluation_asks_for_the_most(cluster, tmp_path, attention):
    config = cartpole_config(attention=attention).training(max_return_expectile=0.95)
    config.evaluation(target_returns=["max", 30.0], evaluation_duration=4)
    algo = config.build_algo()
    assert learner_results(algo, 3)["max_return_loss"] > 0
    found = algo.evaluate()["env_runners"]
    assert list(found["by_target"]) == ["max", "30"]
    assert found["episode_return_mean"] == found["by_target"]["max"]["episode_return_mean"]
    path = algo.save_to_path(tmp_path / "ck")
    policy = load_policy(path)
    assert policy.target_returns == (np.inf, 30.0)
    import gymnasium as gym

    env = gym.make("CartPole-v1", max_episode_steps=40)
    seeds = [int(s) for s in np.random.SeedSequence(0).generate_state(4)]
    returns = [played(env, policy.actor("max"), seed)[0] for seed in seeds]
    assert np.mean(returns) == found["by_target"]["max"]["episode_return_mean"]
    again = algo.evaluate(target_returns="max")["env_runners"]["by_target"]
    assert list(again) == ["max"]
    algo.stop()
    restored = DT.from_checkpoint(path)
    assert restored.evaluate()["env_runners"]["by_target"] == found["by_target"]
    restored.stop()
    assert "max" in target_table(found["by_target"])
    assert calibration(found["by_target"]).slope is None
    plot_targets(found["by_target"], [10.0, 20.0], tmp_path / "targets.png")
    plot_targets(again, [], tmp_path / "max.png")


def test_a_folder_keeps_the_estimate_and_one_without_may_learn_it(tmp_path):
    net = network()
    save_pretrained(net, tmp_path / "with")
    again = load_pretrained(tmp_path / "with")
    assert same(again.state_dict(), net.state_dict())
    save_pretrained(network(estimates_return=False), tmp_path / "without")
    assert load_pretrained(tmp_path / "without").estimate_return is None
    assert load_pretrained(tmp_path / "without", estimates_return=True).estimate_return is not None


def test_fixed_targets_get_the_same_policy(cluster, tiny_data):
    found = []
    for expectile in (None, 0.9):
        config = tiny_config(tiny_data[0], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        config.training(max_return_expectile=expectile, grad_clip=None).debugging(seed=4)
        algo = config.build_algo()
        learner_results(algo, 2)
        found.append(weights(algo))
        algo.stop()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(evaluation=["max"]), r"asks for the most, which nothing estimates; set training\("),
        (dict(expectile=0.3), "max_return_expectile"),
        (dict(expectile=0.9, evaluation=["most"]), "target_returns='most'"),
        (dict(expectile=0.9, evaluation=["max", "max"]), "names a target twice"),
        (dict(expectile=0.9, condition_on_return=False), "estimates_return=True needs returns"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message, tiny_data):
    settings = dict(settings)
    expectile, targets = settings.pop("expectile", None), settings.pop("evaluation", None)
    config = tiny_config(tiny_data[0], **settings).training(max_return_expectile=expectile)
    with pytest.raises(ValueError, match=message):
        config.evaluation(target_returns=targets).validate()
