"""`DecisionTransformerConfig`: the settings of Hugging Face's model, under its names."""

import copy
import json
import os
from pathlib import Path
from typing import Any

from rllib_dt.network.config import DTModelConfig
from rllib_dt.policy.folders import SHARED_SETTINGS, SYNONYMS
from rllib_dt.policy.weight_files import read_json
from rllib_dt.types import JsonObject

_NAME = "config.json"
_METHODS = (
    "self", "model_config", "update", "to_dict", "to_json_string", "to_json_file", "from_dict",
    "from_json_file", "from_pretrained", "save_pretrained",
)  # fmt: skip
_MODEL_TYPE = "decision_transformer"


class DecisionTransformerConfig:
    """Settings of a Hugging Face Decision Transformer; names and defaults are theirs.

    Args:
        state_dim, act_dim: sizes of a state and of an action.
        hidden_size, max_ep_len, action_tanh, n_layer, n_head, n_inner: see `DTModelConfig`.
        activation_function, resid_pdrop, embd_pdrop, attn_pdrop, layer_norm_epsilon: the same.
        initializer_range, scale_attn_weights, scale_attn_by_inverse_layer_idx: the same.
        vocab_size: rows of the word embedding, which only `input_ids` and `token_type_ids` use.
        n_positions: rows of the position embedding.
        use_cache: return keys and values from the backbone.
        bos_token_id, eos_token_id, reorder_and_upcast_attn: kept, without effect.
        add_cross_attention: must be False.
        output_hidden_states, output_attentions, return_dict: defaults of the calls.
        others: kept, without effect.
    """

    model_type = _MODEL_TYPE

    def __init__(
        self,
        state_dim: int = 17,
        act_dim: int = 4,
        hidden_size: int = 128,
        max_ep_len: int = 4096,
        action_tanh: bool = True,
        vocab_size: int = 1,
        n_positions: int = 1024,
        n_layer: int = 3,
        n_head: int = 1,
        n_inner: int | None = None,
        activation_function: str = "relu",
        resid_pdrop: float = 0.1,
        embd_pdrop: float = 0.1,
        attn_pdrop: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        scale_attn_weights: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = 50256,
        eos_token_id: int | None = 50256,
        scale_attn_by_inverse_layer_idx: bool = False,
        reorder_and_upcast_attn: bool = False,
        add_cross_attention: bool = False,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
        **others: Any,
    ):
        given = dict(locals())
        for name in ("self", "others", "__class__"):
            given.pop(name, None)
        # what a file holds of the class, or what may be set through a property only
        ignored = ("model_type", "use_return_dict")
        others = {name: value for name, value in others.items() if name not in ignored}
        for name, value in (given | others).items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, SYNONYMS.get(name, name), value)

    def __getattr__(self, name: str) -> Any:
        if name in SYNONYMS:
            return getattr(self, SYNONYMS[name])
        raise AttributeError(f"DecisionTransformerConfig has no setting {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecisionTransformerConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DecisionTransformerConfig {self.to_json_string()}"

    @property
    def use_return_dict(self) -> bool:
        """Whether calls return objects rather than tuples."""
        return bool(self.return_dict)

    def model_config(self) -> DTModelConfig:
        """Returns the network's settings.

        Raises:
            ValueError: no network can be built from the settings.
        """
        for name in ("state_dim", "act_dim", "vocab_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size < 2**31:
                raise ValueError(f"{name}={size!r} must be an integer of at least 1, below 2^31")
        if self.add_cross_attention:
            raise ValueError("add_cross_attention=True is not supported; set it to False")
        shared = {name: getattr(self, name) for name in SHARED_SETTINGS}
        config = DTModelConfig(
            **shared,
            n_positions=self.n_positions,
            embed_layer_norm=vars(self).get("embed_layer_norm", True),
        )
        config.validate()
        return config

    def update(self, settings: JsonObject) -> None:
        """Sets several settings."""
        for name, value in settings.items():
            setattr(self, name, value)

    def to_dict(self) -> JsonObject:
        """Returns all settings."""
        return {**copy.deepcopy(vars(self)), "model_type": _MODEL_TYPE}

    def to_json_string(self) -> str:
        """Returns all settings as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str) + "\n"

    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        """Writes all settings to a file."""
        Path(path).write_text(self.to_json_string(), encoding="utf-8")

    @classmethod
    def from_dict(cls, settings: JsonObject, **overrides: Any) -> "DecisionTransformerConfig":
        """Builds settings from a dict, of which `overrides` take precedence."""
        merged = {
            SYNONYMS.get(name, name): value
            for given in (settings, overrides)
            for name, value in given.items()
        }
        kind = merged.pop("model_type", _MODEL_TYPE)
        if kind != _MODEL_TYPE:
            raise ValueError(f"model_type is {kind!r}, wanted {_MODEL_TYPE!r}")
        taken = sorted(name for name in merged if name in _METHODS)
        if taken:
            raise ValueError(f"settings may not be called {taken}")
        return cls(**merged)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> "DecisionTransformerConfig":
        """Reads settings from a file."""
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], **overrides: Any
    ) -> "DecisionTransformerConfig":
        """Reads settings from a folder's `config.json`.

        Raises:
            FileNotFoundError: there is no such folder or file. Nothing is ever downloaded.
            ValueError: the file is damaged, or of another model.
        """
        return cls.from_dict(read_json(config_file(folder)), **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` to a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(folder) / _NAME)


def config_file(folder: str | os.PathLike[str]) -> Path:
    """Returns the path of a folder's settings.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(folder).expanduser() / _NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; from_pretrained reads local folders: for a model of the "
            "hub, first run: hf download OWNER/MODEL --local-dir FOLDER"
        )
    return path
