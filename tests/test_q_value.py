"""`training(q_weight=…)`: a critic by implicit Q-learning, and a policy that follows it."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from rllib_dt import DT, DecisionTransformer, DTModelConfig, runs, write_episodes
from rllib_dt.episodes.episode import Episode
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.learning.critic import REWARD_UNIT, Critic, QFunctions
from rllib_dt.learning.objectives.q_value import gaps
from rllib_dt.spaces.heads import head_of_space
from tests.conftest import TINY, cartpole_config, make_episodes, tiny_config
from tests.training import learner_results, same, weights

S, A, B = 3, 2, 7
NUMBERS, BOUNDED = Box(-np.inf, np.inf, (S,)), Box(-1.0, 1.0, (A,))


def network(action_space=BOUNDED, observation_space=NUMBERS, **model):
    torch.manual_seed(0)
    return DecisionTransformer(DTModelConfig(**(TINY | model)), observation_space, action_space)


def pool_of(lengths, rule=None, action_space=BOUNDED):
    episodes = [
        Episode(
            id=str(i), source="here", observations=e["obs"], actions=e["actions"],
            rewards=e["rewards"], terminated=e["terminated"], truncated=e["truncated"],
        )
        for i, e in enumerate(make_episodes(lengths, (S,), action_space))
    ]  # fmt: skip
    return EpisodePool.from_episodes(episodes, rule, outcomes=True), episodes


def every_pair(pool):
    """Windows of two steps that end at every step of a pool."""
    return pool.windows(np.arange(len(pool)), 2).map(torch.from_numpy)


# --- what a window tells


@pytest.mark.parametrize(
    "rule", [ReturnRule(), ReturnRule(clip_rewards=0.5), ReturnRule(gamma=0.5)]
)
def test_outcomes_are_those_that_returns_add_up(rule):
    pool, episodes = pool_of([4, 1, 6], rule)
    starts = np.cumsum(pool.lengths) - pool.lengths
    rewards, ends = pool.columns["rewards"], pool.columns["terminateds"]
    for start, e in zip(starts, episodes, strict=True):
        own = slice(start, start + len(e))
        total = sum(r * rule.gamma**t for t, r in enumerate(rewards[own].astype(float)))
        np.testing.assert_allclose(total, rule.to_go(e.rewards)[0], atol=1e-6)
        assert (pool.columns["episode_returns"][own] == np.float32(rule.to_go(e.rewards)[0])).all()
        assert ends[own].tolist() == [False] * (len(e) - 1) + [e.terminated]


def test_a_window_has_outcomes_only_if_its_pool_has(tiny_data):
    plain = EpisodePool.from_episodes(pool_of([3])[1])
    assert plain.windows(np.array([1]), 2).rewards is None
    assert set(plain.windows(np.array([1]), 2).columns()) == {
        "obs", "actions", "returns_to_go", "t", "loss_mask"
    }  # fmt: skip
    config = tiny_config(tiny_data[0])
    assert not config.reads_outcomes
    assert config.training(q_weight=1.0).reads_outcomes


def test_gaps_are_1_for_the_worst_and_0_for_the_best():
    returns = torch.tensor([-10.0, 0.0, 20.0, 50.0])
    assert gaps(returns, -10.0, 30.0).tolist() == [1.0, 0.75, 0.25, 0.0]
    assert gaps(returns, 5.0, 5.0).tolist() == [0.0] * 4
    assert gaps(returns, -10.0, 70.0).tolist() == [1.0, 0.875, 0.625, 0.25]
    assert gaps(returns, -10.0, 10.0).tolist() == [1.0, 0.5, 0.0, 0.0]


# --- the critic


def losses_by_hand(critic, net, pool, episodes, expectile, gamma):
    """Loops over transitions; the last step of a truncated episode is none."""
    unit = REWARD_UNIT / float(net.return_scale)
    value_losses, q_losses = [], []
    rows = {n: torch.from_numpy(pool.columns[n]) for n in ("obs", "actions")}
    one = lambda name, i: rows[name][i][None]  # noqa: E731
    before = copy.deepcopy(critic.value)
    after = copy.deepcopy(critic)
    after.update(every_pair(pool))  # V's update comes before Q's loss
    for module in (before, critic.q, after.value):
        module.requires_grad_(False)
    first = 0
    for e in episodes:
        for t in range(len(e)):
            i = first + t
            if t == len(e) - 1 and not e.terminated:
                continue
            s, a = one("obs", i), net.action_head.features(one("actions", i))
            q = critic.q(s, a)[:, 0]
            u = critic.target.least(s, a)[0] - before(s)[0, 0]
            value_losses.append(abs(expectile - float(u < 0)) * float(u) ** 2)
            y = float(e.rewards[t]) * unit
            if t < len(e) - 1:
                y += gamma * float(after.value(one("obs", i + 1))[0, 0])
            q_losses.append(float((q - y).square().sum()))
        first += len(e)
    return np.mean(value_losses), np.mean(q_losses)


def test_an_update_counts_each_transition_once():
    net = network()
    net.return_scale.fill_(7.0)
    pool, episodes = pool_of([4, 1, 6, 1])
    critic = Critic(net, expectile=0.8, gamma=0.9)
    want = losses_by_hand(copy.deepcopy(critic), net, pool, episodes, 0.8, 0.9)
    found = critic.update(every_pair(pool))
    got = float(found["critic_value_loss"]), float(found["critic_q_loss"])
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.slow
def test_values_of_a_chain_are_those_of_the_best_recorded_actions():
    """Three states in a row; action 1 moves on, action 0 ends; moving on twice earns 1, then 4."""
    gamma = 0.5
    states = np.eye(S, dtype=np.float32)
    paths = [
        ([0], [0], [0.0]),
        ([0, 1], [1, 0], [0.0, 1.0]),
        ([0, 1, 2], [1, 1, 0], [0.0, 0.0, 4.0]),
    ]
    episodes = [
        Episode(id=str(i), source="here", observations=states[s], actions=np.array(a),
                rewards=np.array(r), terminated=True, truncated=False)
        for i, (s, a, r) in enumerate(paths)
    ]  # fmt: skip
    pool = EpisodePool.from_episodes(episodes, outcomes=True)
    net = network(Discrete(2))
    net.return_scale.fill_(4.0)
    with torch.random.fork_rng():
        critic = Critic(net, expectile=0.98, gamma=gamma)
    for _ in range(2000):
        critic.update(every_pair(pool))
    every = torch.eye(2)
    with torch.no_grad():
        found = torch.stack([critic.q.least(torch.eye(S), a.expand(S, 2)) for a in every], dim=1)
    found = found * float(net.return_scale) / REWARD_UNIT
    # [s0: end, on], [s1: end, on], [s2: end]
    np.testing.assert_allclose(found[0], [0.0, gamma**2 * 4], atol=0.15)
    np.testing.assert_allclose(found[1], [1.0, gamma * 4], atol=0.15)
    np.testing.assert_allclose(found[2, 0], 4.0, atol=0.1)


def test_one_choice_is_worth_the_expectation_of_the_smaller_values():
    q = QFunctions(network(Discrete(3)))
    state, shares = torch.randn(5, S), torch.rand(5, 3).softmax(-1)
    both = torch.stack([q(state, one.expand(5, 3)) for one in torch.eye(3)], dim=-1)  # (2, 5, 3)
    want = (shares * both.amin(dim=0)).sum(dim=-1)
    torch.testing.assert_close(q.least(state, shares), want, atol=1e-6, rtol=0)


SPACES = {
    "numbers": BOUNDED,
    "one choice": Discrete(3, start=2),
    "choices": MultiDiscrete([2, 3]),
    "bits": MultiBinary(4),
    "both": Dict(grip=Discrete(2), arm=Box(-2.0, 5.0, (2,))),
}


@pytest.mark.parametrize("name", SPACES)
def test_the_value_of_a_policy_is_the_expectation_over_its_actions(name):
    """Of categories and bits by drawing; numbers have no spread."""
    net = network(SPACES[name])
    q, head = QFunctions(net), net.action_head
    outputs = head.squash(torch.randn(head.size, generator=torch.Generator().manual_seed(1)))
    taken = head.taken_features(outputs.requires_grad_())
    N = 40_000
    drawn = head.act(outputs.expand(N, -1).detach(), temperature=1.0,
                     generator=torch.Generator().manual_seed(2))  # fmt: skip
    features = head.features(drawn)
    state = torch.randn(1, S, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        each = q(state.expand(N, S), features)  # (2, N)
    # false alarms once in 10,000: four standard errors
    error = 4 * each.std(dim=1) / N**0.5 + 1e-5
    assert ((q(state, taken[None])[:, 0] - each.mean(dim=1)).abs() <= error).all()
    q.least(state, taken[None]).sum().backward()
    assert outputs.grad.isfinite().all()
    assert outputs.grad.abs().sum() > 0


def test_numbers_are_clamped_to_their_bounds_before_they_are_valued():
    low, high = np.array([[-1.0, -np.inf], [3.0, 2.0]], np.float32)
    head = head_of_space(Box(low, high), tanh=False)
    outputs = torch.tensor([5.0, 5.0], requires_grad=True)
    taken = head.taken_features(outputs)
    assert taken.tolist() == [1.0, 2.0]
    taken.sum().backward()
    assert outputs.grad.tolist() == [0.0, 0.0]


# --- in RLlib


def q_config(data, updates=50, **training):
    return tiny_config(data).training(q_weight=2.0, critic_updates=updates, **training)


def test_a_run_resumed_within_the_critic_goes_on_bit_for_bit(cluster, tiny_data, tmp_path):
    config = q_config(tiny_data[0])
    assert config.critic_iterations == 2
    algo = config.build_algo()
    untrained = weights(algo)
    assert learner_results(algo)["critic_updates_lifetime"] == 30
    path = algo.save_to_path(tmp_path / "ck")
    found = learner_results(algo)
    assert found["critic_updates_lifetime"] == 50
    assert found["num_updates_lifetime"] == 0
    assert same(untrained, weights(algo))
    last = learner_results(algo)
    assert last["num_updates_lifetime"] == 3
    assert last["critic_q_loss"] == found["critic_q_loss"]  # it is frozen
    final, later = weights(algo), algo.save_to_path(tmp_path / "later")
    algo.stop()
    resumed = DT.from_checkpoint(path)
    assert learner_results(resumed, 2)["q_loss"] == last["q_loss"]
    assert same(weights(resumed), final)
    resumed.stop()
    again = DT.from_checkpoint(later)
    assert learner_results(again)["num_updates_lifetime"] == 6  # no critic is learned anew
    again.stop()


@pytest.mark.slow
def test_the_critic_depends_on_the_data_alone(cluster, tiny_data):
    """Streamed or not, each window has its own trajectory's return."""
    algo = q_config(tiny_data[0]).offline_data(pool_capacity_steps=30, pool_reuse=50).build_algo()
    assert algo.offline_data.is_streamed
    assert np.isnan(learner_results(algo, 2)["action_loss"])
    supply = algo.offline_data.supply
    window = supply.sampler(0, 1).sample(0)
    episodes = tiny_data[1]
    by_return = {np.float32(e["rewards"].sum()): len(e["rewards"]) for e in episodes}
    for row, mask, t in zip(window.episode_returns, window.mask, window.timesteps, strict=True):
        nearest = min(by_return, key=lambda r: abs(r - row[-1]))
        assert abs(nearest - row[-1]) < 1e-5
        assert t[-1] < by_return[nearest]
        assert len(set(row[mask])) == 1
    assert learner_results(algo)["q_loss"] != 0
    assert algo.offline_data._critic_feeder is None
    algo.stop()


