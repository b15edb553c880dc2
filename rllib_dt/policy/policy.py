"""`Policy`: a network that acts on whole windows, or step by step with a cache."""

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from rllib_dt.episodes.windows import Window
from rllib_dt.network.cache import EmbeddedStates, RollingCache
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.context import NewSteps
from rllib_dt.spaces.composites import image_leaves
from rllib_dt.types import Tree


class Policy:
    """Picks actions with a network, and owns what it remembers of running episodes.

    With `attention="window"` that is a cache of keys and values, with "context" the embedded
    observations, where the network has convolutions for them. It is part of no checkpoint: it can
    be rebuilt from the network and the episodes.

    Args:
        network: the network; its mode (`train` or `eval`) is left as it is.

    Attributes:
        version: changes when the memory becomes invalid; see `Contexts.steps`.
        remembers: whether it remembers embedded observations; see `Contexts`.
        asked: (B,) the returns-to-go of the last actions, where the network may estimate them
            (`estimates_return`); otherwise None.
        outputs: (B, …) the action head's outputs behind the last actions; None before the first.
    """

    def __init__(self, network: DecisionTransformer):
        self.network = network
        self.version = 0
        self.asked: Tensor | None = None
        self.outputs: Tensor | None = None
        self._cache: RollingCache | None = None
        self._states: EmbeddedStates | None = None
        config = network.config
        has_images = image_leaves(network.observation_space, config.image_encoder, config.choice)
        # users' encoders may look at several steps
        self.remembers = config.attention == "context" and bool(has_images) and not config.encoders

    def forget(self) -> None:
        """Drops what is remembered; to be called when the network's weights change."""
        self._cache = self._states = None
        self.version += 1

    def act(
        self,
        steps: Window | NewSteps,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tree:
        """Picks each episode's next action.

        Args:
            steps: what to act on, as tensors on the network's device.
            temperature, generator: see `ActionHead.act`.

        Returns:
            (B, …) actions in the environment's units; a tree.
        """
        network = self.network
        try:
            with self._without_gradients():
                outputs, asked = self._last_outputs(steps)
        except BaseException:
            self.forget()  # it may lack steps that will not be given to it again
            raise
        # copies, since torch lets nobody change an inference tensor in place
        self.outputs = outputs[:, 0].clone()
        self.asked = None if network.estimate_return is None else asked.clone()
        with torch.no_grad():
            return network.action_head.act(
                self.outputs, temperature=temperature, generator=generator
            )

    def _without_gradients(self) -> AbstractContextManager[None]:
        if self.network.config.encoders:  # may keep tensors for training, or need gradients
            return torch.no_grad()
        return torch.inference_mode()  # cheaper where operations are small

    def _last_outputs(self, steps: Window | NewSteps) -> tuple[Tensor, Tensor]:
        if isinstance(steps, Window):
            return self.network.last_outputs(steps)
        if self.remembers:
            return self.network.last_outputs(steps.window, self._embedded(steps))
        return self._catch_up(steps)

    def _embedded(self, new: NewSteps) -> Tensor:
        """Embeds new observations; returns those of whole windows, (B, K, D)."""
        network, window = self.network, new.window
        num_slots, K = int(new.slots.max()) + 1, window.timesteps.shape[1]
        if self._states is None:
            device, dtype = next(network.parameters()).device, network.dtype
            width = network.config.hidden_size
            self._states = EmbeddedStates(num_slots, K, width, device, dtype)
        elif num_slots > self._states.num_slots:
            self._states = self._states.grown(num_slots)
        embedded = network.embed_observations(window.observations)
        last = window.timesteps[:, -1]
        return self._states.extend(new.slots, last, window.mask, new.counts, embedded)

    def _catch_up(self, new: NewSteps) -> tuple[Tensor, Tensor]:
        """Feeds new steps one by one; the last one is new to every episode."""
        cache = self._cache_for(int(new.slots.max()) + 1)
        num_steps = new.window.mask.shape[1] - 1
        for step in range(num_steps - 1):
            rows = new.counts >= num_steps - step
            self.network.step_outputs(cache, new.slots[rows], new.window[rows, step : step + 2])
        return self.network.step_outputs(cache, new.slots, new.window[:, num_steps - 1 :])

    def _cache_for(self, num_slots: int) -> RollingCache:
        if self._cache is None:
            device = next(self.network.parameters()).device
            self._cache = RollingCache(self.network.config, num_slots, device, self.network.dtype)
        elif num_slots > self._cache.num_slots:
            self._cache = self._cache.grown(self.network.config, num_slots)
        return self._cache


def as_tensors(steps: Window | NewSteps, device: torch.device) -> Window | NewSteps:
    """Converts steps from numpy arrays to tensors on a device."""

    def tensor(column: np.ndarray) -> Tensor:
        return torch.from_numpy(column).to(device)

    if isinstance(steps, Window):
        return steps.map(tensor)
    return NewSteps(
        window=steps.window.map(tensor), slots=tensor(steps.slots), counts=tensor(steps.counts)
    )
