"""`app`: the Serve application, from a front that speaks HTTP to replicas that hold the policy.

    HTTP or handle → Front (reads JSON, retries) → PolicyReplica (checks, batches, acts)

A replica that dies takes the requests with it that it was working on. The front sends them again:
a window can be answered by any replica, and a session's step is known by its number.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from pydantic import BaseModel, ConfigDict, Field
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import DeploymentUnavailableError
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
except ImportError as error:
    raise ImportError(
        f"rllib_dt.serve needs {error.name}; install it with: pip install 'rllib_dt[serve]'"
    ) from error

from rllib_dt.policy.fetched import is_remote
from rllib_dt.serve.requests import (
    BadRequestError,
    LostSessionError,
    StepRequest,
    WindowRequest,
    decoded,
    plain,
)
from rllib_dt.types import JsonObject

logger = logging.getLogger(__name__)

_LARGEST_BODY = 64 * 2**20
_Answer = tuple[int, JsonObject]
_FAULTS = (RayActorError, DeploymentUnavailableError)


class ServeSettings(BaseModel):
    """Settings of `app`; on the command line: `serve run rllib_dt.serve:app checkpoint=… …`.

    Attributes:
        checkpoint: what `load_policy` takes.
        sessions: remember episodes on the replica, so that a client sends single steps.
        max_sessions: sessions that are remembered; the least recently used goes first.
        session_timeout_s: seconds without a request after which a session goes.
        num_replicas: processes that hold the policy; one with `sessions`, each of which is in one.
        num_fronts: processes that speak HTTP.
        max_batch_size: requests that are answered at once; 1 does not batch.
        batch_wait_timeout_s: seconds to wait for a batch to fill.
        num_threads: torch's threads in a replica.
        temperature: see `Actor`.
        device: where the network goes.
        encoders: see `load_policy`; several names separated by commas.
        retry_s: seconds for which the front repeats a request whose replica died.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    sessions: bool = False
    max_sessions: int = Field(default=256, ge=1, le=2**20)
    session_timeout_s: float = Field(default=600.0, gt=0)
    num_replicas: int = Field(default=1, ge=1)
    num_fronts: int = Field(default=1, ge=1)
    max_batch_size: int = Field(default=64, ge=1)
    batch_wait_timeout_s: float = Field(default=0.002, ge=0, le=10)
    num_threads: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    device: str = "cpu"
    encoders: str = ""
    retry_s: float = Field(default=60.0, ge=0)


def app(settings: ServeSettings) -> serve.Application:
    """Builds the application; for `serve run`, a Serve config file, or `serve.run(app(…))`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: there are several replicas with sessions.
    """
    if settings.sessions and settings.num_replicas > 1:
        raise ValueError(
            f"sessions=True with num_replicas={settings.num_replicas}: a session is in one replica "
            "only; set num_replicas=1, or leave sessions out"
        )
    is_here = is_remote(settings.checkpoint) or Path(settings.checkpoint).expanduser().exists()
    if not is_here:
        raise FileNotFoundError(f"checkpoint={settings.checkpoint!r}: there is no such folder")
    # requests that a replica holds; a router whose replicas are full waits longer and longer
    waiting = max(256, 4 * settings.max_batch_size)
    replica_class: Any = PolicyReplica
    front_class: Any = Front
    replica = replica_class.options(
        num_replicas=settings.num_replicas, max_ongoing_requests=waiting
    ).bind(settings.model_dump())
    bound: serve.Application = front_class.options(
        num_replicas=settings.num_fronts, max_ongoing_requests=waiting * settings.num_replicas
    ).bind(replica, settings.retry_s)
    return bound


