"""What the classes under Hugging Face's names return: objects, mappings and tuples in one."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor


class ModelOutput(OrderedDict[str, Any]):
    """Values by name; also by attribute, and by position among those that are not None."""

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *given: Any, **values: Any):
        if len(given) > len(self.names) or set(values) - set(self.names):
            raise TypeError(f"{type(self).__name__} has {self.names}, not {sorted(values)}")
        values = dict(zip(self.names, given, strict=False)) | values
        held = ((name, values.get(name)) for name in self.names)
        super().__init__((name, value) for name, value in held if value is not None)

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {self.names}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.names:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {self.names}")
        self[name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), dict(self))

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values that are not None, in their order."""
        return tuple(self.values())


def _rebuilt(kind: type[ModelOutput], values: dict[str, Any]) -> ModelOutput:
    return kind(**values)


class DecisionTransformerOutput(ModelOutput):
    """Predictions of a `DecisionTransformerModel`.

    Attributes:
        state_preds: (B, K, state_dim).
        action_preds: (B, K, act_dim).
        return_preds: (B, K, 1).
        hidden_states: n_layer + 1 tensors (B, 3K, D), or None.
        attentions: n_layer tensors (B, heads, 3K, 3K), or None.
        last_hidden_state: (B, 3K, D).
    """

    names = (
        "state_preds", "action_preds", "return_preds", "hidden_states", "attentions",
        "last_hidden_state",
    )  # fmt: skip


class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """Hidden states of a `DecisionTransformerGPT2Model`.

    Attributes:
        last_hidden_state: (B, L, D).
        past_key_values: `PastKeyValues` of all P + L tokens, or None.
        hidden_states: n_layer + 1 tensors (B, L, D), or None.
        attentions: n_layer tensors (B, heads, L, P + L), or None.
        cross_attentions: None.
    """

    names = (
        "last_hidden_state", "past_key_values", "hidden_states", "attentions", "cross_attentions",
    )  # fmt: skip


class PastKeyValues(tuple[tuple[Tensor, Tensor], ...]):
    """Keys and values of earlier tokens, two (B, heads, P, D / heads) for each layer."""

    def __new__(cls, layers: Iterable[Any] = ()) -> "PastKeyValues":
        """Takes keys and values by layer, as tuples or as a cache of `transformers`."""
        held = getattr(layers, "layers", None)
        if held is not None:  # a cache of transformers 5
            layers = [(layer.keys, layer.values) for layer in held if layer.keys is not None]
        return super().__new__(cls, ((layer[0], layer[1]) for layer in layers))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns P, the number of tokens."""
        return int(self[layer_idx][0].shape[2]) if self else 0
