"""Returns of trained policies in short runs; `docs/results.md` has the full table."""

import pytest
import torch

from tuned_examples import cartpole_dt, demo, minatar_dt, pendulum_dt, record_minatar

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(autouse=True)
def two_threads(cluster):
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def trained(config, updates):
    algo = config.debugging(seed=0).build_algo()
    for _ in range(updates // config.dataset_num_iters_per_learner):
        algo.train()
    by_target = algo.evaluate()["env_runners"]["by_target"]
    algo.stop()
    return {float(t): r["episode_return_mean"] for t, r in by_target.items()}


def test_the_demo_policy_reaches_its_target_returns():
    achieved = trained(demo.make_config(str(demo.DATA)), demo.UPDATES)
    means = list(achieved.values())
    assert list(achieved) == demo.TARGETS
    assert means == sorted(means)
    for target, mean in achieved.items():
        assert mean == pytest.approx(target, rel=0.25)


def test_cartpole_from_old_recordings_reaches_the_returns_of_the_data(shared_data):
    config = cartpole_dt.make_config([str(shared_data / "rllib" / "cartpole-large.json")])
    assert trained(config, 500)[200.0] >= 190


def test_pendulum_from_old_recordings_beats_rllibs_former_decision_transformer(shared_data):
    data = shared_data / "rllib" / "pendulum_expert_sac_50eps.zip"
    assert trained(pendulum_dt.make_config([str(data)]), 1500)[-120.0] >= -300


def test_minatars_breakout_follows_its_targets(tmp_path):
    """Images of bits, drawn actions: what is asked decides how well the policy plays."""
    record_minatar.record(tmp_path / "data", steps=30_000)
    config = minatar_dt.make_config([str(tmp_path / "data")])
    config.training(lr_decay_updates=1200).evaluation(target_returns=[40.0, 10.0, 1.0])
    achieved = trained(config, 1200)
    means = list(achieved.values())
    assert means == sorted(means, reverse=True)
    assert achieved[40.0] >= 10.0  # the recorded episodes have a mean of 2
    assert achieved[1.0] <= 3.0
