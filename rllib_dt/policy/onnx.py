"""`export_onnx`: a network as an ONNX graph, in the environment's units on both sides.

Normalisation, return scale and the actions' bounds are inside the graph, so that whoever runs it
needs numpy and onnxruntime alone. The graph's metadata describes the spaces and the rule of
returns, as JSON under `rllib_dt`.

`attention="context"`: a window of K steps in, left-padded, one action out.

`attention="window"`: a step in, with the ring of keys and values that the step before gave out
(zeros where an episode begins, which the graph sees by `timestep` 0).
"""

import contextlib
import copy
import json
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rllib_dt.episodes.returns import ReturnRule
from rllib_dt.episodes.windows import Window
from rllib_dt.network.cache import Ring, slot_shape
from rllib_dt.network.network import LAST_TOKEN, DecisionTransformer
from rllib_dt.spaces.composites import layouts
from rllib_dt.spaces.descriptions import describe_space
from rllib_dt.spaces.trees import by_leaf, column_names, columns_of, from_leaves, joined
from rllib_dt.types import Tree

OBSERVATIONS, ACTIONS, ACTION = "observations", "actions", "action"
OBSERVATION, PREVIOUS_ACTION = "observation", "previous_action"
RETURNS_TO_GO, RETURN_TO_GO = "returns_to_go", "return_to_go"
TIMESTEPS, TIMESTEP, MASK = "timesteps", "timestep", "mask"
CACHE, NEXT_CACHE = "cache", "next_cache"

_OPSET = 18
_METADATA = "rllib_dt"


def export_onnx(
    network: DecisionTransformer,
    path: str | os.PathLike[str],
    *,
    rule: ReturnRule | None = None,
    target_returns: tuple[float, ...] = (),
) -> Path:
    """Writes a network as an ONNX graph; needs the extra `rllib_dt[onnx]`.

    Inputs and outputs of a composite space are one for each leaf: "observations/camera".

    With `attention="context"`, of B episodes and K steps: `observations` (B, K, …), `actions`
    (B, K, …), `returns_to_go` (B, K, 1) float32 in reward units, `timesteps` (B, K) int64, `mask`
    (B, K) bool, True where real; the output `action` is (B, …). The last step's action is not read.

    With "window": `observation` (B, …), `previous_action` (B, …), `return_to_go` (B, 1),
    `timestep` (B,) int64, `cache` (layers, B, 3 (K + 1), 2, heads, d); the outputs are `action` and
    `next_cache`.

    Actions are the likeliest; B is free, K is fixed.

    Args:
        network: the network; exported in float32, in eval mode.
        path: the file to write.
        rule: how rewards reduce the return-to-go, for the metadata.
        target_returns: suggested targets, for the metadata.

    Returns:
        The path.

    Raises:
        ImportError: the extra is missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch needs it, and would say so less plainly
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs {error.name}; install it with: pip install 'rllib_dt[onnx]'"
        ) from error
    own = copy.deepcopy(network).float().cpu()
    graph = _Steps(own) if own.config.attention == "window" else _Windows(own)
    model = _program(graph).model_proto
    _check_batch(graph, model)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = _description(network, rule or ReturnRule(), target_returns)
    onnx.helper.set_model_props(model, {_METADATA: json.dumps(about)})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _program(graph: "_Graph") -> torch.onnx.ONNXProgram:
    inputs = graph.example()
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            (),
            kwargs={"inputs": inputs},
            dynamic_shapes={"inputs": {name: {graph.batch_axis(name): batch} for name in inputs}},
            input_names=list(inputs),
            output_names=graph.outputs(),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _check_batch(graph: "_Graph", model: Any) -> None:
    """Raises a ValueError if the graph takes the example's number of episodes only."""
    for given in model.graph.input:
        axis = given.type.tensor_type.shape.dim[graph.batch_axis(given.name)]
        if not axis.dim_param:
            raise ValueError(
                f"the graph's input {given.name!r} has the fixed batch size {axis.dim_value}: the "
                "network has an operation that torch cannot export for any size; in an encoder of "
                "your own, use x.shape[0] instead of len(x)"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch's exporter says of itself: of torchvision, and of its own tree walker."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _description(
    network: DecisionTransformer, rule: ReturnRule, target_returns: tuple[float, ...]
) -> dict[str, Any]:
    config = network.config
    return {
        "attention": config.attention,
        "context_length": config.context_length,
        "max_ep_len": config.max_ep_len,
        "observation_space": describe_space(network.observation_space),
        "action_space": describe_space(network.action_space),
        "ignore": list(config.ignore),
        "gamma": rule.gamma,
        "delayed_reward": rule.delayed,
        "clip_rewards": rule.clip_rewards,
        "target_returns": list(target_returns),
    }


