"""Several learners: identical weights, even coverage of the data, resources."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rllib_dt import write_episodes
from rllib_dt.algorithm.resources import NotEnoughResourcesError
from tests.conftest import cartpole_config, make_episodes, tiny_config
from tests.training import learner_results


def state_of(learner):
    return {k: v.clone() for k, v in learner.network.state_dict().items()}


def batch_of(learner):
    return learner._batches._next.result()[0]


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[30], [60, *[1] * 30]])
def test_learners_have_identical_weights_after_fifty_updates_on_different_windows(
    cluster, tmp_path, lengths
):
    spaces = Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,))
    write_episodes(make_episodes(lengths), tmp_path / "data", *spaces)
    config = tiny_config(str(tmp_path / "data")).learners(num_learners=2)
    algo = config.offline_data(dataset_num_iters_per_learner=25).build_algo()
    assert learner_results(algo, times=2)["num_updates_lifetime"] == 50
    first, second = (r.get() for r in algo.learner_group.foreach_learner(state_of))
    assert all(torch.equal(first[name], second[name]) for name in first)
    here, there = (r.get() for r in algo.learner_group.foreach_learner(batch_of))
    assert not np.array_equal(here.observations, there.observations)
    algo.stop()


def with_three_threads(begin):
    """Returns how many threads torch has after `begin`, where OMP_NUM_THREADS=3 was exported."""
    torch.set_num_threads(3)
    begin()
    return torch.get_num_threads()


@pytest.mark.slow
def test_learners_and_runners_use_the_cpus_that_they_reserved(cluster):
    config = cartpole_config().learners(num_learners=1)
    algo = config.evaluation(evaluation_num_env_runners=1, evaluation_interval=1).build_algo()
    learners = algo.learner_group.foreach_learner(lambda one: with_three_threads(one.build))
    assert [found.get() for found in learners] == [1]
    runners = algo.eval_env_runner_group
    found = runners.foreach_env_runner(
        lambda one: with_three_threads(one.make_env), local_env_runner=False
    )
    assert found == [1]
    here = torch.get_num_threads()
    runners.foreach_env_runner(lambda one: one.make_env())
    assert torch.get_num_threads() == here
    algo.stop()


def test_the_learners_together_cover_the_data_evenly(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).build_algo()
    (supply,) = algo.offline_data.sample(1)
    steps = supply.num_steps
    counts = np.zeros(steps)
    pool_obs = supply.sampler(0, 1).columns["obs"]
    index_of = {row.tobytes(): i for i, row in enumerate(pool_obs)}
    updates = 2000
    for learner in range(2):
        sampler = supply.sampler(learner, 2)
        for update in range(updates):
            for row in sampler.sample(update).observations[:, -1]:
                counts[index_of[row.tobytes()]] += 1
    want = 2 * updates * sampler.draws.batch_size / steps
    # 71 binomial counts within 5 standard deviations: one false alarm in 24,000 seeds
    assert np.abs(counts - want).max() < 5 * np.sqrt(want)
    algo.stop()


@pytest.mark.trap(22)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_learners=50), r"need 50 CPU, but the cluster has 6 CPU; lower learners\(num_le"),
        (dict(num_learners=1, num_gpus_per_learner=1), "need 1 GPU, but the cluster has 0 GPU"),
    ],
)
def test_more_learners_than_the_cluster_holds_are_refused_at_once(
    cluster, tiny_data, settings, message
):
    config = tiny_config(tiny_data[0]).learners(**settings)
    with pytest.raises(NotEnoughResourcesError, match=message):
        config.build_algo()
    with pytest.raises(NotEnoughResourcesError, match=r"need .* the cluster has"):
        config.algo_class.default_resource_request(config)


@pytest.mark.trap(4)
def test_tune_reserves_resources_only_for_actors_that_exist(cluster, tiny_data):
    config = tiny_config(tiny_data[0]).learners(num_learners=2).env_runners(num_env_runners=3)
    bundles = config.algo_class.default_resource_request(config).bundles
    assert [b["CPU"] for b in bundles] == [1, 1, 1]  # training env runners are never created
