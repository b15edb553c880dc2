"""`Actor`: plays episodes with a trained network, in any environment loop."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.context import Contexts
from rllib_dt.policy.policy import Policy, as_tensors
from rllib_dt.spaces.trees import at, by_leaf, flatten, map_tree, unflatten
from rllib_dt.types import Tree, Value


class Actor:
    """Picks actions for N episodes at a time, conditioned on a target return; needs no Ray.

    Args:
        network: the trained network; it is put in eval mode.
        target_return: the return to ask for, in reward units; one number, or (N,).
        num_envs: N.
        rule: how rewards reduce the return-to-go, as in training; undiscounted by default.
        temperature: 0 takes the likeliest action; otherwise categories and bits are drawn, from
            logits that are divided by it.
        generator: draws them, on the network's device; torch's global one by default.

    Raises:
        ValueError: there are neither one nor N targets, or one is not finite.
    """

    def __init__(
        self,
        network: DecisionTransformer,
        target_return: ArrayLike,
        num_envs: int = 1,
        *,
        rule: ReturnRule | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        self._policy = Policy(network.eval())
        self._device = next(network.parameters()).device
        self._temperature, self._generator = temperature, generator
        self._slots = np.arange(num_envs)
        self._targets = _targets(target_return, num_envs)
        self._contexts = Contexts(
            num_envs, network.config, network.observation_space, network.action_space, rule
        )
        self._observation_space = network.observation_space
        self._action_space = network.action_space
        self._actions: list[Tree | None] = [None] * num_envs

    def reset(
        self, slots: Sequence[int] | None = None, target_return: ArrayLike | None = None
    ) -> None:
        """Makes the next observation the first of a new episode, in the given slots or in all.

        Args:
            slots: the numbers of environments, from 0.
            target_return: what to ask for from now on in these slots; as before by default.
        """
        chosen = self._slots.tolist() if slots is None else list(slots)
        if target_return is not None:
            self._targets[chosen] = _targets(target_return, len(chosen))
        for slot in chosen:
            self._actions[slot] = None

    def predict(self, observations: Value, rewards: ArrayLike = 0.0) -> Value:
        """Picks the next actions.

        Args:
            observations: (N, …), the current observation of each environment; of a Dict or Tuple
                space a dict or tuple of (N, …). A single environment's may also come as it is,
                without N.
            rewards: (N,) or one number, the reward of the previous step; ignored where an episode
                begins.

        Returns:
            (N, …) actions, in the environment's units, or dicts and tuples of them; without N if
            the observation had none.

        Raises:
            ValueError: there are not N observations, or they do not have the space's shapes; or a
                reward is not finite.
        """
        num_envs = len(self._slots)
        is_single = num_envs == 1 and self._is_single(observations)
        if is_single:
            seen = [self._contexts.observed(observations)]
        else:
            seen = self._contexts.observed_rows(observations, num_envs)
        given = np.broadcast_to(np.asarray(rewards, np.float64), self._slots.shape)
        for slot, reward in zip(self._slots.tolist(), given.tolist(), strict=True):
            self._follow(slot, seen[slot], reward)
        steps = as_tensors(self._contexts.steps(self._slots, self._policy.version), self._device)
        chosen = self._policy.act(steps, temperature=self._temperature, generator=self._generator)
        actions = map_tree(lambda leaf: leaf.cpu().numpy(), chosen)
        self._actions = [at(actions, slot) for slot in range(num_envs)]
        return unflatten(self._action_space, at(actions, 0) if is_single else actions)

    def _follow(self, slot: int, observation: Tree, reward: float) -> None:
        action = self._actions[slot]
        if action is None:
            self._contexts.begin(slot, observation, float(self._targets[slot]))
            return
        if not math.isfinite(reward):
            raise ValueError(f"the reward of environment {slot} is {reward}")
        self._contexts.append(slot, action, reward, observation)

    def _is_single(self, observation: Value) -> bool:
        """Returns whether an observation has the space's own shape, without an axis before it."""
        found = by_leaf(flatten(self._observation_space, observation, self._contexts.ignore))
        shapes = self._contexts.shapes
        return all(np.shape(found[path]) == shape for path, shape in shapes.items())


def _targets(target_return: ArrayLike, num_envs: int) -> NDArray[np.float64]:
    """Returns (N,) targets; raises a ValueError if they are others, or not finite."""
    targets = np.asarray(target_return, np.float64)
    if targets.shape not in ((), (num_envs,)) or not np.isfinite(targets).all():
        raise ValueError(
            f"target_return={target_return!r} must be a finite number, or one for each of the "
            f"{num_envs} environments"
        )
    return np.broadcast_to(targets, num_envs).copy()
