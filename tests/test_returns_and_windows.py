"""Returns-to-go, windows of training, the context of evaluation, statistics of pools."""

import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rllib_dt.episodes.episode import DataError, Episode
from rllib_dt.episodes.pool import EpisodePool
from rllib_dt.episodes.returns import (
    ReturnRule,
    next_return_to_go,
    process_rewards,
    returns_to_go,
)
from rllib_dt.episodes.samplers import Draws, FixedSampler
from rllib_dt.episodes.statistics import Statistics, top_episodes
from rllib_dt.episodes.windows import Window, gather_windows
from rllib_dt.policy.context import ContextBuffer
from tests.windows import assert_same

K = 5
rewards_strategy = arrays(
    np.float64, st.integers(1, 23), elements=st.floats(-100, 100, allow_nan=False)
)


def episode(length, *, number=0, reward=None, seed=0, extra_observation=False):
    """An episode whose observations and actions identify the episode and the step."""
    steps = np.arange(length + extra_observation)
    return Episode(
        id=str(number),
        source="test",
        observations=np.stack([np.full(len(steps), number), steps, -steps], 1).astype(np.float32),
        actions=np.stack([np.arange(length), np.full(length, number)], 1).astype(np.float32),
        rewards=np.ones(length) if reward is None else np.asarray(reward, float),
        terminated=True,
        truncated=False,
    )


def pool_of(lengths, **kwargs):
    return EpisodePool.from_episodes(
        [episode(n, number=i) for i, n in enumerate(lengths)], **kwargs
    )


def sampler_of(pool, batch_size=64, context_length=K, seed=0, learner=0):
    draws = Draws(window_length=context_length, batch_size=batch_size, seed=seed, learner=learner)
    return FixedSampler(pool.columns, pool.timesteps, draws)


@pytest.mark.semantics(1)
def test_returns_to_go_sum_rewards_from_the_current_step_to_the_end():
    np.testing.assert_array_equal(
        returns_to_go(np.array([1.0, -2.0, 4.0, 0.5])), [3.5, 2.5, 4.5, 0.5]
    )
    np.testing.assert_allclose(returns_to_go(np.array([1.0, 2.0, 4.0]), gamma=0.5), [3.0, 4.0, 4.0])


@pytest.mark.semantics(1)
def test_returns_to_go_never_cross_an_episodes_end():
    first, second = episode(3, reward=[1, 2, 3]), episode(2, reward=[10, 20])
    pool = EpisodePool.from_episodes([first, second])
    np.testing.assert_array_equal(pool.columns["returns_to_go"][:, 0], [6, 5, 3, 30, 20])


@pytest.mark.semantics(2)
@given(rewards_strategy, st.sampled_from([1.0, 0.9]), st.booleans())
def test_evaluation_steps_through_the_same_returns_to_go_as_training(rewards, gamma, delayed):
    want = returns_to_go(rewards, gamma=gamma, delayed=delayed)
    value = want[0]
    for t in range(1, len(rewards)):
        value = next_return_to_go(value, rewards[t - 1], gamma=gamma, delayed=delayed)
        np.testing.assert_allclose(value, want[t], atol=1e-6 * max(1, np.abs(rewards).sum()) * 20)


@pytest.mark.semantics(2)
def test_training_and_evaluation_clip_rewards_alike_and_keep_floats():
    rewards = np.array([-3.0, 0.0, 0.25, 7.0])
    np.testing.assert_array_equal(process_rewards(rewards, True), [-1, 0, 1, 1])
    np.testing.assert_array_equal(process_rewards(rewards, 0.5), [-0.5, 0, 0.25, 0.5])
    np.testing.assert_array_equal(process_rewards(rewards, None), rewards)
    np.testing.assert_array_equal(process_rewards(rewards, False), rewards)
    buffer = ContextBuffer(
        1, K, ((3,), np.dtype("f4")), ((2,), np.dtype("f4")), ReturnRule(clip_rewards=0.5)
    )
    buffer.begin(0, np.zeros(3), 10.0)
    buffer.append(0, np.zeros(2), 7.0, np.zeros(3))
    buffer.append(0, np.zeros(2), 0.25, np.zeros(3))
    to_go = buffer.windows(np.array([0])).returns_to_go
    np.testing.assert_array_equal(to_go[0, -3:, 0], np.float32([10.0, 9.5, 9.25]))