@pytest.mark.slow
def test_learners_have_the_same_critic_and_let_go_of_what_they_read(cluster, tiny_data):
    import ray

    from rllib_dt.compat import on_every_learner

    config = q_config(tiny_data[0]).learners(num_learners=2)
    algo = config.offline_data(pool_capacity_steps=30, pool_reuse=50).build_algo()
    learner_results(algo)
    feeder = algo.offline_data._critic_feeder
    given = ray.get(feeder.__ray_call__.remote(lambda one: len(one._given)))
    assert given <= 4  # those that one learner has yet to take
    learner_results(algo, 2)
    states = on_every_learner(algo.learner_group, lambda learner: learner.critic_phase.state())
    one, two = (state["critic"] for state in states)
    for name in ("q", "target", "value"):
        assert all(np.array_equal(one[name][key], two[name][key]) for key in one[name])
    assert states[0]["scale"] == states[1]["scale"] > 0
    algo.stop()


class Guess(gym.Env):
    """One step: the reward is 1 - |action - state|."""

    observation_space, action_space = Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (1,))

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.8, 0.8, 1).astype(np.float32)
        return self.state, {}

    def step(self, action):
        return self.state, 1 - abs(float(action[0] - self.state[0])), True, False, {}


def guesses(path, n=400):
    rng = np.random.default_rng(0)
    states = rng.uniform(-0.8, 0.8, (n, 1)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    rewards = 1 - np.abs(actions - states)
    episodes = [
        dict(obs=s[None], actions=a[None], rewards=r, terminated=True, truncated=False)
        for s, a, r in zip(states, actions, rewards, strict=True)
    ]
    write_episodes(episodes, path, Guess.observation_space, Guess.action_space)


@pytest.mark.slow
def test_a_policy_gets_better_than_what_it_was_asked_for(cluster, tmp_path):
    """Asked for the data's median, plain imitation gets no more; with a critic it gets the best."""
    guesses(tmp_path / "data")
    found = {}
    for weight in (0.0, 10.0):
        config = tiny_config(str(tmp_path / "data"), context_length=1)
        config.environment(Guess, observation_space=None, action_space=None)
        config.training(q_weight=weight, critic_updates=1500, lr=3e-3)
        config.offline_data(dataset_num_iters_per_learner=150)
        config.evaluation(target_returns=[0.5], evaluation_duration=100)
        algo = config.build_algo()
        learner_results(algo, config.critic_iterations + 3)
        found[weight] = algo.evaluate()["env_runners"]["episode_return_mean"]
        algo.stop()
    assert found[10.0] > found[0.0] + 0.1
    assert found[10.0] > 0.85


def test_delayed_rewards_are_refused(tiny_data):
    with pytest.raises(ValueError, match="would see no reward of a truncated episode"):
        q_config(tiny_data[0], delayed_reward=True).validate()


def test_data_whose_episodes_are_all_as_good_is_warned_of(cluster, tmp_path, caplog):
    episodes = make_episodes([3, 3])
    for e in episodes:
        e["rewards"] = np.ones(3)
    write_episodes(episodes, tmp_path / "d", NUMBERS, BOUNDED)
    algo = q_config(str(tmp_path / "d")).build_algo()
    assert "so q_weight has no effect" in caplog.text
    assert learner_results(algo, 3)["q_loss"] == 0
    algo.stop()


def test_a_better_return_than_the_datas_leaves_something_to_improve(cluster, tmp_path, caplog):
    episodes = make_episodes([3, 3])
    for e in episodes:
        e["rewards"] = np.ones(3)
    write_episodes(episodes, tmp_path / "d", NUMBERS, BOUNDED)
    algo = q_config(str(tmp_path / "d"), q_best_return=4.0).build_algo()
    assert "so q_weight has no effect" not in caplog.text
    assert learner_results(algo, 3)["q_loss"] != 0
    algo.stop()


def test_a_best_return_below_all_of_the_data_is_refused_before_training(cluster, tiny_data):
    config = q_config(tiny_data[0], q_best_return=-1e6)
    with pytest.raises(ValueError, match=r"q_best_return=-1e\+06.* would have no effect"):
        config.build_algo()


def test_nothing_is_evaluated_before_the_policy_is_trained(cluster):
    config = cartpole_config().training(q_weight=1.0, critic_updates=40)
    config.evaluation(evaluation_interval=1)
    algo = config.build_algo()
    assert config.critic_iterations == 2
    seen = ["evaluation" in algo.train() for _ in range(3)]
    assert seen == [False, False, True]
    algo.stop()


def test_a_run_too_short_for_its_critic_is_refused(tiny_data):
    config = q_config(tiny_data[0])
    with pytest.raises(ValueError, match="would train no policy: the first 2 iterations learn"):
        runs.Run(config=config, tune={"stop": {"training_iteration": 2}}).fit()
