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
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors.torch import save_file
from torch import nn

from rllib_dt.network.config import DTModelConfig
from rllib_dt.network.network import DecisionTransformer, current_names
from rllib_dt.policy.weight_files import (
    SAFETENSORS,
    WeightsError,
    clear_weights,
    read_json,
    read_safetensors,
    read_weights,
    weight_names,
)
from rllib_dt.policy.weight_names import (
    THEIR_POSITIONS,
    sizes_in,
    table,
    their_names,
    to_ours,
    to_theirs,
    with_their_names,
)
from rllib_dt.policy.weight_values import ESTIMATE, SPREAD, WTE, fill, is_own, normalize_by
from rllib_dt.spaces.descriptions import describe_space, space_from_description
from rllib_dt.types import JsonObject

logger = logging.getLogger(__name__)

SHARED_SETTINGS = (
    "hidden_size", "n_layer", "n_head", "n_inner", "activation_function", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "max_ep_len",
    "action_tanh", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
"""Settings that Hugging Face's config and ours have under one name."""

_OWN_SETTINGS = (
    "context_length", "attention", "segment_length", "n_positions", "action_tanh",
    "embed_layer_norm", "estimates_return", "action_distribution",
)  # fmt: skip
_CONFIG, _OURS_JSON, _OURS_TENSORS = "config.json", "rllib_dt.json", "rllib_dt.safetensors"
SYNONYMS = {
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names that their settings have."""

_DEFAULTS = DTModelConfig()


def pretrained_settings(folder: str | Path) -> JsonObject:
    """Reads a Hugging Face folder's settings for `DTModelConfig`, without its weights' values."""
    folder = Path(folder)
    theirs = _read_config(folder)
    return _settings(theirs, _read_sidecar(folder), their_names(weight_names(folder)))


def _settings(theirs: JsonObject, ours: JsonObject, names: Mapping[str, str]) -> JsonObject:
    settings = {name: theirs[name] for name in SHARED_SETTINGS if name in theirs}
    settings["n_positions"] = theirs.get("n_positions", THEIR_POSITIONS)
    settings |= {name: ours[name] for name in _OWN_SETTINGS if name in ours}
    if "encoder.wpe.weight" not in names:
        settings["n_positions"] = None
    if "embed_ln.weight" not in names:
        settings["embed_layer_norm"] = False
    return settings


def has_normalization(folder: str | Path) -> bool:
    """Returns whether a folder holds statistics and a return scale beside its weights."""
    return (Path(folder) / _OURS_TENSORS).is_file()


def load_pretrained(
    folder: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    observation_mean: ArrayLike | None = None,
    observation_std: ArrayLike | None = None,
    return_scale: float | None = None,
    **overrides: Any,
) -> DecisionTransformer:
    """Loads the network of a Hugging Face folder, in eval mode.

    Args:
        folder: contains `config.json` and the weights: `model.safetensors` or `pytorch_model.bin`,
            whole or in shards, of `transformers` since 4.22.
        dtype: of the weights; float32 by default, "auto" for that of the files.
        observation_mean, observation_std, return_scale: what the network's inputs are normalised
            with, for folders that do not hold it: (S,), (S,) and a number.
        overrides: settings of `DTModelConfig` that take precedence, such as `context_length`
            (20 if the folder does not say) or the dropouts.

    Raises:
        FileNotFoundError: a file is missing.
        WeightsError: the files contain another model or damage, or weights that do not fit.
    """
    folder = Path(folder).expanduser()
    theirs, ours = _read_config(folder), _read_sidecar(folder)
    weights = with_their_names(read_weights(folder))
    settings = _settings(theirs, ours, {name: name for name in weights})
    if settings["n_positions"] is not None:
        if overrides.get("n_positions", 1) is None:
            raise ValueError(
                f"{folder} has a position embedding, whose first row shifts every token; leave "
                "n_positions out"
            )
        settings["n_positions"] = len(table(weights, "encoder.wpe.weight", folder))
    sizes = sizes_in(weights, str(folder))
    spaces = _spaces(theirs, ours, sizes, folder)
    _check_sizes(settings | overrides, sizes, spaces, folder)
    try:
        config = DTModelConfig.from_dict(settings | overrides)
        network = DecisionTransformer(config, *spaces)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{folder / _CONFIG} and the settings given: {error}") from error
    state = to_ours(weights, config)
    if has_normalization(folder):
        own = current_names(read_safetensors(folder / _OURS_TENSORS))
        wanted = {name for name in network.state_dict() if is_own(name)}
        # parts that are asked for here, and learned from here on
        new: tuple[str, ...] = () if ours.get("estimates_return") else (ESTIMATE,)
        if ours.get("action_distribution", _DEFAULTS.action_distribution) == "deterministic":
            new += (SPREAD,)
        wanted = {name for name in wanted if not name.startswith(new)}
        absent = wanted - own.keys()
        if absent:
            raise WeightsError(f"{folder / _OURS_TENSORS} lacks {sorted(absent)}; write it again")
        state |= own
    if WTE in state and state[WTE].ndim == 2:
        network.backbone.wte = torch.zeros(state[WTE].shape)  # any `vocab_size`
    fill(network, state, str(folder), dtype)
    network.foreign_settings = {
        name: value for name, value in theirs.items() if name not in settings
    }
    normalize_by(network, observation_mean, observation_std, return_scale)
    return network.eval()


def save_pretrained(network: DecisionTransformer, folder: str | Path) -> None:
    """Writes a folder that both `transformers` and `load_pretrained` can read.

    A round trip, from either side, changes no bit of any weight. To `transformers`, a Discrete
    space's actions are one-hot vectors and its `action_preds` are logits, a stochastic policy has
    its likeliest actions, a network with
    `attention="window"` attends to everything it is given, and one without a layer norm on its
    embeddings gets one.
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
    if not config.embed_layer_norm:
        logger.warning(
            "%s: transformers cannot read these weights as they are meant, since its model has a "
            "layer norm on the embeddings (embed_layer_norm=False); load_pretrained can",
            folder,
        )
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    theirs = {name: getattr(config, name) for name in SHARED_SETTINGS} | {
        "architectures": ["DecisionTransformerModel"],
        "model_type": "decision_transformer",
        "state_dim": network.embed_state.in_features,
        "act_dim": network.action_head.size,
        "action_tanh": network.action_head.squashes,
        "n_positions": config.n_positions or THEIR_POSITIONS,
        "vocab_size": 1 if config.n_positions is None else len(network.backbone.wte),
    }
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    own = {k: v for k, v in state.items() if is_own(k)}
    weights = to_theirs({k: v for k, v in state.items() if k not in own}, config)
    sidecar = {name: getattr(config, name) for name in _OWN_SETTINGS} | {
        "observation_space": describe_space(network.observation_space),
        "action_space": describe_space(network.action_space),
    }
    clear_weights(folder)
    (folder / _CONFIG).write_text(json.dumps(network.foreign_settings | theirs, indent=2))
    (folder / _OURS_JSON).write_text(json.dumps(sidecar, indent=2))
    save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})
    save_file(own, folder / _OURS_TENSORS)