@pytest.mark.semantics(3)
def test_delayed_rewards_keep_the_return_to_go_constant():
    np.testing.assert_array_equal(returns_to_go(np.array([1.0, 2.0, 4.0]), delayed=True), [7, 7, 7])
    buffer = ContextBuffer(
        1, K, ((3,), np.dtype("f4")), ((2,), np.dtype("f4")), ReturnRule(delayed=True)
    )
    buffer.begin(0, np.zeros(3), 10.0)
    buffer.append(0, np.zeros(2), 7.0, np.zeros(3))
    np.testing.assert_array_equal(buffer.windows(np.array([0])).returns_to_go[0, -2:, 0], [10, 10])


def windows_by_hand(ep, last, k):
    """The slow, obvious version of one window."""
    to_go = returns_to_go(ep.rewards)
    rows = {"obs": [], "actions": [], "returns_to_go": [], "t": [], "loss_mask": []}
    for t in range(last - k + 1, last + 1):
        real = t >= 0
        rows["obs"].append(ep.observations[t] if real else np.zeros(3))
        rows["actions"].append(ep.actions[t] if real else np.zeros(2))
        rows["returns_to_go"].append([to_go[t] if real else 0.0])
        rows["t"].append(t if real else 0)
        rows["loss_mask"].append(real)
    return {name: np.array(value) for name, value in rows.items()}


@pytest.mark.semantics(9, 15, 21)
@pytest.mark.parametrize("context_length", [1, 2, 5, 11])
def test_windows_equal_those_computed_by_hand(context_length):
    lengths = [1, 2, 7, 13]
    pool = pool_of(lengths)
    flat = 0
    for number, length in enumerate(lengths):
        for t in range(length):
            got = gather_windows(
                pool.columns, np.array([flat]), np.array([t], np.int64), context_length
            )
            assert_same(got[0], windows_by_hand(episode(length, number=number), t, context_length))
            flat += 1


@pytest.mark.semantics(15)
def test_every_step_of_every_episode_is_trained_including_the_last():
    lengths = [1, 3, 17, K, K - 1]
    sampler = sampler_of(pool_of(lengths), batch_size=512)
    seen = set()
    for update in range(8):
        batch = sampler.sample(update)
        for observation, real in zip(batch.observations, batch.mask, strict=True):
            seen |= {(int(n), int(t)) for n, t, _ in observation[real]}
    assert seen == {(i, t) for i, n in enumerate(lengths) for t in range(n)}


@pytest.mark.semantics(16)
def test_episodes_are_drawn_in_proportion_to_their_length():
    """A χ² test at 1e-6: one false alarm in a million seeds; this seed is fixed."""
    lengths = np.array([3, 31, 101, 7, 2])
    sampler = sampler_of(pool_of(lengths), batch_size=5000)
    counts = np.zeros(len(lengths))
    for update in range(10):
        numbers = sampler.sample(update).observations[:, -1, 0].astype(int)
        counts += np.bincount(numbers, minlength=len(lengths))
    expected = counts.sum() * lengths / lengths.sum()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 33.4  # the 1 - 1e-6 quantile at 4 degrees of freedom


@pytest.mark.semantics(17)
def test_contexts_of_every_length_are_trained_and_short_ones_only_at_an_episodes_start():
    sampler = sampler_of(pool_of([40, 3]), batch_size=2000)
    batch = sampler.sample(0)
    valid = batch.mask.sum(axis=1)
    assert set(valid) == set(range(1, K + 1))
    short = valid < K
    assert (batch.timesteps[short, -1] == valid[short] - 1).all()
    assert (batch.mask[:, -1]).all()


@pytest.mark.semantics(19)
def test_seed_learner_and_update_determine_a_batch():
    pool = pool_of([29, 5])

    def draw(update, **kwargs):
        return sampler_of(pool, **kwargs).sample(update).observations

    np.testing.assert_array_equal(draw(3, seed=7), draw(3, seed=7))
    assert not np.array_equal(draw(3, seed=7), draw(3, seed=8))
    assert not np.array_equal(draw(3, seed=7), draw(4, seed=7))
    assert not np.array_equal(draw(3, seed=7), draw(3, seed=7, learner=1))


