"""The network's settings, under Hugging Face's names and with its defaults."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, ClassVar, Literal

from rllib_dt.spaces.leaves import IMAGE_ENCODERS, ImageEncoder
from rllib_dt.spaces.own import imported, name_of
from rllib_dt.spaces.trees import LeafChoice

_BOOLEANS = (
    "action_tanh",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "condition_on_return",
    "normalize_images",
    "embed_layer_norm",
    "estimates_return",
)
ATTENTIONS = ("context", "window")
DISTRIBUTIONS = ("deterministic", "squashed_gaussian")
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu",
    "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
    "xielu",
)  # fmt: skip
"""The names of `transformers`' table (`ACT2FN`); the functions are in `network.activations`."""

_SIZES = {
    "context_length": False, "hidden_size": False, "n_layer": False, "n_head": False,
    "max_ep_len": False, "n_inner": True, "n_positions": True, "segment_length": True,
}  # fmt: skip
"""Settings that are whole numbers of at least 1, and whether each may be None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DTModelConfig:
    """Settings of `DecisionTransformer`, named as in Hugging Face's `DecisionTransformerConfig`.

    `context_length`, `attention`, `segment_length`, `image_encoder`, `normalize_images`,
    `condition_on_return`, `embed_layer_norm`, `estimates_return`, `action_distribution`, `ignore`,
    `encoders` and `pretrained` are ours. The other defaults are Hugging Face's, except that
    `n_positions` is None: the paper adds no position embedding besides the timestep's (Chen et al.
    2021, §3). Hugging Face's models have 1024, and use row 0 for every token; see
    `rllib_dt.policy.folders`.

    Attributes:
        context_length: K, the number of steps that attention spans; 3K tokens (see
            `tokens_per_step`).
        attention: "context", the paper's: the policy sees the last K steps and nothing else.
            "window": in every layer a token attends to the last 3K tokens of the whole episode,
            so that evaluation can keep keys and values (see `docs/attention.md`).
        segment_length: steps of a training window with `attention="window"`; None means 3K.
        hidden_size: D, the tokens' width.
        n_layer: transformer blocks.
        n_head: attention heads; must divide `hidden_size`.
        n_inner: the inner width of an MLP; None means 4 · `hidden_size`.
        activation_function: "relu", "gelu", "gelu_new", "silu", "tanh" or another name of
            `transformers`' table; see `rllib_dt.network.config.ACTIVATIONS`.
        resid_pdrop: dropout after attention and MLP.
        embd_pdrop: dropout on the embedded tokens.
        attn_pdrop: dropout on the attention weights.
        layer_norm_epsilon: epsilon of the blocks' layer norms.
        initializer_range: standard deviation of the initial weights.
        max_ep_len: rows of the timestep embedding. Data with longer episodes is refused; in
            evaluation, later steps use the last row.
        action_tanh: squash predicted Box actions into their bounds.
        scale_attn_weights: divide attention scores by √(D / heads).
        scale_attn_by_inverse_layer_idx: divide them by the layer's number as well.
        n_positions: rows of a position embedding, or None for none.
        pretrained: a Hugging Face folder to start training or evaluation from in RLlib. It
            provides weights, normalisation and settings; settings that are given here override
            the folder's.
        image_encoder: how images (Boxes of bytes or bits) are read: "nature", the paper's
            convolutions; "small", two of 3 × 3; "linear", as numbers; "auto" takes the first from
            36 pixels in height and width up, and the second below.
        normalize_images: subtract the data's mean image from images, and divide them by one
            standard deviation, after the division by 255. Pong, where most of an image never
            changes, was not learned without it (see `docs/log.md`); the paper does not do it.
        condition_on_return: give the network returns-to-go. False drops their token, so that a
            step has two: behaviour cloning, the paper's BC (%BC with
            `offline_data(top_fraction=…)`). Targets then have no effect.
        embed_layer_norm: normalise the embedded tokens by a layer norm, as the paper's code does.
            Some public checkpoints have none.
        estimates_return: estimate the largest return that the data show from each step, so that
            "max" can be asked for; set by `training(max_return_expectile=…)`.
        action_distribution: of actions that are numbers: "deterministic", one action each, or
            "squashed_gaussian", a normal distribution squashed by a tanh, which is learned by
            likelihood with an entropy bonus and can be sampled. Categories and bits have
            probabilities in any case.
        ignore: leaves of a composite observation that are left out, by path: "mission", or
            "robot/name" of a Dict within a Dict.
        encoders: an encoder of one's own for some leaves of an observation, by path:
            {"camera": "my_package.MyEncoder"} ("" if the space has no leaves); see
            `docs/extending.md`.
    """

    context_length: int = 20
    attention: Literal["context", "window"] = "context"
    segment_length: int | None = None
    hidden_size: int = 128
    n_layer: int = 3
    n_head: int = 1
    n_inner: int | None = None
    activation_function: str = "relu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    max_ep_len: int = 4096
    action_tanh: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    n_positions: int | None = None
    pretrained: str | None = None
    image_encoder: ImageEncoder = "auto"
    normalize_images: bool = False
    condition_on_return: bool = True
    embed_layer_norm: bool = True
    estimates_return: bool = False
    action_distribution: Literal["deterministic", "squashed_gaussian"] = "deterministic"
    ignore: tuple[str, ...] = ()
    encoders: Mapping[str, str] = dataclasses.field(default_factory=dict)

    given: ClassVar[frozenset[str]]
    """The names of the settings that were given, rather than left at their defaults."""

    def __new__(cls, **settings: Any) -> "DTModelConfig":
        """Remembers which settings are given, even where they equal a default."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", frozenset(settings))
        return config

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "item"):  # numpy's numbers are as good as Python's
                value = value.item()
            if isinstance(value, float) and field.name in _SIZES and value.is_integer():
                value = int(value)
            if field.name == "ignore" and isinstance(value, list):  # as plain settings have it
                value = tuple(value)
            if field.name == "encoders" and isinstance(value, Mapping):
                value = {path: name_of(encoder) for path, encoder in value.items()}
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "DTModelConfig":
        """Builds settings from a dict; refuses unknown names and suggests the nearest one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {known}"
                raise ValueError(f"model_config has no setting {name!r}{hint}")
        return cls(**settings)

    def validate(self) -> None:
        """Raises a ValueError for values that no network can be built from."""
        for name, is_optional in _SIZES.items():
            if getattr(self, name) is not None or not is_optional:
                self._check_size(name, getattr(self, name))
        self._check_attention()
        if self.hidden_size % self.n_head:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by n_head={self.n_head}; "
                "change one of them"
            )
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            self._check_number(name, lambda v: 0.0 <= v < 1.0, "lie in [0, 1)")
        self._check_number("layer_norm_epsilon", lambda v: 0.0 < v < 1.0, "lie in (0, 1)")
        self._check_number("initializer_range", lambda v: 0.0 <= v <= 10.0, "lie in [0, 10]")
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        if self.image_encoder not in IMAGE_ENCODERS:
            raise ValueError(f"image_encoder={self.image_encoder!r} is not one of {IMAGE_ENCODERS}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function={self.activation_function!r} is not one of {ACTIVATIONS}"
            )

        if self.action_distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"action_distribution={self.action_distribution!r} is not one of {DISTRIBUTIONS}"
            )
        if self.action_distribution == "squashed_gaussian" and not self.action_tanh:
            raise ValueError(
                'action_distribution="squashed_gaussian" squashes actions by a tanh; leave '
                "action_tanh at True"
            )
        if self.estimates_return and not self.condition_on_return:
            raise ValueError(
                "estimates_return=True needs returns, which condition_on_return=False drops; leave "
                "one of them out"
            )
        self.check_leaves()

    @property
    def choice(self) -> LeafChoice:
        """Which leaves of an observation the network reads, and which by an encoder of its own."""
        return LeafChoice(ignore=self.ignore, own=tuple(self.encoders))

    def check_leaves(self) -> None:
        """Raises a ValueError if `ignore` or `encoders` are not paths of leaves."""
        if not isinstance(self.ignore, tuple) or not all(isinstance(p, str) for p in self.ignore):
            raise ValueError(f"ignore={self.ignore!r} must be a list of paths of leaves")
        if not isinstance(self.encoders, Mapping):
            raise ValueError(f"encoders={self.encoders!r} must be a dict from paths to encoders")
        for path, encoder in self.encoders.items():
            if not isinstance(path, str) or not isinstance(encoder, str):
                raise ValueError(
                    f"encoders={self.encoders!r} must be a dict from paths of leaves to the names "
                    "of modules, such as {'camera': 'my_package.MyEncoder'}"
                )
            imported(encoder)

    def _check_attention(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} is not one of {ATTENTIONS}")
        if self.segment_length is None:
            return
        if self.attention == "context":
            raise ValueError(
                f"segment_length={self.segment_length} belongs to attention='window'; with "
                "'context' a window has context_length steps"
            )
        if self.segment_length < self.context_length:
            raise ValueError(
                f"segment_length={self.segment_length} is less than "
                f"context_length={self.context_length}; no token would see its whole context"
            )

    @property
    def tokens_per_step(self) -> int:
        """The tokens of a step: its return-to-go, if the network is given it, state and action."""
        return 3 if self.condition_on_return else 2

    @property
    def window_length(self) -> int:
        """Steps in a training window: K, or with `attention="window"` those of a segment."""
        if self.attention == "context":
            return self.context_length
        return self.segment_length or 3 * self.context_length

    @property
    def receptive_steps(self) -> int:
        """The most steps that an action can depend on, its own included."""
        if self.attention == "context":
            return self.context_length
        # each layer reaches 3K - 1 tokens back; the extra step is for the action before the first
        return self.n_layer * self.context_length + 1

    def settings(self) -> dict[str, Any]:
        """Returns all settings; with `pretrained` only those that were given.

        The others are then the folder's.
        """
        settings = dataclasses.asdict(self)
        if self.pretrained is None:
            return settings
        return {name: value for name, value in settings.items() if name in self.given}

    def _check_number(self, name: str, test: Callable[[float], bool], wanted: str) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        # a test refuses NaN and infinity too, and integers that no float can hold
        if not is_number or not test(value):
            raise ValueError(f"{name}={value!r} must {wanted}")

    @staticmethod
    def _check_size(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1, below 2^31")
