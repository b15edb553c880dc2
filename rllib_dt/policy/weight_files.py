"""Reads weights from files of safetensors or torch, whole or in shards; runs no code of theirs."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from rllib_dt.types import JsonObject

Weights = dict[str, Tensor]

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes of weights."""


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit; the message names the file and the remedy."""


def read_json(path: Path) -> JsonObject:
    """Reads a file that holds a JSON object.

    Raises:
        WeightsError: it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged ({error}); write or download it again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}, wanted a JSON object")
    return found


def read_weights(folder: Path) -> Weights:
    """Reads all weights of a Hugging Face folder, from one file or from shards.

    Raises:
        FileNotFoundError: a file is missing.
        WeightsError: a file is damaged or holds something else.
    """
    weights: Weights = {}
    for path in _files(folder):
        weights |= check_tensors(_read(path), str(path))
    return weights


def weight_names(folder: Path) -> Collection[str]:
    """Returns the names of the weights in a Hugging Face folder; reads no values if it can.

    Raises:
        FileNotFoundError: a file is missing.
        WeightsError: a file is damaged or holds something else.
    """
    names: set[str] = set()
    for path in _files(folder):
        if path.suffix != ".safetensors":
            names |= set(_read(path))
            continue
        try:
            with safe_open(path, "pt") as opened:
                names |= set(opened.keys())
        except Exception as error:
            raise _damaged(path, error) from error
    return names


def _files(folder: Path) -> Iterator[Path]:
    for name in (SAFETENSORS, SAFETENSORS + _INDEX, TORCH, TORCH + _INDEX):
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(_INDEX):
            yield path
            return
        parts = read_json(path).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise WeightsError(f"{path} has no weight_map, which names the shards")
        for part in sorted(set(map(str, parts.values()))):
            if Path(part).name != part:
                raise WeightsError(f"{path} names {part!r}, which is no file of the same folder")
            if not (folder / part).is_file():
                raise FileNotFoundError(
                    f"{folder / part} is missing, but {name} names it; download the folder again"
                )
            yield folder / part
        return
    raise FileNotFoundError(
        f"{folder} contains neither {SAFETENSORS} nor {TORCH}, whole or in shards"
    )


def _read(path: Path) -> Weights:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return tensors_of(read_torch_file(path), path)


def read_safetensors(path: Path) -> Weights:
    """Reads a file of safetensors.

    Raises:
        WeightsError: it is damaged.
    """
    try:
        return load_file(path)
    except Exception as error:  # safetensors has an error class of its own
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} cannot be read ({error}); write or download it again")


def clear_weights(folder: Path) -> None:
    """Removes the weights that a folder holds, before others are written to it."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin", f"*{_INDEX}", "rllib_dt.*"):
        for path in folder.glob(pattern):
            path.unlink()


def check_tensors(weights: Weights, source: str) -> Weights:
    """Refuses tensors that are no plain arrays of floating-point numbers.

    Raises:
        WeightsError: one is sparse, quantised, of integers, …
    """
    for name, value in sorted(weights.items()):
        is_plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        is_mask = name.endswith((".attn.bias", ".attn.masked_bias", "causal_mask"))
        if not is_plain or not (value.dtype in FLOATS or is_mask):
            raise WeightsError(
                f"{source}: {name} is a tensor of {value.dtype} and {value.layout}, wanted plain "
                f"arrays of {[str(kind) for kind in FLOATS]}"
            )
    return weights


def tensors_of(found: Any, path: Path) -> Weights:
    """Returns the tensors of a file's state dict.

    Raises:
        WeightsError: it is no state dict.
    """
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"{path} holds a {type(found).__name__}, wanted a model's state_dict")
    others = sorted(str(name) for name, value in found.items() if not isinstance(value, Tensor))
    if others:
        raise WeightsError(f"{path} holds more than tensors: {others}; save a model's state_dict")
    return {str(name): value for name, value in found.items()}


class _Dtype:
    """Stands for numpy's dtype of numbers in a pickle; numpy itself trusts what it is given."""

    def __init__(self, code: object, *_: object):
        self.dtype = np.dtype(code) if isinstance(code, str) and len(code) < 5 else np.dtype("V")
        if self.dtype.kind not in "biuf":
            raise ValueError(f"it holds arrays of {code!r}, not of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in ("<", ">") else "=")


class _Array:
    """Stands for a numpy array in a pickle, and holds it once its state is set."""

    array: np.ndarray

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        values = np.frombuffer(content, kind.dtype).copy()
        self.array = values.reshape(shape, order="F" if is_fortran else "C")


def _number(kind: _Dtype, content: bytes) -> np.generic:
    found: np.generic = np.frombuffer(content, kind.dtype)[0]
    return found


_OF_NUMPY: list[Any] = [(_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray")]
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _OF_NUMPY += [(_Array, f"{_core}._reconstruct"), (_number, f"{_core}.scalar")]


def _plain(value: Any) -> Any:
    """Replaces what stands for arrays by the arrays, in nested dicts, lists and tuples."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    return value


def read_torch_file(path: Path) -> Any:
    """Reads what `torch.save` wrote: tensors, arrays and plain values, and nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it is damaged, or holds objects that only code could rebuild.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with torch.serialization.safe_globals(_OF_NUMPY):
            return _plain(torch.load(path, map_location="cpu", weights_only=True))
    # torch's own message advises loading without protection
    except Exception as error:
        named = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if named:
            raise WeightsError(
                f"{path} holds objects of {named}, which only running its code could rebuild; save "
                "the model's state_dict instead of the model"
            ) from None
        raise WeightsError(
            f"{path} is damaged, or was not written by torch.save ({type(error).__name__}); write "
            "or download it again"
        ) from None
