"""Env-to-module connector: turns an episode's newest step into what the policy reads."""

from collections.abc import Collection
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.targets import target_value
from rllib_dt.episodes.windows import OBSERVATIONS
from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.context import ASKED_RETURNS, Contexts
from rllib_dt.spaces.trees import flatten, is_below, unflatten
from rllib_dt.types import Batch, Tree

TARGET_RETURN = "target_return"
"""Key in an episode's `custom_data` for the return that the policy is asked for."""


class LeaveOut(ConnectorV2):
    """Puts zeros in place of the leaves that are left out, which RLlib may not be able to batch.

    Reads and writes: `obs`, of each episode.
    Usable after `AddObservationsFromEpisodesToBatch`, before observations are batched.

    Args:
        input_observation_space, input_action_space: see `ConnectorV2`.
        ignore: the paths of leaves; see `DTModelConfig`.
    """

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        ignore: Collection[str],
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self._ignore = ignore

    @override(ConnectorV2)
    def __call__(self, *, batch: Batch, **kwargs: Any) -> Batch:
        space = self.input_observation_space
        for values in batch[OBSERVATIONS].values():
            for i, value in enumerate(values):
                found = flatten(space, value)
                left_out = {path: 0 for path in found if is_below(path, self._ignore)}
                values[i] = unflatten(space, found | left_out)
        return batch


class DecisionTransformerContext(ConnectorV2):
    """Replaces the batch with what the policy reads for each running episode.

    Reads: `obs` in the batch, (B, …), as earlier connector pieces left it; each episode's newest
    action and reward; `custom_data["target_return"]`, or else the first configured target.
    Writes: the columns of a `Window`, (B, K, …) each, in the episodes' order; with
    `attention="window"`, and for a module that remembers states, the columns of `NewSteps`.
    Usable in env-to-module pipelines of single-agent environments, after `BatchIndividualItems`
    and before `NumpyToTensor`.

    It follows each episode by its id. A new episode starts with an empty context. One whose steps
    it has missed is replayed from the episode itself, which must then contain its whole past.

    Args:
        input_observation_space, input_action_space: see `ConnectorV2`.
        model: the network's settings.
        rule: how rewards reduce the return-to-go, as in training.
        default_target: the return to ask for if an episode names none.
    """

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        model: DTModelConfig,
        rule: ReturnRule,
        default_target: float | str | None = None,
        **kwargs: Any,
    ):
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self._model, self._rule = model, rule
        self._default_target = default_target
        self._contexts: Contexts | None = None
        # episode id -> (slot, timestep of the newest step that the context holds)
        self._followed: dict[str, tuple[int, int]] = {}

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: Batch,
        episodes: list[SingleAgentEpisode],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Batch:
        contexts = self._contexts_for(episodes, rl_module)
        observations = contexts.observed_rows(batch[OBSERVATIONS], len(episodes))
        slots = [self._follow(contexts, e, o) for e, o in zip(episodes, observations, strict=True)]
        version = getattr(rl_module, "cache_version", None)
        return contexts.steps(np.asarray(slots), version).columns()

    def _contexts_for(self, episodes: list[SingleAgentEpisode], rl_module: Any) -> Contexts:
        """Returns contexts with room for all running episodes; forgets the episodes that ended."""
        running = {episode.id_ for episode in episodes}
        self._followed = {k: v for k, v in self._followed.items() if k in running}
        if self._contexts is None or len(episodes) > self._contexts.num_slots:
            self._contexts = Contexts(
                len(episodes),
                self._model,
                self.input_observation_space,
                self.input_action_space,
                self._rule,
                remembers=getattr(rl_module, "remembers_states", False),
            )
            self._followed = {}
        return self._contexts

    def _follow(self, contexts: Contexts, episode: SingleAgentEpisode, observation: Tree) -> int:
        slot, seen = self._followed.get(episode.id_, (None, -1))
        if slot is None or episode.t not in (seen, seen + 1):
            slot = self._replay(contexts, episode, observation)
        elif episode.t == seen + 1:
            _append(contexts, slot, episode, -1, observation)
        self._followed[episode.id_] = (slot, episode.t)
        return slot

    def _replay(self, contexts: Contexts, episode: SingleAgentEpisode, observation: Tree) -> int:
        steps = episode.t - episode.t_started
        if episode.t_started > 0:
            raise RuntimeError(
                f"episode {episode.id_} is at step {episode.t}, but its steps before "
                f"{episode.t_started} are gone, and with them its return so far; sample whole "
                "episodes (batch_mode='complete_episodes')"
            )
        taken = {slot for slot, _ in self._followed.values()}
        slot = next(slot for slot in range(contexts.num_slots) if slot not in taken)
        first = observation if steps == 0 else contexts.observed(episode.get_observations(0))
        contexts.begin(slot, first, self._target(episode))
        for step in range(steps):
            newest = step == steps - 1
            following = (
                observation if newest else contexts.observed(episode.get_observations(step + 1))
            )
            _append(contexts, slot, episode, step, following)
        self._followed[episode.id_] = (slot, episode.t)
        return slot

    def _target(self, episode: SingleAgentEpisode) -> float:
        target = episode.custom_data.get(TARGET_RETURN, self._default_target)
        if target is None:
            raise ValueError(
                "no target return: set evaluation(target_returns=[…]) or the episode's "
                f"custom_data[{TARGET_RETURN!r}]"
            )
        return target_value(target)


def _append(
    contexts: Contexts,
    slot: int,
    episode: SingleAgentEpisode,
    step: int,
    observation: Tree,
) -> None:
    action = contexts.acted(episode.get_actions(step))
    asked = episode.extra_model_outputs.get(ASKED_RETURNS)
    if asked is not None:
        contexts.settle(slot, float(episode.get_extra_model_outputs(ASKED_RETURNS, step)))
    contexts.append(slot, action, episode.get_rewards(step), observation)
