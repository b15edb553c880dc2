"""`Actor`: plays episodes with a trained network, in any environment loop."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.context import Contexts
from rllib_dt.policy.policy import Policy, as_tensors
from rllib_dt.spaces.trees import at, map_tree, unflatten
from rllib_dt.types import Tree, Value


class Actor:
    """Picks actions for N episodes at a time, conditioned on a target return; needs no Ray.

    Args:
        network: the trained network; it is put in eval mode.
        target_return: the return to ask for, in reward units.
        num_envs: N.
        rule: how rewards reduce the return-to-go, as in training; undiscounted by default.
        temperature: 0 takes the likeliest action; otherwise categories and bits are drawn, from
            logits that are divided by it.
    """

    def __init__(
        self,
        network: DecisionTransformer,
        target_return: float,
        num_envs: int = 1,
        *,
        rule: ReturnRule | None = None,
        temperature: float = 0.0,
    ):
        self._policy = Policy(network.eval())
        self._device = next(network.parameters()).device
        self._target_return, self._temperature = target_return, temperature
        self._slots = np.arange(num_envs)
        self._contexts = Contexts(
            num_envs, network.config, network.observation_space, network.action_space, rule
        )
        self._action_space = network.action_space
        self._actions: list[Tree | None] = [None] * num_envs

    def reset(self, slots: Sequence[int] | None = None) -> None:
        """Makes the next observation the first of a new episode, in the given slots or in all."""
        for slot in self._slots if slots is None else slots:
            self._actions[slot] = None

    def predict(self, observations: Value, rewards: ArrayLike = 0.0) -> Value:
        """Picks the next actions.

        Args:
            observations: (N, …), the current observation of each environment; of a Dict or Tuple
                space a dict or tuple of (N, …).
            rewards: (N,) or one number, the reward of the previous step; ignored where an episode
                begins.

        Returns:
            (N, …) actions, in the environment's units, or dicts and tuples of them.

        Raises:
            ValueError: there are not N observations, or they do not have the space's shapes.
        """
        num_envs = len(self._slots)
        seen = self._contexts.observed_rows(observations, num_envs)
        given = np.broadcast_to(np.asarray(rewards, np.float64), self._slots.shape)
        for slot, reward in zip(self._slots.tolist(), given.tolist(), strict=True):
            action = self._actions[slot]
            if action is None:
                self._contexts.begin(slot, seen[slot], self._target_return)
            else:
                self._contexts.append(slot, action, reward, seen[slot])
        steps = as_tensors(self._contexts.steps(self._slots, self._policy.version), self._device)
        chosen = self._policy.act(steps, temperature=self._temperature)
        actions = map_tree(lambda leaf: leaf.cpu().numpy(), chosen)
        self._actions = [at(actions, slot) for slot in range(num_envs)]
        return unflatten(self._action_space, actions)
