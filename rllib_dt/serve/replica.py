"""The policy that a replica holds: batches of windows, and sessions that it remembers."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rllib_dt.episodes.targets import MAX
from rllib_dt.episodes.windows import Window
from rllib_dt.policy.context import Contexts, NewSteps
from rllib_dt.policy.loading import TrainedPolicy
from rllib_dt.policy.policy import Policy, as_tensors
from rllib_dt.serve.requests import (
    BadRequestError,
    LostSessionError,
    Requests,
    StepRequest,
    WindowRequest,
    stacked,
)
from rllib_dt.spaces.composites import layouts
from rllib_dt.spaces.descriptions import describe_space
from rllib_dt.spaces.trees import at, by_leaf, from_leaves, map_tree, unflatten
from rllib_dt.types import JsonObject, Tree, Value


@dataclass(kw_only=True)
class _Session:
    slot: int
    step: int
    digest: str
    action: Tree
    seen: float


class ServedPolicy:
    """Answers requests in batches; holds the sessions.

    Args:
        policy: the trained policy.
        max_sessions: how many sessions are remembered; the least recently used goes first.
        session_timeout_s: seconds without a request after which a session may go.
        temperature: see `Actor`.
        clock: seconds that pass.
    """

    def __init__(
        self,
        policy: TrainedPolicy,
        *,
        max_sessions: int = 0,
        session_timeout_s: float = 600.0,
        temperature: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._trained = policy
        self._temperature = temperature
        network = policy.network
        self._device = next(network.parameters()).device
        spaces = policy.observation_space, policy.action_space
        self.requests = Requests(network.config, *spaces)
        ignore = network.config.ignore
        self._layouts = layouts(spaces[0], ignore), layouts(spaces[1])
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._timeout, self._clock = session_timeout_s, clock
        self._max_sessions = max_sessions
        self._policy = Policy(network)
        if max_sessions:
            policy.rule.check_acting()
            self._contexts = Contexts(
                max_sessions,
                network.config,
                *spaces,
                policy.rule,
                remembers=self._policy.remembers,
            )
            self._free = list(range(max_sessions))

    def describe(self) -> JsonObject:
        """Returns what a client has to know of the policy, as JSON values."""
        rule = self._trained.rule
        return {
            "observation_space": describe_space(self._trained.observation_space),
            "action_space": describe_space(self._trained.action_space),
            "window": self.requests.longest,
            "target_returns": [
                MAX if np.isinf(target) else target for target in self._trained.target_returns
            ],
            "gamma": rule.gamma,
            "delayed_reward": rule.delayed,
            "clip_rewards": rule.clip_rewards,
            "sessions": self._max_sessions,
        }

    def act_on_windows(self, requests: Sequence[WindowRequest]) -> list[Value | BadRequestError]:
        """Picks the action after each window, or says why there is none."""
        rows = max(len(request.observations) for request in requests)
        windows = [self._window(request, rows) for request in requests]
        columns = [window.columns() for window in windows]
        batch = Window.from_columns(
            {name: np.stack([each[name] for each in columns]) for name in columns[0]}
        )
        actions = self._act(batch)
        return [self._value(at(actions, row)) for row in range(len(requests))]

    def act_on_steps(self, requests: Sequence[StepRequest]) -> list[Value | BadRequestError]:
        """Picks each session's next action, or says why there is none."""
        self._drop_idle()
        answers: list[Value | BadRequestError | None] = [None] * len(requests)
        waiting = list(range(len(requests)))
        while waiting:  # in rounds, in which no session has two steps
            taken: dict[str, int] = {}
            for index in waiting:
                if len(taken) < self._max_sessions:
                    taken.setdefault(requests[index].session, index)
            for index, answer in self._round(requests, list(taken.values())):
                answers[index] = answer
            waiting = [index for index in waiting if answers[index] is None]
        return [answer for answer in answers if answer is not None]

    def end(self, session: str) -> bool:
        """Forgets a session; returns whether there was one."""
        found = self._sessions.pop(session, None)
        if found is not None:
            self._free.append(found.slot)
        return found is not None

    def _round(
        self, requests: Sequence[StepRequest], indices: Sequence[int]
    ) -> list[tuple[int, Value | BadRequestError]]:
        answers: list[tuple[int, Value | BadRequestError]] = []
        running: list[tuple[int, _Session]] = []
        busy = {requests[index].session for index in indices}
        for index in indices:
            try:
                session = self._advanced(requests[index], busy)
            except BadRequestError as error:
                answers.append((index, error))
                continue
            session.seen = self._clock()
            self._sessions.move_to_end(requests[index].session)
            if session.digest == requests[index].digest:
                answers.append((index, self._value(session.action)))
            else:
                running.append((index, session))
        if running:
            actions = self._advance([session.slot for _, session in running])
            for row, (index, session) in enumerate(running):
                session.digest, session.step = requests[index].digest, requests[index].step
                session.action = map_tree(np.copy, at(actions, row))
                answer = self._value(session.action)
                answers.append((index, answer))
                if isinstance(answer, BadRequestError):  # nothing can follow it
                    self.end(requests[index].session)
        return answers

    def _advance(self, slots: list[int]) -> Tree:
        """Picks the actions of sessions whose new steps are stored; forgets them if that fails.

        A session that was advanced without an answer would take a repeated step for a new one.
        """
        try:
            actions = self._act(self._contexts.steps(np.array(slots), self._policy.version))
            if self._policy.asked is not None:
                for slot, asked in zip(slots, self._policy.asked.tolist(), strict=True):
                    self._contexts.settle(slot, asked)
            return actions
        except Exception:
            for name in [name for name, held in self._sessions.items() if held.slot in slots]:
                self.end(name)
            raise

    def _advanced(self, request: StepRequest, busy: set[str]) -> _Session:
        """Returns a request's session, with its step stored; unchanged if it is a repeated one."""
        session = self._sessions.get(request.session)
        is_repeated = (
            session is not None
            and session.step == request.step
            and session.digest == request.digest
        )
        if session is not None and is_repeated:
            return session
        if request.step == 0:
            target = request.target_return
            if target is None:
                if not self._trained.target_returns:
                    raise BadRequestError("target_return is missing: the checkpoint names none")
                target = self._trained.target_returns[0]
            session = session or self._new_session(request.session, busy)
            self._contexts.begin(session.slot, request.observation, target)
            session.digest = ""
            return session
        if session is None:
            raise LostSessionError(
                f"session {request.session!r} is not known: it never began, timed out, made room "
                "for others, or its replica was restarted; begin again at step 0"
            )
        if request.step != session.step + 1:
            raise BadRequestError(
                f"session {request.session!r} is at step {session.step}: send step "
                f"{session.step + 1}, or step {session.step} again as it was"
            )
        self._contexts.append(session.slot, session.action, request.reward, request.observation)
        session.digest = ""
        return session

    def _new_session(self, name: str, busy: set[str]) -> _Session:
        if not self._free:
            # a round has at most as many sessions as there are slots, so one is idle
            self.end(next(other for other in self._sessions if other not in busy))
        session = _Session(slot=self._free.pop(), step=0, digest="", action=None, seen=0.0)
        self._sessions[name] = session
        return session

    def _drop_idle(self) -> None:
        oldest = self._clock() - self._timeout
        for name in [name for name, held in self._sessions.items() if held.seen < oldest]:
            self.end(name)

    def _window(self, request: WindowRequest, rows: int) -> Window:
        n = len(request.observations)
        real = np.arange(rows) >= rows - n
        first = request.timestep - n + 1
        returns = np.zeros((rows, 1), np.float32)
        returns[rows - n :, 0] = request.returns_to_go
        actions = [*request.actions, from_leaves(dict.fromkeys(self._layouts[1], 0))]
        return Window(
            observations=stacked(request.observations, self._layouts[0], rows),
            actions=stacked(actions, self._layouts[1], rows),
            returns_to_go=returns,
            timesteps=np.where(real, np.arange(rows) - (rows - n) + first, 0),
            mask=real,
        )

    def _act(self, steps: Window | NewSteps) -> Tree:
        with torch.inference_mode():
            chosen = self._policy.act(
                as_tensors(steps, self._device), temperature=self._temperature
            )
        return map_tree(lambda leaf: leaf.cpu().numpy(), chosen)

    def _value(self, action: Tree) -> Value | BadRequestError:
        """Returns an action as the space has it, or an error if it is not finite."""
        if not all(np.isfinite(leaf).all() for leaf in by_leaf(action).values()):
            return BadRequestError(
                "the action is not finite: an observation, an action, a return or a reward is far "
                "larger than the policy was trained on"
            )
        return unflatten(self._trained.action_space, action)
