"""Puts weights and statistics into a network, checked."""

import logging
from collections import Counter

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rllib_dt.network.network import DecisionTransformer
from rllib_dt.policy.weight_files import FLOATS, Weights, WeightsError

logger = logging.getLogger(__name__)

_NORMALIZATION = ("observation_mean", "observation_std", "return_scale")
_HEAD = "action_head."
ESTIMATE, SPREAD = "estimate_return.", "predict_log_std."
"""Names of the weights begin so that estimate returns, and how far actions spread."""

WTE = "backbone.wte"
"""The name of the word embedding, which only some of their models read."""


def is_own(name: str) -> bool:
    """Returns whether a value is of what their folders lack.

    That is the normalisation, bounds, the estimate of returns and the spread of actions.
    """
    return name in _NORMALIZATION or name.startswith((_HEAD, ESTIMATE, SPREAD))


def fill(
    network: nn.Module,
    state: Weights,
    source: str,
    dtype: torch.dtype | str | None = None,
    optional: tuple[str, ...] = (),
) -> None:
    """Loads weights into a network; what it has no place for is left out, with a warning.

    Args:
        network: the network, or a module with a backbone.
        state: the weights under its names; those of the normalisation may be missing.
        source: where they come from, for messages.
        dtype: see `load_pretrained`.
        optional: beginnings of other names that may be missing; those weights become zero.

    Raises:
        WeightsError: weights are missing, of another shape, or not finite.
    """
    wanted = network.state_dict()
    left = sorted(set(state) - set(wanted))
    if left:
        logger.warning("%s: weights that the model has no place for are left out: %s", source, left)
    missing = sorted(
        name
        for name in set(wanted) - set(state)
        if not (is_own(name) or name == WTE or name.startswith(optional))
    )
    state = {name: value for name, value in state.items() if name in wanted}
    shapes = [
        f"{name}: {tuple(value.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, value in sorted(state.items())
        if value.shape != wanted[name].shape
    ]
    if missing or shapes:
        raise WeightsError(
            f"{source}: the weights do not fit the settings; missing {missing}, of another shape "
            f"{shapes}"
        )
    zeros = {
        name: torch.zeros_like(value)
        for name, value in wanted.items()
        if name not in state and optional and name.startswith(optional)
    }
    network.to(chosen_dtype(dtype, state))
    network.load_state_dict(wanted | zeros | state)
    # in the network's own dtype: what a larger one holds may overflow, or vanish
    _check_values({name: network.state_dict()[name] for name in state}, source)


def chosen_dtype(dtype: torch.dtype | str | None, state: Weights) -> torch.dtype:
    """Returns the dtype to load weights with; see `load_pretrained`.

    Raises:
        ValueError: it is none of numbers with a fraction.
    """
    if dtype == "auto":
        kinds = Counter(value.dtype for value in state.values())
        return kinds.most_common(1)[0][0]
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype or torch.float32
    if found not in FLOATS:
        raise ValueError(f"dtype={dtype!r} is none of {[str(kind) for kind in FLOATS]}")
    return found


def _check_values(state: Weights, source: str) -> None:
    broken = sorted(name for name, value in state.items() if not torch.isfinite(value).all())
    if broken:
        raise WeightsError(
            f"{source}: weights are not finite: {broken}; take an earlier checkpoint of that run"
        )
    for name in state:
        if (
            name.endswith(("observation_std", "return_scale", ".half_range"))
            and not (state[name] > 0).all()
        ):
            raise WeightsError(
                f"{source}: {name} must be positive, but is {state[name].tolist()}; set it to 1 "
                "where nothing is to be divided"
            )


def normalize_by(
    network: DecisionTransformer,
    observation_mean: ArrayLike | None,
    observation_std: ArrayLike | None,
    return_scale: float | None,
) -> None:
    """Sets the parts of a network's normalisation that are given.

    Raises:
        ValueError: one has another shape, is not finite, or not positive where it divides.
    """
    given = {
        "observation_mean": observation_mean,
        "observation_std": observation_std,
        "return_scale": return_scale,
    }
    for name, value in given.items():
        if value is None:
            continue
        buffer: Tensor = getattr(network, name)
        values = np.asarray(value)
        if values.dtype.kind not in "biuf" or values.shape != tuple(buffer.shape):
            raise ValueError(
                f"{name} has shape {values.shape} and dtype {values.dtype}, wanted numbers of "
                f"shape {tuple(buffer.shape)}"
            )
        if not np.isfinite(values).all() or (name != "observation_mean" and (values <= 0).any()):
            wanted = "finite" if name == "observation_mean" else "finite and positive"
            raise ValueError(f"{name} must be {wanted}, but is {values.tolist()}")
        rounded = torch.tensor(values).to(buffer)
        is_positive = name == "observation_mean" or bool((rounded > 0).all())
        if not rounded.isfinite().all() or not is_positive:
            raise ValueError(f"{name}={values.tolist()} is out of the range of {buffer.dtype}")
        buffer.copy_(rounded)
