"""Validation: the loss on held-out episodes, without an environment."""

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from rllib_dt import write_episodes
from rllib_dt.episodes.windows import covering_windows, gather_windows
from tests.conftest import TINY, make_episodes, tiny_config
from tests.training import learner_results


def test_covering_windows_hold_each_step_once():
    lengths = np.array([1, 5, 6, 4, 17])
    numbers = np.arange(lengths.sum())
    timesteps = np.concatenate([np.arange(n) for n in lengths])
    last = covering_windows(lengths, 5)
    columns = dict.fromkeys(("obs", "actions", "returns_to_go"), numbers)
    got = gather_windows(columns, last, timesteps[last], 5)
    # an episode's first window must not reach into the previous episode
    assert sorted(got.observations[got.mask]) == list(numbers)


def expected(algo, episodes):
    """Loss and accuracy from a plain loop over episodes, cut into windows from the end."""
    network, k = algo.get_module().network, TINY["context_length"]
    losses, right = [], []
    for episode in episodes:
        steps = len(episode["rewards"])
        to_go = np.cumsum(np.asarray(episode["rewards"])[::-1])[::-1].astype(np.float32)
        for stop in range(steps, 0, -k):
            part = slice(max(0, stop - k), stop)
            out = network(
                torch.as_tensor(episode["obs"][part])[None],
                torch.as_tensor(np.asarray(episode["actions"])[part])[None],
                torch.as_tensor(to_go[part].copy())[None, :, None],
                torch.arange(part.start, part.stop)[None],
                torch.ones(1, part.stop - part.start, dtype=torch.bool),
            )
            actions = torch.as_tensor(np.asarray(episode["actions"])[part])[None]
            head = network.action_head
            losses += head.losses(out.action_outputs, actions.float())[0].tolist()
            right += (head.act(out.action_outputs) == actions)[0].tolist()
    return np.mean(losses), np.mean(right)


@pytest.mark.parametrize(
    ("num_learners", "at_a_time"), [(0, 3), pytest.param(2, None, marks=pytest.mark.slow)]
)
def test_the_loss_is_the_mean_over_all_held_out_steps(
    cluster, tiny_data, tmp_path, num_learners, at_a_time
):
    held = make_episodes([1, 4, 5, 13, 21], seed=9)
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    write_episodes(held, tmp_path / "held", *spaces)
    config = tiny_config(tiny_data[0]).learners(num_learners=num_learners)
    config.training(micro_batch_size=at_a_time)
    algo = config.offline_data(validation_input=str(tmp_path / "held")).build_algo()
    result = algo.train()["validation"]
    assert result["num_episodes"] == 5
    assert result["num_steps"] == 44
    assert "action_accuracy" not in result
    want, _ = expected(algo, held)
    assert result["action_loss"] == pytest.approx(want, rel=1e-5)
    ages = result.pop("age_in_iterations"), result.pop("age_in_updates")
    assert (ages, result.pop("num_updates_lifetime")) == ((0, 0), 3)
    assert algo.validate() == pytest.approx(result)
    (training, *_) = algo.learner_group.foreach_learner(lambda learner: learner.network.training)
    assert training.get()
    algo.stop()


def test_discrete_actions_report_an_accuracy_at_every_validation_interval(cluster, tmp_path):
    space = Discrete(3, start=2)
    observations = Box(-np.inf, np.inf, (3,))
    episodes = make_episodes([9] * 30, action_space=space)
    write_episodes(episodes, tmp_path, observations, space)
    config = tiny_config(str(tmp_path)).environment(
        observation_space=observations, action_space=space
    )
    config.offline_data(validation_fraction=0.3, validation_interval=2)
    algo = config.build_algo()
    held = algo.offline_data.validation
    assert algo.offline_data.summary.num_episodes + len(held.lengths) == 30
    assert "validation" not in algo.train()
    second = algo.train()["validation"]
    assert second["age_in_iterations"] == 0
    assert second["num_steps"] == 9 * len(held.lengths)
    kept = [e for e in episodes if (e["obs"][0] == held.columns["obs"]).all(1).any()]
    loss, accuracy = expected(algo, kept)
    assert second["action_loss"] == pytest.approx(loss, rel=1e-5)
    assert second["action_accuracy"] == pytest.approx(accuracy)
    assert algo.train()["validation"] == second | {"age_in_iterations": 1, "age_in_updates": 3}
    algo.stop()


def test_training_never_sees_held_out_episodes(cluster, tiny_data):
    folder, episodes = tiny_data
    algo = tiny_config(folder).offline_data(validation_fraction=0.4).build_algo()
    held = {row.tobytes() for row in algo.offline_data.validation.columns["obs"]}
    (supply,) = algo.offline_data.sample(1)
    trained = {row.tobytes() for row in supply.sampler(0, 1).columns["obs"]}
    assert not held & trained
    assert len(held) + len(trained) == sum(len(e["rewards"]) for e in episodes)
    assert math.isfinite(learner_results(algo)["action_loss"])
    algo.stop()


def test_without_held_out_episodes_there_is_no_validation(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    assert "validation" not in algo.train()
    with pytest.raises(ValueError, match="nothing to validate on"):
        algo.validate()
    algo.stop()
    both = tiny_config(tiny_data[0]).offline_data(
        validation_fraction=0.1, validation_input=tiny_data[0]
    )
    with pytest.raises(ValueError, match="give either"):
        both.build_algo()


@pytest.mark.slow
def test_tune_can_schedule_by_the_held_out_loss(cluster, tiny_data, tmp_path):
    config = tiny_config(tiny_data[0]).offline_data(validation_input=tiny_data[0])
    config.training(lr=tune.grid_search([1e-2, 1e-30]))
    results = tune.Tuner(
        "DT",
        param_space=config,
        tune_config=tune.TuneConfig(
            metric="validation/action_loss",
            mode="min",
            scheduler=ASHAScheduler(grace_period=2, max_t=8, reduction_factor=2),
            max_concurrent_trials=1,  # so that the second is compared with the first
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), stop={"training_iteration": 8}, verbose=0
        ),
    ).fit()
    assert not results.errors
    best = results.get_best_result()
    assert best.config["lr"] == 1e-2
    worst = max(results, key=lambda r: r.metrics["validation"]["action_loss"])
    assert worst.metrics["training_iteration"] < 8
