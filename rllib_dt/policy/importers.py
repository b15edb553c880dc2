"""`import_checkpoint`: networks trained by the authors' code, by CORL, or by Hugging Face's.

The first two are the same function as ours, under other names:

- kzl/decision-transformer (gym, e2d82e6): Hugging Face's names with `transformer` for `encoder`,
  no position embedding, returns divided by `scale`. It normalises outside of the network, and its
  checkpoints hold no statistics.
- CORL (tinkoff-ai/CORL, algorithms/offline/dt.py, 2c308c8): torch's attention layers, GELU, no
  prediction of states and returns; `config.yaml` lies beside its checkpoints, which hold the
  statistics. It embeds actions in the environment's units.

Neither holds the number of heads, which cannot be read from the weights; both codes have 1.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.folders import box_spaces, load_pretrained
from rllib_dt.policy.weight_files import (
    Weights,
    WeightsError,
    check_tensors,
    read_torch_file,
    tensors_of,
)
from rllib_dt.policy.weight_names import their_names, to_ours, with_their_names
from rllib_dt.policy.weight_values import fill, normalize_by
from rllib_dt.types import JsonObject

logger = logging.getLogger(__name__)

Kind = Literal["auto", "huggingface", "kzl", "corl"]

_WITHIN = ("model_state", "model_state_dict", "state_dict", "model")
"""What checkpoints call the state dict, if they hold more than it."""
_MEANS = ("state_mean", "observation_mean", "obs_mean")
_STDS = ("state_std", "observation_std", "obs_std")

_CORL_NAMES = {
    "timestep_emb.": "embed_timestep.", "state_emb.": "embed_state.",
    "action_emb.": "embed_action.", "return_emb.": "embed_return.", "emb_norm.": "embed_ln.",
    "out_norm.": "backbone.ln_f.", "action_head.0.": "predict_action.", "blocks.": "backbone.h.",
    ".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".attention.in_proj_": ".attn.c_attn.",
    ".attention.out_proj.": ".attn.c_proj.", ".mlp.0.": ".mlp.c_fc.", ".mlp.2.": ".mlp.c_proj.",
}  # fmt: skip
_CORL_SETTINGS = {
    "num_heads": "n_head", "seq_len": "context_length", "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop", "embedding_dropout": "embd_pdrop",
}  # fmt: skip
_NEVER_PREDICTED = ("predict_state.", "predict_return.")


def import_checkpoint(
    path: str | os.PathLike[str],
    kind: Kind = "auto",
    *,
    observation_mean: ArrayLike | None = None,
    observation_std: ArrayLike | None = None,
    return_scale: float | None = None,
    max_action: float | None = None,
    dtype: torch.dtype | str | None = None,
    **settings: Any,
) -> DecisionTransformer:
    """Loads a Decision Transformer that other code trained, in eval mode.

    `save_pretrained` turns the result into a folder from which RLlib trains and evaluates
    (`DTModelConfig(pretrained=…)`).

    Args:
        path: a file of `torch.save` that holds a state dict, alone or with statistics beside it; a
            folder with one such file; or a Hugging Face folder.
        kind: whose code wrote it; "auto" tells from the names of the weights.
        observation_mean, observation_std: (S,), the statistics of its training; those of the file
            by default, and otherwise none.
        return_scale: what its code divided returns by (1000 for most of the authors' jobs); read
            from CORL's `config.yaml` if that is beside the file.
        max_action: the actions' bounds are ± this; 1 by default, or CORL's `config.yaml`.
        dtype: see `load_pretrained`.
        settings: settings of `DTModelConfig` that the weights do not tell, such as `n_head` (1) and
            `context_length` (20).

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it is damaged, is a pickled model rather than its weights, or was written by
            other code.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not one of {get_args(Kind)}")
    path = Path(path).expanduser()
    is_folder = (path / "config.json").is_file()
    if kind == "huggingface" or (kind == "auto" and is_folder):
        if max_action is not None:
            raise ValueError("max_action has no meaning for a Hugging Face folder; leave it out")
        return load_pretrained(
            path,
            dtype=dtype,
            observation_mean=observation_mean,
            observation_std=observation_std,
            return_scale=return_scale,
            **settings,
        )
    path = _file_in(path)
    found = read_torch_file(path)
    weights = check_tensors(tensors_of(_state_dict(found), path), str(path))
    written_by = _kind_of(weights, path)
    if kind not in ("auto", written_by):
        raise WeightsError(f"{path} was written by {written_by}'s code, not by {kind}'s")
    state, told = (_kzl if written_by == "kzl" else _corl)(weights)
    beside = _corl_settings(path) if written_by == "corl" else _Beside()
    if written_by == "kzl" and max_action not in (None, 1):
        raise ValueError(f"max_action={max_action!r}: the authors' network acts in [-1, 1]")
    bound = beside.max_action if max_action is None else max_action
    network = _built(state, {**beside.settings, **told, **settings}, bound, path)
    if written_by == "corl":
        # its network embeds actions as they are, and ours in units of their bound
        state["embed_action.weight"] = state["embed_action.weight"] * bound
    fill(network, state, str(path), dtype, optional=_NEVER_PREDICTED)
    mean = _statistic(found, _MEANS) if observation_mean is None else observation_mean
    std = _statistic(found, _STDS) if observation_std is None else observation_std
    scale = beside.return_scale if return_scale is None else return_scale
    try:
        normalize_by(network, mean, std, scale)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    if mean is None:
        logger.warning(
            "%s holds no statistics: observations are given to the network as they are; give "
            "observation_mean and observation_std if its training normalised them",
            path,
        )
    return network.eval()


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """What a checkpoint's settings, which lie beside it, tell of the network."""

    settings: JsonObject = field(default_factory=dict)
    max_action: float = 1.0
    return_scale: float | None = None


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(inner for inner in path.iterdir() if inner.suffix in (".pt", ".pth", ".bin"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{path} holds {len(found)} files of torch.save; give the path of one: "
            f"{[inner.name for inner in found]}"
        )
    return found[0]


def _state_dict(found: Any) -> Any:
    if isinstance(found, Mapping):
        for name in _WITHIN:
            if isinstance(found.get(name), Mapping):
                return dict(found[name])
        # counters and settings may lie beside the weights
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        statistics = (*_MEANS, *_STDS)
        return {name: value for name, value in tensors.items() if name not in statistics} or found
    return found


def _kind_of(weights: Weights, path: Path) -> Kind:
    names = their_names(weights)
    if "embed_timestep.weight" in names and "encoder.ln_f.weight" in names:
        return "kzl"
    if any(name.endswith("timestep_emb.weight") for name in weights):
        return "corl"
    raise WeightsError(
        f"{path} holds no Decision Transformer of kzl's gym code or of CORL; its weights are "
        f"{sorted(weights)[:5]}…"
    )


def _kzl(weights: Weights) -> tuple[Weights, JsonObject]:
    named = with_their_names(weights)
    told: JsonObject = {"embed_layer_norm": "embed_ln.weight" in named, "n_positions": None}
    if "encoder.wpe.weight" in named and named["encoder.wpe.weight"].ndim == 2:
        told["n_positions"] = len(named["encoder.wpe.weight"])
    state = to_ours(named, DTModelConfig(n_positions=told["n_positions"]))
    return state, told


def _corl(weights: Weights) -> tuple[Weights, JsonObject]:
    mark = "timestep_emb.weight"
    prefix = next(name for name in weights if name.endswith(mark)).removesuffix(mark)
    state: Weights = {}
    told: JsonObject = {"activation_function": "gelu"}
    for name, value in weights.items():
        ours = name.removeprefix(prefix)
        if ours.endswith("causal_mask"):
            if value.ndim == 2:
                told["context_length"] = len(value) // 3
            continue
        for theirs, new in _CORL_NAMES.items():
            ours = ours.replace(theirs, new)
        state[ours] = value
    told["embed_layer_norm"] = "embed_ln.weight" in state
    return state, told


def _corl_settings(path: Path) -> _Beside:
    """Reads what CORL's `config.yaml` beside a checkpoint tells of the network."""
    file = path.parent / "config.yaml"
    if not file.is_file():
        return _Beside()
    try:
        text = file.read_text(encoding="utf-8")
        found = dict(re.findall(r"^(\w+):[ \t]*([^\s#]+)", text, re.MULTILINE))
        return _Beside(
            settings={
                ours: (float if ours.endswith("pdrop") else int)(found[theirs])
                for theirs, ours in _CORL_SETTINGS.items()
                if theirs in found
            },
            max_action=float(found.get("max_action", 1.0)),
            return_scale=1 / float(found["reward_scale"]) if "reward_scale" in found else None,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{file} is damaged ({error}); repair or remove it") from error


def _built(
    state: Weights, settings: JsonObject, max_action: float, path: Path
) -> DecisionTransformer:
    """Builds the network that weights are of."""
    needed = ("embed_timestep.weight", "embed_state.weight", "embed_action.weight")
    absent = [name for name in needed if name not in state or state[name].ndim != 2]
    if absent:
        raise WeightsError(f"{path}: weights are missing or have another shape: {absent}")
    is_number = isinstance(max_action, int | float) and not isinstance(max_action, bool)
    if not is_number or not 0 < max_action < np.inf:
        raise WeightsError(f"{path}: max_action={max_action!r} must be a positive number")
    time, observed, acted = (state[name] for name in needed)
    blocks = {int(found[1]) for name in state if (found := re.match(r"backbone\.h\.(\d+)\.", name))}
    if blocks != set(range(len(blocks))):
        raise WeightsError(f"{path}: the weights are of the blocks {sorted(blocks)[:20]}")
    inner = state.get("backbone.h.0.mlp.c_fc.weight")
    if inner is not None and inner.ndim != 2:
        raise WeightsError(f"{path}: weights of the first MLP have the shape {tuple(inner.shape)}")
    sizes = {
        "max_ep_len": len(time),
        "hidden_size": time.shape[1],
        "n_layer": max(1, len(blocks)),
        "n_inner": None if inner is None else len(inner),
    }
    observation_space, action_space = box_spaces(observed.shape[1], acted.shape[1])
    if max_action != 1:
        action_space = gym.spaces.Box(-max_action, max_action, action_space.shape, np.float32)
    try:
        config = DTModelConfig.from_dict({**sizes, **settings})
        return DecisionTransformer(config, observation_space, action_space)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _statistic(found: Any, names: tuple[str, ...]) -> Any:
    """Returns the first of some arrays in a checkpoint, as (S,), or None."""
    for name in names:
        value = found.get(name) if isinstance(found, Mapping) else None
        if value is not None:
            is_tensor = isinstance(value, Tensor)
            array = value.detach().double().numpy() if is_tensor else np.asarray(value)
            return array.reshape(-1)
    return None
