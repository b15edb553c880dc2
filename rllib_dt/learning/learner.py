"""`DTTorchLearner`: masked loss, AdamW with warm-up, and metrics."""

import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    NUM_ENV_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED,
)
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.typing import ParamDict
from torch import Tensor, nn

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.averages import AveragedWeights, raw_weights, set_raw_weights
from rllib_dt.learning.batches import PrefetchedBatches, seeded_torch
from rllib_dt.learning.critic_phase import CriticPhase
from rllib_dt.learning.finite import NonFiniteLossError, check_weights
from rllib_dt.learning.metrics import Part, Progress, UpdateCall
from rllib_dt.learning.objectives import OBJECTIVES, Objective, objectives_in
from rllib_dt.learning.objectives.q_value import QValueObjective
from rllib_dt.learning.precision import autocast_dtype
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.reading.supply import Supply
from rllib_dt.threads import use_reserved_cpus
from rllib_dt.types import Batch, State

logger = logging.getLogger(__name__)

COUNTERS = "dt_counters"
"""The component of a learner's state that holds its `Progress`."""

RAW_WEIGHTS = "dt_raw_weights"
"""The component that holds the weights that are trained, where the module's state has averages."""

LEARNED_BY_OBJECTIVES = "dt_objectives"
"""The component that holds what objectives have learned beside the network, by their names."""

_SECONDS_TO_ANSWER = 2.0
"""How long the process of a failed learner stays alive, so that its error reaches the driver."""


def warmup_factor(update: int, warmup_steps: int) -> float:
    """Returns min((update + 1) / warmup_steps, 1) for update = 0, 1, … (kzl @ e2d82e6, gym)."""
    return min((update + 1) / warmup_steps, 1.0) if warmup_steps else 1.0


def cosine_factor(update: int, warmup_steps: int, decay_updates: int) -> float:
    """Returns what multiplies the rate of update = 0, 1, …: a half cosine, at least 0.1.

    It falls from 1 after the warm-up to 0.1 before `decay_updates`, and stays there (Chen et al.
    2021, §A.1; kzl @ e2d82e6, atari).
    """
    progress = (update - warmup_steps) / max(1, decay_updates - warmup_steps)
    return max(0.1, 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))))


