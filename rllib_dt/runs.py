"""Runs from plain settings: training as a Tune run, and evaluation of what it saved.

A file of settings names methods of `DTConfig`, and the arguments of each:

    environment: {env: CartPole-v1}
    offline_data: {input_: data/cartpole-mixed, dataset_num_iters_per_learner: 100}
    model: {context_length: 10, hidden_size: 64}
    training: {lr: {grid_search: [1.0e-3, 3.0e-4]}}
    evaluation: {target_returns: [350, 50], evaluation_interval: 5}
    tune: {stop: {training_iteration: 20}, checkpoint_frequency: 5}

`model` is short for `rl_module: {model_config: …}`. A value of the form `{grid_search: […]}`,
`{choice: […]}`, `{uniform: […]}`, `{loguniform: […]}` or `{randint: […]}` is searched over. Paths
are relative to the working directory.
"""

import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, ResultGrid

from rllib_dt.algorithm.config import DTConfig
from rllib_dt.algorithm.dt import DT
from rllib_dt.algorithm.inputs import has_inputs
from rllib_dt.compat import is_registered_env
from rllib_dt.formats.files import find_files, open_file
from rllib_dt.formats.minari import located, metadata_of
from rllib_dt.formats.paths import exists
from rllib_dt.policy.loading import checkpoint_in
from rllib_dt.policy.manifest import MANIFEST
from rllib_dt.types import JsonObject

SECTIONS = (
    "environment", "offline_data", "model", "rl_module", "training", "evaluation", "online",
    "learners", "env_runners", "framework", "fault_tolerance", "resources", "debugging",
    "callbacks", "tune",
)  # fmt: skip
"""The sections of a file of settings."""

_SEARCHES: dict[str, Callable[..., Any]] = {
    "grid_search": lambda *values: tune.grid_search(list(values)),
    "choice": lambda *values: tune.choice(list(values)),
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
}
_TUNE = (
    "stop", "num_samples", "metric", "mode", "checkpoint_frequency", "num_to_keep", "storage_path",
    "name", "max_concurrent_trials",
)  # fmt: skip
_STOPS = ("training_iteration", "time_total_s", "num_env_steps_sampled_lifetime")
"""What ends a run; a metric of results, with "/" between its levels, may too."""

_DEFAULT_ITERATIONS = 10


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run.

    Attributes:
        config: the algorithm's settings, which may hold search spaces.
        tune: how often it is run, and until when; see `Run.fit`.
    """

    config: DTConfig
    tune: Mapping[str, Any] = field(default_factory=dict)

    def fit(
        self,
        out: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        verbose: int = 0,
    ) -> ResultGrid:
        """Trains, and writes checkpoints; the last one is at the end of each trial.

        Args:
            out: the run's folder; `tune`'s `storage_path` and `name` by default.
            callbacks: Tune's, which see each result.
            verbose: Tune's own output.

        Raises:
            RuntimeError: a trial failed; what the others reached is in the folder.
            ValueError: the run would end before a policy is trained.
        """
        asked = dict(self.tune)
        stop = asked.get("stop") or {"training_iteration": _DEFAULT_ITERATIONS + self._before()}
        if stop.get("training_iteration", math.inf) <= self._before():
            raise ValueError(
                f"tune's stop at training_iteration={stop['training_iteration']} would train no "
                f"policy: the first {self._before()} iterations learn the critic of q_weight"
            )
        tuner = tune.Tuner(
            "DT",
            param_space=self.config,
            run_config=tune.RunConfig(
                **_place(out, asked),
                stop=stop,
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_at_end=True,
                    checkpoint_frequency=asked.get("checkpoint_frequency", 0),
                    num_to_keep=asked.get("num_to_keep"),
                ),
                callbacks=list(callbacks),
                verbose=verbose,
            ),
            tune_config=tune.TuneConfig(
                num_samples=asked.get("num_samples", 1),
                metric=asked.get("metric"),
                mode=asked.get("mode", "max") if asked.get("metric") else None,
                max_concurrent_trials=asked.get("max_concurrent_trials"),
            ),
        )
        results = tuner.fit()
        if results.errors:
            raise RuntimeError(f"{len(results.errors)} trials failed: {_cause(results.errors[0])}")
        return results

    def _before(self) -> int:
        """Returns how many iterations learn a critic; 0 if that is searched over."""
        config = self.config
        settings = config.q_weight, config.critic_updates, config.dataset_num_iters_per_learner
        is_known = all(isinstance(value, Real) for value in settings)
        return self.config.critic_iterations if is_known else 0


def _cause(error: Exception) -> str:
    """Returns what a trial's error comes from, without the traces of the processes between."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _place(out: str | os.PathLike[str] | None, asked: Mapping[str, Any]) -> JsonObject:
    """Returns where a run is written, as Tune names it."""
    if out is not None:
        folder = Path(out).resolve()
        return {"storage_path": str(folder.parent), "name": folder.name}
    place = {name: asked[name] for name in ("storage_path", "name") if asked.get(name)}
    storage = place.get("storage_path")
    if storage is not None and "://" not in storage:
        place["storage_path"] = str(Path(storage).resolve())
    return place


