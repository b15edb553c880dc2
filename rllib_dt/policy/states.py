"""Reads the states and arguments that RLlib saved, without running what they name."""

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import msgpack
import numpy as np

from rllib_dt.policy.manifest import CheckpointError
from rllib_dt.safe_pickle import ADMITTED


def read_state(content: bytes, folder: Path) -> dict[str, Any]:
    """Reads a state, which is a pickle, or else msgpack."""
    if content[:1] == pickle.PROTO:  # no map of msgpack begins so
        return _unpickled(content, folder)
    try:
        found = msgpack.unpackb(content, object_hook=_array, strict_map_key=False)
    except Exception as error:  # what damaged bytes raise cannot be listed
        raise CheckpointError(
            f"a state in {folder} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return _checked(found, folder)


def _checked(found: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise CheckpointError(f"a state in {folder} is a {type(found).__name__}, not a dict")
    return found


def _array(value: dict[Any, Any]) -> Any:
    """Rebuilds an array or number of numpy's, as msgpack-numpy writes it; never an object."""
    if not {b"nd", b"type", b"data"} <= value.keys():
        return value
    kind = np.dtype(value[b"type"]) if isinstance(value[b"type"], str) else np.dtype("V")
    if kind.kind not in "biuf":
        raise ValueError(f"it holds arrays of {value[b'type']!r}, not of numbers")
    array = np.frombuffer(value[b"data"], kind).copy()
    return array.reshape(value[b"shape"]) if value[b"nd"] else array[0]


# --- pickles


def read_arguments(content: bytes, folder: Path) -> tuple[Any, Any]:
    """Returns the (positional, named) arguments that RLlib saved beside a state."""
    found = _unpickled(content, folder).get("ctor_args_and_kwargs")
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise CheckpointError(f"{folder} holds no arguments of an algorithm or a module")
    return found


_ADMITTED = {
    "collections": {"OrderedDict"},
    "builtins": {"set", "frozenset", "slice", "complex", "bytearray"},
    "numpy": {"float32", "float64", "int32", "int64", "uint8", "bool"},
}
"""Names by module that are loaded, besides those of numpy's arrays and gymnasium's spaces."""

_PLAIN_DTYPE = (None, None, None, -1, -1, 0)
"""What numpy saves of a dtype of numbers besides its byte order: no fields, no parts, no flags."""

_TEXT_DTYPE = (None, None, None, 0, 4, 8)
"""What numpy saves of the dtype of gymnasium's Text spaces, of which there are no arrays."""


class _Absent:
    """Stands for what a pickle names and is not loaded; accepts whatever is done to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Absent":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Absent":
        return _Absent()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Ignores a value."""

    def extend(self, values: Any) -> None:
        """Ignores values."""


_InPython: Any = pickle._Unpickler
"""In Python, where single steps can be checked."""


class _Unpickler(_InPython):
    """Loads arrays, spaces and plain values, and puts `_Absent` in place of all else."""

    dispatch: ClassVar = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name."""
        if (module, name) in ADMITTED:
            return ADMITTED[module, name]
        if name in _ADMITTED.get(module, ()):
            return super().find_class(module, name)
        if module.startswith("gymnasium.spaces."):
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, gym.Space):
                return found
        return _Absent

    def load_build(self) -> None:
        """Sets an object's state, if it is one that can be set safely."""
        state, built = self.stack[-1], self.stack[-2]
        if isinstance(built, np.dtype):
            # any other state could make numpy take bytes for the addresses of objects
            kept = state[2:] if isinstance(state, tuple) else None
            is_number = built.kind in "biuf" and kept == _PLAIN_DTYPE
            if not (is_number or (built.str[1:] == "U0" and kept == _TEXT_DTYPE)):
                raise pickle.UnpicklingError(f"it changes the dtype {built}")
        elif not isinstance(built, np.ndarray | gym.Space | _Absent):
            raise pickle.UnpicklingError(f"it sets the state of a {type(built).__name__}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _unpickled(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    # what damaged bytes make a pickle raise cannot be listed
    except Exception as error:
        raise CheckpointError(
            f"a state in {folder} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return _checked(found, folder)
