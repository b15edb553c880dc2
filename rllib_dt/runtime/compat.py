"""Everything that leans on private or undecorated parts of Ray 2.60, in one place.

`tests/test_host_contract.py` holds each seam, and tells when upstream has repaired what is
worked around here.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import ray
from ray.rllib.algorithms import registry as rllib_registry
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.tune import registry as tune_registry


def env_creator(config: AlgorithmConfig) -> Callable[[Any], gym.Env]:
    """The function that makes one environment of `config.env`, from an EnvContext."""
    creator: Callable[[Any], gym.Env] = Algorithm._get_env_id_and_creator(config.env, config)[1]
    return creator


class LearnerLostError(RuntimeError):
    """A learner died, or failed before; what is left of them trains nothing, or not everything."""


def on_every_learner(group: Any, function: Callable[[Any], Any]) -> list[Any]:
    """What `function` gives for each learner, in their order.

    RLlib hands errors out as results, and leaves a learner that had one out of later calls.

    Raises:
        LearnerLostError: a learner is dead, or was left out.
        Exception: what `function` raised on a learner.
    """
    results = list(group.foreach_learner(function))
    for result in results:
        if not result.ok:
            error = result.get()
            if isinstance(error, ray.exceptions.RayActorError):
                raise LearnerLostError(_LOST) from error
            raise (
                error.as_instanceof_cause()
                if isinstance(error, ray.exceptions.RayTaskError)
                else error
            )
    if len(results) != max(1, len(group)):
        raise LearnerLostError(_LOST)
    return [result.get() for result in results]


def recall_learners(group: Any) -> None:
    """Lets learners take part again that live, after a call that failed and changed nothing."""
    if group.is_remote:
        group.foreach_learner(lambda learner: None, healthy_only=False, mark_healthy=True)


def check_learners(group: Any) -> None:
    """Raises a LearnerLostError if a learner is known to be lost; asks nobody."""
    if group.is_remote and group._worker_manager.num_healthy_actors() != len(group):
        raise LearnerLostError(_LOST)


_LOST = (
    "a learner has died or failed; learners do not come back: build the algorithm anew from its "
    "last checkpoint (DT.from_checkpoint; under Tune, FailureConfig(max_failures=…) does that)"
)


def runner_actors(group: Any) -> dict[int, Any]:
    """The remote runners of an `EnvRunnerGroup` by their index, those thought dead included."""
    actors: dict[int, Any] = group._worker_manager.actors()
    return actors


def set_runner_health(group: Any, index: int, *, healthy: bool) -> None:
    """Tells an `EnvRunnerGroup` which runners live."""
    group._worker_manager.set_actor_state(index, healthy)


def notify_environment_created(runner: Any, context: Any) -> None:
    """Calls the users' `on_environment_created`, as RLlib's own `make_env` does."""
    make_callback(
        "on_environment_created",
        callbacks_objects=runner._callbacks,
        callbacks_functions=runner.config.callbacks_on_environment_created,
        kwargs={
            "env_runner": runner,
            "metrics_logger": runner.metrics,
            "env": runner.env.unwrapped,
            "env_context": context,
        },
    )


def register_algorithm(name: str, algorithm: type[Algorithm]) -> None:
    """Makes `name` known to Tune and to RLlib's registry, also in clusters that start later.

    Tune keeps a registration in the running cluster only: after `ray.shutdown()` it is gone, and
    looking the name up imports every algorithm of RLlib, for which plain `ray[rllib]` lacks
    Pillow. So it is repeated behind every `ray.init()`.
    """

    def enlist() -> None:
        tune_registry.register_trainable(name, algorithm)

    rllib_registry.ALGORITHMS[name] = lambda: (algorithm, algorithm.get_default_config())
    rllib_registry.ALGORITHMS_CLASS_TO_NAME[algorithm.__name__] = name
    hooks = ray._private.worker._post_init_hooks
    if not any(getattr(hook, "rllib_dt_name", None) == name for hook in hooks):
        enlist.rllib_dt_name = name  # type: ignore[attr-defined]
        hooks.append(enlist)
    enlist()
