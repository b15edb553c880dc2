"""Masks of legal actions, and spaces that cannot be used."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Text

from rllib_dt import DTConfig, write_episodes
from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.policy.actor import Actor
from rllib_dt.spaces import composites
from rllib_dt.spaces.leaves import UnsupportedSpaceError
from rllib_dt.spaces.trees import (
    LeafChoice,
)
from tests.composites import config_of, windows
from tests.environments import Masked
from tests.test_spaces import network

LEGAL = gym.spaces.Dict(action_mask=MultiBinary(5), seen=Box(-1.0, 1.0, (3,)))


@pytest.mark.parametrize("actions", [Discrete(5, start=2), MultiDiscrete([2, 3], start=[1, 0])])
def test_forbidden_actions_have_no_probability(actions):
    net = network(LEGAL, actions)
    window = windows(LEGAL, actions, 0)
    # what is recorded is legal, and of each category one more value at most
    mask = net.action_head.features(window.actions)
    window.observations["action_mask"].copy_(mask)
    out = net.predict(window, only_actions=True).action_outputs
    probabilities = out.masked_fill(mask != 0, -1e30).exp()
    assert not probabilities.any()
    # only one value is legal: the loss is zero, and so is the accuracy's miss
    losses = net.action_head.losses(out, window.actions)
    assert torch.equal(losses, torch.zeros_like(losses))
    for temperature in (0.0, 1.0):
        assert torch.equal(net.act(window, temperature=temperature), window.actions[:, -1])
    # the mask itself is no input
    assert list(net.embed_state.encoders) == ["/seen"]
    window.observations["action_mask"].zero_()  # allows nothing, as in padding
    assert net.predict(window).action_outputs.isfinite().all()
    assert net.predict(window).action_outputs.abs().max() < 1e3


def test_a_recorded_action_that_its_mask_forbids_is_refused():
    masks = np.ones((4, 5), np.int8)
    masks[2, 3] = 0
    parts = dict(id="e", source="f", rewards=np.zeros(4), terminated=True, truncated=False)
    observations = {"action_mask": masks, "seen": np.zeros((4, 3))}
    episode = Episode(observations=observations, actions=np.array([2, 3, 5, 6]), **parts)
    message = r"the action 5 at step 2 is forbidden by its action_mask \[1 1 1 0 1\]; .*ignore="
    with pytest.raises(DataError, match=message):
        episode.conform(LEGAL, Discrete(5, start=2))
    episode.conform(LEGAL, Discrete(5, start=2), ignore=["action_mask"])
    multi = Episode(observations=observations, actions=np.array([[0, 0]] * 4), **parts)
    multi.conform(LEGAL, MultiDiscrete([2, 3]))
    multi = Episode(observations=observations, actions=np.array([[0, 1]] * 4), **parts)
    with pytest.raises(DataError, match=r"the action \[0 1\] at step 2 is forbidden"):
        multi.conform(LEGAL, MultiDiscrete([2, 3]))


@pytest.mark.parametrize(
    ("observations", "actions", "ignore", "message"),
    [
        (gym.spaces.Dict(a=Discrete(2), mission=Text(9)), Discrete(2), (), "leaf 'mission': Text"),
        (gym.spaces.Dict(a=gym.spaces.Sequence(Discrete(2))), Discrete(2), (), "leaf 'a': Sequ"),
        (LEGAL, Box(-1, 1, (2,)), (), "leaf 'action_mask' says which actions are legal, but the"),
        (
            LEGAL,
            Discrete(4),
            (),
            r"it is MultiBinary\(5\), but the actions are Discrete\(4\), of 4",
        ),
        (LEGAL, Discrete(5), ("sen",), r"have no leaf 'sen'; .* has \['action_mask', 'seen'\]"),
        (LEGAL, Discrete(5), ("seen",), "no leaf of .* is left to observe"),
        (Discrete(2), Discrete(5), ("seen",), "have no leaf 'seen'; .* has no leaves"),
        (gym.spaces.Dict({"a/b": Discrete(2)}), Discrete(2), (), r"names \['a/b'\] of leaves"),
        (gym.spaces.Dict({1: Discrete(2), "a": Discrete(2)}), Discrete(2), (), r"names \[1\] of"),
        (Discrete(2), gym.spaces.Dict({2: Discrete(2)}), (), r"names \[2\] of leaves are no text"),
        (
            gym.spaces.Dict(r=LEGAL),
            Discrete(5),
            (),
            "leaf 'r/action_mask': a mask .* only as",
        ),
        (Discrete(2), gym.spaces.Dict(a=Text(3)), (), "leaf 'a': Text spaces .* as actions"),
        (Discrete(2), gym.spaces.Dict({}), (), "has no leaf to act in"),
    ],
)
def test_spaces_that_cannot_be_used_are_refused_by_leaf(observations, actions, ignore, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        composites.check_spaces(observations, actions, LeafChoice(ignore=ignore))
    config = DTConfig().environment(observation_space=observations, action_space=actions)
    config.offline_data(input_="nowhere").rl_module(model_config={"ignore": list(ignore)})
    with pytest.raises(ValueError, match=message):
        config.validate()


def masked_episodes():
    env, episodes = Masked({}), []
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        seen, actions, ended = [observation], [], False
        while not ended:
            actions.append(2 + int(np.flatnonzero(observation["action_mask"])[0]))
            observation, _, ended, *_ = env.step(actions[-1])
            seen.append(observation)
        episodes.append(
            dict(
                obs=seen,
                actions=actions,
                rewards=np.ones(len(actions)),
                terminated=True,
                truncated=False,
            )
        )
    return episodes


@pytest.mark.parametrize(
    ("attention", "steps"),
    [
        ("context", 300),
        pytest.param("context", 4500, marks=pytest.mark.slow),
        pytest.param("window", 4500, marks=pytest.mark.slow),
    ],
)
def test_an_illegal_action_is_never_taken(cluster, tmp_path, attention, steps):
    """1,000 steps through RLlib, and twice `steps` without it: the slow ones take 10,000."""
    env = Masked({})
    write_episodes(masked_episodes(), tmp_path, env.observation_space, env.action_space)
    config = config_of(Masked, {}, tmp_path, attention=attention, context_length=3)
    config.evaluation(target_returns=[50.0], evaluation_duration=20).env_runners(explore=True)
    algo = config.build_algo()
    first = algo.train()["learners"]["default_policy"]["action_loss"]
    assert np.isfinite(first)
    evaluated = algo.evaluate()["env_runners"]
    assert (evaluated["num_episodes"], evaluated["num_episodes_failed"]) == (20, 0)
    net = algo.get_module().network
    algo.stop()
    for temperature in (0.0, 1.0):
        actor = Actor(net, 50.0, temperature=temperature)
        observation, _ = env.reset(seed=5)
        reward = 0.0
        for _ in range(steps):
            batch = {name: leaf[None] for name, leaf in observation.items()}
            action = actor.predict(batch, reward)
            observation, reward, ended, *_ = env.step(action[0])
            if ended:
                actor.reset()
                observation, _ = env.reset()


def test_a_mask_has_no_encoder():
    with pytest.raises(UnsupportedSpaceError, match="'action_mask' says which actions are legal"):
        composites.check_spaces(LEGAL, Discrete(5), LeafChoice(own=("action_mask",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[0], r"leaf 'observations' .* shape \(3,\), wanted \(1, …\)"),
        (lambda v: np.concatenate([v, v]), r"leaf 'observations' .* shape \(2, 3\), wanted \(1, "),
        (lambda v: v[:, :1], r"leaf 'observations' .* shape \(1,\), but the space \(3,"),
    ],
)
def test_an_actor_refuses_observations_of_another_shape(change, message):
    space = Masked({}).observation_space
    actor = Actor(network(space, Discrete(5, start=2)), 1.0)
    good = {"action_mask": np.ones((1, 5), np.int8), "observations": np.ones((1, 3), np.float32)}
    actor.predict(good)
    with pytest.raises(ValueError, match=message):
        actor.predict(good | {"observations": change(good["observations"])})
