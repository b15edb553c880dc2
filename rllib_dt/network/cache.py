"""What is kept of earlier steps, so that only new ones need computing.

Letters: B batch, H heads, P cached tokens, L new tokens, d = D/H, N slots, K context steps, and
G = K + 1 groups of three tokens (two, without returns).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rllib_dt.network.config import DTModelConfig


class KeyValueCache(Protocol):
    """The keys and values of the tokens that precede the new ones, by layer."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a layer's new keys and values, (B, H, L, d), and returns all, (B, H, P+L, d)."""


def slot_shape(config: DTModelConfig) -> tuple[int, ...]:
    """Returns the shape of a layer's keys and values of one episode: (3G, 2, H, d)."""
    tokens = config.tokens_per_step * (config.context_length + 1)
    return tokens, 2, config.n_head, config.hidden_size // config.n_head


class Ring:
    """Where a ring of G groups of tokens holds each step, and what the newest step may attend to.

    Args:
        config: the network's settings.
        device: the network's device.
    """

    def __init__(self, config: DTModelConfig, device: torch.device | str | None = None):
        self._groups = config.context_length + 1
        self._tokens = T = config.tokens_per_step
        self._within = torch.arange(T, device=device)
        self._places = torch.arange(T * self._groups, device=device)
        # (G, 3, 3) bool: whether query i may attend to token j of a group `age` steps older
        age = torch.arange(self._groups, device=device)[:, None, None]
        back = T * age + self._within[:, None] - self._within  # in tokens
        self._in_band = (back >= 0) & (back < T * config.context_length)

    def places_and_mask(self, timesteps: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places of a step's three tokens, and what each may attend to.

        Args:
            timesteps: (B,) int, the step's timesteps.
            first: (B,) int, the timestep of the first step that each ring holds.

        Returns:
            (B, 3) int, and (B, 1, 3, 3G) bool.
        """
        G, t = self._groups, timesteps[:, None]
        places = (t % G) * self._tokens + self._within  # (B, 3)
        age = (t - torch.arange(G, device=t.device)) % G  # (B, G), in steps
        since = t - age - first[:, None]  # steps of the group after the first
        # the first step's a_{t-1} was not recorded, and groups before it hold another episode
        real = since[..., None] >= torch.where(self._within == 0, 1, 0)  # (B, G, 3)
        mask = self._in_band[age] & real[:, :, None, :]  # (B, G, 3 queries, 3 keys)
        mask = mask.transpose(1, 2).flatten(2)  # (B, 3, 3G)
        # even if not recorded, that action attends to itself: a softmax over no token is NaN
        itself = (self._places == places[:, :1])[:, None]  # (B, 1, 3G)
        mask = torch.cat([mask[:, :1] | itself, mask[:, 1:]], dim=1)
        return places, mask.unsqueeze(1)


class GrowingCache:
    """A cache that appends new keys and values to given ones, and keeps all.

    Args:
        past: keys and values of P tokens, two (B, H, P, d) for each layer; none by default.
    """

    def __init__(self, past: Sequence[tuple[Tensor, Tensor]] = ()):
        self._layers = dict(enumerate(past))

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache`."""
        if layer in self._layers:
            earlier_keys, earlier_values = self._layers[layer]
            keys = torch.cat([earlier_keys, keys], dim=2)
            values = torch.cat([earlier_values, values], dim=2)
        self._layers[layer] = keys, values
        return keys, values

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """The keys and values of all tokens so far, by layer."""
        return list(self._layers.values())


class RollingCache:
    """A cache of each layer's last G groups of tokens, for N running episodes.

    With attention to the last 3K tokens (`DTModelConfig.attention="window"`) it is exact for
    episodes of any length: a token's keys and values do not depend on tokens forgotten since.

    Step t writes three tokens, a_{t-1}, R_t and s_t, to group t mod G; no token is ever moved. With
    K = 3, and so G = 4, after step 5:

        group       0            1            2            3
        tokens  [a3 R4 s4]  [a4 R5 s5]  [a1 R2 s2]  [a2 R3 s3]
                               ↑ newest    ↑ oldest; step 6 replaces it

    Which of a slot's tokens are visible depends on t and on the first step that the slot holds.

    Args:
        config: the network's settings.
        num_slots: N.
        device, dtype: the network's.

    Raises:
        ValueError: attention is not "window", so a cache would not be exact.
    """

    def __init__(
        self,
        config: DTModelConfig,
        num_slots: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if config.attention != "window":
            raise ValueError(
                f"attention={config.attention!r} recomputes its whole context at every step; a "
                "rolling cache needs attention='window'"
            )
        self.num_slots = num_slots
        shape = (num_slots, *slot_shape(config))
        self._layers = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)
        ]
        self._first = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._every_slot = torch.arange(num_slots, device=device)
        self._ring = Ring(config, device)
        self._part = slice(None)

    def begin_step(self, slots: Tensor, timesteps: Tensor, begins: Tensor) -> Tensor:
        """Reserves the places of a step's three tokens.

        Args:
            slots: (B,) int, all different.
            timesteps: (B,) int, the step's timesteps; one more than the slot's last, unless an
                episode begins.
            begins: (B,) bool, True where an episode begins, which clears the slot.

        Returns:
            (B, 1, 3, 3G) bool, True for the slot's tokens that each of the three may attend to.
        """
        self._slots = None if torch.equal(slots, self._every_slot) else slots
        self._first[slots] = torch.where(begins, timesteps, self._first[slots])
        if begins.any():
            # hidden keys count for nothing only while they are finite: 0 · NaN is NaN
            for stored in self._layers:
                stored[slots[begins]] = 0.0
        self._places, mask = self._ring.places_and_mask(timesteps, self._first[slots])
        self._rows = slots[:, None]
        self._part = slice(None)
        return mask

    def take(self, part: slice) -> None:
        """Announces which of the step's three tokens come next, if they come in parts."""
        self._part = part

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache`; P+L is 3G, in the order of the groups."""
        stored = self._layers[layer]
        new = torch.stack([keys, values], dim=1).permute(0, 3, 1, 2, 4)  # (B, Q, 2, H, d)
        stored[self._rows, self._places[:, self._part]] = new
        held = stored if self._slots is None else stored[self._slots]
        all_keys, all_values = held.permute(2, 0, 3, 1, 4)  # (B, 3G, 2, H, d) -> 2 × (B, H, 3G, d)
        return all_keys, all_values

    def grown(self, config: DTModelConfig, num_slots: int) -> "RollingCache":
        """Returns a copy with more slots."""
        larger = RollingCache(config, num_slots, self._first.device, self._layers[0].dtype)
        larger._first[: self.num_slots] = self._first
        for mine, theirs in zip(self._layers, larger._layers, strict=True):
            theirs[: self.num_slots] = mine
        return larger


class EmbeddedStates:
    """The embedded observations of the last K steps of N running episodes.

    Step t is kept in place t mod K. A place that the episode has not reached yet may hold what
    another one has left.

    Args:
        num_slots: N.
        context_length: K.
        width: D.
        device, dtype: the network's.
    """

    def __init__(
        self,
        num_slots: int,
        context_length: int,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.num_slots = num_slots
        self._steps = torch.arange(1 - context_length, 1, device=device)
        self._states = torch.zeros(num_slots, context_length, width, device=device, dtype=dtype)

    def extend(
        self, slots: Tensor, timesteps: Tensor, mask: Tensor, counts: Tensor, new: Tensor
    ) -> Tensor:
        """Adds new steps, and returns the windows that end with them.

        Args:
            slots: (B,) int, all different.
            timesteps: (B,) int, of the last new step.
            mask: (B, K) bool, True for the window's real steps.
            counts: (B,) int, how many of the n steps are new.
            new: (B, n, D).

        Returns:
            (B, K, D), zeros where the mask is False.
        """
        K, n = len(self._steps), new.shape[1]
        places = (timesteps[:, None] + self._steps) % K  # (B, K), in the order of time
        rows, columns = torch.where(self._steps[K - n :] > -counts[:, None])
        into = slots[rows], places[:, K - n :][rows, columns]
        self._states[into] = new[rows, columns].to(self._states.dtype)
        found = self._states[slots[:, None], places]
        # hidden states count for nothing only while they are finite: 0 · NaN is NaN
        return torch.where(mask[..., None], found, 0.0)

    def grown(self, num_slots: int) -> "EmbeddedStates":
        """Returns a copy with more slots."""
        _, K, D = self._states.shape
        larger = EmbeddedStates(num_slots, K, D, self._states.device, self._states.dtype)
        larger._states[: self.num_slots] = self._states
        return larger
