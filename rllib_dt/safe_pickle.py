"""Reads arrays from RLlib's compressed columns, base64(lz4(pickle)), without a general unpickler.

A pickle can run any code when it is loaded. This unpickler admits only the few names that a numpy
array needs, and refuses any other, naming it.
"""

import base64
import binascii
import io
import itertools
import pickle
import pickletools
from typing import Any

import numpy as np


class RefusedPickleError(ValueError):
    """A pickle that contains something other than a numpy array; the message names it."""


class PackedTooLargeError(ValueError):
    """A packed value that unpacks to more than it may."""


def _encode_latin1(text: object, encoding: object) -> bytes:
    # pickle protocols 0 to 2 store an array's bytes this way
    if encoding != "latin1" or not isinstance(text, str):
        raise RefusedPickleError("it encodes text in a way that no numpy array does")
    return text.encode("latin1")


def _dtype(code: object, *flags: object) -> np.dtype:
    if not isinstance(code, str) or len(code) > _LONGEST_CODE:
        raise RefusedPickleError("it names a dtype in a way that numpy's own pickles do not")
    # a copy, as numpy's pickles ask for: the state that follows is set on it
    return np.dtype(code, False, True)


def _scalar(kind: object, value: object) -> object:
    if not isinstance(kind, np.dtype) or not isinstance(value, bytes):
        raise RefusedPickleError("it builds a number in a way that numpy's own pickles do not")
    if len(value) != kind.itemsize:
        raise RefusedPickleError(f"a {kind.name} has {len(value)} bytes")
    return np.frombuffer(value, kind)[0]


class _NdarrayName:
    """Stands for `numpy.ndarray` in a pickle: it can be named, but not called."""


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    # what numpy's pickles call first; the array's state is set afterwards, and numpy checks it. Any
    # other shape would be memory that nobody has written to
    if kind is not _NdarrayName or shape != (0,):
        raise RefusedPickleError("it builds a numpy array in a way that numpy's own pickles do not")
    return np.empty(0, np.uint8)


def _admitted() -> dict[tuple[str, str], Any]:
    frombuffer: Any = np.zeros(1).__reduce_ex__(5)[0]
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NdarrayName,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _encode_latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        names[(f"{core}.multiarray", "_reconstruct")] = _empty_array
        names[(f"{core}.multiarray", "scalar")] = _scalar
        names[(f"{core}.numeric", "_frombuffer")] = frombuffer
    return names


ADMITTED = _admitted()
"""What numpy's pickles of arrays name, by (module, name), and what stands for each."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[(module, name)]
        except KeyError:
            raise RefusedPickleError(
                f"it holds {module}.{name}; only numpy arrays are read from pickles"
            ) from None


_LONGEST_CODE = 16
_MOST_OPCODES = 200
_OPCODES = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "GLOBAL",
        "STACK_GLOBAL",
        "MARK",
        "REDUCE",
        "BUILD",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "UNICODE",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "SHORT_BINBYTES",
        "BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_TUPLE",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
    ]
)
"""What numpy's pickles of arrays and numbers consist of: no dicts, lists, sets or instances."""

_SCANNED: dict[int, tuple[bytes, int, bytes]] = {}
"""By length: the bytes before and after the values of a pickle that was scanned, which a recording
repeats thousands of times, and where the values end."""


def _check_opcodes(data: bytes) -> None:
    """Refuses pickles that could take time or memory out of proportion, before they are loaded."""
    known = _SCANNED.get(len(data))
    if known is not None and data.startswith(known[0]) and data[known[1] :] == known[2]:
        return
    encodings = 0
    longest, pending = (0, 0), None
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        place = position or 0
        if pending is not None:
            longest = max(longest, (place - pending, pending))
            pending = None
        encodings += argument == "_codecs encode"
        is_far = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count
        if opcode.name not in _OPCODES or count > _MOST_OPCODES or is_far or encodings > 1:
            raise RefusedPickleError(
                f"it holds {_first_name(data)}; only numpy arrays are read from pickles"
            )
        if opcode.name in ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"):
            pending = place + 1
    size, start = longest
    if size > _LENGTH_BYTES:
        # the length that precedes the values is part of what must be the same
        end = start + size
        if len(_SCANNED) > _MOST_REMEMBERED:
            _SCANNED.clear()
        _SCANNED[len(data)] = data[: start + _LENGTH_BYTES], end, data[end:]


def _first_name(data: bytes) -> str:
    """Returns the first class or function that a pickle names and that numpy's do not."""
    texts: list[Any] = [None, None]
    memo: dict[int, Any] = {}
    for opcode, argument, _ in itertools.islice(pickletools.genops(data), _MOST_OPCODES):
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1]
        elif opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = texts[-1]
        elif opcode.name in ("GLOBAL", "STACK_GLOBAL"):
            found = str(argument).split(" ") if argument is not None else texts[-2:]
            if tuple(found) not in ADMITTED:
                return ".".join(map(str, found))[:_SHOWN]
            texts.append(None)
        else:
            is_known = opcode.name in ("BINGET", "LONG_BINGET")
            texts.append(memo.get(int(argument or 0)) if is_known else argument)
    kinds = {"EMPTY_DICT": "builtins.dict", "EMPTY_LIST": "builtins.list"}
    for opcode, _, _ in itertools.islice(pickletools.genops(data), _MOST_OPCODES):
        if opcode.name in kinds:
            return f"a {kinds[opcode.name]}"
    return "more than an array"


_SHOWN = 60
_LENGTH_BYTES = 8
_MOST_REMEMBERED = 1000


def load_array(data: bytes) -> np.ndarray:
    """Loads a pickled numpy array; for anything else, raises a RefusedPickleError that names it."""
    try:
        _check_opcodes(data)
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
    import lz4.frame

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
    import lz4.frame

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
