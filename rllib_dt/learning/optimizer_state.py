"""The state of an optimiser beside RLlib's own, as plain values and arrays for a checkpoint."""

import torch
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from rllib_dt.types import State


def moments(optimizer: torch.optim.Optimizer) -> State:
    """Returns what an optimiser keeps of each parameter; its settings are the config's."""
    kept: State = convert_to_numpy(optimizer.state_dict()["state"])
    return kept


def set_moments(optimizer: torch.optim.Optimizer, kept: State) -> None:
    """Loads what `moments` returned."""
    state = convert_to_torch_tensor(kept)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
