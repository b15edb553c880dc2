"""Reads arrays from RLlib's compressed columns, base64(lz4(pickle)), without a general unpickler.

A pickle can run any code when it is loaded. This unpickler admits only the few names that a numpy
array needs, and refuses any other, naming it.
"""

import base64
import binascii
import io
import pickle
from typing import Any

import lz4.frame
import numpy as np


class RefusedPickleError(ValueError):
    """A pickle that contains something other than a numpy array; the message names it."""


class PackedTooLargeError(ValueError):
    """A packed value that unpacks to more than it may."""


def _encode_latin1(text: str, encoding: str) -> bytes:
    # pickle protocols 0 to 2 store an array's bytes this way
    if encoding != "latin1":
        raise RefusedPickleError(f"it encodes text as {encoding!r}, which no numpy array does")
    return text.encode("latin1")


class _NdarrayName:
    """Stands for `numpy.ndarray` in a pickle: it can be named, but not called."""


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    # what numpy's pickles call first; the array's state is set afterwards, and numpy checks it. Any
    # other shape would be memory that nobody has written to
    if kind is not _NdarrayName or shape != (0,):
        raise RefusedPickleError("it builds a numpy array in a way that numpy's own pickles do not")
    return np.empty(0, np.uint8)


def _admitted() -> dict[tuple[str, str], Any]:
    scalar: Any = np.float64(0).__reduce__()[0]
    frombuffer: Any = np.zeros(1).__reduce_ex__(5)[0]
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NdarrayName,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode_latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        names[(f"{core}.multiarray", "_reconstruct")] = _empty_array
        names[(f"{core}.multiarray", "scalar")] = scalar
        names[(f"{core}.numeric", "_frombuffer")] = frombuffer
    return names


_ADMITTED = _admitted()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[(module, name)]
        except KeyError:
            raise RefusedPickleError(
                f"it holds {module}.{name}; only numpy arrays are read from pickles"
            ) from None


def load_array(data: bytes) -> np.ndarray:
    """Loads a pickled numpy array; for anything else, raises a RefusedPickleError that names it."""
    try:
        value = _ArrayUnpickler(io.BytesIO(data)).load()
    except RefusedPickleError:
        raise
    except Exception as error:  # damaged pickle bytes can raise anything
        raise RefusedPickleError(f"its bytes are not a readable pickle ({error})") from error
    if not isinstance(value, np.ndarray | np.generic):
        raise RefusedPickleError(
            f"it holds a {type(value).__module__}.{type(value).__name__}; only numpy arrays are "
            "read from pickles"
        )
    if value.dtype.hasobject:
        raise RefusedPickleError("it holds a numpy array of Python objects; wanted numbers")
    return np.asarray(value)


_MAX_RATIO = 256
"""What lz4 can compress by, at most: one byte stands for up to 255 (its block format)."""


def _bounded(compressed: bytes, max_bytes: int) -> bytes:
    # several times slower for small frames, since it allocates what they may take
    decompressor = lz4.frame.LZ4FrameDecompressor()
    data: bytes = decompressor.decompress(compressed, max_length=max_bytes + 1)
    if len(data) > max_bytes:
        raise PackedTooLargeError
    if not decompressor.eof:
        raise RefusedPickleError("it is not base64 text of an lz4 frame (its end is missing)")
    return data


def unpack_array(packed: str | bytes, max_bytes: int) -> np.ndarray:
    """Loads what RLlib's `pack` wrote: base64 text of an lz4 frame of a pickle.

    Args:
        packed: the text.
        max_bytes: what it may unpack to.

    Raises:
        RefusedPickleError: it is something else.
        PackedTooLargeError: it unpacks to more.
    """
    try:
        compressed = base64.b64decode(packed, validate=True)
        if len(compressed) * _MAX_RATIO <= max_bytes:
            data = lz4.frame.decompress(compressed)
        else:
            data = _bounded(compressed, max_bytes)
    except (RefusedPickleError, PackedTooLargeError):
        raise
    except (binascii.Error, ValueError, RuntimeError) as error:
        raise RefusedPickleError(f"it is not base64 text of an lz4 frame ({error})") from error
    return load_array(data)