def read_run(path: str | os.PathLike[str]) -> Run:
    """Reads a run from a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or names settings that there are not.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    try:
        return make_run(given)
    except RecursionError as error:
        raise ValueError(f"{path}: it refers to itself") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def make_run(given: Any) -> Run:
    """Builds a run from settings; see this module's docstring.

    Raises:
        ValueError: there are no such sections or settings.
        TypeError: a section is no mapping, or an argument has another type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"the settings are a {type(given).__name__}, wanted sections: {SECTIONS}")
    config = DTConfig()
    for section, arguments in given.items():
        if section not in SECTIONS:
            raise ValueError(f"there is no section {section!r}{_hint(section, SECTIONS)}")
        if isinstance(arguments, Mapping) and not all(isinstance(key, str) for key in arguments):
            raise ValueError(f"section {section} has names that are no text: {list(arguments)}")
        if not isinstance(arguments, Mapping):
            raise TypeError(f"section {section} holds {arguments!r}, wanted names and values")
        if section == "tune":
            continue
        searched = {name: _searched(value) for name, value in arguments.items()}
        try:
            if section == "model":
                config.rl_module(model_config=searched)
            else:
                getattr(config, section)(**searched)
        except TypeError as error:
            raise ValueError(f"section {section}: {_without_signature(error, section)}") from error
    return Run(config=config, tune=_checked_tune(given.get("tune", {})))


def _checked_tune(given: Mapping[str, Any]) -> JsonObject:
    """Refuses settings of a Tune run that would end it late, or never."""
    for name in given:
        if name not in _TUNE:
            raise ValueError(f"section tune has no setting {name!r}{_hint(name, _TUNE)}")
    stop = given.get("stop")
    if stop is not None and not (isinstance(stop, Mapping) and stop):
        raise ValueError(f"tune's stop is {stop!r}, wanted names and values")
    for name, value in (stop or {}).items():
        near = difflib.get_close_matches(str(name), _STOPS, n=1, cutoff=0.8)
        if name not in _STOPS and (near or "/" not in str(name)):
            raise ValueError(f"tune's stop has {name!r}{_hint(name, _STOPS)}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"tune's stop has {name}={value!r}, wanted a number")
    for name in ("num_samples", "checkpoint_frequency", "num_to_keep", "max_concurrent_trials"):
        value = given.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"tune's {name} is {value!r}, wanted a whole number")
    if given.get("mode", "max") not in ("min", "max"):
        raise ValueError(f"tune's mode is {given['mode']!r}, wanted 'min' or 'max'")
    return {**given, "stop": dict(stop)} if stop else dict(given)


def default_run(
    data: Sequence[str] | str, env: str | None = None, iterations: int = _DEFAULT_ITERATIONS
) -> Run:
    """Returns a run for data of which nothing else is known, with the paper's network.

    It does 100 updates an iteration, and evaluates the data's best and median return at the end,
    if there is an environment: the given one, or the one that a Minari data set names.

    Args:
        data: paths of recordings, or the id of a Minari data set.
        env: an environment of gymnasium.
        iterations: how many iterations.
    """
    places = [located(path) for path in ([data] if isinstance(data, str) else data)]
    env = env or recorded_environment(places)
    settings: JsonObject = {
        "offline_data": {"input_": places, "dataset_num_iters_per_learner": 100},
        "training": {"warmup_steps": 100, "lr": 1e-3, "grad_clip": 0.25, "weight_decay": 1e-4},
        "debugging": {"seed": 0},
        "tune": {"stop": {"training_iteration": iterations}},
    }
    if env is not None:
        settings["environment"] = {"env": env}
        settings["env_runners"] = {"num_envs_per_env_runner": 10}
        settings["evaluation"] = {
            "evaluation_interval": iterations,
            "evaluation_duration": 20,
        }
    return make_run(settings)


