"""Env-to-module: from an episode's newest step to the window that the module reads."""

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_dt.episodes import windows
from rllib_dt.episodes.spaces import step_layout
from rllib_dt.episodes.windows import ContextBuffer

TARGET_RETURN = "target_return"
"""Key in an episode's `custom_data`: the return that the policy is asked for."""


class DecisionTransformerContext(ConnectorV2):
    """Replaces the batch by one window of the last K steps for each running episode.

    Reads: `obs` in the batch (B, …), as the pieces before it left them; each episode's newest
    action and reward; `custom_data["target_return"]`, or else the first configured target.
    Writes: the columns of `rllib_dt.episodes.windows`, (B, K, …) each, in the episodes' order.
    Where the module keeps what it computed (`incremental`) the windows hold the step before and
    the present one only, and two more columns tell where they belong: `slots` (B,), and
    `new_steps` (B,), how many of the window's last steps the module does not know yet. Those are
    more than one where it has to begin anew; the window is then longer.
    Usable in env-to-module pipelines of single-agent environments, behind `BatchIndividualItems`
    and before `NumpyToTensor`.

    It follows each episode by its id: a new one starts with an empty context, and one that it
    has lost sight of is replayed from the episode, which must then hold its whole past.
    """

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        context_length: int,
        incremental: bool = False,
        default_target: float | None = None,
        gamma: float = 1.0,
        delayed: bool = False,
        clip_rewards: bool | float | None = None,
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self._context_length = context_length
        self._incremental = incremental
        self._cache_version: int | None = None
        self._default_target = default_target
        self._rewards: dict[str, Any] = {
            "gamma": gamma,
            "delayed": delayed,
            "clip_rewards": clip_rewards,
        }
        self._buffer: ContextBuffer | None = None
        self._num_slots = 0
        # episode id -> (slot, timestep of the newest step that the buffer holds)
        self._followed: dict[str, tuple[int, int]] = {}
        # slots of which the module knows the steps up to the newest but one
        self._known: set[int] = set()

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        explore: bool | None = None,
        shared_data: dict | None = None,
        **kwargs: Any,
    ) -> Any:
        observations = np.asarray(batch[windows.OBSERVATIONS])
        self._forget_all_but(episodes)
        slots = [self._follow(e, o) for e, o in zip(episodes, observations, strict=True)]
        assert self._buffer is not None
        if self._incremental:
            return self._new_steps(slots, getattr(rl_module, "cache_version", None))
        return dict(self._buffer.windows(np.asarray(slots)))

    def _new_steps(self, slots: list[int], cache_version: int | None) -> dict[str, Any]:
        """Windows of what the module has not seen; of all that matters where it begins anew."""
        assert self._buffer is not None
        if cache_version != self._cache_version:  # other weights: what it holds is of no use
            self._known, self._cache_version = set(), cache_version
        is_known = np.array([slot in self._known for slot in slots])
        held = np.array([self._buffer.steps_held(slot) for slot in slots])
        counts = np.where(is_known, 1, np.minimum(held, self._context_length - 1))
        self._known.update(slots)
        batch = self._buffer.windows(np.asarray(slots), int(counts.max()) + 1)
        for row in np.flatnonzero(~is_known):  # no step before the first new one
            batch[windows.MASK][row, : -counts[row]] = False
        return {**batch, windows.SLOTS: np.asarray(slots), windows.NEW_STEPS: counts}

    def _forget_all_but(self, episodes: list[SingleAgentEpisode]) -> None:
        running = {episode.id_ for episode in episodes}
        self._followed = {k: v for k, v in self._followed.items() if k in running}
        if len(episodes) > self._num_slots:
            self._num_slots = len(episodes)
            self._buffer = ContextBuffer(
                self._num_slots,
                self._context_length,
                step_layout(self.input_observation_space),
                step_layout(self.input_action_space),
                **self._rewards,
            )
            self._followed, self._known = {}, set()

    def _follow(self, episode: SingleAgentEpisode, observation: np.ndarray) -> int:
        slot, seen = self._followed.get(episode.id_, (None, -1))
        if slot is None or episode.t not in (seen, seen + 1):
            slot = self._replay(episode, observation)
        elif episode.t == seen + 1:
            self._append(slot, episode, -1, observation)
        self._followed[episode.id_] = (slot, episode.t)
        return slot

    def _replay(self, episode: SingleAgentEpisode, observation: np.ndarray) -> int:
        steps = episode.t - episode.t_started
        if episode.t_started > 0:
            raise RuntimeError(
                f"episode {episode.id_} is at step {episode.t}, but its steps before "
                f"{episode.t_started} are gone, and with them its return so far; sample whole "
                "episodes (batch_mode='complete_episodes')"
            )
        taken = {slot for slot, _ in self._followed.values()}
        slot = next(slot for slot in range(self._num_slots) if slot not in taken)
        self._known.discard(slot)
        assert self._buffer is not None
        first = observation if steps == 0 else episode.get_observations(0)
        self._buffer.begin(slot, first, self._target(episode))
        for step in range(steps):
            newest = step == steps - 1
            following = observation if newest else episode.get_observations(step + 1)
            self._append(slot, episode, step, following)
        self._followed[episode.id_] = (slot, episode.t)
        return slot

    def _append(
        self, slot: int, episode: SingleAgentEpisode, step: int, observation: np.ndarray
    ) -> None:
        assert self._buffer is not None
        self._buffer.append(slot, episode.get_actions(step), episode.get_rewards(step), observation)

    def _target(self, episode: SingleAgentEpisode) -> float:
        target = episode.custom_data.get(TARGET_RETURN, self._default_target)
        if target is None:
            raise ValueError(
                "no target return: set evaluation(target_returns=[…]) or the episode's "
                f"custom_data[{TARGET_RETURN!r}]"
            )
        return float(target)
