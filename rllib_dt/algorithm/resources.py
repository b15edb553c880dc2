"""Whether the cluster can ever hold a run; RLlib would wait for ever where it cannot."""

from collections import Counter
from collections.abc import Mapping, Sequence

import ray

from rllib_dt.runtime.compat import largest_cluster

Bundle = Mapping[str, float]


class NotEnoughResourcesError(ValueError):
    """The learners and evaluation runners ask for more than the whole cluster has."""


def check_resources(bundles: Sequence[Bundle], described: str) -> None:
    """Raises a NotEnoughResourcesError if the bundles can never be placed all at once.

    Args:
        bundles: what each process asks for.
        described: what the processes are, for the message.
    """
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update({name: amount for name, amount in bundle.items() if amount})
    limits = largest_cluster()
    lacking = {name: amount for name, amount in needed.items() if amount > limits.get(name, 0)}
    if lacking:
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in lacking.items())
        there = ", ".join(f"{limits.get(name, 0):g} {name}" for name in lacking)
        raise NotEnoughResourcesError(
            f"{described} need {wanted}, but the cluster has {there}; lower "
            "learners(num_learners=…, num_gpus_per_learner=…) or "
            "evaluation(evaluation_num_env_runners=…), or add nodes"
        )
    biggest = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        asked = {name: amount for name, amount in bundle.items() if amount}
        if not any(all(node.get(k, 0) >= v for k, v in asked.items()) for node in biggest):
            if limits != ray.cluster_resources():
                continue  # a node that is started on demand may hold it
            raise NotEnoughResourcesError(
                f"no node of the cluster has {asked}, which one of {described} asks for; lower "
                "num_cpus_per_learner or num_gpus_per_learner, or add a larger node"
            )
