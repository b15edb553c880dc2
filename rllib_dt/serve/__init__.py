"""Serves a trained policy over HTTP and as a handle, with Ray Serve.

    serve run rllib_dt.serve:app checkpoint=/path/to/checkpoint

`app` has the settings, `requests` what a client sends, and `client` an actor that sends it, which
needs neither Ray nor torch. docs/deployment.md shows all three.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_dt.serve.application import ServeSettings, app
    from rllib_dt.serve.client import RemoteActor, RequestError

__all__ = ["RemoteActor", "RequestError", "ServeSettings", "app"]

_HOMES = {
    "RemoteActor": "rllib_dt.serve.client",
    "RequestError": "rllib_dt.serve.client",
    "ServeSettings": "rllib_dt.serve.application",
    "app": "rllib_dt.serve.application",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
