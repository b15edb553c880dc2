"""Reads and writes Hugging Face folders (`save_pretrained` layout) without `transformers`.

Hugging Face's model and ours differ in these points:

- GPT-2's `Conv1D` stores its weight transposed with respect to `Linear`.
- Their `DecisionTransformerModel` passes position id 0 for every token, so row 0 of `wpe`
  shifts all tokens alike. An imported network keeps the table (`DTModelConfig.n_positions`);
  weights without `wpe`, such as kzl/decision-transformer's, need none.
- Their folders contain neither normalisation nor spaces. `save_pretrained` writes both beside the
  weights, to `rllib_dt.json` and `rllib_dt.safetensors`, which `transformers` ignores. A network
  from a folder without these files does not normalise, and acts in [-1, 1].
"""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer, current_names
from rllib_dt.spaces.descriptions import describe_space, space_from_description
from rllib_dt.types import JsonObject

_SHARED_SETTINGS = (
    "hidden_size", "n_layer", "n_head", "n_inner", "activation_function", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "max_ep_len",
    "action_tanh", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
_NORMALIZATION = ("observation_mean", "observation_std", "return_scale")
_HEAD = "action_head."
# causal-mask buffers of older `transformers` versions
_IGNORED_SUFFIXES = (".attn.bias", ".attn.masked_bias")
_THEIR_POSITIONS = 1024
_OURS_JSON, _OURS_TENSORS = "rllib_dt.json", "rllib_dt.safetensors"


def pretrained_settings(folder: str | Path) -> JsonObject:
    """Reads a Hugging Face folder's settings for `DTModelConfig`, without its weights."""
    folder = Path(folder)
    theirs, ours = _read_config(folder), _read_sidecar(folder)
    settings = {name: theirs[name] for name in _SHARED_SETTINGS if name in theirs}
    settings["n_positions"] = theirs.get("n_positions", _THEIR_POSITIONS)
    own = ("context_length", "attention", "segment_length", "action_tanh", "n_positions")
    return settings | {k: ours[k] for k in own if k in ours}


def has_normalization(folder: str | Path) -> bool:
    """Returns whether a folder holds statistics and a return scale beside its weights."""
    return (Path(folder) / _OURS_TENSORS).is_file()


def load_pretrained(folder: str | Path, **overrides: Any) -> DecisionTransformer:
    """Loads the network of a Hugging Face folder, in eval mode.

    Args:
        folder: contains `config.json` and `model.safetensors` or `pytorch_model.bin`.
        overrides: settings of `DTModelConfig` that take precedence, such as `context_length`
            (20 if the folder does not say) or the dropouts.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the files contain another model, or weights that do not fit.
    """
    folder = Path(folder)
    settings = pretrained_settings(folder)
    weights = _read_weights(folder)
    has_positions = settings["n_positions"] is not None and "encoder.wpe.weight" in weights
    settings["n_positions"] = len(weights["encoder.wpe.weight"]) if has_positions else None
    network = DecisionTransformer(
        DTModelConfig.from_dict(settings | overrides),
        *_spaces(_read_config(folder), _read_sidecar(folder)),
    )
    state = _to_ours(weights, has_positions)
    if has_normalization(folder):
        state |= current_names(load_file(folder / _OURS_TENSORS))
    _load(network, state, folder)
    return network.eval()


def save_pretrained(network: DecisionTransformer, folder: str | Path) -> None:
    """Writes a folder that both `transformers` and `load_pretrained` can read.

    A round trip, from either side, changes no bit of any weight. To `transformers`, a Discrete
    space's actions are one-hot vectors and its `action_preds` are logits, and a network with
    `attention="window"` attends to everything it is given.
    """
    if not isinstance(network.embed_state, nn.Linear):
        raise ValueError(
            f"Hugging Face's model takes vectors of numbers, not {network.observation_space}; save "
            "a checkpoint instead (algo.save_to_path)"
        )
    config = network.config
    if not config.condition_on_return:
        raise ValueError(
            "Hugging Face's model is given returns, and condition_on_return=False drops them; save "
            "a checkpoint instead (algo.save_to_path)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    theirs = {name: getattr(config, name) for name in _SHARED_SETTINGS} | {
        "architectures": ["DecisionTransformerModel"],
        "model_type": "decision_transformer",
        "state_dim": network.embed_state.in_features,
        "act_dim": network.action_head.size,
        "action_tanh": network.action_head.squashes,
        "n_positions": config.n_positions or _THEIR_POSITIONS,
        "vocab_size": 1,
    }
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    own = {k: v for k, v in state.items() if k in _NORMALIZATION or k.startswith(_HEAD)}
    weights = _to_theirs({k: v for k, v in state.items() if k not in own}, config)
    sidecar = {
        "context_length": config.context_length,
        "attention": config.attention,
        "segment_length": config.segment_length,
        "n_positions": config.n_positions,
        "action_tanh": config.action_tanh,
        "observation_space": describe_space(network.observation_space),
        "action_space": describe_space(network.action_space),
    }
    (folder / "config.json").write_text(json.dumps(theirs, indent=2))
    (folder / _OURS_JSON).write_text(json.dumps(sidecar, indent=2))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(own, folder / _OURS_TENSORS)


def _read_config(folder: Path) -> JsonObject:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a Hugging Face model folder")
    theirs: JsonObject = json.loads(path.read_text())
    kind = theirs.get("model_type")
    if kind != "decision_transformer":
        raise ValueError(f"{path}: model_type is {kind!r}, wanted 'decision_transformer'")
    if theirs.get("add_cross_attention"):
        raise ValueError(f"{path}: add_cross_attention=True is not supported")
    return theirs


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    if (folder / "pytorch_model.bin").is_file():
        loaded: dict[str, Tensor] = torch.load(
            folder / "pytorch_model.bin", map_location="cpu", weights_only=True
        )
        return loaded
    raise FileNotFoundError(f"{folder} contains neither model.safetensors nor pytorch_model.bin")


def _read_sidecar(folder: Path) -> JsonObject:
    path = folder / _OURS_JSON
    return json.loads(path.read_text()) if path.is_file() else {}


def _spaces(theirs: JsonObject, ours: JsonObject) -> tuple[gym.Space, gym.Space]:
    if "observation_space" in ours:
        return (
            space_from_description(ours["observation_space"]),
            space_from_description(ours["action_space"]),
        )
    # the defaults of `transformers` for keys that a config.json may omit
    state_dim, act_dim = theirs.get("state_dim", 17), theirs.get("act_dim", 4)
    return (
        gym.spaces.Box(-np.inf, np.inf, (state_dim,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (act_dim,), np.float32),
    )


def _is_transposed(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _to_ours(weights: dict[str, Tensor], has_positions: bool) -> dict[str, Tensor]:
    state = {}
    for name, value in weights.items():
        if name.endswith(_IGNORED_SUFFIXES):
            continue
        if not has_positions and name in ("encoder.wpe.weight", "encoder.wte.weight"):
            continue
        ours = name.replace("encoder.", "backbone.").replace("predict_action.0.", "predict_action.")
        state[ours.replace("wte.weight", "wte")] = value.T if _is_transposed(name) else value
    return state


def _to_theirs(state: dict[str, Tensor], config: DTModelConfig) -> dict[str, Tensor]:
    weights = {}
    for name, value in state.items():
        theirs = name.replace("backbone.", "encoder.").replace(
            "predict_action.", "predict_action.0."
        )
        theirs = "encoder.wte.weight" if theirs == "encoder.wte" else theirs
        weights[theirs] = (value.T if _is_transposed(name) else value).contiguous()
    if config.n_positions is None:
        weights["encoder.wpe.weight"] = torch.zeros(_THEIR_POSITIONS, config.hidden_size)
        weights["encoder.wte.weight"] = torch.zeros(1, config.hidden_size)
    return weights


def _load(network: DecisionTransformer, state: dict[str, Tensor], folder: Path) -> None:
    wanted = network.state_dict()
    optional = {k for k in wanted if k in _NORMALIZATION or k.startswith(_HEAD)}
    missing = sorted(set(wanted) - set(state) - optional)
    unknown = sorted(set(state) - set(wanted))
    shapes = [
        f"{k}: {tuple(state[k].shape)}, wanted {tuple(wanted[k].shape)}"
        for k in sorted(set(wanted) & set(state))
        if state[k].shape != wanted[k].shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"{folder}: the weights do not fit the settings; missing {missing}, unknown "
            f"{unknown}, of another shape {shapes}"
        )
    network.load_state_dict(wanted | state)
