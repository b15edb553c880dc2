"""Accumulates and reports the metrics of one `Learner.update` call."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rllib_dt.types import SamplerState, State


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a batch whose gradient is added to those of the others; by default all of it.

    Attributes:
        share: its windows, of all the batch's.
        is_first, is_last: among the parts.
    """

    share: float = 1.0
    is_first: bool = True
    is_last: bool = True


class UpdateCall:
    """Sums over the updates of one `Learner.update` call.

    Sums stay on the learner's device and are read once, at the end, so that no update waits for
    the device.

    Args:
        device: the learner's device.

    Attributes:
        steps: () int64, valid steps trained so far, over all learners.
        bad_loss: () bool, whether any learner's loss was not finite.
        num_updates: updates finished so far.
        totals: of the current batch, () steps that each objective counts, over all learners;
            first the valid ones.
        own_steps: this learner's valid steps in the batches so far, on the host.
        part: the part of the current batch that is computed now.
        last_loss: () what was minimised in the last batch.
    """

    def __init__(self, device: torch.device):
        zero = torch.zeros((), device=device)
        self.steps = zero.long()
        self.bad_loss = zero.bool()
        self.num_updates = 0
        self.totals: Sequence[Tensor] = ()
        self.own_steps = 0
        self.part = Part()
        self._losses: dict[str, tuple[Tensor, Tensor]] = {}
        self._gradient_norm = zero.clone()
        self.last_loss = zero.clone()
        self._waited = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside the block as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def begin_part(self, part: Part, own_steps: int) -> None:
        """Takes note of a part of a batch, and of this learner's valid steps in it."""
        self.part = part
        self.own_steps += own_steps

    def add_loss(self, name: str, loss_sum: Tensor, count: Tensor) -> None:
        """Adds a loss of a batch, or of a part of it, to be reported by its name.

        Args:
            name: "action_loss", …
            loss_sum: () summed over this learner's steps.
            count: () their number.
        """
        loss_sum = loss_sum.detach()
        if name in self._losses:
            former_sum, former_count = self._losses[name]
            loss_sum, count = former_sum + loss_sum, former_count + count
        self._losses[name] = loss_sum, count

    def add_part_of_loss(self, loss: Tensor) -> None:
        """Adds what is minimised in the current part of a batch, () its mean."""
        former = 0.0 if self.part.is_first else self.last_loss
        self.last_loss = former + loss.detach() * self.part.share

    def add_gradient_norm(self, norm: Tensor) -> None:
        """Adds the gradient's norm before clipping."""
        self._gradient_norm += norm

    def end_update(self) -> None:
        """Counts the batch's steps as trained."""
        self.num_updates += 1
        self.steps += self.totals[0]

    def end(self) -> "CallReport":
        """Returns the report; reads all sums, which waits for the device, and then the clock."""
        steps = int(self.steps)
        losses = {
            name: float(loss_sum / count.clamp(min=1))
            for name, (loss_sum, count) in self._losses.items()
        }
        gradient_norm = float(self._gradient_norm / max(1, self.num_updates))
        seconds = time.perf_counter() - self._started
        return CallReport(
            means={
                **losses,
                "gradient_norm": gradient_norm,
                "data_wait_share": self._waited / seconds,
            },
            num_updates=self.num_updates,
            num_steps=steps,
            seconds=seconds,
        )


@dataclass(frozen=True, kw_only=True)
class CallReport:
    """The metrics of one `Learner.update` call.

    Attributes:
        means: this learner's means; merging averages them over learners.
        num_updates: updates in the call.
        num_steps: valid steps trained in the call, over all learners.
        seconds: the call's duration.
    """

    means: dict[str, float]
    num_updates: int
    num_steps: int
    seconds: float

    def counts(self, progress: "Progress", windows: int, num_data_steps: int) -> dict[str, float]:
        """Returns the numbers that are equal on every learner, which merging must not add up.

        Args:
            progress: the learner's progress after this call.
            windows: windows that all learners drew in the call.
            num_data_steps: steps in the data.
        """
        return {
            "num_updates": self.num_updates,
            "num_updates_lifetime": progress.updates,
            "num_updates_per_s": self.num_updates / self.seconds,
            "num_windows_trained": windows,
            "num_windows_trained_lifetime": progress.windows,
            "num_windows_trained_per_s": windows / self.seconds,
            "num_steps_trained": self.num_steps,
            "num_steps_trained_lifetime": progress.steps,
            "num_steps_trained_per_s": self.num_steps / self.seconds,
            "num_passes_over_data": progress.steps / num_data_steps,
        }


@dataclass
class Progress:
    """A learner's progress: what a checkpoint needs to continue with the same batches.

    Attributes:
        updates: updates so far.
        steps: valid steps trained so far, over all learners.
        windows: windows drawn so far, by all learners.
        seed: the seed of batches and dropout.
        sampler: the sampler's state after the last update; see `Sampler.state`.
    """

    updates: int = 0
    steps: int = 0
    windows: int = 0
    seed: int | None = None
    sampler: SamplerState | None = None

    def state(self) -> State:
        """Returns plain values for a checkpoint."""
        return dict(vars(self))