class DTTorchLearner(TorchLearner):
    """Draws windows in its own process and minimises the mean loss over their valid steps.

    With several learners the gradient is that of the mean over all their valid steps: each
    learner's loss is weighted by its share of them, since DDP averages over learners.

    Attributes:
        progress: how far training has progressed.
    """

    @override(TorchLearner)
    def build(self) -> None:
        if self.config.num_learners:  # otherwise the process is the driver's
            use_reserved_cpus()
        self.progress = Progress()
        self._batches: PrefetchedBatches | None = None
        self._supply: Supply | None = None
        self._call: UpdateCall | None = None
        super().build()
        self._lr_schedule = Scheduler(self.config.lr, framework=self.framework)
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        chosen = objectives_in(self.config)
        self._objectives: list[Objective] = [
            kind(module.network, kind.weight_in(self.config), self) for kind in chosen
        ]
        module.predicts_next = any(kind.predicts_next for kind in chosen)
        module.autocast_dtype = autocast_dtype(self.config.precision, self._device)
        if self.config.ema_decay is not None:
            module.averages = AveragedWeights(module.network, self.config.ema_decay)
        if self.config.torch_compile_learner:
            # RLlib's own attempt reaches no module (`torch_learner.py` :502)
            module.compile_training(
                backend=self.config.torch_compile_learner_dynamo_backend,
                mode=self.config.torch_compile_learner_dynamo_mode,
            )

    @override(TorchLearner)
    def configure_optimizers_for_module(
        self, module_id: str, config: AlgorithmConfig = None
    ) -> None:
        """Registers AdamW; see `DTConfig.training` for what decays."""
        module = self._module[module_id]
        for kind in OBJECTIVES:
            head = kind.head(module.network)
            if head is not None:
                head.requires_grad_(kind.weight_in(config) > 0)
        parameters = self.get_parameters(module)
        optimizer = torch.optim.AdamW(
            self._groups(parameters, config),
            lr=0.0,  # set before each update, see `apply_gradients`
            betas=tuple(config.adam_betas),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters)

    def _groups(self, parameters: Sequence[Tensor], config: AlgorithmConfig) -> list[Any]:
        """Splits parameters into those that decay and the others, if not all do."""
        if config.weight_decay_on == "all":
            return list(parameters)
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        decaying = {id(layer.weight) for layer in layers}
        return [
            {"params": [p for p in parameters if id(p) in decaying]},
            {"params": [p for p in parameters if id(p) not in decaying], "weight_decay": 0.0},
        ]

    # --- data

    def adopt_seed(self, seed: int) -> None:
        """Sets the seed of batches and dropout, so that checkpoints contain it from the start."""
        self.progress.seed = seed

    @override(Learner)
    def _create_iterator_if_necessary(
        self, *, training_data: TrainingData, num_iters: int, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        supply: Supply = training_data.data_iterators[0]
        has_other_data = self._supply is None or self._supply.generation != supply.generation
        if self._batches is None or has_other_data:
            self._warn_of_other_windows(supply)
            sampler = supply.sampler(
                self.rank,
                self.world_size,
                seed=self.progress.seed,
                state=self.progress.sampler,
            )
            self._supply = supply
            self._batches = PrefetchedBatches(sampler, self.progress.updates, self._device)
        return self._next_batches(num_iters)

    def _warn_of_other_windows(self, supply: Supply) -> None:
        was_streamed = self.progress.sampler is not None
        is_online = supply.generation > 0  # which never streams
        if self.progress.updates and was_streamed is not supply.is_streamed and not is_online:
            ways = {True: "streamed", False: "held in memory"}
            logger.warning(
                "the resumed run had its data %s, now it is %s, so it will draw other windows than "
                "an uninterrupted run; set offline_data(pool_capacity_steps=…) as it was before",
                ways[was_streamed],
                ways[supply.is_streamed],
            )

    def _next_batches(self, num_iters: int) -> Iterator[MultiAgentBatch]:
        assert self._batches is not None
        assert self._supply is not None
        assert self._call is not None
        assert self.progress.seed is not None
        for _ in range(num_iters):
            with self._call.waiting_for_data():
                drawn, self.progress.sampler = self._batches.next()
                window = drawn.map(lambda column: column.to(self._device, non_blocking=True))
            counts = (objective.count(window) for objective in self._objectives)
            self._call.totals = self._over_learners(*counts)
            for objective in self._objectives:
                objective.begin_update()
            # dropout depends on seed, learner and update only, so its state need not be saved
            with seeded_torch((self.progress.seed, self.rank, self.progress.updates), self._device):
                for part, rows in self._parts(len(window)):
                    own_steps = int(drawn.mask[rows].sum())
                    self._call.begin_part(part, own_steps)
                    yield MultiAgentBatch(
                        {DEFAULT_MODULE_ID: SampleBatch(window[rows].columns())},
                        env_steps=own_steps,
                    )

    def _parts(self, windows: int) -> Iterator[tuple[Part, slice]]:
        """Yields a batch's micro-batches and their rows, in turn; their gradients are added up."""
        size = min(self.config.windows_at_a_time or windows, windows)
        for start in range(0, windows, size):
            rows = slice(start, min(start + size, windows))
            is_last = rows.stop == windows
            share = (rows.stop - rows.start) / windows
            waits = self.world_size > 1 and not is_last  # gradients are averaged after the last
            with self.module[DEFAULT_MODULE_ID].no_sync() if waits else nullcontext():
                yield Part(share=share, is_first=start == 0, is_last=is_last), rows

    # --- one update

    @override(Learner)
    def update(self, *args: Any, **kwargs: Any) -> Any:
        """See `Learner.update`; if it fails on one of several learners, it fails on all."""
        try:
            return super().update(*args, **kwargs)
        except NonFiniteLossError:
            raise  # raised on all of them
        except Exception:
            if self.world_size > 1:
                logger.exception("learner %d failed, and the others with it", self.rank)
                # the others wait in a collective, for up to half an hour, until this process ends
                threading.Timer(_SECONDS_TO_ANSWER, os._exit, args=[1]).start()
            raise
        finally:
            self._call = None

    @override(Learner)
    def compute_loss_for_module(
        self, *, module_id: str, config: AlgorithmConfig, batch: Batch, fwd_out: Batch
    ) -> Tensor:
        """Computes the mean loss over all learners' valid steps.

        A subclass may return any loss instead, without calling this; RLlib then averages it over
        the learners. With `micro_batch_size` this is called for each part of a batch, and the
        parts' losses are averaged by their numbers of windows.
        """
        assert self._call is not None
        window = Window.from_columns(batch)
        terms = [objective.term(fwd_out, window) for objective in self._objectives]
        # the losses of parts are weighed by their shares, see `compute_gradients`
        scale = self.world_size / self._call.part.share
        means = []
        for term, total in zip(terms, self._call.totals, strict=True):
            self._call.add_loss(term.name, term.loss_sum, term.count)
            means.append(term.loss_sum * scale / total.clamp(min=1))
        loss = means[0]
        for term, mean in zip(terms[1:], means[1:], strict=True):
            loss = loss + term.weight * mean
        return loss

    def step_weights(self, window: Window) -> Tensor | None:
        """Weighs each step's loss; meant to be overridden.

        Args:
            window: the batch, or with `micro_batch_size` a part of it, on the learner's device.

        Returns:
            (B, K) weights that multiply the steps' losses, or None for equal ones. The sum is
            divided by the number of valid steps, so weights with a mean of 1 keep the loss's scale.
        """
        return None

    @override(TorchLearner)
    def compute_gradients(
        self, loss_per_module: dict[str, Tensor], **kwargs: Any
    ) -> dict[Any, Tensor]:
        assert self._call is not None
        loss = loss_per_module[DEFAULT_MODULE_ID]
        _check_loss(loss)
        self._agree(loss)
        part = self._call.part
        self._call.add_part_of_loss(loss)
        if part.is_first:
            weighed = {DEFAULT_MODULE_ID: loss if part.is_last else loss * part.share}
            gradients: dict[Any, Tensor] = super().compute_gradients(weighed, **kwargs)
            return gradients
        # adds to the gradients of the parts before
        (loss * part.share).backward()  # type: ignore[no-untyped-call]
        return {name: parameter.grad for name, parameter in self._params.items()}

    def _agree(self, loss: Tensor) -> None:
        """Tells all learners whether a loss is finite.

        They must agree: otherwise those with a finite loss would wait for the others.
        """
        assert self._call is not None
        (bad,) = self._over_learners(~loss.detach().isfinite())
        self._call.bad_loss |= bad > 0
        # on an accelerator the flag is read once per `update`, so as not to wait for the device
        if self._device.type == "cpu":
            self._raise_if_bad(self._call)

    def _over_learners(self, *counts: Tensor) -> Sequence[Tensor]:
        """Adds up each count, () int or bool, over all learners."""
        sums = torch.stack([count.long() for count in counts])
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        return sums.unbind()

    def _raise_if_bad(self, call: UpdateCall) -> None:
        if call.bad_loss:
            raise NonFiniteLossError(
                f"the loss is not finite at update {self.progress.updates}; the last checkpoint is "
                "unharmed. Lower lr, set grad_clip, or look for extreme values in the data "
                f"(the log has a summary of its returns); lr was {self._current_lr(call):.3g}"
            )

    @override(Learner)
    def postprocess_gradients(self, gradients_dict: ParamDict) -> ParamDict:
        """Asks for the gradients' processing once they are those of the whole batch."""
        assert self._call is not None
        if not self._call.part.is_last:
            return gradients_dict
        complete: ParamDict = super().postprocess_gradients(gradients_dict)
        return complete

    @override(Learner)
    def postprocess_gradients_for_module(
        self, *, module_id: str, config: AlgorithmConfig, module_gradients_dict: ParamDict
    ) -> ParamDict:
        assert self._call is not None
        parameters = [p for p in module_gradients_dict if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._call.add_gradient_norm(norm)
        if config.grad_clip is None:
            return module_gradients_dict
        if config.grad_clip_by == "global_norm":
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, norm)
            return module_gradients_dict
        return super().postprocess_gradients_for_module(
            module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
        )

    @override(TorchLearner)
    def apply_gradients(self, gradients_dict: ParamDict) -> None:
        """Steps the optimiser, without zeroing gradients that are not finite.

        The loss is checked instead: before this on the CPU, at the end of the `update` call on
        accelerators.
        """
        assert self._call is not None
        if not self._call.part.is_last:
            return
        lr = self._current_lr(self._call)
        for parameter, gradient in gradients_dict.items():
            parameter.grad = gradient
        for optimizer in self._named_optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.progress.updates += 1
        for objective in self._objectives:
            objective.end_update()
        if self.averages is not None:
            self.averages.update(self.progress.updates)
        self._call.end_update()

    def _current_lr(self, call: UpdateCall) -> float:
        """Returns this update's rate; schedules count the steps trained before, on all learners."""
        base = self.config.lr
        if self._lr_schedule.use_schedule:
            # reading the count waits for the device, so it is done for a schedule only
            base = self._lr_schedule.update(timestep=self.progress.steps + int(call.steps))
        updates, warmup = self.progress.updates, self.config.warmup_steps
        rate = float(base) * warmup_factor(updates, warmup)
        if self.config.lr_decay == "cosine":
            rate *= cosine_factor(updates, warmup, self.config.lr_decay_updates)
        return rate

    def check_weights(self) -> None:
        """Raises a NonFiniteWeightsError if a weight is not finite; all learners have the same."""
        check_weights(self.network, self.progress.updates)

    # --- what an `update` call reports

    @override(TorchLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        self._call = UpdateCall(self._device)

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        assert self._supply is not None
        assert self._call is not None
        self._raise_if_bad(self._call)
        self.check_weights()
        self._log_steps(self._call.own_steps)
        report = self._call.end()
        self.progress.steps += report.num_steps
        windows = report.num_updates * self._supply.draws.batch_size * self.world_size
        self.progress.windows += windows
        counts = report.counts(self.progress, windows, self._supply.num_steps)
        self._log(report.means, reduce="mean")
        # in place of the loss of a batch's last part; not read here, which waits for the device
        key = (DEFAULT_MODULE_ID, self.TOTAL_LOSS_KEY)
        self.metrics.log_value(key, self._call.last_loss, window=1)
        counts |= self._metrics_of_objectives()
        self._log({"learning_rate": self._optimizer_lr(), **counts}, reduce="max")

    def log_without_training(self) -> None:
        """Logs what an iteration reports that does not train the policy."""
        counts = {
            "num_updates_lifetime": self.progress.updates,
            "num_windows_trained_lifetime": self.progress.windows,
            "num_steps_trained_lifetime": self.progress.steps,
        }
        self._log({**self._metrics_of_objectives(), **counts}, reduce="max")
        # Tune ends a search whose metric is missing from a result
        self._log({objective.name: math.nan for objective in self._objectives}, reduce="mean")

    def _metrics_of_objectives(self) -> dict[str, float]:
        return {k: v for objective in self._objectives for k, v in objective.metrics().items()}

    @override(Learner)
    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        """Logs nothing for each batch: see `_log_steps`."""

    def _log_steps(self, num_steps: int) -> None:
        """Logs this learner's valid steps under RLlib's names, which would count windows."""
        for key in (
            (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED),
            (ALL_MODULES, NUM_MODULE_STEPS_TRAINED),
            (ALL_MODULES, NUM_ENV_STEPS_TRAINED),
        ):
            self.metrics.log_value(key, num_steps, reduce="sum", with_throughput=True)
            lifetime = (key[0], f"{key[1]}_lifetime")
            self.metrics.log_value(lifetime, num_steps, reduce="lifetime_sum", with_throughput=True)

    def _optimizer_lr(self) -> float:
        return float(next(iter(self._named_optimizers.values())).param_groups[0]["lr"])

    def _log(self, values: dict[str, float], *, reduce: str) -> None:
        for name, value in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, reduce=reduce, window=1)

    # --- state

    @override(Learner)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> State:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COUNTERS, components, not_components):
            state[COUNTERS] = self.progress.state()
        if self.averages is not None and self._check_component(
            RAW_WEIGHTS, components, not_components
        ):
            state[RAW_WEIGHTS] = raw_weights(self.network)
        learned = {objective.name: objective.state() for objective in self._objectives}
        if any(learned.values()) and self._check_component(
            LEARNED_BY_OBJECTIVES, components, not_components
        ):
            state[LEARNED_BY_OBJECTIVES] = learned
        return state

    @override(Learner)
    def set_state(self, state: State) -> None:
        # RLlib would keep newer weights when an older checkpoint is restored
        self._weights_seq_no = 0
        super().set_state(state)
        self._apply_settings()
        if RAW_WEIGHTS in state:
            set_raw_weights(self.network, state[RAW_WEIGHTS])
        if COUNTERS in state:
            self.progress = Progress(**state[COUNTERS])
            if "windows" not in state[COUNTERS]:  # before 0.2.0
                windows = self.config.windows_per_learner * self.world_size
                self.progress.windows = self.progress.updates * windows
            self._batches = None
        for objective in self._objectives:
            learned = state.get(LEARNED_BY_OBJECTIVES, {}).get(objective.name)
            if learned:
                objective.set_state(learned)

    def _apply_settings(self) -> None:
        """Gives the optimiser the settings of this run, in place of the saved ones."""
        for optimizer in self._named_optimizers.values():
            for number, group in enumerate(optimizer.param_groups):
                group["betas"] = tuple(self.config.adam_betas)
                group["weight_decay"] = 0.0 if number else self.config.weight_decay

    @property
    def network(self) -> DecisionTransformer:
        """The network being trained, unwrapped from DDP."""
        network: DecisionTransformer = self.module[DEFAULT_MODULE_ID].unwrapped().network
        return network

    @property
    def critic_phase(self) -> CriticPhase | None:
        """The training of a critic before the policy's; None without `q_weight`."""
        phases = [o.phase for o in self._objectives if isinstance(o, QValueObjective)]
        return phases[0] if phases else None

    @property
    def return_range(self) -> tuple[float, float]:
        """The least and the largest return of the data's episodes."""
        assert self._supply is not None
        return self._supply.return_range

    @property
    def averages(self) -> AveragedWeights | None:
        """The averaged weights; None without `ema_decay`."""
        averages: AveragedWeights | None = self.module[DEFAULT_MODULE_ID].unwrapped().averages
        return averages

    @contextmanager
    def acting(self) -> Iterator[DecisionTransformer]:
        """Yields the network with the weights that evaluations use, in eval mode."""
        network = self.network
        was_training = network.training
        network.eval()
        try:
            with nullcontext() if self.averages is None else self.averages.applied():
                yield network
        finally:
            network.train(was_training)

    @property
    def world_size(self) -> int:
        """The number of learners."""
        return max(1, int(self.config.num_learners))

    @property
    def rank(self) -> int:
        """This learner's number, from 0."""
        return torch.distributed.get_rank() if self.world_size > 1 else 0


def _check_loss(loss: object) -> None:
    """Refuses what a subclass returned from `compute_loss_for_module` if it cannot be minimised."""
    if not isinstance(loss, Tensor):
        found = f"a {type(loss).__name__}"
    elif loss.shape != () or not loss.is_floating_point():
        found = f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
    elif not loss.requires_grad:
        found = "a tensor without a gradient"
    else:
        return
    raise ValueError(
        f"compute_loss_for_module returned {found}; wanted one floating-point number, a tensor of "
        "shape (), that depends on the network's outputs"
    )
