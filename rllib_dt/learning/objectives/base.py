"""`Objective`: one summand of the loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from rllib_dt.episodes.windows import Window
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import Batch, State

if TYPE_CHECKING:
    from rllib_dt.learning.learner import DTTorchLearner


@dataclass(frozen=True, kw_only=True)
class Term:
    """An objective's part of one batch.

    Attributes:
        name: under which its mean is reported, "action_loss".
        weight: multiplies the mean in the loss.
        loss_sum: (), over this learner's steps.
        count: () int, the number of those steps.
    """

    name: str
    weight: float
    loss_sum: Tensor
    count: Tensor


class Objective(ABC):
    """One summand of the loss: the mean over all learners' steps, times a weight.

    An objective that is off costs nothing: it is not built, and the network computes no outputs for
    it.

    Args:
        network: the network that is trained.
        weight: what multiplies its mean.
        learner: the learner, for what users override in it.

    Attributes:
        name: under which its mean is reported.
        predicts_next: it reads the outputs of the last block at every token, not only at states.
        reads_outcomes: it reads a window's rewards, terminations and episode returns.
    """

    name: ClassVar[str]
    predicts_next: ClassVar[bool] = False
    reads_outcomes: ClassVar[bool] = False

    def __init__(self, network: DecisionTransformer, weight: float, learner: "DTTorchLearner"):
        self.network, self.weight, self.learner = network, weight, learner

    @classmethod
    @abstractmethod
    def weight_in(cls, config: Any) -> float:
        """Returns the weight that settings give it; 0 for none."""

    @classmethod
    def head(cls, network: DecisionTransformer) -> nn.Module | None:
        """Returns the part of the network that is trained for this objective alone."""
        return None

    @abstractmethod
    def loss_sum(self, outputs: Batch, window: Window) -> Tensor:
        """Returns the () sum of the steps' losses.

        Args:
            outputs: of the module's `forward_train`, (B, K, …) each.
            window: B windows of K steps, on the learner's device.
        """

    def begin_update(self) -> None:  # noqa: B027  most have nothing to do
        """Is called once a batch, before its losses: `loss_sum` is called for each of its parts."""

    def end_update(self) -> None:  # noqa: B027
        """Is called once a batch, after its gradient was applied."""

    def metrics(self) -> dict[str, float]:
        """Returns what each result reports of it besides its mean; the same on every learner."""
        return {}

    def state(self) -> State:
        """Returns what it has learned beside the network, for a checkpoint: values and arrays."""
        return {}

    def set_state(self, state: State) -> None:
        """Restores `state()`."""
        assert not state, f"{type(self).__name__} keeps nothing"

    def count(self, window: Window) -> Tensor:
        """Returns the () number of steps in the sum; the valid ones by default."""
        count: Tensor = window.mask.sum()
        return count

    def term(self, outputs: Batch, window: Window) -> Term:
        """Returns the objective's part of a batch."""
        return Term(
            name=self.name,
            weight=self.weight,
            loss_sum=self.loss_sum(outputs, window),
            count=self.count(window),
        )
