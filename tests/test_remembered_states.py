"""Images are embedded once in an episode: a policy remembers what it has embedded of them."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from rllib_dt import DTModelConfig
from rllib_dt.network.cache import EmbeddedStates
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.actor import Actor
from rllib_dt.policy.context import Contexts, NewSteps
from rllib_dt.policy.policy import Policy, as_tensors
from tests.conftest import tiny_config

K = 4
IMAGE = Box(0, 255, (2, 9, 9), np.uint8)
SPACES = {
    "image": IMAGE,
    "image and numbers": Dict(seen=IMAGE, felt=Box(-5, 5, (3,))),
    "image and mask": Dict(seen=IMAGE, action_mask=Box(0, 1, (3,), np.int8)),
}


def network(space, seed=0, **model):
    torch.manual_seed(seed)
    settings = dict(context_length=K, hidden_size=12, n_layer=2, n_head=2, max_ep_len=30) | model
    net = DecisionTransformer(DTModelConfig(**settings), space, Discrete(3)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def observed(space, rng):
    """An observation, whose mask forbids one action."""
    if isinstance(space, Dict):
        return {name: observed(part, rng) for name, part in space.items()}
    if space.dtype == np.int8:
        return np.roll(np.array([0, 1, 1], np.int8), rng.integers(3))
    return rng.uniform(space.low, space.high).astype(space.dtype)


@pytest.mark.parametrize("estimates", [False, True], ids=["target", "max"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_actions_are_those_of_whole_windows(space, estimates):
    """Episodes begin at different times, pause, and go on after the weights have changed."""
    net, other = (network(space, seed, estimates_return=estimates) for seed in range(2))
    policy, contexts, plain = (
        Policy(net),
        *(
            Contexts(3, net.config, space, Discrete(3), remembers=remembers)
            for remembers in (True, False)
        ),
    )
    rng, steps, embedded = np.random.default_rng(0), np.full(3, -1), []
    asks = np.inf if estimates else 7.0
    for round_ in range(40):
        slots = rng.permutation(3)[: rng.integers(1, 4)]
        for slot in map(int, slots):
            seen = observed(space, rng)
            if steps[slot] < 0 or rng.random() < 0.1:
                steps[slot] = -1
                for each in (contexts, plain):
                    each.begin(slot, each.observed(seen), asks)
            else:
                action, reward = int(rng.integers(3)), float(rng.normal())
                for each in (contexts, plain):
                    each.append(slot, each.acted(action), reward, each.observed(seen))
            steps[slot] += 1
        if round_ == 25:
            net.load_state_dict(other.state_dict())
            policy.forget()
        new = contexts.steps(slots, policy.version)
        assert isinstance(new, NewSteps)
        embedded.append(new.window.columns()["obs" if space is IMAGE else "obs/seen"].shape[1])
        window = as_tensors(plain.steps(slots), torch.device("cpu"))
        policy.act(as_tensors(new, torch.device("cpu")))
        wanted, asked = net.last_outputs(window)
        torch.testing.assert_close(policy.outputs, wanted[:, 0], rtol=1e-4, atol=1e-5)
        if estimates:
            torch.testing.assert_close(policy.asked, asked, rtol=1e-4, atol=1e-5)
            for slot, value in zip(slots, asked.tolist(), strict=True):
                contexts.settle(slot, value)
                plain.settle(slot, value)
    assert embedded[:25] == [1] * 25  # one new image of each episode
    assert 1 < max(embedded[25:]) <= K
    assert embedded[-1] == 1


@pytest.mark.parametrize(
    ("space", "model", "remembers"),
    [
        (IMAGE, {}, True),
        (IMAGE, dict(attention="window"), False),  # a cache needs no earlier image either
        (IMAGE, dict(image_encoder="linear"), False),
        (SPACES["image and numbers"], dict(ignore=["seen"]), False),
        (Box(-1, 1, (3,)), {}, False),
    ],
    ids=["image", "cache", "linear", "ignored", "vector"],
)
def test_only_what_takes_long_to_embed_is_remembered(space, model, remembers):
    assert Policy(network(space, **model)).remembers is remembers


class Flattened(torch.nn.Module):
    """A user's encoder of images."""

    def __init__(self, space, width):
        super().__init__()
        self.linear = torch.nn.Linear(int(np.prod(space.shape)), width)

    def forward(self, x):
        return self.linear(x.flatten(2).float())


def test_a_policy_with_an_encoder_of_the_users_sees_whole_windows():
    assert not Policy(network(IMAGE, encoders={"": Flattened})).remembers
    space = SPACES["image and numbers"]
    assert not Policy(network(space, encoders={"felt": Flattened})).remembers


def test_an_actor_embeds_each_image_once(monkeypatch):
    net = network(IMAGE)
    embed, counts = net.embed_observations, []
    monkeypatch.setattr(
        net, "embed_observations", lambda o: counts.append(o.shape[:2].numel()) or embed(o)
    )
    actor, rng = Actor(net, 5.0, num_envs=2), np.random.default_rng(0)
    for _ in range(9):
        actor.predict(np.stack([observed(IMAGE, rng) for _ in range(2)]))
    assert counts == [2] * 9


