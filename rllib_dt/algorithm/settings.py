"""The settings of a `DTConfig`, with their defaults, and the methods that set them."""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.utils.annotations import override

from rllib_dt.algorithm.inputs import absolute_inputs, are_paths, check_inputs
from rllib_dt.episodes.duplicates import DuplicatesPolicy
from rllib_dt.formats.assembly import IncompletePolicy
from rllib_dt.formats.expansion import DEFAULT_MAX_EXPANSION
from rllib_dt.formats.fragments import LastRow, MissingEnds, MissingRewards
from rllib_dt.network.config import DTModelConfig
from rllib_dt.reading.credentials import Sealed
from rllib_dt.types import Paths

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has none


class DTSettings(AlgorithmConfig):
    """RLlib's settings and the Decision Transformer's own; see `DTConfig`."""

    input_: Paths
    input_filesystem: Any
    input_filesystem_kwargs: Any

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.dataset_num_iters_per_learner = 100
        # actions leave the module in the environment's units and within its bounds
        self.normalize_actions = False
        self.clip_actions = False
        self.explore = False
        self.gamma = 1.0
        self.lr: float | list[Any] = 1e-4
        self._train_batch_size_per_learner = 64
        self.grad_clip = 0.25
        self.grad_clip_by = "global_norm"
        self.evaluation_duration = 10
        # with RLlib's default of 60 s, an environment's first error would stall the run
        self.delay_between_env_runner_restarts_s = 1.0
        # ours; the methods below describe them
        self.warmup_steps = 0
        self.lr_decay: Literal["cosine"] | None = None
        self.lr_decay_updates: int | None = None
        self.weight_decay = 1e-4
        self.weight_decay_on: Literal["all", "matrices"] = "all"
        self.adam_betas = [0.9, 0.999]
        self.return_scale: float | None = None
        self.delayed_reward = False
        self.state_loss_weight = 0.0
        self.return_loss_weight = 0.0
        self.micro_batch_size: int | None = None
        self.precision: Literal["fp32", "bf16", "auto"] = "fp32"
        self.target_returns: list[float | str] | None = None
        self.score_reference: list[float] | None = None
        self.temperature: float | None = None
        self.ema_decay: float | None = None
        self.max_return_expectile: float | None = None
        self.rollouts_per_iteration: int | None = None
        self.updates_per_iteration = 300
        self.buffer_episodes = 1000
        self.exploration_target: float | str | None = None
        self.exploration_temperature = 1.0
        self.offline_updates = 0
        self.initial_alpha = 0.1
        self.target_entropy: float | None = None
        self.alpha_lr = 1e-4
        self.q_weight = 0.0
        self.q_best_return: float | None = None
        self.critic_updates = 20_000
        self.critic_expectile = 0.7
        self.critic_gamma = 0.99
        self.observation_mean: list[float] | None = None
        self.observation_std: list[float] | None = None
        self.time_limit: int | None = None
        self.incomplete: IncompletePolicy = "error"
        self.duplicates: DuplicatesPolicy = "keep"
        self.join_files = False
        self.frame_stack: int | None = None
        self.max_expansion = DEFAULT_MAX_EXPANSION
        self.missing_rewards: MissingRewards | None = None
        self.missing_ends: MissingEnds | None = None
        self.last_row: LastRow | None = None
        self.actions_in_input_normalized: bool | None = None
        self.top_fraction: float | None = None
        self.pool_capacity_steps: int | None = None
        self.pool_capacity_bytes: int | None = None
        self.pool_reuse = 1.0
        self.validation_fraction: float | None = None
        self.validation_input: Paths = None
        self.validation_interval = 1
        self._paths_as_given: dict[str, Paths] = {}
        self._settings_taken_from: str | None = None

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        warmup_steps: int = NotProvided,
        lr_decay: Literal["cosine"] | None = NotProvided,
        lr_decay_updates: int | None = NotProvided,
        weight_decay: float = NotProvided,
        weight_decay_on: Literal["all", "matrices"] = NotProvided,
        adam_betas: Sequence[float] = NotProvided,
        return_scale: float | None = NotProvided,
        observation_mean: Sequence[float] | None = NotProvided,
        observation_std: Sequence[float] | None = NotProvided,
        delayed_reward: bool = NotProvided,
        ema_decay: float | None = NotProvided,
        max_return_expectile: float | None = NotProvided,
        initial_alpha: float = NotProvided,
        target_entropy: float | None = NotProvided,
        alpha_lr: float = NotProvided,
        q_weight: float = NotProvided,
        q_best_return: float | None = NotProvided,
        critic_updates: int = NotProvided,
        critic_expectile: float = NotProvided,
        critic_gamma: float = NotProvided,
        state_loss_weight: float = NotProvided,
        return_loss_weight: float = NotProvided,
        micro_batch_size: int | None = NotProvided,
        precision: Literal["fp32", "bf16", "auto"] = NotProvided,
        **kwargs: Any,
    ) -> "Self":
        """Configures training.

        Args:
            warmup_steps: updates over which the learning rate rises linearly.
            lr_decay: how the learning rate falls after the warm-up: None (as `lr` says), or
                "cosine", by a half cosine to a tenth, as in the paper's Atari experiments.
            lr_decay_updates: the update at which the cosine ends.
            weight_decay: AdamW's weight decay.
            weight_decay_on: the parameters that decay: "all", norms and biases included (as in the
                paper's code for Gym), or "matrices", the weights of linear layers and convolutions
                only (as in its code for Atari; kzl @ e2d82e6).
            adam_betas: AdamW's two betas.
            return_scale: divides returns-to-go; None takes the largest absolute episode return of
                the data.
            observation_mean, observation_std: what observations are normalised with, (S,) each,
                where the space is one vector; None takes the data's, or those of
                `DTModelConfig(pretrained=…)`.
            delayed_reward: treat all reward as given at the episode's end, so that the
                return-to-go stays constant, in training and in evaluation.
            ema_decay: evaluate, export and save an average of the weights over updates,
                a ← d a + (1 - d) w with this d, such as 0.999; None for the weights themselves.
                Checkpoints hold both.
            max_return_expectile: learn the largest return that the data show from each step, as
                this expectile of the returns-to-go, such as 0.99;
                `evaluation(target_returns=["max"])` then asks for it at every step.
            initial_alpha, target_entropy, alpha_lr: of the entropy bonus of
                `DTModelConfig(action_distribution="squashed_gaussian")`, as RLlib's SAC names
                them: its weight at first, the entropy that it is moved towards (in nats, of
                actions in [-1, 1]; None takes minus the number of components), and how fast.
            q_weight: improve on the recorded actions: weighs the value of the policy's own actions,
                which the loss subtracts, most for windows of the worst trajectories, not at all
                for those of the best. A critic is learned first, by implicit Q-learning, in the
                first `critic_iterations` iterations, and frozen; see docs/training.md. 0 for none.
            q_best_return: the return of a trajectory that leaves nothing to improve, from which
                on `q_weight` counts for nothing, measured as training measures returns (`gamma`,
                `clip_rewards`); None takes the best that the data have. A larger one, such as an
                expert's, improves on the best trajectories too.
            critic_updates: the critic's updates, of 256 transitions each, ten times
                `dataset_num_iters_per_learner` of them in one `train()`.
            critic_expectile: the expectile of values over recorded actions that a state is worth,
                τ of implicit Q-learning.
            critic_gamma: the critic's discount; `gamma` is that of returns-to-go.
            state_loss_weight: weighs the squared error of the next observation's normalised
                numbers, which is added to the loss; 0 as in the paper, which found it no help.
            return_loss_weight: the same for the next return-to-go, divided by `return_scale`.
            micro_batch_size: compute a batch this many windows at a time, counted as in
                `train_batch_size_per_learner`, and add up their gradients, which needs less
                memory; None for all at once. The losses are the same but for rounding and for the
                numbers that dropout draws.
            precision: "fp32", or "bf16" for mixed precision by autocast; "auto" is bf16 where the
                learner's device multiplies such numbers itself, and fp32 elsewhere.
            kwargs: RLlib's own settings: `lr` (a number, or a schedule [[0, lr], [steps, lr], …]
                over the steps trained on all learners), `train_batch_size_per_learner` (windows),
                `grad_clip`, `gamma` (1.0: undiscounted), …
        """
        super().training(**_without_numpy(kwargs))
        return self._set(
            adam_betas=adam_betas,
            warmup_steps=warmup_steps,
            lr_decay=lr_decay,
            lr_decay_updates=lr_decay_updates,
            weight_decay=weight_decay,
            weight_decay_on=weight_decay_on,
            return_scale=return_scale,
            observation_mean=observation_mean,
            observation_std=observation_std,
            delayed_reward=delayed_reward,
            ema_decay=ema_decay,
            max_return_expectile=max_return_expectile,
            initial_alpha=initial_alpha,
            target_entropy=target_entropy,
            alpha_lr=alpha_lr,
            q_weight=q_weight,
            q_best_return=q_best_return,
            critic_updates=critic_updates,
            critic_expectile=critic_expectile,
            critic_gamma=critic_gamma,
            state_loss_weight=state_loss_weight,
            return_loss_weight=return_loss_weight,
            micro_batch_size=micro_batch_size,
            precision=precision,
        )

    @override(AlgorithmConfig)
    def offline_data(
        self,
        *,
        time_limit: int | None = NotProvided,
        incomplete: IncompletePolicy = NotProvided,
        duplicates: DuplicatesPolicy = NotProvided,
        join_files: bool = NotProvided,
        frame_stack: int | None = NotProvided,
        max_expansion: float = NotProvided,
        missing_rewards: MissingRewards | None = NotProvided,
        missing_ends: MissingEnds | None = NotProvided,
        last_row: LastRow | None = NotProvided,
        top_fraction: float | None = NotProvided,
        pool_capacity_steps: int | None = NotProvided,
        pool_capacity_bytes: int | None = NotProvided,
        pool_reuse: float = NotProvided,
        validation_fraction: float | None = NotProvided,
        validation_input: Paths = NotProvided,
        validation_interval: int = NotProvided,
        **kwargs: Any,
    ) -> "Self":
        """Configures the data and how it is read.

        Args:
            time_limit: the environment's step limit, to split D4RL files without `timeouts`. If
                the spaces come from the environment, it defaults to the limit that the environment
                was registered with.
            incomplete: what to do with an episode without an end, whose returns-to-go are
                unknown: raise an "error" (the default), "drop" it, or "keep" it as if it ended
                there.
            duplicates: what to do with an episode whose observations, actions and rewards equal
                an earlier one's: "keep" it (the default, with a warning that has the numbers),
                "drop" it, or raise an "error".
            join_files: an episode that one file does not finish continues in the next file that
                has its id, though neither timesteps nor next observations prove it.
            frame_stack: observations are stacks of this many frames, in the space's first axis (as
                of gymnasium's `FrameStackObservation`). The data holds single frames, or such
                stacks; either way each frame is in memory once, and stacked when drawn.
            max_expansion: how many times its size a file may take in memory once unpacked; any
                file may take 256 MiB. A guard against damaged and hostile files.
            missing_rewards: the rewards of data that has none, such as robots' demonstrations:
                "success", a reward of 1 at the last step of each episode, or a number, the reward
                of every step. By default such data is refused.
            missing_ends: how episodes end whose data does not say it (LeRobot without `next.done`):
                "terminated" or "truncated". By default such data is refused.
            last_row: what the row of a last observation is in RLDS, where the standard leaves its
                action and reward undefined: "drop" it, or "keep" it as a step. By default it is
                dropped, unless it has a reward: then you are asked.
            top_fraction: train only on the best episodes, up to this fraction of all steps (the
                data of %BC); None for all.
            pool_capacity_steps: the most steps to hold in memory at a time, on each node. Larger
                data is streamed: read repeatedly, with only a part of it in memory.
            pool_capacity_bytes: the same in bytes; if neither is given, half of the smallest
                object store among the cluster's nodes, rounded down to a power of two.
            pool_reuse: for streamed data, how many times a step is trained on, on average, each
                time it is read; larger values read less.
            validation_fraction: the share of episodes to hold out of training; the loss on them is
                reported under `validation`. `seed` and the episodes' names decide which; at least
                one is held out.
            validation_input: a path or a list of paths to validate on instead.
            validation_interval: validate after every this many `train()` calls.
            kwargs: RLlib's own settings: `input_` (a path or a list), `input_read_schema`,
                `actions_in_input_normalized` (whether recorded actions are in [-1, 1] instead of
                the environment's units; None takes them as they are, unless all of them lie in
                [-1, 1] of a wider space: then you are asked), `input_filesystem` and
                `input_filesystem_kwargs` (never written to checkpoints or results, see
                docs/cluster.md),
                `dataset_num_iters_per_learner` (updates in one `train()`), …
        """
        super().offline_data(**_without_numpy(kwargs))
        self._set(
            time_limit=time_limit,
            incomplete=incomplete,
            duplicates=duplicates,
            join_files=join_files,
            frame_stack=frame_stack,
            max_expansion=max_expansion,
            missing_rewards=missing_rewards,
            missing_ends=missing_ends,
            last_row=last_row,
            top_fraction=top_fraction,
            pool_capacity_steps=pool_capacity_steps,
            pool_capacity_bytes=pool_capacity_bytes,
            pool_reuse=pool_reuse,
            validation_fraction=validation_fraction,
            validation_input=validation_input,
            validation_interval=validation_interval,
        )
        self.seal()
        given = {
            "input_": kwargs.get("input_", NotProvided),
            "validation_input": validation_input,
        }
        for name, paths in given.items():
            if paths is NotProvided:
                continue
            self._paths_as_given.pop(name, None)
            if are_paths(paths):
                check_inputs(name, paths)
                self._paths_as_given[name] = paths
        for name, paths in self._paths_as_given.items():
            # with an explicit file system, paths stay as given
            own = self.input_filesystem is not None
            setattr(self, name, paths if own else absolute_inputs(paths))
        return self

    @override(AlgorithmConfig)
    def evaluation(
        self,
        *,
        target_returns: Sequence[float | str] | float | str | None = NotProvided,
        score_reference: Sequence[float] | None = NotProvided,
        temperature: float | None = NotProvided,
        **kwargs: Any,
    ) -> "Self":
        """Configures evaluation.

        Args:
            target_returns: the returns to ask the policy for, or a single one; "max" among them
                asks for the most (`training(max_return_expectile=…)`). None takes the best
                and the median episode return of the data.
            score_reference: (random, expert) returns, to report the normalised score
                100 · (return - random) / (expert - random) as well.
            temperature: 0 takes the likeliest actions; otherwise actions that are categories or
                bits are drawn, from logits that are divided by it. None (the default) is 0, or 1
                with `env_runners(explore=True)`.
            kwargs: RLlib's own settings: `evaluation_interval`, `evaluation_duration` (episodes
                for each target), `evaluation_num_env_runners`, …
        """
        super().evaluation(**_without_numpy(kwargs))
        if isinstance(target_returns, Real | str):
            target_returns = [target_returns]
        return self._set(
            target_returns=target_returns,
            score_reference=score_reference,
            temperature=temperature,
        )

    def online(
        self,
        *,
        rollouts_per_iteration: int | None = NotProvided,
        updates_per_iteration: int = NotProvided,
        buffer_episodes: int = NotProvided,
        exploration_target: float | str | None = NotProvided,
        exploration_temperature: float = NotProvided,
        offline_updates: int = NotProvided,
    ) -> "Self":
        """Configures online fine-tuning: training goes on with episodes of the policy's own.

        The evaluation runners play them (`evaluation(evaluation_num_env_runners=…)`), with actions
        that are drawn, so numbers need `DTModelConfig(action_distribution="squashed_gaussian")`.

        Args:
            rollouts_per_iteration: whole episodes played in one `train()`; None for none.
            updates_per_iteration: updates after them, in the same `train()`.
            buffer_episodes: the most episodes to train on: at first the data's best, which new
                ones replace, the worst first, and then the oldest.
            exploration_target: the return to play for, or "max"; the first of `target_returns` by
                default. (Online DT asks for twice the target.)
            exploration_temperature: draws the actions; see `evaluation(temperature=…)`.
            offline_updates: the policy's updates on recorded data before this begins.
        """
        return self._set(
            rollouts_per_iteration=rollouts_per_iteration,
            updates_per_iteration=updates_per_iteration,
            buffer_episodes=buffer_episodes,
            exploration_target=exploration_target,
            exploration_temperature=exploration_temperature,
            offline_updates=offline_updates,
        )

    @override(AlgorithmConfig)
    def rl_module(
        self, *, model_config: DTModelConfig | Mapping[str, Any] = NotProvided, **kwargs: Any
    ) -> "Self":
        """Configures the network; `model_config` is a `DTModelConfig` or a dict of its settings."""
        if model_config is not NotProvided:
            # a dict, since Tune finds grid searches in dicts only
            if isinstance(model_config, DTModelConfig):
                model_config = model_config.settings()
            if not isinstance(model_config, Mapping):
                raise TypeError(
                    "rl_module(model_config=…) takes a DTModelConfig or a dict of its settings, "
                    f"not a {type(model_config).__name__}"
                )
            kwargs["model_config"] = dict(model_config)
            self._settings_taken_from = None  # those of a folder are to be taken again
            if isinstance(model_config.get("pretrained"), str | os.PathLike):
                kwargs["model_config"]["pretrained"] = absolute_inputs(model_config["pretrained"])
        super().rl_module(**kwargs)
        return self

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict: Mapping[str, Any]) -> "Self":
        """See `AlgorithmConfig.update_from_dict`.

        Raises:
            ValueError: a name is a setting's misspelt, or a method's. RLlib would set it unread.
        """
        given = dict(config_dict)
        model_config = given.pop("model_config", None)
        for name in given:
            self.check_name(name)
        super().update_from_dict(given)
        if model_config is not None:
            self.rl_module(model_config=model_config)
        return self

    def check_name(self, name: str) -> None:
        """Raises a ValueError if the name is a setting's misspelt; a user's own names are free."""
        known = vars(self).keys() | _TRANSLATED
        if name in known or getattr(getattr(type(self), str(name), None), "fset", None):
            return
        near = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.85)
        if near:
            raise ValueError(f"there is no setting {name!r}; did you mean {near[0]!r}?")
        if callable(getattr(type(self), str(name), None)):
            raise ValueError(f"{name!r} is a method, no setting")

    def __repr__(self) -> str:
        """Lists the settings that differ from the defaults."""
        defaults = vars(type(self)())
        model = dataclasses.asdict(DTModelConfig())
        changed = {
            name.removeprefix("_"): value
            for name, value in vars(self).items()
            if name not in _NOT_SHOWN
            and not _equal(value, defaults.get(name))
            and (value or defaults.get(name))
        }
        if self._model_config:
            changed["model_config"] = {
                name: value
                for name, value in self._model_config.items()
                if name not in model or not _equal(value, model[name])
            }
        lines = "".join(f"    {name}={value!r},\n" for name, value in changed.items())
        return f"{type(self).__name__}(\n{lines})" if lines else f"{type(self).__name__}()"

    def make_plain(self) -> None:
        """Turns tuples and numpy's values into lists and numbers, however they were set."""
        for name in (*vars(DTSettings()).keys() - vars(AlgorithmConfig()).keys(), "lr"):
            value = getattr(self, name)
            if isinstance(value, tuple | list | np.ndarray | np.generic):
                setattr(self, name, _plain(value))
        if isinstance(self.target_returns, Real) and not isinstance(self.target_returns, bool):
            self.target_returns = [self.target_returns]

    def seal(self) -> None:
        """Seals the settings that may contain credentials."""
        self.input_filesystem = Sealed.seal(self.input_filesystem)
        self.input_filesystem_kwargs = Sealed.seal(self.input_filesystem_kwargs or None)

    def _set(self, **settings: Any) -> "Self":
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, _plain(value))
        return self


_TRANSLATED = {
    "_enable_new_api_stack",
    "callbacks",
    "class",
    "create_env_on_driver",
    "custom_eval_function",
    "framework",
    "input",
    "lambda",
    "model",
    "model_config",
    "multiagent",
    "num_cpus_for_driver",
    "num_workers",
}
"""Names that `AlgorithmConfig.update_from_dict` takes and that are no attributes."""

_NOT_SHOWN = ("_is_frozen", "_model_config", "_paths_as_given", "_settings_taken_from")


def _equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except (ValueError, TypeError):  # arrays
        return False


def _without_numpy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """RLlib's settings, with numpy's numbers and arrays as Python's."""
    return {
        name: _plain(value) if isinstance(value, np.ndarray | np.generic) else value
        for name, value in settings.items()
    }


def _plain(value: Any) -> Any:
    """Turns numpy's numbers and arrays into Python's, and tuples into lists, at any depth.

    So settings compare equal after a checkpoint, and RLlib can save them.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