@pytest.mark.semantics(2, 21, 23)
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.lists(st.integers(1, 33), min_size=1, max_size=4), st.booleans())
def test_the_context_shows_what_training_would_show(context_length, lengths, one_slot):
    """Stepping through episodes, in slots of their own or in one, yields training's windows."""
    layout = ((3,), np.dtype("f4")), ((2,), np.dtype("f4"))
    buffer = ContextBuffer(len(lengths), context_length, *layout)
    for number, length in enumerate(lengths):
        slot = 0 if one_slot else number
        ep = episode(length, number=number, extra_observation=True)
        buffer.begin(slot, ep.observations[0], target_return=float(length))
        for t in range(length):
            got = buffer.windows(np.array([slot]))
            want = windows_by_hand(ep, t, context_length)
            want["actions"][-1] = 0  # not taken yet
            assert_same(got[0], want)
            buffer.append(slot, ep.actions[t], ep.rewards[t], ep.observations[t + 1])


@pytest.mark.semantics(4, 28)
def test_statistics_come_from_exactly_the_steps_trained_on():
    episodes = [episode(3, number=2, extra_observation=True), episode(5, number=4)]
    pool = EpisodePool.from_episodes(episodes)
    steps = np.concatenate([e.observations[: len(e)] for e in episodes]).astype(np.float64)
    got = Statistics.of(pool).normalization()
    np.testing.assert_allclose(got.observation_mean, steps.mean(0))
    np.testing.assert_allclose(got.observation_std, steps.std(0) + 1e-6)
    assert got.return_scale == 5.0
    assert Statistics.of(pool).normalization(1000.0).return_scale == 1000.0
    zero = EpisodePool.from_episodes([episode(2, reward=[0, 0])])
    assert Statistics.of(zero).normalization().return_scale == 1


def test_the_summary_describes_episodes_steps_returns_and_shapes():
    pool = EpisodePool.from_episodes([episode(n, reward=np.full(n, 2.0)) for n in (1, 3, 11)])
    summary = Statistics.of(pool).summary()
    assert (summary.num_episodes, summary.num_steps) == (3, 15)
    assert (summary.return_min, summary.return_median, summary.return_max) == (2.0, 6.0, 22.0)
    assert summary.return_mean == 10.0
    assert (summary.episode_len_min, summary.episode_len_max) == (1, 11)
    assert (summary.observation_shape, summary.action_shape) == ((3,), (2,))
    assert Statistics.of(pool).derived_targets() == [22.0, 6.0]
    assert "3 episodes, 15 steps" in str(summary)


@pytest.mark.semantics(18)
@pytest.mark.parametrize(
    ("fraction", "chosen"),
    # best return first: "2" (4 steps), "0" (3), "3" (2), "1" (1); 10 steps in all
    [(0.1, "2"), (0.39, "2"), (0.6, "2"), (0.7, "02"), (0.8, "02"), (0.9, "023"), (1.0, "0123")],
)
def test_the_top_fraction_counts_steps_and_includes_its_boundary(fraction, chosen):
    returns, lengths = np.array([5.0, -9.0, 8.0, 1.0]), np.array([3, 1, 4, 2])
    got = np.flatnonzero(top_episodes(returns, lengths, fraction))
    assert "".join(map(str, got)) == chosen


def test_an_invalid_episode_cannot_be_constructed():
    good = dict(
        id="7", source="a.file", observations=np.zeros((3, 2)), actions=np.zeros((2, 1)),
        rewards=np.zeros(2), terminated=True, truncated=False,
    )  # fmt: skip
    Episode(**good)
    with pytest.raises(DataError, match=r"a\.file, episode 7: actions at step 1 are \[nan\]"):
        Episode(**good | dict(actions=np.array([[0.0], [np.nan]])))
    with pytest.raises(DataError, match="5 observations, 2 actions and 2 rewards"):
        Episode(**good | dict(observations=np.zeros((5, 2))))
    with pytest.raises(DataError, match="holds no step"):
        Episode(**good | dict(rewards=np.zeros(0)))
    with pytest.raises(DataError, match="numbers"):
        Episode(**good | dict(actions=np.array(["a", "b"])))


