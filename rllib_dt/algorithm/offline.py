"""`OfflineAlgorithm`: saving and restoring without training runners, which RLlib 2.60 requires.

RLlib's `Algorithm` assumes training env runners in `set_state`, `restore_from_path` and
`get_module`, and never restores the evaluation runners of an offline algorithm.
`tests/test_host_contract.py` fails once upstream has fixed this.
"""

import copy
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.tune import Checkpoint

from rllib_dt.algorithm import checkpoints
from rllib_dt.algorithm.compatibility import check_same_network
from rllib_dt.compat import on_every_learner, recall_learners, repair_msgpack
from rllib_dt.formats.paths import absolute, locate
from rllib_dt.learning.learner import COUNTERS
from rllib_dt.policy.manifest import CheckpointError
from rllib_dt.reading.offline_data import restoring
from rllib_dt.types import EnvRunnerGroup, Paths, State

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has none


_SETTERS = (
    "environment",
    "offline_data",
    "training",
    "evaluation",
    "online",
    "env_runners",
    "learners",
    "fault_tolerance",
    "debugging",
    "reporting",
    "callbacks",
)
"""The config's methods whose settings `from_checkpoint` takes."""


def _changed(
    config: AlgorithmConfig, input_: Paths, settings: Mapping[str, Mapping[str, Any]]
) -> AlgorithmConfig:
    changed = config.copy(copy_frozen=False)
    for name, values in settings.items():
        getattr(changed, name)(**values)
    if input_ is not NotProvided and input_ is not None:
        changed.offline_data(input_=input_)
    return changed


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The learners' weights at one update.

    Attributes:
        weights: a module state.
        num_updates: the update that they come from.
    """

    weights: State
    num_updates: int


class OfflineAlgorithm(Algorithm):
    """An algorithm without training runners, whose checkpoints are complete or refused."""

    def take_snapshot(self) -> Snapshot:
        """Copies the learners' current weights, so that training can continue meanwhile."""
        state = self.learner_group.get_state(
            components=[f"{COMPONENT_LEARNER}/{c}" for c in (COMPONENT_RL_MODULE, COUNTERS)],
            inference_only=True,
        )[COMPONENT_LEARNER]
        return Snapshot(
            weights=copy.deepcopy(state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]),
            num_updates=state[COUNTERS]["updates"],
        )

    def take_counts(self) -> dict[str, int]:
        """Returns what the learners have counted over their life."""
        progress = self.learner_group.get_state(components=[f"{COMPONENT_LEARNER}/{COUNTERS}"])[
            COMPONENT_LEARNER
        ][COUNTERS]
        return {
            "num_updates": progress["updates"],
            "num_windows_trained": progress["windows"],
            "num_steps_trained": progress["steps"],
        }

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule | None:
        """Returns a copy of the module with the learners' current weights, in eval mode."""
        spec = self.config.get_multi_rl_module_spec(
            spaces=self._spaces_by_module(), inference_only=True
        )
        if module_id not in spec.rl_module_specs:
            return None
        module = spec.rl_module_specs[module_id].build()
        module.set_state(self.take_snapshot().weights)
        return module.eval()

    def _spaces_by_module(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: EnvRunnerGroup | None) -> list[int]:
        """Readmits restarted evaluation runners; each evaluation sends them its weights."""
        if env_runner_group is None:
            return []
        remote = env_runner_group.num_remote_env_runners()
        if remote == env_runner_group.num_healthy_remote_workers():
            return []
        restored: list[int] = env_runner_group.probe_unhealthy_env_runners(
            timeout_seconds=self.config.env_runner_health_probe_timeout_s
        )
        return restored

    # --- state

    @override(Algorithm)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        # evaluation runners have no state besides the learners' weights
        components = super().get_checkpointable_components()
        return [c for c in components if c[1] is self.learner_group]

    @override(Algorithm)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> State:
        state = super().get_state(components, not_components=not_components, **kwargs)
        state.pop("eval_env_runner", None)
        return state

    @override(Algorithm)
    def set_state(self, state: State) -> None:
        if "learner_group" in state:
            self.learner_group.set_state(state["learner_group"])
            self.check_restored()
        if "metrics_logger" in state:
            self.metrics.set_state(state["metrics_logger"])
        if "training_iteration" in state:
            self._iteration = state["training_iteration"]

    def check_restored(self) -> None:
        """Raises an error if a learner could not load its state; RLlib silently excludes it."""
        on_every_learner(self.learner_group, lambda learner: repair_msgpack())

    # --- checkpoints

    @override(Algorithm)
    def save_to_path(
        self,
        path: str | Path | None = None,
        *,
        state: State = None,
        filesystem: pafs.FileSystem | None = None,
        use_msgpack: bool = False,
    ) -> str:
        """Saves a checkpoint; one that was written only in part is refused when restoring.

        Raises:
            NonFiniteWeightsError: a weight is not finite; nothing was written.
            CheckpointError: it could not be written. A local `path` is as it was before; a remote
                one has no manifest, so it is refused.
        """
        if path is None:
            path = Path(tempfile.mkdtemp(prefix="dt-")) / "checkpoint"
        path = str(path) if filesystem is not None else absolute(path)
        on_every_learner(self.learner_group, lambda learner: learner.check_weights())
        try:
            with checkpoints.writing(path, filesystem) as draft:
                try:
                    super().save_to_path(draft, state=state, use_msgpack=use_msgpack)
                finally:
                    repair_msgpack()
            if use_msgpack:
                on_every_learner(self.learner_group, lambda learner: repair_msgpack())
        except CheckpointError:
            # RLlib excludes a learner that could not write from every later call
            recall_learners(self.learner_group)
            raise
        return path

    @override(Algorithm)
    def restore_from_path(
        self,
        path: str | Path,
        *,
        component: str | None = None,
        filesystem: pafs.FileSystem | None = None,
        **kwargs: Any,
    ) -> None:
        """Restores from a checkpoint, or one component from its folder in a checkpoint.

        Raises:
            CheckpointError: a file of it is missing, truncated or changed, or it is a checkpoint of
                another network; nothing was restored.
            ValueError: there is no such component.
        """
        path = str(path) if filesystem is not None else absolute(path)
        if component is None:
            checkpoints.verify(path, filesystem)
        else:
            _check_component(self, component)
            checkpoints.verify_component(path, component, filesystem)
        check_same_network(path, filesystem, component, self.config)
        try:
            Checkpointable.restore_from_path(
                self, path, component=component, filesystem=filesystem, **kwargs
            )
        finally:
            repair_msgpack()
        self.check_restored()

    @classmethod
    @override(Algorithm)
    def from_checkpoint(
        cls,
        path: str | Path | Checkpoint,
        filesystem: pafs.FileSystem | None = None,
        *,
        input_: Paths = NotProvided,
        config: AlgorithmConfig | None = None,
        **settings: Mapping[str, Any],
    ) -> "Self":
        """Builds a new algorithm from a checkpoint.

        The training data may be gone: the algorithm then evaluates and acts, and `train()` says
        what is missing.

        Args:
            path: a path, a URI or a `ray.tune.Checkpoint`.
            filesystem: the path's file system; derived from the path by default.
            input_: other training data; None reads none.
            config: settings to use instead of the saved ones.
            settings: other settings by the name of the config's method that sets them, such as
                `evaluation=dict(target_returns=[3600])`: `environment`, `offline_data`,
                `training`, `evaluation`, `online`, `env_runners`, `learners`,
                `fault_tolerance`, `debugging`, `reporting`, `callbacks`.

        Raises:
            CheckpointError: a file of it is missing, truncated or changed, or the settings describe
                another network.
            TypeError: there is no such keyword.
        """
        unknown = sorted(set(settings) - set(_SETTERS))
        if unknown:
            raise TypeError(
                f"from_checkpoint has no keywords {unknown}; it takes filesystem, input_, config "
                f"and {', '.join(_SETTERS)}"
            )
        if not isinstance(path, str | Path):
            path, filesystem = path.path, filesystem or path.filesystem
        path = str(path) if filesystem is not None else absolute(path)
        checkpoints.verify(path, filesystem)
        if config is None and (settings or input_ not in (NotProvided, None)):
            config = cls._saved_config(path, filesystem)
        changed = {} if config is None else {"config": _changed(config, input_, settings)}
        with restoring("no" if input_ is None else "if there"):
            algorithm: Self = super().from_checkpoint(path, filesystem=filesystem, **changed)
        return algorithm

    @classmethod
    def _saved_config(cls, path: str, filesystem: pafs.FileSystem | None) -> AlgorithmConfig:
        system, folder = locate(path, filesystem)
        with system.open_input_stream(f"{folder}/{cls.CLASS_AND_CTOR_ARGS_FILE_NAME}") as file:
            try:
                arguments, named = pickle.loads(file.read())["ctor_args_and_kwargs"]
                saved = named["config"] if "config" in named else arguments[0]
                if isinstance(saved, AlgorithmConfig):
                    return saved
                restored: AlgorithmConfig = AlgorithmConfig.from_state(saved)
            except (ValueError, AttributeError, ImportError, TypeError, LookupError) as error:
                raise CheckpointError(
                    f"the settings saved in {path} cannot be read ({error}): another version of "
                    "Python or of the package wrote them; give all of them: "
                    "from_checkpoint(path, config=…)"
                ) from error
        return restored


def _check_component(root: Checkpointable, component: str) -> None:
    """Refuses a component that does not exist; RLlib would restore nothing and say nothing."""
    node, rest = root, component
    while isinstance(node, Checkpointable):  # not, if it is in another process
        parts = {name: part for name, part, *_ in node.get_checkpointable_components()}
        name = next((name for name in parts if f"{rest}/".startswith(f"{name}/")), None)
        if name is None:
            raise ValueError(
                f"component={component!r}: there is no {rest!r} but {sorted(parts)}; nothing was "
                "restored"
            )
        node, rest = parts[name], rest.removeprefix(name).lstrip("/")
        if not rest:
            return
