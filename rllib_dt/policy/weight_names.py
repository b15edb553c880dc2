"""Names and layouts of weights: Hugging Face's, the authors', and ours."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.weight_files import Weights, WeightsError
from rllib_dt.types import JsonObject

logger = logging.getLogger(__name__)

# causal-mask buffers of older `transformers` versions
_IGNORED_SUFFIXES = (".attn.bias", ".attn.masked_bias")
THEIR_POSITIONS = 1024
"""The rows of their position embedding by default."""

_BLOCK = re.compile(r"encoder\.h\.(\d+)\.")
_LANDMARK = "embed_timestep.weight"
"""A weight that every Decision Transformer has, by which a prefix of all names is found."""


def their_names(names: Iterable[str]) -> dict[str, str]:
    """Maps Hugging Face's name of each weight to the one that a file has for it.

    Files may have a prefix before all names ("module.", "decision_transformer."), and the authors'
    code says `transformer` where Hugging Face's says `encoder`. What has another prefix, and the
    causal masks of older versions, are left out.
    """
    names = list(names)
    prefixes = sorted(name.removesuffix(_LANDMARK) for name in names if name.endswith(_LANDMARK))
    prefix = min(prefixes, key=len) if prefixes else ""
    found = {}
    for name in names:
        if not name.startswith(prefix) or name.endswith(_IGNORED_SUFFIXES):
            continue
        bare = name.removeprefix(prefix)
        if bare.startswith("transformer."):
            bare = "encoder." + bare.removeprefix("transformer.")
        found[bare] = name
    return found


def with_their_names(weights: Weights) -> Weights:
    """Returns weights under Hugging Face's names; see `their_names`."""
    names = their_names(weights)
    left = set(weights) - set(names.values())
    left = {name for name in left if not name.endswith(_IGNORED_SUFFIXES)}
    if left:
        logger.warning("weights of another model are left out: %s", sorted(left))
    return {ours: weights[name] for ours, name in names.items()}


def _is_transposed(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def to_ours(weights: Weights, config: DTModelConfig) -> Weights:
    """Converts Hugging Face's names and layouts to those of `DecisionTransformer`."""
    state = {}
    for name, value in weights.items():
        if config.n_positions is None and name in ("encoder.wpe.weight", "encoder.wte.weight"):
            continue
        ours = name.replace("encoder.", "backbone.").replace("predict_action.0.", "predict_action.")
        state[ours.replace("wte.weight", "wte")] = value.T if _is_transposed(name) else value
    return state


def to_theirs(state: Weights, config: DTModelConfig) -> Weights:
    """Converts the names and layouts of `DecisionTransformer` to Hugging Face's."""
    weights = {}
    for name, value in state.items():
        theirs = name.replace("backbone.", "encoder.").replace(
            "predict_action.", "predict_action.0."
        )
        theirs = "encoder.wte.weight" if theirs == "encoder.wte" else theirs
        weights[theirs] = (value.T if _is_transposed(name) else value).contiguous()
    if config.n_positions is None:
        kind = next(iter(weights.values())).dtype
        weights["encoder.wpe.weight"] = torch.zeros(THEIR_POSITIONS, config.hidden_size, dtype=kind)
        weights["encoder.wte.weight"] = torch.zeros(1, config.hidden_size, dtype=kind)
    return weights


def table(weights: Weights, name: str, source: str | Path) -> Tensor:
    """Returns a weight that has two axes."""
    if name not in weights or weights[name].ndim != 2:
        found = tuple(weights[name].shape) if name in weights else "missing"
        raise WeightsError(f"{source}: the weight {name} is {found}, wanted two axes")
    return weights[name]


def sizes_in(weights: Weights, source: str) -> JsonObject:
    """Returns the sizes that weights under Hugging Face's names have.

    Raises:
        WeightsError: weights that tell them are missing, or blocks are.
    """
    time = table(weights, "embed_timestep.weight", source)
    blocks = {int(found[1]) for name in weights if (found := _BLOCK.match(name))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise WeightsError(f"{source}: the weights are of the blocks {sorted(blocks)[:20]}")
    return {
        "max_ep_len": time.shape[0],
        "hidden_size": time.shape[1],
        "n_layer": len(blocks),
        "state_dim": table(weights, "embed_state.weight", source).shape[1],
        "act_dim": table(weights, "embed_action.weight", source).shape[1],
        "n_inner": table(weights, "encoder.h.0.mlp.c_fc.weight", source).shape[1],
    }
