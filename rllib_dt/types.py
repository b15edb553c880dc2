"""Type aliases where the types of Python, numpy and Ray say too little."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""Numbers of any dtype and shape."""

Tree = Any
"""An array or tensor; for a composite space, a mapping from leaf path to array or tensor."""

Batch = dict[str, Any]
"""Arrays or tensors by column name, as RLlib passes batches."""

Value = Any
"""One observation or action, as an environment returns or takes it."""

State = Any
"""A component's state, as RLlib saves and restores it: nested dicts of arrays and plain values."""

SamplerState = dict[str, Any]
"""The state of a sampler: plain values."""

JsonObject = dict[str, Any]
"""A JSON object."""

Paths = Any
"""A path, a URI or a list of them; before Tune resolves it, also a search space."""

ActorHandle = Any
"""A Ray actor; Ray does not type its methods."""

LearnerGroup = Any
"""RLlib's `LearnerGroup`, which has no type information."""

EnvRunnerGroup = Any
"""RLlib's `EnvRunnerGroup`, which has no type information."""
