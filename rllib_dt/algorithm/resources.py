"""Checks that a run fits the cluster; if it never can, RLlib would wait forever."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

logger = logging.getLogger(__name__)

Bundle = Mapping[str, float]

WAIT_FOR_NODES = "RLLIB_DT_WAIT_FOR_NODES"
"""Environment variable: wait for nodes instead of refusing, if the cluster adds them on demand."""

_GROWING = f"on a cluster that starts nodes on demand, set {WAIT_FOR_NODES}=1 to wait for them"


class NotEnoughResourcesError(ValueError):
    """The learners and evaluation runners need more than the whole cluster has."""


def check_resources(bundles: Sequence[Bundle], described: str) -> None:
    """Raises a NotEnoughResourcesError if the bundles can never all be placed at once.

    Args:
        bundles: the resources that each process reserves.
        described: a name for the processes, for the message.
    """
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update({name: amount for name, amount in bundle.items() if amount})
    limits = ray.cluster_resources()
    lacking = {
        name: amount
        for name, amount in needed.items()
        if round(amount, 4) > limits.get(name, 0)  # Ray counts in ten-thousandths
    }
    if (lacking or _no_node_for(bundles)) and os.environ.get(WAIT_FOR_NODES):
        logger.warning("%s need %s: waiting for the cluster to grow", described, dict(needed))
        return
    if lacking:
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in lacking.items())
        there = ", ".join(f"{limits.get(name, 0):g} {name}" for name in lacking)
        raise NotEnoughResourcesError(
            f"{described} need {wanted}, but the cluster has {there}; lower "
            "learners(num_learners=…, num_gpus_per_learner=…) or "
            f"evaluation(evaluation_num_env_runners=…), or add nodes; {_GROWING}"
        )
    for asked in _no_node_for(bundles):
        raise NotEnoughResourcesError(
            f"no node of the cluster has {asked}, which one of {described} asks for; lower "
            f"num_cpus_per_learner or num_gpus_per_learner, or add a larger node; {_GROWING}"
        )


def check_gpu(config: AlgorithmConfig) -> None:
    """Raises a NotEnoughResourcesError if the learner in this process should use a GPU it lacks."""
    if not config.num_learners and config.num_gpus_per_learner and not torch.cuda.is_available():
        raise NotEnoughResourcesError(
            f"num_gpus_per_learner={config.num_gpus_per_learner}, but this process finds no GPU "
            "(torch.cuda.is_available() is False); set learners(num_gpus_per_learner=0) to train "
            "on the CPU, or num_learners=1 to train on a node that has one"
        )


def _no_node_for(bundles: Sequence[Bundle]) -> list[Bundle]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
    return [
        bundle
        for bundle in asked
        if not any(all(node.get(k, 0) >= v for k, v in bundle.items()) for node in nodes)
    ]
