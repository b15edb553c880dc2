"""`DTModelConfig(action_distribution="squashed_gaussian")`: densities, entropy, and draws."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from rllib_dt import DT, DecisionTransformer, DTModelConfig, TrainedPolicy
from rllib_dt.huggingface import load_pretrained, save_pretrained
from rllib_dt.spaces.gaussian_head import SquashedGaussianHead
from rllib_dt.spaces.heads import head_of_space
from tests.conftest import TINY, cartpole_config, tiny_config
from tests.training import learner_results, same, weights

STOCHASTIC = dict(action_distribution="squashed_gaussian")
LOW, HIGH = np.array([-1.0, -3.0, 0.0], np.float32), np.array([1.0, 5.0, 0.5], np.float32)
A = 3


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs_of(head, *shape, seed=0):
    raw = drawn(*shape, head.size + head.spread_size, seed=seed)
    return torch.cat(
        [head.squash(raw[..., : head.size]), head.log_std(raw[..., head.size :])], dim=-1
    )


def test_densities_are_those_of_torch_and_of_rllib():
    head = SquashedGaussianHead(Box(LOW, HIGH))
    outputs = outputs_of(head, 5, 7)
    mean, log_std = outputs.chunk(2, dim=-1)
    unit = torch.rand(5, 7, A, generator=torch.Generator().manual_seed(1)) * 1.9 - 0.95
    actions = (unit + 1) / 2 * (torch.tensor(HIGH) - torch.tensor(LOW)) + torch.tensor(LOW)
    theirs = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    found = head.log_probs(outputs, actions)
    torch.testing.assert_close(found, theirs.log_prob(unit).sum(-1), atol=2e-3, rtol=1e-4)
    rllib = TorchSquashedGaussian.from_logits(outputs)
    torch.testing.assert_close(found, rllib.logp(unit), atol=2e-3, rtol=1e-4)
    assert torch.equal(head.losses(outputs, actions), -found)


def test_spreads_stay_within_their_range():
    head = SquashedGaussianHead(Box(LOW, HIGH))
    raw = torch.tensor([[-100.0, 0.0, 100.0]])
    torch.testing.assert_close(head.log_std(raw), torch.tensor([[-5.0, -1.5, 2.0]]))


def test_actions_at_their_bounds_have_a_finite_loss_and_gradient():
    head = SquashedGaussianHead(Box(LOW, HIGH))
    outputs = outputs_of(head, 2).requires_grad_()
    losses = head.losses(outputs, torch.tensor(np.stack([LOW, HIGH])))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_draws_have_the_spread_that_was_asked_for(temperature):
    head = SquashedGaussianHead(Box(LOW, HIGH))
    outputs = outputs_of(head, 1)
    N = 20_000
    actions = head.act(outputs.expand(N, -1), temperature=temperature,
                       generator=torch.Generator().manual_seed(3))  # fmt: skip
    assert ((actions >= torch.tensor(LOW)) & (actions <= torch.tensor(HIGH))).all()
    inner = head.features(actions).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
    mean, std = outputs[0, :A], temperature * outputs[0, A:].exp()
    # false alarms once in 10,000 for each of the six numbers: four standard errors
    assert ((inner.mean(0) - mean).abs() <= 4 * std / N**0.5 + 1e-3).all()
    assert ((inner.std(0) - std).abs() <= 4 * std / (2 * N) ** 0.5 + 1e-3).all()


def test_draws_lie_in_the_space_to_the_last_bit():
    space = Box(np.array([0.1, -0.7, 1e-3], np.float32), np.array([0.7, 1.3, 2e-3], np.float32))
    head = SquashedGaussianHead(space)
    actions = head.act(100 * outputs_of(head, 500), temperature=1.0).numpy()
    assert all(space.contains(action) for action in actions)
    assert ((actions == space.low) | (actions == space.high)).mean() > 0.5


def test_entropy_is_estimated_without_a_bias():
    head = SquashedGaussianHead(Box(LOW, HIGH))
    outputs = outputs_of(head, 1)
    torch.manual_seed(5)
    estimates = head.entropies(outputs.expand(50_000, -1))
    mean, log_std = outputs[0].double().chunk(2)
    # by a sum over a grid, component by component
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    normal = Normal(mean, log_std.exp())
    log_p = normal.log_prob(grid) - torch.log1p(-(grid.tanh() ** 2) + 1e-300)
    want = -(normal.log_prob(grid).exp() * log_p * (grid[1] - grid[0])).sum()
    error = 4 * float(estimates.std()) / len(estimates) ** 0.5
    assert abs(float(estimates.mean()) - float(want)) < error + 0.01


def test_components_without_bounds_and_without_range():
    space = Box(
        np.array([-np.inf, 2.0, -1.0], np.float32), np.array([np.inf, 2.0, 1.0], np.float32)
    )
    head = SquashedGaussianHead(space)
    head.set_statistics(torch.tensor([10.0, 2.0, 0.0]), torch.tensor([4.0, 1.0, 1.0]))
    outputs = outputs_of(head, 1)
    actions = torch.tensor([[30.0, 2.0, 0.5]])
    mean, std = outputs[0, :3], outputs[0, 3:].exp()
    plain = Normal(mean[0], std[0]).log_prob(torch.tensor(5.0))
    squashed = TransformedDistribution(Normal(mean[2], std[2]), [TanhTransform()])
    want = plain + squashed.log_prob(torch.tensor(0.5))
    torch.testing.assert_close(head.log_probs(outputs, actions)[0], want, atol=1e-4, rtol=1e-4)
    found = head.act(outputs.expand(100, -1), temperature=1.0)
    assert (found[:, 1] == 2.0).all()
    assert found[:, 0].std() > 1.0
    assert head.entropies(outputs).isfinite().all()


def test_a_composite_has_the_sum_over_its_leaves():
    space = Dict(arm=Box(-2.0, 2.0, (2,)), grip=Discrete(3), hand=Box(0.0, 1.0, (1,)))
    head = head_of_space(space, tanh=True, distribution="squashed_gaussian")
    assert (head.size, head.spread_size, head.has_log_probs) == (6, 3, True)
    outputs = outputs_of(head, 4)
    arm, grip, hand = (head.heads[f"/{name}"] for name in ("arm", "grip", "hand"))
    parts = {  # means of all leaves, then spreads
        arm: outputs[:, [0, 1, 6, 7]],
        grip: outputs[:, 2:5],
        hand: outputs[:, [5, 8]],
    }
    torch.manual_seed(0)
    actions = head.act(outputs, temperature=1.0)
    want = sum(h.log_probs(part, actions[name]) for (h, part), name in
               zip(parts.items(), ("arm", "grip", "hand"), strict=True))  # fmt: skip
    torch.testing.assert_close(head.log_probs(outputs, actions), want)
    torch.testing.assert_close(head.losses(outputs, actions), -want)
    deterministic = head_of_space(space, tanh=True)
    assert not deterministic.has_log_probs
    with pytest.raises(NotImplementedError, match="not drawn"):
        deterministic.log_probs(outputs[:, :6], actions)


def network(seed=0, **model):
    torch.manual_seed(seed)
    return DecisionTransformer(
        DTModelConfig(**(TINY | STOCHASTIC | model)), Box(-np.inf, np.inf, (4,)), Box(LOW, HIGH)
    )


def test_the_other_weights_begin_as_without_a_spread():
    plain, ours = network(action_distribution="deterministic"), network()
    own = {"predict_log_std.weight", "predict_log_std.bias"}
    assert set(ours.state_dict()) - set(plain.state_dict()) == own
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in plain.state_dict().items())


@pytest.mark.parametrize("attention", ["context", "window"])
def test_an_actor_draws_with_a_temperature(attention):
    policy = TrainedPolicy(network=network(attention=attention))
    observations = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def played(temperature, seed=0):
        generator = torch.Generator().manual_seed(seed)
        actor = policy.actor(3.0, temperature=temperature, generator=generator)
        return np.array([actor.predict(o, 0.5) for o in observations])

    assert (played(0.0) == played(0.0, seed=1)).all()
    assert (played(1.0) == played(1.0)).all()
    assert (played(1.0) != played(1.0, seed=1)).any()
    assert (played(1.0) != played(0.0)).any()


def test_a_folder_keeps_the_spread_and_others_read_the_likeliest_action(tmp_path):
    ours = network().eval()
    with torch.no_grad():
        ours.predict_log_std.bias.add_(0.3)
    save_pretrained(ours, tmp_path / "with")
    again = load_pretrained(tmp_path / "with")
    assert again.config.action_distribution == "squashed_gaussian"
    assert same(again.state_dict(), ours.state_dict())
    plain = load_pretrained(tmp_path / "with", action_distribution="deterministic")
    state = drawn(1, 5, 4)
    window = dict(
        observations=state, actions=torch.zeros(1, 5, A), returns_to_go=torch.ones(1, 5, 1),
        timesteps=torch.arange(5)[None],
    )  # fmt: skip
    torch.testing.assert_close(plain(**window).action_preds, ours(**window).action_preds)
    save_pretrained(network(action_distribution="deterministic"), tmp_path / "without")
    assert load_pretrained(tmp_path / "without", **STOCHASTIC).predict_log_std is not None


# --- in RLlib


@pytest.mark.slow
def test_training_reports_entropy_and_moves_towards_its_target(cluster, tiny_data):
    config = tiny_config(tiny_data[0], **STOCHASTIC)
    config.training(lr=3e-3, initial_alpha=1.0, alpha_lr=0.05, target_entropy=0.5)
    config.offline_data(dataset_num_iters_per_learner=100)
    algo = config.build_algo()
    first = learner_results(algo)
    last = learner_results(algo, 3)
    assert last["action_loss"] < first["action_loss"]
    assert abs(last["entropy"] - 0.5) < 0.5
    assert last["entropy_alpha"] != first["entropy_alpha"]
    algo.stop()


def test_a_resumed_run_keeps_its_temperature(cluster, tiny_data, tmp_path):
    config = tiny_config(tiny_data[0], **STOCHASTIC).training(alpha_lr=0.1)
    algo = config.build_algo()
    learner_results(algo, 2)
    path = algo.save_to_path(tmp_path / "ck")
    want, final = learner_results(algo), weights(algo)
    algo.stop()
    resumed = DT.from_checkpoint(path)
    found = learner_results(resumed)
    names = ("action_loss", "entropy_loss", "entropy", "entropy_alpha")
    assert [found[n] for n in names] == [want[n] for n in names]
    assert same(weights(resumed), final)
    resumed.stop()


class Reach(gym.Env):
    """Five steps; the reward is minus the distance of two numbers from 1."""

    observation_space, action_space = Box(-1.0, 1.0, (3,)), Box(-2.0, 2.0, (2,))

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = -float(np.abs(action - 1).sum())
        return np.zeros(3, np.float32), reward, False, self.t == 5, {}


@pytest.mark.parametrize("attention", ["context", "window"])
def test_a_module_gives_the_log_probabilities_of_what_it_drew(cluster, tiny_data, attention):
    config = tiny_config(tiny_data[0], attention=attention, **STOCHASTIC)
    algo = config.build_algo()
    module = algo.get_module()
    network = module.network
    K = network.config.window_length
    columns = dict(
        obs=drawn(4, K, 3), actions=drawn(4, K, 2).tanh(), returns_to_go=torch.ones(4, K, 1),
        t=torch.arange(K).expand(4, K), loss_mask=torch.ones(4, K, dtype=torch.bool),
    )  # fmt: skip
    found = module.forward_exploration(columns)
    outputs = network(columns["obs"], columns["actions"], columns["returns_to_go"], columns["t"])
    torch.testing.assert_close(found["action_dist_inputs"], outputs.action_outputs[:, -1])
    distribution = module.get_exploration_action_dist_cls()
    theirs = distribution.from_logits(found["action_dist_inputs"])
    torch.testing.assert_close(
        found["action_logp"], theirs.logp(found["actions"]), atol=2e-3, rtol=1e-3
    )
    assert set(module.forward_inference(columns)) == {"actions", "action_dist_inputs"}
    algo.stop()


def test_categories_have_log_probabilities_too(cluster):
    algo = cartpole_config().build_algo()
    module = algo.get_module()
    K = module.network.config.window_length
    columns = dict(
        obs=drawn(4, K, 4), actions=torch.zeros(4, K).long(), returns_to_go=torch.ones(4, K, 1),
        t=torch.arange(K).expand(4, K), loss_mask=torch.ones(4, K, dtype=torch.bool),
    )  # fmt: skip
    found = module.forward_exploration(columns)
    theirs = module.get_exploration_action_dist_cls().from_logits(found["action_dist_inputs"])
    torch.testing.assert_close(found["action_logp"], theirs.logp(found["actions"]))
    algo.stop()


def test_importance_sampling_by_rllibs_names(cluster, tiny_data):
    """The mean weight of actions drawn from one policy is 1 under another."""
    algo = tiny_config(tiny_data[0], **STOCHASTIC).build_algo()
    module = algo.get_module()
    torch.manual_seed(1)
    other = DecisionTransformer(module.network.config, *(
        module.observation_space, module.action_space)).eval()  # fmt: skip
    N, K = 4000, 1
    columns = dict(
        obs=drawn(1, K, 3).expand(N, K, 3), actions=torch.zeros(N, K, 2),
        returns_to_go=torch.ones(N, K, 1), t=torch.zeros(N, K).long(),
        loss_mask=torch.ones(N, K, dtype=torch.bool),
    )  # fmt: skip
    torch.manual_seed(2)
    found = module.forward_exploration(columns)
    of_other = other(columns["obs"], columns["actions"], columns["returns_to_go"], columns["t"])
    logits = of_other.action_outputs[:, -1].detach()
    target = module.get_inference_action_dist_cls().from_logits(logits)
    weights = (target.logp(found["actions"]) - found["action_logp"]).exp()
    # false alarms once in 10,000: four standard errors
    assert abs(float(weights.mean()) - 1) < 4 * float(weights.std()) / N**0.5
    assert weights.std() > 0.01
    algo.stop()


def test_evaluation_draws_with_a_temperature(cluster, tiny_data):
    config = tiny_config(tiny_data[0], **STOCHASTIC)
    config.environment(Reach, observation_space=None, action_space=Box(-2.0, 2.0, (2,)))
    config.offline_data(actions_in_input_normalized=False)
    config.environment(observation_space=None, action_space=None)
    found = {}
    for temperature in (0.0, 1.0):
        config = config.copy(copy_frozen=False)
        config.evaluation(temperature=temperature, target_returns=[0.0], evaluation_duration=20)
        algo = config.build_algo()
        found[temperature] = algo.evaluate()["env_runners"]["by_target"]["0"]
        algo.stop()
    assert found[0.0]["episode_return_std"] == 0.0
    assert found[1.0]["episode_return_std"] > 0.1


def test_episodes_keep_the_log_probabilities_of_what_was_drawn(cluster):
    seen = []

    def keep(*, episode, **kwargs):
        names = ("action_logp", "action_dist_inputs")
        outputs = [np.array(episode.get_extra_model_outputs(name)) for name in names]
        seen.append((*outputs, np.array(episode.get_actions())))

    config = cartpole_config().callbacks(on_episode_end=keep)
    config.evaluation(temperature=1.0, target_returns=[20.0], evaluation_duration=2)
    algo = config.build_algo()
    algo.evaluate()
    algo.stop()
    assert len(seen) == 2
    for log_probs, logits, actions in seen:
        want = torch.tensor(logits).log_softmax(-1)[torch.arange(len(actions)), actions]
        np.testing.assert_allclose(log_probs, want, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "message"),
    [(Discrete(3), "has none; leave it out"), (MultiDiscrete([2, 2]), "has none; leave it out")],
)
def test_a_distribution_of_numbers_needs_numbers(tiny_data, space, message):
    config = tiny_config(tiny_data[0], **STOCHASTIC).environment(action_space=space)
    with pytest.raises(ValueError, match=message):
        config.validate()
    with pytest.raises(ValueError, match="squashes actions by a tanh"):
        DTModelConfig(**STOCHASTIC, action_tanh=False).validate()
    with pytest.raises(ValueError, match="not one of"):
        DTModelConfig(action_distribution="normal").validate()
