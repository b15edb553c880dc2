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
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, ResultGrid

from rllib_dt.algorithm.config import DTConfig
from rllib_dt.algorithm.dt import DT
from rllib_dt.formats.files import find_files, open_file
from rllib_dt.formats.minari import located, metadata_of
from rllib_dt.formats.paths import exists
from rllib_dt.policy.loading import checkpoint_in
from rllib_dt.policy.manifest import MANIFEST
from rllib_dt.types import JsonObject

logger = logging.getLogger(__name__)

SECTIONS = (
    "environment", "offline_data", "model", "rl_module", "training", "evaluation", "learners",
    "env_runners", "framework", "fault_tolerance", "resources", "debugging", "callbacks", "tune",
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
        """
        asked = dict(self.tune)
        tuner = tune.Tuner(
            "DT",
            param_space=self.config,
            run_config=tune.RunConfig(
                **_place(out, asked),
                stop=asked.get("stop") or {"training_iteration": _DEFAULT_ITERATIONS},
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
            raise RuntimeError(f"{len(results.errors)} trials failed: {results.errors[0]}")
        return results


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    try:
        return make_run(given)
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
            raise ValueError(f"section {section}: {error}") from error
    asked = dict(given.get("tune", {}))
    for name in asked:
        if name not in _TUNE:
            raise ValueError(f"section tune has no setting {name!r}{_hint(name, _TUNE)}")
    return Run(config=config, tune=asked)


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
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds neither a checkpoint nor a Hugging Face folder"
            )
        if env is None:
            raise ValueError("a Hugging Face folder names no environment; give one (env)")
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
        if name in _SEARCHES:
            if not isinstance(arguments, list):
                raise ValueError(f"{name} takes a list, not {arguments!r}")
            return _SEARCHES[name](*arguments)
    return {name: _searched(inner) for name, inner in value.items()}


def _hint(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {list(known)}"
