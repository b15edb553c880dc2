"""`Actor`: plays episodes with a trained network, in any environment loop."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.targets import target_value
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.context import Contexts
from rllib_dt.policy.observed import check_values
from rllib_dt.policy.policy import Policy, as_tensors
from rllib_dt.spaces.trees import at, by_leaf, flatten, leaves, map_tree, unflatten
from rllib_dt.types import Tree, Value


class Actor:
    """Picks actions for N episodes at a time, conditioned on a target return; needs no Ray.

    Args:
        network: the trained network; it is put in eval mode.
        target_return: the return to ask for, in reward units; one number, or (N,). "max" asks for
            the most that the data show from each step, if the network estimates it
            (`training(max_return_expectile=…)`).
        num_envs: N.
        rule: how rewards reduce the return-to-go, as in training; undiscounted by default.
        temperature: 0 takes the likeliest action; otherwise categories and bits are drawn, from
            logits that are divided by it.
        generator: draws them, on the network's device; torch's global one by default.

    What it remembers of an episode was computed with the weights of then: `reset` it if the
    network's weights change.

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
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature} must be a finite number, at least 0")
        self._policy = Policy(network.eval())
        self._device = next(network.parameters()).device
        self._temperature, self._generator = temperature, generator
        self._slots = np.arange(num_envs)
        self._estimates = network.estimate_return is not None
        self._targets = self._checked(target_return, num_envs)
        self._contexts = Contexts(
            num_envs,
            network.config,
            network.observation_space,
            network.action_space,
            rule,
            remembers=self._policy.remembers,
        )
        self._observation_space = network.observation_space
        self._leaves = leaves(network.observation_space)
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
        chosen = self._slots.tolist() if slots is None else [int(slot) for slot in slots]
        if any(slot not in self._slots for slot in chosen):
            raise ValueError(
                f"slots={slots!r} are not the numbers of environments, 0 … {len(self._slots) - 1}"
            )
        if target_return is not None:
            self._targets[chosen] = self._checked(target_return, len(chosen))
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
        for slot, observation in enumerate(seen):
            self._check(slot, observation)
        given = self._rewards(rewards)
        for slot, reward in zip(self._slots.tolist(), given.tolist(), strict=True):
            self._follow(slot, seen[slot], reward)
        steps = as_tensors(self._contexts.steps(self._slots, self._policy.version), self._device)
        chosen = self._policy.act(steps, temperature=self._temperature, generator=self._generator)
        actions = map_tree(lambda leaf: leaf.cpu().numpy(), chosen)
        if self._policy.asked is not None:
            for slot, asked in enumerate(self._policy.asked.tolist()):
                self._contexts.settle(slot, asked)
        # copies: the caller may change what it gets
        self._actions = [map_tree(np.copy, at(actions, slot)) for slot in range(num_envs)]
        return unflatten(self._action_space, at(actions, 0) if is_single else actions)

    def _follow(self, slot: int, observation: Tree, reward: float) -> None:
        action = self._actions[slot]
        if action is None:
            self._contexts.begin(slot, observation, float(self._targets[slot]))
            return
        self._contexts.append(slot, action, reward, observation)

    def _rewards(self, rewards: ArrayLike) -> NDArray[np.float64]:
        """Returns (N,) rewards of the steps before; 0 where an episode begins."""
        given = np.asarray(rewards, np.float64)
        if given.shape not in ((), (1,), self._slots.shape, (len(self._slots), 1)):
            raise ValueError(
                f"rewards have the shape {given.shape}, wanted one number or {self._slots.shape}"
            )
        begins = np.array([action is None for action in self._actions])
        found = np.where(begins, 0.0, np.broadcast_to(given.ravel(), self._slots.shape))
        if not np.isfinite(found).all():
            slot = int(np.argmin(np.isfinite(found)))
            raise ValueError(f"the reward of environment {slot} is {found[slot]}")
        return found

    def _check(self, slot: int, observation: Tree) -> None:
        try:
            check_values(observation, self._contexts.layouts, self._leaves, "observation")
        except ValueError as error:
            raise ValueError(f"the observation of environment {slot}: {error}") from error

    def _checked(self, target_return: ArrayLike, num_envs: int) -> NDArray[np.float64]:
        return _targets(target_return, num_envs, self._estimates)

    def _is_single(self, observation: Value) -> bool:
        """Returns whether an observation has the space's own shape, without an axis before it."""
        found = by_leaf(flatten(self._observation_space, observation, self._contexts.ignore))
        shapes = self._contexts.shapes
        return all(np.shape(found[path]) == shape for path, shape in shapes.items())


def _targets(target_return: ArrayLike, num_envs: int, estimates: bool) -> NDArray[np.float64]:
    """Returns (N,) targets, infinite for "max"; raises a ValueError if they are others."""
    several = isinstance(target_return, Sequence | np.ndarray) and not isinstance(
        target_return, str
    )
    try:
        given: Any = list(target_return) if several else target_return  # type: ignore[arg-type]
        is_list = isinstance(given, list)
        targets = np.asarray([_value(t) for t in given] if is_list else _value(given))
    except (ValueError, TypeError):
        targets = np.full((), np.nan)
    if (
        targets.shape not in ((), (num_envs,))
        or np.isnan(targets).any()
        or (targets < -1e300).any()
    ):
        raise ValueError(
            f"target_return={target_return!r} must be a finite number, or one for each of the "
            f"{num_envs} environments"
        )
    if np.isinf(targets).any() and not estimates:
        raise ValueError(
            f"target_return={target_return!r} asks for the most, which the network does not "
            "estimate; train with training(max_return_expectile=0.99)"
        )
    return np.broadcast_to(targets, num_envs).copy()


def _value(target: Any) -> float:
    return target_value(target.item() if isinstance(target, np.generic | np.ndarray) else target)
