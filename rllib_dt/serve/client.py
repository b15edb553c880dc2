"""`RemoteActor`: plays episodes with a served policy; needs neither Ray nor torch."""

import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from collections import deque
from typing import Any

import numpy as np

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.targets import MAX
from rllib_dt.serve.requests import plain
from rllib_dt.spaces.descriptions import space_from_description
from rllib_dt.spaces.trees import is_composite
from rllib_dt.types import JsonObject, Value


class RequestError(RuntimeError):
    """A request that the server refused, or did not answer in time.

    Attributes:
        status: the HTTP status, or 0 if there was no answer.
    """

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class RemoteActor:
    """Plays one episode at a time with a policy behind `rllib_dt.serve`.

    Requests that fail on the way are repeated: a window can be answered twice, and a session's step
    has a number by which the server knows it.

    Args:
        url: the server's, such as "http://localhost:8000".
        target_return: the return to ask for, in reward units, or "max" in a session; the
            checkpoint's first by default.
        session: let the server remember the episode, and send single steps; the server must have
            `sessions`. Otherwise each request holds the last steps.
        retry_s: seconds for which a request is repeated.
        timeout_s: seconds to wait for an answer.

    Raises:
        RequestError: there is no such server.
        ValueError: no target is given, and the checkpoint names none.
    """

    def __init__(
        self,
        url: str,
        target_return: float | str | None = None,
        *,
        session: bool = False,
        retry_s: float = 60.0,
        timeout_s: float = 30.0,
    ):
        self._url = url.rstrip("/")
        self._retry_s, self._timeout_s = retry_s, timeout_s
        self.info: JsonObject = self._asked("GET", "/")
        if target_return is None and not self.info["target_returns"]:
            raise ValueError("give a target_return; the checkpoint names none")
        first = self.info["target_returns"][:1]
        self._session = uuid.uuid4().hex if session else None
        self._target = self._checked(first[0] if target_return is None else target_return)
        self.action_space = space_from_description(self.info["action_space"])
        self._rule = ReturnRule(
            gamma=self.info["gamma"],
            delayed=self.info["delayed_reward"],
            clip_rewards=self.info["clip_rewards"],
        )
        self._rule.check_acting()
        length = self.info["window"]
        self._observations: deque[Any] = deque(maxlen=length)
        self._actions: deque[Any] = deque(maxlen=length)
        self._returns: deque[float] = deque(maxlen=length)
        self._step = 0

    def reset(self, target_return: float | str | None = None) -> None:
        """Makes the next observation the first of a new episode; may change the target."""
        if target_return is not None:
            self._target = self._checked(target_return)
        for held in (self._observations, self._actions, self._returns):
            held.clear()
        self._step = 0

    def predict(self, observation: Value, reward: float = 0.0) -> Value:
        """Picks the next action.

        Args:
            observation: the environment's current one, without a batch axis.
            reward: that of the previous step; ignored where an episode begins.

        Raises:
            RequestError: the server refused the request, or did not answer in time.
        """
        seen, earned = plain(observation), float(reward)
        if self._session is None:
            request, to_go = self._window(seen, earned)
        else:
            request = {"session": self._session, "step": self._step, "observation": seen}
            request |= {"reward": earned} if self._step else {"target_return": self._target}
        action = self._asked("POST", "/", request)["action"]
        # only now: a refused or unanswered step can be asked for again
        self._step += 1
        if self._session is None:
            self._observations.append(seen)
            self._returns.append(to_go)
            self._actions.append(action)
        return self._value(action)

    def _checked(self, target: float | str) -> float | str:
        if target == MAX and self._session is None:
            raise ValueError('"max" needs session=True: the server keeps what it estimated')
        return MAX if target == MAX else float(target)

    def close(self) -> None:
        """Ends the session, if there is one, and the server still has it."""
        if self._session is None:
            return
        try:
            self._asked("DELETE", f"/sessions/{self._session}")
        except RequestError as error:
            if error.status != 404:
                raise

    def _window(self, observation: Any, reward: float) -> tuple[JsonObject, float]:
        """Returns the request for the current step, and the step's return-to-go."""
        last = self._returns[-1] if self._step else float(self._target)
        to_go = float(self._rule.step(last, reward)) if self._step else last
        length = self.info["window"]
        observations = [*self._observations, observation][-length:]
        return {
            "observations": observations,
            "actions": list(self._actions)[len(self._actions) - len(observations) + 1 :],
            "returns_to_go": [*self._returns, to_go][-length:],
            "timestep": self._step,
        }, to_go

    def _value(self, action: Any) -> Value:
        space = self.action_space
        if is_composite(space):
            return action
        return np.asarray(action, space.dtype)

    def _asked(self, method: str, path: str, content: Any = None) -> JsonObject:
        until = time.monotonic() + self._retry_s
        body = None if content is None else json.dumps(content).encode()
        while True:
            request = urllib.request.Request(
                self._url + path, body, {"Content-Type": "application/json"}, method=method
            )
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                    found: JsonObject = json.loads(answer.read())
                    return found
            except urllib.error.HTTPError as error:
                reason = _reason(error)
                # without a reason it is Serve that answers, before the application has started
                if (reason and error.code < 500) or time.monotonic() > until:
                    raise RequestError(reason or f"HTTP {error.code}", error.code) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if time.monotonic() > until:
                    raise RequestError(f"{self._url} does not answer: {error}") from error
            time.sleep(0.1)


def _reason(error: urllib.error.HTTPError) -> str:
    """Returns what our server says is wrong, or nothing if it is not ours that answers."""
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return ""
