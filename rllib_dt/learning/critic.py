"""A critic of recorded actions: implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169).

V(s) is an upper expectile of Q(s, a) over the recorded actions, and Q(s, a) = r + γ V(s'), so no
action is ever valued that was not recorded. Settings are those of the paper's locomotion tasks,
with layer norms added.
"""

import copy

import torch
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor, nn

from rllib_dt.episodes.windows import Window
from rllib_dt.learning.expectiles import expectile_losses
from rllib_dt.learning.optimizer_state import moments, set_moments
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.types import State, Tree

HIDDEN = 256
LEARNING_RATE = 3e-4
TARGET_RATE = 0.005
"""The target copies' share of the trained networks in each update, τ."""

REWARD_UNIT = 100.0
"""Rewards are in units of `return_scale` / 100, so that values are neither tiny nor huge: Adam's
steps have one size. An undiscounted return would be 100 at most."""


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(),
        nn.LayerNorm(HIDDEN),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.LayerNorm(HIDDEN),
        nn.Linear(HIDDEN, outputs),
    )


class _States(nn.Module):
    """Reads observations: normalised numbers as they are, others by a copy of the encoder."""

    def __init__(self, network: DecisionTransformer):
        super().__init__()
        self.encoder: nn.Module | None = None
        self.size = network.config.hidden_size
        if network.reads_only_numbers:
            self.size = network.observation_mean.numel()
        else:
            self.encoder = copy.deepcopy(network.embed_state).requires_grad_(True)

    def forward(self, inputs: Tree) -> Tensor:
        """Maps `encoder_inputs`, or (B, K, S) numbers if there is nothing else, to (B, K, F)."""
        states: Tensor = inputs if self.encoder is None else self.encoder(inputs)
        return states