def recorded_environment(paths: Sequence[str]) -> str | None:
    """Returns the environment that a Minari data set names, if gymnasium has it here."""
    import gymnasium as gym

    for path, _ in find_files(list(paths)):
        for place in metadata_of(path):
            if not exists(place):
                continue
            opened, _ = open_file(place)
            with opened as file:
                metadata = json.loads(file.read())
            described = metadata.get("env_spec") if isinstance(metadata, Mapping) else None
            spec = json.loads(described) if isinstance(described, str) else described
            name = spec.get("id") if isinstance(spec, Mapping) else None
            return str(name) if name in gym.registry else None
    return None


def check_places(config: DTConfig) -> None:
    """Raises an error if a run's data or environment is not there, before a cluster is started.

    Raises:
        ValueError: there is no such data or environment.
    """
    import gymnasium as gym

    if has_inputs(config.input_) and config.input_filesystem is None:
        find_files(config.input_)
    env = config.env
    is_known = not isinstance(env, str) or env in gym.registry or ":" in env or "." in env
    if not is_known and not is_registered_env(env):
        raise ValueError(
            f"there is no environment {env!r}{_hint(env, sorted(gym.registry))[:300]}; install or "
            "register it"
        )


def check_evaluation(path: str | os.PathLike[str], env: str | None) -> None:
    """Raises an error if there is nothing to evaluate, before a cluster is started; see `evaluate`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: there is no environment.
    """
    folder = checkpoint_in(Path(path).expanduser())
    if not (folder / MANIFEST).is_file():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds neither a checkpoint nor a Hugging Face folder"
            )
        if env is None:
            raise ValueError("a Hugging Face folder names no environment; give one (env)")
    if env is not None:
        check_places(DTConfig().environment(env=env))


def evaluate(
    path: str | os.PathLike[str],
    targets: Sequence[float | str] | None = None,
    *,
    episodes: int | None = None,
    env: str | None = None,
    seed: int | None = None,
    num_env_runners: int = 0,
    with_data: bool = False,
) -> tuple[JsonObject, list[float]]:
    """Evaluates a checkpoint, the last one of a trial, or a Hugging Face folder.

    Args:
        path: where it is.
        targets: the returns to ask for; those of the checkpoint by default.
        episodes: how many for each target; as in training by default.
        env: the environment; that of training by default, and needed for a Hugging Face folder.
        seed: of the episodes; that of training by default.
        num_env_runners: processes that play them, besides this one if 0.
        with_data: read the training data too, if it is there, for its returns.

    Returns:
        The result of `DT.evaluate`, and the returns of the training data's episodes.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: there is no environment, or there are no targets.
    """
    check_evaluation(path, env)
    folder = checkpoint_in(Path(path).expanduser())
    evaluation: JsonObject = {"evaluation_num_env_runners": num_env_runners}
    if episodes is not None:
        evaluation["evaluation_duration"] = episodes
    changes: JsonObject = {"evaluation": evaluation}
    if env is not None:
        changes["environment"] = {"env": env}
    if seed is not None:
        changes["debugging"] = {"seed": seed}
    if (folder / MANIFEST).is_file():
        kept = {} if with_data else {"input_": None}
        algo = DT.from_checkpoint(str(folder), **kept, **changes)
    else:
        sections = {**changes, "model": {"pretrained": str(folder)}}
        config = make_run(sections).config
        algo = config.build_algo()
    try:
        result = algo.evaluate(target_returns=None if targets is None else list(targets))
        data = algo.offline_data
        returns = [] if data.is_missing else [float(value) for value in data.returns]
    finally:
        algo.stop()
    return result["env_runners"], returns


def _searched(value: Any) -> Any:
    """Turns `{uniform: [a, b]}` into Tune's search space, at any depth."""
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        ((name, arguments),) = value.items()
        near = difflib.get_close_matches(str(name), _SEARCHES, n=1, cutoff=0.8)
        if near and name not in _SEARCHES and isinstance(arguments, list):
            raise ValueError(f"there is no search space {name!r}; did you mean {near[0]!r}?")
        if name in _SEARCHES:
            if not isinstance(arguments, list) or not arguments:
                raise ValueError(f"{name} takes a list of values, not {arguments!r}")
            return _SEARCHES[name](*arguments)
    return {name: _searched(inner) for name, inner in value.items()}


def _without_signature(error: TypeError, section: str) -> str:
    """Says which argument a section does not have, with the nearest one that it has."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return str(error)
    method = getattr(DTConfig, section)
    known = [
        name
        for kind in DTConfig.__mro__
        for name in inspect.signature(getattr(kind, section, method)).parameters
        if name not in ("self", "kwargs")
    ]
    return f"there is no setting {found[1]!r}{_hint(found[1], sorted(set(known)))}"


def _hint(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {list(known)}"
