"""The learner: masked loss, AdamW with warm-up, and what it reports."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor

from rllib_dt.episodes import windows
from rllib_dt.network.loss import action_loss_sum
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.runtime.batches import PrefetchedBatches, seeded_torch
from rllib_dt.runtime.rl_module import ACTION_PREDS
from rllib_dt.runtime.source import ResidentSource
from rllib_dt.runtime.stream import StreamSource

logger = logging.getLogger(__name__)

COUNTERS = "dt_counters"
"""The component of a learner's state that counts updates."""
_SECONDS_TO_ANSWER = 2.0
_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def warmup_factor(update: int, warmup_steps: int) -> float:
    """min((update + 1) / warmup_steps, 1) for update = 0, 1, … (kzl @ e2d82e6, gym)."""
    return min((update + 1) / warmup_steps, 1.0) if warmup_steps else 1.0


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite: the run stops, and no checkpoint is written."""


class DTTorchLearner(TorchLearner):
    """Draws windows next to itself and minimises the mean loss over their valid steps.

    With several learners the gradient is that of the mean over all their valid steps: each
    learner's loss is weighted by its share of them, since DDP averages by learner.
    """

    @override(TorchLearner)
    def build(self) -> None:
        self._num_updates = 0
        self._num_steps = 0
        self._batches: PrefetchedBatches | None = None
        self._sampler_state: dict[str, Any] | None = None
        self._source: ResidentSource | StreamSource | None = None
        self._seed: int | None = None
        super().build()
        self._lr_schedule = Scheduler(self.config.lr, framework=self.framework)
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        module.autocast_dtype = _AUTOCAST_DTYPES[self.config.precision]
        if self.config.torch_compile_learner:
            # RLlib's own attempt at this reaches no module (`torch_learner.py` :502)
            module.compile_training(
                backend=self.config.torch_compile_learner_dynamo_backend,
                mode=self.config.torch_compile_learner_dynamo_mode,
            )

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW over every parameter, norms and biases included (kzl @ e2d82e6, gym)."""
        parameters = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.AdamW(
            parameters,
            lr=0.0,  # set anew before each update, see `apply_gradients`
            betas=tuple(config.adam_betas),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters)

    # --- data

    def adopt_seed(self, seed: int) -> None:
        """What batches and dropout follow from; saved from before the first update on."""
        self._seed = seed

    @override(Learner)
    def _create_iterator_if_necessary(
        self, *, training_data: Any, num_iters: int, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        if self._batches is None:
            source: ResidentSource | StreamSource = training_data.data_iterators[0]
            if self._seed is not None:
                # of the run that is resumed, which may have been drawn for want of a given one
                source = replace(source, seed=self._seed)
            self._warn_of_other_windows(isinstance(source, StreamSource))
            self._source, self._seed = source, source.seed
            sampler = source.sampler(self.rank, self.world_size, self._sampler_state)
            self._batches = PrefetchedBatches(sampler, self._num_updates, self._device)
        return self._next_batches(num_iters)

    def _warn_of_other_windows(self, is_streamed: bool) -> None:
        was_streamed = self._sampler_state is not None
        if self._num_updates and was_streamed is not is_streamed:
            ways = {True: "streamed", False: "held as a whole"}
            logger.warning(
                "the run that is resumed had its data %s, now it is %s: other windows will be "
                "drawn than without the stop; offline_data(pool_capacity_steps=…) fixes the way",
                ways[was_streamed],
                ways[is_streamed],
            )

    def _next_batches(self, num_iters: int) -> Iterator[MultiAgentBatch]:
        assert self._batches is not None
        assert self._source is not None
        for _ in range(num_iters):
            started = time.perf_counter()
            windows, self._sampler_state = self._batches.next()
            batch = {n: c.to(self._device, non_blocking=True) for n, c in windows.items()}
            self._waited += time.perf_counter() - started
            # dropout follows from the seed and the update as well: nothing of it must be saved
            with seeded_torch((self._source.seed, self.rank, self._num_updates), self._device):
                yield MultiAgentBatch(
                    {DEFAULT_MODULE_ID: SampleBatch(batch)}, env_steps=self._source.batch_size
                )

    # --- one update

    @override(Learner)
    def update(self, *args: Any, **kwargs: Any) -> Any:
        """See `Learner.update`. Where it fails on one of several learners it fails on all."""
        try:
            return super().update(*args, **kwargs)
        except NonFiniteLossError:
            raise  # on all of them
        except Exception:
            if self.world_size > 1:
                logger.exception("learner %d failed, and the others with it", self.rank)
                # they wait in a collective, for half an hour, until this process has ended
                threading.Timer(_SECONDS_TO_ANSWER, os._exit, args=[1]).start()
            raise

    @override(Learner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        codec = self.network.codec
        mask = batch[windows.MASK]
        loss_sum = action_loss_sum(codec, fwd_out[ACTION_PREDS], batch[windows.ACTIONS], mask)
        valid = mask.sum()
        # on all learners together, or else those with a finite loss would wait for the others
        total, bad = self._over_learners(valid, ~loss_sum.detach().isfinite())
        self._loss_sum += loss_sum.detach()
        self._valid_steps += valid
        self._batch_steps = total
        self._note_bad_loss(bad > 0)
        return loss_sum * self.world_size / total.clamp(min=1)

    def _over_learners(self, *counts: Tensor) -> Sequence[Tensor]:
        """Each count, () int or bool, added up over all learners."""
        sums = torch.stack([count.long() for count in counts])
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        return sums.unbind()

    def _note_bad_loss(self, bad: Tensor) -> None:
        self._bad_loss |= bad
        # on an accelerator the flag is read once each `update`, not to wait for the device
        if self._device.type == "cpu":
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        if self._bad_loss:
            raise NonFiniteLossError(
                f"the loss is not finite at update {self._num_updates}; the last checkpoint is "
                "unharmed. Lower lr, set grad_clip, or look for extreme values in the data "
                f"(summary: normalisation and returns); lr was {self._current_lr():.3g}"
            )

    @override(Learner)
    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any = None, module_gradients_dict: dict
    ) -> dict:
        parameters = [p for p in module_gradients_dict if p.grad is not None]
        gradients = [p.grad for p in parameters]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._gradient_norm += norm
        if config.grad_clip is None:
            return module_gradients_dict
        if config.grad_clip_by == "global_norm":
            torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, norm)
            return module_gradients_dict
        return super().postprocess_gradients_for_module(
            module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
        )

    @override(TorchLearner)
    def apply_gradients(self, gradients_dict: dict) -> None:
        """Steps the optimiser. Non-finite losses never get here, so nothing is zeroed."""
        lr = self._current_lr()
        for parameter, gradient in gradients_dict.items():
            parameter.grad = gradient
        for optimizer in self._named_optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self._num_updates += 1
        self._total_steps += self._batch_steps

    def _current_lr(self) -> float:
        """Schedules count steps trained, over all learners, before this update."""
        base = self.config.lr
        if self._lr_schedule.use_schedule:
            # reading the count waits for the device, which only a schedule has to pay
            base = self._lr_schedule.update(timestep=self._num_steps + int(self._total_steps))
        return base * warmup_factor(self._num_updates, self.config.warmup_steps)

    # --- what an `update` call reports

    @override(TorchLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        zero = torch.zeros((), device=self._device)
        self._loss_sum, self._gradient_norm = zero.clone(), zero.clone()
        self._valid_steps = torch.zeros((), dtype=torch.int64, device=self._device)
        self._total_steps = self._valid_steps.clone()
        self._bad_loss = torch.zeros((), dtype=torch.bool, device=self._device)
        self._waited = 0.0
        self._updates_before = self._num_updates
        self._started = time.perf_counter()

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        assert self._source is not None
        self._raise_if_bad()
        lr = self._optimizer_lr()
        updates = self._num_updates - self._updates_before
        steps = int(self._total_steps)  # waits for the device, so before the clock is read
        self._num_steps += steps
        self._total_steps.zero_()
        seconds = time.perf_counter() - self._started
        windows_per_update = self._source.batch_size * self.world_size
        self._log_means(
            action_loss=float(self._loss_sum / self._valid_steps.clamp(min=1)),
            gradient_norm=float(self._gradient_norm / max(1, updates)),
            data_wait_share=self._waited / seconds,
        )
        self._log_counts(
            learning_rate=lr,
            num_updates=updates,
            num_updates_lifetime=self._num_updates,
            num_updates_per_s=updates / seconds,
            num_windows_trained=updates * windows_per_update,
            num_windows_trained_lifetime=self._num_updates * windows_per_update,
            num_windows_trained_per_s=updates * windows_per_update / seconds,
            num_steps_trained=steps,
            num_steps_trained_lifetime=self._num_steps,
            num_steps_trained_per_s=steps / seconds,
            num_passes_over_data=self._num_steps / self._source.num_steps,
        )

    def _optimizer_lr(self) -> float:
        return float(next(iter(self._named_optimizers.values())).param_groups[0]["lr"])

    def _log_means(self, **values: float) -> None:
        for name, value in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, reduce="mean", window=1)

    def _log_counts(self, **values: float) -> None:
        # the same number on every learner, so that merging must not add it up
        for name, value in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, reduce="max", window=1)

    # --- state

    @override(Learner)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COUNTERS, components, not_components):
            state[COUNTERS] = {
                "updates": self._num_updates,
                "steps": self._num_steps,
                "seed": self._seed,
                "sampler": self._sampler_state,
            }
        return state

    @override(Learner)
    def set_state(self, state: Any) -> None:
        # RLlib keeps newer weights when an older checkpoint is loaded; restoring must not
        self._weights_seq_no = 0
        super().set_state(state)
        if COUNTERS in state:
            self._num_updates = state[COUNTERS]["updates"]
            self._num_steps = state[COUNTERS]["steps"]
            self._seed = state[COUNTERS]["seed"]
            self._sampler_state = state[COUNTERS].get("sampler")
            self._batches = None

    @property
    def network(self) -> DecisionTransformer:
        """The network that is trained, out of DDP's wrapping."""
        network: DecisionTransformer = self.module[DEFAULT_MODULE_ID].unwrapped().network
        return network

    @property
    def world_size(self) -> int:
        """How many learners there are."""
        return max(1, self.config.num_learners)

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return torch.distributed.get_rank() if self.world_size > 1 else 0