class _Graph(nn.Module, ABC):
    """Base of what is exported: named tensors in, named tensors out."""

    def __init__(self, network: DecisionTransformer):
        super().__init__()
        self.network = network
        self.config = network.config

    @abstractmethod
    def example(self) -> dict[str, Tensor]:
        """Returns inputs of two episodes."""

    def outputs(self) -> list[str]:
        """Returns the names of the outputs."""
        return [joined(ACTION, path) for path in layouts(self.network.action_space)]

    def batch_axis(self, name: str) -> int:
        """Returns the axis of an input that is the batch's."""
        return 0

    def _zeros(self, name: str, space: Any, *axes: int, ignore: Any = ()) -> dict[str, Tensor]:
        empty = {
            path: torch.zeros(*axes, *shape, dtype=torch.as_tensor(dtype.type(0)).dtype)
            for path, (shape, dtype) in layouts(space, ignore).items()
        }
        return dict(column_names(name, from_leaves(empty)))


class _Windows(_Graph):
    """Whole windows in, the action of their last step out."""

    def example(self) -> dict[str, Tensor]:
        """Returns inputs of two episodes."""
        network, K = self.network, self.config.context_length
        return {
            **self._zeros(OBSERVATIONS, network.observation_space, 2, K, ignore=self.config.ignore),
            **self._zeros(ACTIONS, network.action_space, 2, K),
            RETURNS_TO_GO: torch.zeros(2, K, 1),
            TIMESTEPS: torch.zeros(2, K, dtype=torch.long),
            MASK: torch.ones(2, K, dtype=torch.bool),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Picks the actions."""
        window = Window(
            observations=columns_of(OBSERVATIONS, inputs),
            actions=columns_of(ACTIONS, inputs),
            returns_to_go=inputs[RETURNS_TO_GO],
            timesteps=inputs[TIMESTEPS],
            mask=inputs[MASK],
        )
        outputs = self.network.predict(window, last_only=True).action_outputs
        return tuple(by_leaf(self.network.action_head.act(outputs[:, 0])).values())


class _RingInputs:
    """A `KeyValueCache` whose rings are inputs of the graph, and whose new rings are outputs."""

    def __init__(self, rings: Tensor, places: Tensor):
        self._rings, self._places = rings, places
        self.written: list[Tensor] = []

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache`."""
        new = torch.stack([keys, values], dim=1).permute(0, 3, 1, 2, 4)  # (B, 3, 2, H, d)
        index = self._places[:, :, None, None, None].expand_as(new)
        ring = self._rings[layer].scatter(1, index, new)
        self.written.append(ring)
        all_keys, all_values = ring.permute(2, 0, 3, 1, 4)
        return all_keys, all_values


class _Steps(_Graph):
    """A step and the ring of its episode in, the action and the new ring out."""

    def __init__(self, network: DecisionTransformer):
        super().__init__(network)
        self._ring = Ring(network.config)

    def outputs(self) -> list[str]:
        """Returns the names of the outputs."""
        return [*super().outputs(), NEXT_CACHE]

    def batch_axis(self, name: str) -> int:
        """Returns the axis of an input that is the batch's."""
        return 1 if name == CACHE else 0

    def example(self) -> dict[str, Tensor]:
        """Returns inputs of two episodes."""
        network = self.network
        return {
            **self._zeros(OBSERVATION, network.observation_space, 2, ignore=self.config.ignore),
            **self._zeros(PREVIOUS_ACTION, network.action_space, 2),
            RETURN_TO_GO: torch.zeros(2, 1),
            TIMESTEP: torch.ones(2, dtype=torch.long),
            CACHE: torch.zeros(self.config.n_layer, 2, *slot_shape(self.config)),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Picks the actions."""
        network, t = self.network, inputs[TIMESTEP]
        begins = t == 0
        step = Window(  # the previous step and this one, of which three tokens are new
            observations=_twice(columns_of(OBSERVATION, inputs)),
            actions=_twice(columns_of(PREVIOUS_ACTION, inputs)),
            returns_to_go=_twice(inputs[RETURN_TO_GO]),
            timesteps=torch.stack([(t - 1).clamp(min=0), t], dim=1),
            mask=torch.stack([~begins, torch.ones_like(begins)], dim=1),
        )
        T = self.config.tokens_per_step
        tokens = network.embed(step)[:, T - 1 : 2 * T - 1]
        rings = inputs[CACHE].masked_fill(begins[None, :, None, None, None, None], 0.0)
        places, mask = self._ring.places_and_mask(t, torch.zeros_like(t))
        cache = _RingInputs(rings, places)
        row_0 = torch.zeros(1, T, dtype=torch.long)
        hidden = network.backbone(tokens, mask, row_0, cache, queries=LAST_TOKEN)
        outputs = network.action_outputs(hidden.last_hidden_state, step, LAST_TOKEN)
        actions = by_leaf(network.action_head.act(outputs[:, 0])).values()
        return (*actions, torch.stack(cache.written))


def _twice(value: Tree) -> Tree:
    doubled = {path: torch.stack([leaf, leaf], dim=1) for path, leaf in by_leaf(value).items()}
    return from_leaves(doubled)
