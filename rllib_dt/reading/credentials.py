"""Seals settings that may contain credentials: used in the cluster, never saved."""

import hashlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs
import ray

from rllib_dt.compat import share_in_cluster, shared_in_cluster


class Sealed:
    """A setting that may contain credentials: it prints as `<sealed>` and pickles to a digest.

    The value itself is in the running cluster's key-value store, where every process of the cluster
    can read it, but in no checkpoint, result file or log. In another cluster the same setting must
    be given again; a config that was restored without it raises when the value is needed.
    """

    _known: dict[str, Any] = {}

    def __init__(self, value: Any):
        content = pickle.dumps(value)
        self._name = hashlib.blake2b(content, digest_size=32, key=b"rllib_dt").hexdigest()
        self._known[self._name] = value

    @classmethod
    def seal(cls, value: Any) -> Any:
        """Seals a value, unless it cannot contain credentials."""
        plain = value is None or isinstance(value, str | Sealed)
        return value if plain else cls(value)

    @classmethod
    def unseal(cls, value: Any) -> Any:
        """Returns a sealed value itself, and any other value unchanged.

        Raises:
            ValueError: the value was never given in this cluster.
        """
        if not isinstance(value, cls):
            return value
        name = value._name
        if name not in cls._known and ray.is_initialized():
            content = shared_in_cluster(name)
            if content is not None:
                cls._known[name] = pickle.loads(content)
        if name not in cls._known:
            raise ValueError(
                "the credentials of input_filesystem are not saved in checkpoints; give the same "
                "offline_data(input_filesystem=…, input_filesystem_kwargs=…) in this process, or "
                "leave them to the environment (AWS_ACCESS_KEY_ID, a role, …)"
            )
        return cls._known[name]

    def __repr__(self) -> str:
        return "<sealed>"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sealed) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __getstate__(self) -> dict[str, str]:
        if self._name in self._known and ray.is_initialized():
            share_in_cluster(self._name, pickle.dumps(self._known[self._name]))
        return {"_name": self._name}

    def __setstate__(self, state: Mapping[str, str]) -> None:
        self._name = state["_name"]

    def __deepcopy__(self, memo: Any) -> "Sealed":
        return self


def check_no_credentials(path: str) -> None:
    """Raises a ValueError for a URI with credentials, which would be logged and saved."""
    scheme, found, rest = path.partition("://")
    if not found:
        return
    place, _, query = rest.partition("?")
    names = [part.split("=", 1)[0].lower() for part in query.split("&")]
    secret = any(re.search("secret|password|token|sas|access_?key|account_?key", n) for n in names)
    if secret or re.search(r":.*@", place):
        raise ValueError(
            f"the {scheme}:// path holds credentials, which would be logged and saved; pass them "
            "as offline_data(input_filesystem_kwargs=…) or in the environment"
        )


def resolve_filesystem(name: Any, kwargs: Any) -> pafs.FileSystem | None:
    """Resolves RLlib's `input_filesystem`: "s3", "gcs", "abs", a pyarrow filesystem, or None."""
    name, kwargs = Sealed.unseal(name), Sealed.unseal(kwargs)
    if name is None or isinstance(name, pafs.FileSystem):
        return name
    if name == "s3":
        return pafs.S3FileSystem(**(kwargs or {}))
    if name == "gcs":
        return pafs.GcsFileSystem(**(kwargs or {}))
    if name == "abs":
        return pafs.AzureFileSystem(**(kwargs or {}))
    raise ValueError(
        f'input_filesystem={name!r}: wanted "s3", "gcs", "abs" or a pyarrow filesystem'
    )
