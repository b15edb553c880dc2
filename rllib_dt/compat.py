"""All uses of private modules and attributes of Ray and gymnasium.

The exceptions are private methods and attributes that our subclasses of RLlib's classes override or
use; `tests/test_layers.py` lists them. `tests/test_host_contract.py` checks that
every name used here exists, and fails once upstream has made a workaround unnecessary.

Ray and RLlib are imported inside the functions that need them, because reading tasks and the
package's `__init__` import this module without needing RLlib.
"""

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rllib_dt.types import ActorHandle, EnvRunnerGroup, LearnerGroup

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import AsyncVectorEnv
    from ray.data import Dataset
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_KV_NAMESPACE = b"rllib_dt"


# --- processes and the cluster


def in_ray_task() -> bool:
    """Returns whether this process is one of Ray's workers."""
    worker = sys.modules.get("ray._private.worker")
    return worker is not None and worker.global_worker.mode == worker.WORKER_MODE


def share_in_cluster(name: str, content: bytes) -> None:
    """Stores bytes in the running cluster's memory; they are in no checkpoint and no log."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(name, content, overwrite=True, namespace=_KV_NAMESPACE)


def shared_in_cluster(name: str) -> bytes | None:
    """Returns the bytes that `share_in_cluster` stored; None if this cluster never got them."""
    from ray.experimental import internal_kv

    content: bytes | None = internal_kv._internal_kv_get(name, namespace=_KV_NAMESPACE)
    return content


def repair_msgpack() -> None:
    """Undoes `msgpack_numpy.patch()`, after which Ray passes arrays on as dicts.

    RLlib calls it for checkpoints and recordings in msgpack, in whatever process it is, and Ray
    serialises with the same module (ray-project/ray#8409).
    """
    theirs, shared = sys.modules.get("msgpack_numpy"), sys.modules.get("msgpack")
    if theirs is not None and shared is not None and shared.packb is theirs.packb:
        importlib.reload(shared)


# --- learners


class LearnerLostError(RuntimeError):
    """A learner has died or failed; the others would train nothing, or only their share."""


_LOST = (
    "a learner has died or failed, and learners do not restart: rebuild the algorithm from its "
    "last checkpoint (DT.from_checkpoint; under Tune, FailureConfig(max_failures=…) does that)"
)


def on_every_learner(group: LearnerGroup, function: Callable[[Any], Any]) -> list[Any]:
    """Calls `function` on each learner and returns the results, in the learners' order.

    RLlib returns errors as results, and excludes a learner that raised from later calls.

    Raises:
        LearnerLostError: a learner is dead, or was excluded.
        Exception: what `function` raised on a learner.
    """
    from ray.exceptions import RayActorError, RayTaskError

    results = list(group.foreach_learner(function))
    for result in results:
        if not result.ok:
            error = result.get()
            if isinstance(error, RayActorError):
                raise LearnerLostError(_LOST) from error
            raise error.as_instanceof_cause() if isinstance(error, RayTaskError) else error
    if len(results) != max(1, len(group)):
        raise LearnerLostError(_LOST)
    return [result.get() for result in results]


def recall_learners(group: LearnerGroup) -> None:
    """Readmits learners that are alive after a call that failed without changing anything."""
    if group.is_remote:
        group.foreach_learner(lambda learner: None, healthy_only=False, mark_healthy=True)


def check_learners(group: LearnerGroup) -> None:
    """Raises a LearnerLostError if a learner is known to be lost, without calling any learner."""
    if group.is_remote and group._worker_manager.num_healthy_actors() != len(group):
        raise LearnerLostError(_LOST)


# --- evaluation runners and their environments


def has_own_env_to_module(config: "AlgorithmConfig") -> bool:
    """Returns whether `env_runners(env_to_module_connector=…)` is set."""
    return config._env_to_module_connector is not None


def env_creator(config: "AlgorithmConfig") -> "Callable[[Any], gym.Env]":
    """Returns the function that creates an environment of `config.env` from an EnvContext."""
    from ray.rllib.algorithms.algorithm import Algorithm

    creator: Callable[[Any], gym.Env] = Algorithm._get_env_id_and_creator(config.env, config)[1]
    return creator


def is_registered_env(name: str) -> bool:
    """Returns whether an environment was registered with `ray.tune.register_env`."""
    from ray.tune.registry import ENV_CREATOR, _global_registry

    return bool(_global_registry.contains(ENV_CREATOR, name))


def runner_actors(group: EnvRunnerGroup) -> dict[int, ActorHandle]:
    """Returns the remote runners by index, including those marked as dead."""
    actors: dict[int, ActorHandle] = group._worker_manager.actors()
    return actors


def set_runner_health(group: EnvRunnerGroup, index: int, *, healthy: bool) -> None:
    """Records whether a runner is alive."""
    group._worker_manager.set_actor_state(index, healthy)


def notify_environment_created(runner: ActorHandle, context: Any) -> None:
    """Calls the users' `on_environment_created`, as RLlib's own `make_env` does."""
    from ray.rllib.callbacks.utils import make_callback

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


def first_info(env: "AsyncVectorEnv", infos: dict[str, Any]) -> dict[str, Any]:
    """Returns the info of a vector's first environment, from gymnasium's dict of arrays."""
    from gymnasium.wrappers.vector import DictInfoToList

    if not infos:
        return {}
    info: dict[str, Any] = DictInfoToList(env)._convert_info_to_list(infos)[0]
    return info


# --- registration


def register_algorithm(name: str, algorithm: "type[Algorithm]") -> None:
    """Registers `name` with Tune and RLlib, also in clusters that start later.

    Tune keeps a registration only in the running cluster. After `ray.shutdown()` it is gone, and
    looking the name up then imports all of RLlib's algorithms, which fails with plain `ray[rllib]`:
    it lacks Pillow. So registration is repeated after every `ray.init()`.
    """
    import ray
    from ray.rllib.algorithms import registry as rllib_registry
    from ray.tune import registry as tune_registry

    def enlist() -> None:
        tune_registry.register_trainable(name, algorithm)

    rllib_registry.ALGORITHMS[name] = lambda: (algorithm, algorithm.get_default_config())
    rllib_registry.ALGORITHMS_CLASS_TO_NAME[algorithm.__name__] = name
    hooks = ray._private.worker._post_init_hooks
    if not any(getattr(hook, "rllib_dt_name", None) == name for hook in hooks):
        enlist.rllib_dt_name = name  # type: ignore[attr-defined]
        hooks.append(enlist)
    enlist()


# --- Ray Data


def map_with_retries(
    dataset: "Dataset", function: Callable[..., Any], retries: int, **settings: Any
) -> "Dataset":
    """Calls `dataset.map_batches`, and tries a task at most `retries` times again.

    By default Ray Data tries for ever, so one file that ends its reader's process would hang a run.

    Args:
        dataset: what to map.
        function: see `map_batches`.
        retries: how often a task is tried again whose process died.
        settings: see `map_batches`.
    """
    with warnings.catch_warnings():
        # Ray 2.60 (2026-11) deprecates this keyword, and has no other for the number of retries
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return dataset.map_batches(function, **settings, max_retries=retries)


# --- messages


_NOTICES = (
    "on the new API stack!",  # DT has no other
    "Progress bars disabled.",  # by us, who log the steps read
    "RLModule(config=[RLModuleConfig object])",  # RLlib's own module makes one for each module
)
_NOTICE_LOGGERS = (
    "ray._common.deprecation",
    "ray.data._internal.progress",
    "ray.rllib.algorithms.algorithm_config",
)


def silence_notices() -> None:
    """Keeps notices of Ray's from the log that are about its own code."""
    for name in _NOTICE_LOGGERS:
        log = logging.getLogger(name)
        if not any(getattr(known, "rllib_dt", False) for known in log.filters):

            def keep(record: logging.LogRecord) -> bool:
                return not any(notice in str(record.msg) for notice in _NOTICES)

            keep.rllib_dt = True  # type: ignore[attr-defined]
            log.addFilter(keep)


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Keeps Ray Data's account of its own work, a dozen lines a pass, from the log in the block.

    `logging.getLogger("rllib_dt").setLevel(logging.DEBUG)` shows it.
    """
    silence_notices()
    log = logging.getLogger("ray.data")
    before = log.level
    if not logging.getLogger("rllib_dt").isEnabledFor(logging.DEBUG):
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
