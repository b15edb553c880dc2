"""Returns-to-go, in training and step by step in evaluation.

The two functions belong together: stepping `next_return_to_go` from the first value of
`returns_to_go` reproduces the others (a test checks this), so evaluation conditions the policy on
the same values as training.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_dt.types import Array


def process_rewards(rewards: Array, clip: bool | float | None = None) -> NDArray[np.float64]:
    """Clips rewards as returns-to-go count them, the same in training and in evaluation.

    Args:
        rewards: any shape, in the environment's units.
        clip: RLlib's `clip_rewards`: True takes the sign, a number c clips to [-c, c],
            None or False leaves the rewards alone.
    """
    values = np.asarray(rewards, np.float64)
    if clip is None or clip is False:
        return values
    return np.sign(values) if clip is True else np.clip(values, -clip, clip)


def returns_to_go(
    rewards: Array, *, gamma: float = 1.0, delayed: bool = False
) -> NDArray[np.float64]:
    """Computes R_t = Σ_{i=t}^{T-1} γ^{i-t} r_i for t = 0 … T-1, over the whole episode.

    The current reward counts, and nothing after the episode's end does (Chen et al. 2021,
    arXiv:2106.01345, §3; the paper has γ = 1).

    Args:
        rewards: (T,) in the environment's units.
        gamma: discount in (0, 1].
        delayed: treat all reward as given at the last step, so that R_t is the episode's
            return at every t (the paper's delayed-reward setting, §5.3).

    Returns:
        (T,) float64, in reward units.
    """
    rewards = np.asarray(rewards, np.float64)
    if delayed:
        return np.full(len(rewards), rewards.sum())
    if gamma == 1.0:
        return np.cumsum(rewards[::-1])[::-1]
    from scipy.signal import lfilter  # takes half a second to import and is rarely needed

    discounted: NDArray[np.float64] = lfilter([1.0], [1.0, -gamma], rewards[::-1])
    return discounted[::-1]


def next_return_to_go(
    return_to_go: Array | float, reward: Array | float, *, gamma: float = 1.0, delayed: bool = False
) -> NDArray[np.float64]:
    """Computes R_{t+1} = (R_t - r_t) / γ, or R_t if rewards are delayed; broadcasts."""
    if delayed:
        return np.asarray(return_to_go, np.float64)
    return (np.asarray(return_to_go, np.float64) - reward) / gamma


@dataclass(frozen=True, kw_only=True)
class ReturnRule:
    """The rule by which rewards become returns-to-go, shared by training and evaluation.

    Attributes:
        gamma: see `returns_to_go`.
        delayed: see `returns_to_go`.
        clip_rewards: see `process_rewards`.
    """

    gamma: float = 1.0
    delayed: bool = False
    clip_rewards: bool | float | None = None

    def to_go(self, rewards: Array) -> NDArray[np.float64]:
        """Converts the (T,) rewards of a whole episode to (T,) returns-to-go."""
        processed = process_rewards(rewards, self.clip_rewards)
        return returns_to_go(processed, gamma=self.gamma, delayed=self.delayed)

    def check_acting(self) -> None:
        """Raises a ValueError if the rule cannot be followed step by step while acting.

        With a discount, R_{t+1} = (R_t - r_t) / γ divides the gap between what was asked and what
        the policy achieves by γ at every step: with γ = 0.9 a gap of 1 is 38,000 after 100 steps,
        far outside of what the network was trained on. No other update agrees with training, whose
        returns-to-go obey this equation exactly.
        """
        if self.gamma < 1.0 and not self.delayed:
            raise ValueError(
                f"gamma={self.gamma} cannot be used to act: the return-to-go would be divided by "
                "gamma at every step, and any gap between target and achievement would grow "
                "without bound; train with training(gamma=1.0)"
            )

    def step(self, return_to_go: Array | float, reward: float) -> NDArray[np.float64]:
        """Returns the return-to-go after a reward."""
        processed = process_rewards(np.asarray(reward), self.clip_rewards)
        return next_return_to_go(return_to_go, processed, gamma=self.gamma, delayed=self.delayed)
