"""`SquashedGaussianHead`: numbers that are drawn from a normal distribution, squashed by a tanh."""

import gymnasium as gym
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform

from rllib_dt.spaces.action_head import shaped
from rllib_dt.spaces.box_head import BoxHead

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0
_NEAREST_TO_BOUND = 1 - 1e-6
"""Recorded actions at a bound, where the density has no finite value, are moved this far in."""


class SquashedGaussianHead(BoxHead):
    """Actions tanh(N(μ, σ)) of a Box, mapped to its bounds; densities are in the head's unit.

    Outputs are (…, 2A): μ and log σ, as RLlib's squashed Gaussian has them, with
    log σ = -5 + 3.5 (tanh ρ + 1) of what the network's last layer gives (Zheng et al. 2022,
    arXiv:2202.05607). A component without two finite bounds has a plain normal distribution, and
    one with a single legal value none.
    """

    def __init__(self, space: gym.spaces.Box):
        super().__init__(space, tanh=True)
        self.spread_size = self.size
        self.has_log_probs = True
        self.metric_names = ("action_squared_error",)

    @property
    def num_drawn(self) -> int:
        """The number of components with more than one legal value."""
        return int(self.has_range.sum())

    def squash(self, raw: Tensor) -> Tensor:
        """Returns the (…, A) means unchanged; it is draws that are squashed."""
        return raw

    def log_std(self, raw: Tensor) -> Tensor:
        """Maps (…, A) to the range of log σ."""
        return MIN_LOG_STD + 0.5 * (MAX_LOG_STD - MIN_LOG_STD) * (raw.tanh() + 1)

    def decode(self, outputs: Tensor) -> Tensor:
        """Returns the (…, A) likeliest actions in the environment's units."""
        return self.in_units(super().squash(self._mean(outputs)))

    def taken_features(self, outputs: Tensor) -> Tensor:
        """Returns the (…, A) features of the likeliest actions, clamped to the bounds."""
        return self.within_bounds(super().squash(self._mean(outputs)))

    def losses(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) negative log-densities of the recorded actions."""
        return -self.log_probs(outputs, actions)

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Returns the (…,) log-densities of actions, (…) in the environment's units."""
        features = self.features(actions)
        inner = features.clamp(-_NEAREST_TO_BOUND, _NEAREST_TO_BOUND).atanh()
        return self._log_probs(outputs, torch.where(self.bounded, inner, features))

    def entropies(self, outputs: Tensor) -> Tensor:
        """Returns (…,) estimates of the entropy, -log p of one draw each, with a gradient."""
        mean, std = self._mean(outputs), self._std(outputs)
        return -self._log_probs(outputs, mean + std * torch.randn_like(mean))

    def act(
        self,
        outputs: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns actions within the bounds: the likeliest, or drawn with σ times a temperature."""
        drawn = self._mean(outputs)
        if temperature:
            noise = torch.empty_like(drawn).normal_(generator=generator)
            drawn = drawn + temperature * self._std(outputs) * noise
        return shaped(self.legal(super().squash(drawn)), self.shape)

    def metric_sums(self, outputs: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Sums, as `action_squared_error`, what a `BoxHead` would have as its loss."""
        errors = super().losses(super().squash(self._mean(outputs)), actions)
        return {"action_squared_error": torch.where(mask, errors, 0.0).sum()}

    def _mean(self, outputs: Tensor) -> Tensor:
        return outputs[..., : self.size].to(self.middle.dtype)

    def _std(self, outputs: Tensor) -> Tensor:
        return outputs[..., self.size :].to(self.middle.dtype).exp()

    def _log_probs(self, outputs: Tensor, inner: Tensor) -> Tensor:
        """Returns (…,) log-densities of actions whose values before the tanh are (…, A)."""
        normal = Normal(self._mean(outputs), self._std(outputs), validate_args=False)
        # of its two arguments it reads the first only
        slope = TanhTransform().log_abs_det_jacobian(inner, None)  # type: ignore[no-untyped-call]
        density: Tensor = normal.log_prob(inner)  # type: ignore[no-untyped-call]
        density = density - torch.where(self.bounded, slope, 0.0)
        return (density * self.has_range).sum(dim=-1)