class QFunctions(nn.Module):
    """Two Q functions of a state and an action's features.

    Numbers among the features are inputs. Categories and bits weigh outputs, one for each, so that
    the expectation over a policy that chooses them independently is exact: Q(s, a) is the sum of
    the weighted outputs, which of a single category is the one that it picks.
    """

    def __init__(self, network: DecisionTransformer):
        super().__init__()
        head = network.action_head
        self.is_one_choice = head.is_one_choice
        choices = head.are_choices
        self.register_buffer("choices", choices.nonzero()[:, 0], persistent=False)
        self.register_buffer("numbers", (~choices).nonzero()[:, 0], persistent=False)
        count = int(choices.sum())
        parts = count if self.is_one_choice else 1 + count
        self.states = _States(network)
        size = self.states.size + int((~choices).sum())
        self.both = nn.ModuleList(_perceptron(size, parts) for _ in range(2))

    choices: Tensor
    numbers: Tensor

    def forward(self, states: Tensor, features: Tensor) -> Tensor:
        """Returns (2, …) values of (…, F) states and (…, size) features."""
        parts, weights = self._parts(states, features)
        return (parts * weights).sum(dim=-1)

    def least(self, states: Tensor, features: Tensor) -> Tensor:
        """Returns the (…,) smaller value; of one category, the expectation of each one's smaller.

        Σ_a π(a) min(Q1, Q2)(s, a) for probabilities as features.
        """
        parts, weights = self._parts(states, features)
        if self.is_one_choice:
            return (parts.amin(dim=0) * weights).sum(dim=-1)
        return (parts * weights).sum(dim=-1).amin(dim=0)

    def _parts(self, states: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([states, features[..., self.numbers]], dim=-1)
        weights = features[..., self.choices]
        if not self.is_one_choice:
            weights = nn.functional.pad(weights, (1, 0), value=1.0)
        return torch.stack([q(inputs) for q in self.both]), weights


class Critic:
    """The Q functions, their target copies, V, and their optimisers.

    Args:
        network: the policy's network, whose normalisation and action head it shares.
        expectile: of Q over recorded actions, in (0.5, 1).
        gamma: the discount.
    """

    def __init__(self, network: DecisionTransformer, *, expectile: float, gamma: float):
        self._network, self._expectile, self._gamma = network, expectile, gamma
        device = network.return_scale.device
        self.q = QFunctions(network).to(device, torch.float32)
        self.target = copy.deepcopy(self.q).requires_grad_(False).eval()
        self.value = _perceptron(self.q.states.size, 1).to(device)
        self._optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)
            for name, module in (("q", self.q), ("value", self.value))
        }

    def begin(self) -> None:
        """Makes it ready to be trained."""
        self.q.requires_grad_(True).train()

    def freeze(self) -> None:
        """Ends its training: no gradient reaches its weights any more."""
        self.q.requires_grad_(False).eval()

    def update(self, window: Window) -> dict[str, Tensor]:
        """Does an update of V, of Q, and of the target copies, in this order.

        Args:
            window: (B, 2) steps with outcomes. The first step of each is a transition, unless it
                is padding; the second is one if its episode was terminated there. So over windows
                that end at every step each transition counts once, and the last step of a
                truncated episode, which nothing follows, does not.

        Returns:
            () metrics of the batch, on the device.
        """
        goes_on = window.mask[:, 0].nonzero()[:, 0]
        ends = (window.mask[:, 1] & window.terminateds[:, 1]).nonzero()[:, 0]

        def chosen(steps: Tensor) -> Tensor:  # (B, 2, …) -> (N, …), those that end last
            return torch.cat([steps[goes_on, 0], steps[ends, 1]])

        features = chosen(self._network.action_head.features(window.actions).float())
        wanted = chosen(window.rewards) * (REWARD_UNIT / self._network.return_scale)
        number = max(1, len(wanted))
        inputs = self._inputs(window)
        with torch.no_grad():
            states = self.target.states(inputs)  # (B, 2, F)
            following, states = states[goes_on, 1], chosen(states)
            best = self.target.least(states, features)  # (N,)
        values = self.value(states)[:, 0]
        value_loss = expectile_losses(best - values, self._expectile).sum() / number
        self._step("value", value_loss)
        with torch.no_grad():
            wanted[: len(following)] += self._gamma * self.value(following)[:, 0]
        found = self.q(chosen(self.q.states(inputs)), features)  # (2, N)
        q_loss = (found - wanted).square().sum() / number
        self._step("q", q_loss)
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.q.parameters(), strict=True)
            for kept, new in pairs:
                kept.lerp_(new, TARGET_RATE)
            buffers = zip(self.target.buffers(), self.q.buffers(), strict=True)
            for own, newest in buffers:  # of a user's own encoder
                own.copy_(newest)
        mean = best.sum() / number
        return {
            "critic_value_loss": value_loss.detach(),
            "critic_q_loss": q_loss.detach(),
            "critic_q_mean": mean * (self._network.return_scale / REWARD_UNIT),
        }

    def least(self, window: Window, features: Tensor) -> Tensor:
        """Returns (B, K) min(Q1, Q2)(s, a) of a window's states, in its own unit.

        Args:
            window: (B, K) steps.
            features: (B, K, size) of the actions, through which a gradient flows.
        """
        with torch.no_grad():
            states = self.q.states(self._inputs(window))
        return self.q.least(states, features.float())

    def parameters(self) -> list[Tensor]:
        """Returns all weights, the target copies' included."""
        modules = (self.q, self.target, self.value)
        return [parameter.data for module in modules for parameter in module.parameters()]

    def state(self) -> State:
        """Returns weights and optimisers, as numpy arrays."""
        modules = {"q": self.q, "target": self.target, "value": self.value}
        return {
            **{name: convert_to_numpy(m.state_dict()) for name, m in modules.items()},
            "moments": {name: moments(opt) for name, opt in self._optimizers.items()},
        }

    def set_state(self, state: State) -> None:
        """Loads what `state` returned."""
        for name, module in (("q", self.q), ("target", self.target), ("value", self.value)):
            module.load_state_dict(convert_to_torch_tensor(state[name]))
        for name, optimizer in self._optimizers.items():
            set_moments(optimizer, state["moments"][name])

    def _inputs(self, window: Window) -> Tree:
        if self._network.reads_only_numbers:
            return self._network.normalized_numbers(window.observations).float()
        return self._network.encoder_inputs(window.observations)

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