def test_an_episode_is_checked_against_the_spaces():
    ep = episode(4)
    observations, actions = Box(-np.inf, np.inf, (3,)), Box(-9.0, 9.0, (2,))
    fitting = ep.conform(observations, actions)
    assert fitting.observations.dtype == fitting.actions.dtype == np.float32
    with pytest.raises(DataError, match=r"episode 0: .*step 2 lies outside"):
        ep.conform(observations, Box(-1.5, 1.5, (2,)))
    with pytest.raises(DataError, match=r"observations have the shape \(3,\).*Box"):
        ep.conform(Box(-1, 1, (4,)), actions)
    scaled = ep.conform(observations, Box(0.0, 10.0, (2,)), actions_normalized=True)
    np.testing.assert_allclose(scaled.actions[:, 0], [5.0, 10.0, 10.0, 10.0])


def test_a_window_of_a_composite_space_converts_to_columns_and_back():
    columns = {
        "obs/camera": np.arange(24).reshape(12, 2),
        "obs/joints": np.arange(12.0)[:, None],
        "actions": np.arange(12),
        "returns_to_go": np.ones((12, 1), np.float32),
    }
    sampler = FixedSampler(columns, np.arange(12), Draws(window_length=3, batch_size=5, seed=0))
    window = sampler.sample(0)
    assert window.observations.keys() == {"camera", "joints"}
    np.testing.assert_array_equal(window.observations["camera"][..., 0] // 2, window.actions)
    assert_same(Window.from_columns(window.columns()), window)
    assert window[:2].observations["joints"].shape == (2, 3, 1)
    assert len(window) == 5


def test_a_window_without_observations_is_refused():
    columns = dict.fromkeys(("actions", "returns_to_go", "t", "loss_mask"), np.zeros((1, 1)))
    with pytest.raises(KeyError, match="obs"):
        Window.from_columns(columns)


# ---- discounted and clipped rewards


def test_statistics_are_those_of_the_returns_that_training_sees():
    episodes = [episode(3, reward=[5, -2, 4]), episode(2, reward=[1, 1])]
    plain = Statistics.of(EpisodePool.from_episodes(episodes))
    assert plain.summary().return_max == 7
    assert plain.derived_targets() == [7.0, 4.5]
    assert plain.normalization().return_scale == 7
    clipped = Statistics.of(EpisodePool.from_episodes(episodes, ReturnRule(clip_rewards=True)))
    assert clipped.returns.tolist() == [7, 2]  # as an evaluation reports them
    assert clipped.targets.tolist() == [1, 2]
    assert clipped.derived_targets() == [2.0, 1.5]
    assert clipped.normalization().return_scale == 2
    assert clipped.summary().return_max == 2
    discounted = Statistics.of(EpisodePool.from_episodes(episodes, ReturnRule(gamma=0.5)))
    assert discounted.targets.tolist() == [5 - 1 + 1, 1.5]
    pool = EpisodePool.from_episodes(episodes, ReturnRule(gamma=0.5))
    np.testing.assert_allclose(pool.columns["returns_to_go"][[0, 3], 0], discounted.targets)
    assert pool.select(np.array([False, True])).targets.tolist() == [1.5]


def test_a_discounted_return_to_go_cannot_be_followed_while_acting():
    """A gap between target and achievement grows by 1 / gamma at every step."""
    gap = 1.0
    for _ in range(100):
        gap = float(next_return_to_go(gap, 0.0, gamma=0.9))
    assert gap > 37_000
    layouts = ((2,), np.dtype(np.float32)), ((), np.dtype(np.int64))
    with pytest.raises(ValueError, match=r"gamma=0.9 cannot be used to act: .*gamma=1.0"):
        ContextBuffer(1, K, *layouts, ReturnRule(gamma=0.9))
    ContextBuffer(1, K, *layouts, ReturnRule(gamma=0.9, delayed=True))  # it stays constant