@serve.deployment(
    ray_actor_options={"num_cpus": 1}, health_check_period_s=1.0, health_check_timeout_s=20.0
)
class PolicyReplica:
    """Holds the policy; checks requests, and answers them in batches."""

    def __init__(self, settings: JsonObject):
        import torch

        from rllib_dt.policy.loading import load_policy
        from rllib_dt.serve.replica import ServedPolicy

        chosen = ServeSettings(**settings)
        torch.set_num_threads(chosen.num_threads)
        names = [name.strip() for name in chosen.encoders.split(",") if name.strip()]
        policy = load_policy(chosen.checkpoint, device=chosen.device, encoders=names)
        self._served = ServedPolicy(
            policy,
            max_sessions=chosen.max_sessions if chosen.sessions else 0,
            session_timeout_s=chosen.session_timeout_s,
            temperature=chosen.temperature,
        )
        self._has_sessions = chosen.sessions
        for method in (self._windows, self._steps):
            method.set_max_batch_size(chosen.max_batch_size)
            method.set_batch_wait_timeout_s(chosen.batch_wait_timeout_s)

    async def describe(self) -> JsonObject:
        """Returns what a client has to know of the policy."""
        return self._served.describe()

    async def answer(self, given: Any) -> _Answer:
        """Answers a request: an HTTP status, and a JSON value."""
        try:
            is_step = isinstance(given, dict) and "session" in given
            if is_step and not self._has_sessions:
                raise BadRequestError(
                    "this server keeps no sessions (sessions=true); send the window: "
                    "observations, actions, returns_to_go, timestep"
                )
            if is_step:
                action = await self._steps(self._served.requests.step(given))
            else:
                action = await self._windows(self._served.requests.window(given))
            if isinstance(action, BadRequestError):
                raise action  # one of a batch, whose others are answered
        except LostSessionError as error:
            return 410, {"error": str(error)}
        except BadRequestError as error:
            return 400, {"error": str(error)}
        return 200, {"action": plain(action)}

    async def end(self, session: str) -> _Answer:
        """Ends a session."""
        ended = self._has_sessions and self._served.end(session)
        return (200, {"ended": session}) if ended else (404, {"error": "there is no such session"})

    @serve.batch
    async def _windows(self, requests: list[WindowRequest]) -> Sequence[Any]:
        return self._served.act_on_windows(requests)

    @serve.batch
    async def _steps(self, requests: list[StepRequest]) -> Sequence[Any]:
        return self._served.act_on_steps(requests)


@serve.deployment(
    ray_actor_options={"num_cpus": 0}, health_check_period_s=1.0, health_check_timeout_s=20.0
)
class Front:
    """Speaks HTTP, and repeats requests whose replica died.

    POST / answers a window or a session's step, GET / describes the policy, and
    DELETE /sessions/NAME ends a session.
    """

    def __init__(self, replica: DeploymentHandle, retry_s: float):
        self._replica, self._retry_s = replica, retry_s

    async def __call__(self, request: Request) -> Response:
        """Answers an HTTP request; never with more of an error than what is wrong with it."""
        try:
            status, content = await self._route(request)
        except BadRequestError as error:
            status, content = 400, {"error": str(error)}
        except Exception:
            logger.exception("a request failed")
            status, content = 500, {"error": "the server failed; its log says why"}
        return JSONResponse(content, status)

    async def act(self, request: Any) -> Any:
        """Answers a request through a handle: a dict as HTTP takes it, with lists or arrays.

        Returns:
            The action: numbers, lists, and dicts of them.

        Raises:
            ValueError: the request is wrong, or its session is lost.
        """
        status, content = await self._asked("answer", request)
        if status != 200:
            raise BadRequestError(content["error"])
        return content["action"]

    async def describe(self) -> JsonObject:
        """Returns what a client has to know of the policy."""
        found: JsonObject = await self._asked("describe")
        return found

    async def _route(self, request: Request) -> _Answer:
        # below the application's own prefix (`serve.run(route_prefix=…)`)
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        parts = [part for part in path.split("/") if part]
        if request.method == "GET" and not parts:
            return 200, await self.describe()
        if not parts and request.method not in ("GET", "POST"):
            return 405, {"error": f"{request.method} is not known here; there are GET and POST"}
        if request.method == "POST" and not parts:
            found: _Answer = await self._asked("answer", decoded(await _body(request)))
            return found
        if request.method == "DELETE" and len(parts) == 2 and parts[0] == "sessions":
            ended: _Answer = await self._asked("end", parts[1])
            return ended
        return 404, {"error": "there are GET /, POST / and DELETE /sessions/NAME"}

    async def _asked(self, method: str, *arguments: Any) -> Any:
        """Calls a replica, and another one if that dies."""
        until = time.monotonic() + self._retry_s
        while True:
            try:
                return await getattr(self._replica, method).remote(*arguments)
            except _FAULTS as error:
                if time.monotonic() > until:
                    raise
                logger.warning("a replica died and is asked again: %s", type(error).__name__)
                await asyncio.sleep(0.05)


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST_BODY:
            raise BadRequestError(f"the body has more than {_LARGEST_BODY} bytes")
    return bytes(content)
