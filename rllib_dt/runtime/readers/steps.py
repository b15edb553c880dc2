"""Named columns of steps, from Parquet or JSON, to a `StepTable`; RLlib's names, old and new."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_dt.episodes.record import DataError
from rllib_dt.runtime.readers.fragments import StepTable

Array = NDArray[Any]

REQUIRED = ("obs", "actions", "rewards")
OPTIONAL = ("eps_id", "t", "new_obs", "terminateds", "truncateds", "dones")


def check_columns(present: Any, names: Mapping[str, str], source: str) -> None:
    """Raises a DataError that lists what is missing from a step recording."""
    missing = [names.get(name, name) for name in REQUIRED if names.get(name, name) not in present]
    ends = [names.get(name, name) for name in ("terminateds", "dones", "eps_id")]
    if not missing and any(name in present for name in ends):
        return
    problem = (
        f"columns {missing} are missing"
        if missing
        else f"no column tells where episodes end (none of {ends})"
    )
    raise DataError(
        source,
        f"{problem}; it has {sorted(present)}",
        "add the column, or map your names with offline_data(input_read_schema="
        '{"obs": "my_observations", …})',
    )


def step_table(columns: Mapping[str, Array], source: str) -> StepTable:
    """A table from columns under RLlib's names."""
    count = len(columns["rewards"])
    if "terminateds" in columns:
        terminateds, truncateds = columns["terminateds"], columns.get("truncateds")
    else:
        # `dones` of the old stack: terminated, or cut at a time limit, without saying which
        terminateds, truncateds = columns.get("dones", np.zeros(count, bool)), None
    return StepTable(
        source=source,
        observations=columns["obs"],
        actions=columns["actions"],
        rewards=np.asarray(columns["rewards"]).reshape(count, -1)[:, 0],
        terminateds=_flags(terminateds, count),
        truncateds=None if truncateds is None else _flags(truncateds, count),
        episode_ids=columns.get("eps_id"),
        timesteps=columns.get("t"),
        next_observations=columns.get("new_obs"),
    )


def _flags(values: Array, count: int) -> Array:
    return np.asarray(values).reshape(count, -1)[:, 0].astype(bool)