def _read_config(folder: Path) -> JsonObject:
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a Hugging Face model folder")
    theirs = read_json(path)
    kind = theirs.get("model_type")
    if kind != "decision_transformer":
        raise WeightsError(f"{path}: model_type is {kind!r}, wanted 'decision_transformer'")
    if theirs.get("add_cross_attention"):
        raise WeightsError(f"{path}: add_cross_attention=True is not supported")
    for synonym, name in SYNONYMS.items():
        if synonym in theirs:
            theirs.setdefault(name, theirs.pop(synonym))
    return theirs


def _read_sidecar(folder: Path) -> JsonObject:
    path = folder / _OURS_JSON
    if path.is_file() != has_normalization(folder):
        raise WeightsError(
            f"{folder} has one of {_OURS_JSON} and {_OURS_TENSORS}, which are written together; "
            "copy the folder again, or remove both: then nothing is normalised"
        )
    return read_json(path) if path.is_file() else {}


def _spaces(
    theirs: JsonObject, ours: JsonObject, sizes: JsonObject, folder: Path
) -> tuple[gym.Space, gym.Space]:
    if ours:
        try:
            return (
                space_from_description(ours["observation_space"]),
                space_from_description(ours["action_space"]),
            )
        except Exception as error:  # what gymnasium makes of wrong numbers cannot be listed
            raise WeightsError(
                f"{folder / _OURS_JSON} describes no spaces ({type(error).__name__}: {error}); "
                "write it again"
            ) from error
    # the defaults of `transformers` for keys that a config.json may omit
    asked = {"state_dim": theirs.get("state_dim", 17), "act_dim": theirs.get("act_dim", 4)}
    for name, size in asked.items():  # before a space of that size is built
        if size != sizes[name]:
            raise WeightsError(
                f"{folder / _CONFIG}: {name} is {size!r}, and the weights have {sizes[name]}"
            )
    return box_spaces(**asked)


def _check_sizes(
    settings: JsonObject, sizes: JsonObject, spaces: tuple[gym.Space, gym.Space], folder: Path
) -> None:
    """Refuses settings of another size than the weights, before anything of that size is built."""
    names = [name for name in sizes if not name.endswith("_dim")]
    asked = {name: settings.get(name, getattr(_DEFAULTS, name)) for name in names}
    if asked["n_inner"] is None:
        asked["n_inner"] = 4 * sizes["hidden_size"]
    wrong = [
        f"{name} is {asked[name]!r}, and the weights have {sizes[name]}"
        for name in asked
        if asked[name] != sizes[name]
    ]
    for name, space in zip(("state_dim", "act_dim"), spaces, strict=True):
        size = int(np.prod(space.shape)) if isinstance(space, gym.spaces.Box) else sizes[name]
        if size != sizes[name]:
            wrong.append(f"{name} is {size}, and the weights have {sizes[name]}")
    if wrong:
        raise WeightsError(
            f"{folder / _CONFIG}: the weights do not fit the settings: {'; '.join(wrong)}"
        )


def box_spaces(state_dim: int, act_dim: int) -> tuple[gym.Space, gym.Space]:
    """Returns the spaces of a network of which only the sizes are known."""
    return (
        gym.spaces.Box(-np.inf, np.inf, (state_dim,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (act_dim,), np.float32),
    )