@pytest.mark.parametrize("attention", ["context", "window"])
def test_a_failed_attempt_leaves_no_gap(monkeypatch, attention):
    net, rng = network(IMAGE, attention=attention), np.random.default_rng(0)
    first, second = Actor(net, 5.0), Actor(net, 5.0)
    for step in range(7):
        seen = observed(IMAGE, rng)
        if step == 3:
            with monkeypatch.context() as patch:
                patch.setattr(net, "embed_observations", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    first.predict(seen)
            second.predict(seen)
            first._actions = list(second._actions)  # the environment took a step nevertheless
            continue
        first.predict(seen)
        second.predict(seen)
        outputs = first._policy.outputs, second._policy.outputs
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_what_one_episode_has_spoiled_is_hidden_from_the_next():
    """A number within float32 may lie outside it once it is normalised."""
    space = SPACES["image and numbers"]
    net, rng = network(space), np.random.default_rng(0)
    net.observation_std.fill_(1e-3)
    actor = Actor(net, 5.0)
    for _ in range(3):
        actor.predict({**observed(space, rng), "felt": np.full(3, 3e38, np.float32)})
    assert not actor._policy.outputs.isfinite().all()
    actor.reset()
    for _ in range(3):
        actor.predict(observed(space, rng))
        assert actor._policy.outputs.isfinite().all()


def test_it_acts_under_autocast():
    actor, rng = Actor(network(IMAGE), 5.0), np.random.default_rng(0)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            assert 0 <= actor.predict(observed(IMAGE, rng)) < 3


def test_a_window_without_earlier_observations_is_no_whole_one():
    """A module of a user's own may take it for one."""
    contexts = Contexts(1, network(IMAGE).config, IMAGE, Discrete(3), remembers=True)
    seen = observed(IMAGE, np.random.default_rng(0))
    contexts.begin(0, seen, 1.0)
    window = as_tensors(contexts.steps(np.array([0])), torch.device("cpu")).window
    with pytest.raises(ValueError, match=r"4 steps, but observations of 1\. .*remembers_states"):
        network(IMAGE).predict(window)


def test_places_are_reused_every_k_steps_and_grow_with_the_slots():
    states = EmbeddedStates(1, 3, 1)
    one, real = torch.ones(1, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)
    for step in range(5):
        new = torch.full((1, 1, 1), step + 10.0)
        found = states.extend(0 * one, step * one, real, one, new)
    assert found.flatten().tolist() == [12.0, 13.0, 14.0]
    states = states.grown(2)
    several = torch.arange(3.0).reshape(1, 3, 1)
    assert states.extend(one, 8 * one, real, 2 * one, several).flatten().tolist()[1:] == [1.0, 2.0]
    found = states.extend(0 * one, 5 * one, real, one, torch.full((1, 1, 1), 15.0))
    assert found.flatten().tolist() == [13.0, 14.0, 15.0]


class Noise(gym.Env):
    """Shows noise, and rewards the action that its first pixel names."""

    observation_space, action_space = IMAGE, Discrete(3)

    def __init__(self, config=None):
        super().__init__()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return self._seen(), {}

    def _seen(self):
        self._image = self.np_random.integers(0, 256, IMAGE.shape, dtype=np.uint8)
        return self._image

    def step(self, action):
        reward = float(self._image[0, 0, 0] % 3 == action)
        self._step += 1
        return self._seen(), reward, False, self._step == 11, {}


def test_evaluations_yield_the_same_episodes(cluster, tmp_path, monkeypatch):
    from rllib_dt import DTTorchRLModule, write_episodes

    rng = np.random.default_rng(0)
    episodes = [
        dict(
            obs=rng.integers(0, 256, (7, *IMAGE.shape), np.uint8),
            actions=rng.integers(0, 3, 7),
            rewards=rng.random(7),
            terminated=True,
            truncated=False,
        )
        for _ in range(4)
    ]
    write_episodes(episodes, tmp_path / "d", IMAGE, Discrete(3))
    config = tiny_config(str(tmp_path / "d")).environment(Noise, observation_space=None)
    config.observation_space = config.action_space = None
    config.env_runners(num_envs_per_env_runner=3)
    config.evaluation(target_returns=[3.0, 9.0], evaluation_duration=5)
    found, lengths = [], []
    embed = DecisionTransformer.embed_observations

    def counting(network, observations):
        lengths[-1].add(observations.shape[1])
        return embed(network, observations)

    monkeypatch.setattr(DecisionTransformer, "embed_observations", counting)
    for remembers in (True, False):
        with monkeypatch.context() as patch:
            if not remembers:
                patch.setattr(DTTorchRLModule, "remembers_states", False)
            lengths.append(set())
            algo = config.copy(copy_frozen=False).build_algo()
            algo.train()
            lengths.append(set())
            results = algo.evaluate()["env_runners"]
            algo.stop()
        found.append({t: r["episode_return_mean"] for t, r in results["by_target"].items()})
    assert found[0] == found[1]
    window = config.dt_model_config.context_length
    assert lengths == [{window}, {1}, {window}, {window}]
