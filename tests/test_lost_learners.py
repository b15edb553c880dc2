"""Learners that die or fail: every later call raises at once."""

import os
import signal

import pytest
import torch

from rllib_dt.compat import LearnerLostError
from rllib_dt.huggingface import save_pretrained
from rllib_dt.learning.finite import NonFiniteLossError
from rllib_dt.learning.learner import DTTorchLearner
from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer
from tests.conftest import TINY, tiny_config
from tests.training import learner_results


def kill(algo, rank):
    pids = [r.get() for r in algo.learner_group.foreach_learner(lambda learner: os.getpid())]
    os.kill(pids[rank], signal.SIGKILL)


@pytest.mark.slow
def test_every_call_raises_after_a_learner_has_died(cluster, tiny_data, tmp_path):
    config = tiny_config(tiny_data[0]).learners(num_learners=2)
    algo = config.offline_data(validation_fraction=0.3).build_algo()
    algo.train()
    path = algo.save_to_path(tmp_path / "c")
    kill(algo, rank=1)
    with pytest.raises(LearnerLostError, match="rebuild the algorithm from its last checkpoint"):
        algo.validate()
    for _ in range(2):  # the second call raises too
        with pytest.raises(LearnerLostError):
            algo.train()
        with pytest.raises(LearnerLostError):
            algo.validate()
        with pytest.raises(LearnerLostError):
            algo.restore_from_path(path)
    algo.stop()


@pytest.mark.slow
def test_a_learner_that_dies_between_two_iterations_ends_the_run(cluster, tiny_data):
    algo = tiny_config(tiny_data[0]).learners(num_learners=1).build_algo()
    algo.train()
    kill(algo, rank=0)
    for _ in range(2):
        with pytest.raises(Exception, match=r"died|dead"):
            algo.train()
    algo.stop()


@pytest.mark.slow
def test_pretrained_weights_that_do_not_fit_are_refused_by_a_remote_learner_too(
    cluster, tiny_data, tmp_path
):
    from gymnasium.spaces import Box

    other = DecisionTransformer(DTModelConfig(**TINY), Box(-1.0, 1.0, (4,)), Box(-1.0, 1.0, (2,)))
    save_pretrained(other, tmp_path / "other")
    config = tiny_config(tiny_data[0], pretrained=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="do not fit the environment's spaces"):
        config.learners(num_learners=1).build_algo()


class OneGoesWrong(DTTorchLearner):
    """Fails in the fifth update of the second of two learners."""

    def compute_loss_for_module(self, *, batch, **kwargs):
        if self.rank == 1 and self.progress.updates == 4:
            if self.config.trouble == "raise":
                raise RuntimeError("out of memory, say")
            batch["actions"] = torch.full_like(batch["actions"], 3e38)
        return super().compute_loss_for_module(batch=batch, **kwargs)


@pytest.mark.timeout(120)  # an unnoticed failure blocks the other for half an hour
@pytest.mark.parametrize("trouble", ["raise", "not finite"])
@pytest.mark.slow
def test_if_one_of_two_learners_fails_the_run_fails(cluster, tiny_data, trouble):
    config = tiny_config(tiny_data[0]).learners(num_learners=2)
    config.training(learner_class=OneGoesWrong)
    config.trouble = trouble
    algo = config.build_algo()
    learner_results(algo)
    error = NonFiniteLossError if trouble == "not finite" else Exception
    with pytest.raises(error):
        algo.train()
    algo.stop()
