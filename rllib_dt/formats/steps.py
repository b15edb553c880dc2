"""Turns columns of steps, under RLlib's old or new names, into a `StepTable`."""

from collections.abc import Collection, Mapping

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import StepTable, one_a_step
from rllib_dt.types import Array

REQUIRED = ("obs", "actions", "rewards")
OPTIONAL = ("eps_id", "t", "new_obs", "terminateds", "truncateds", "dones")


def check_columns(present: Collection[str], names: Mapping[str, str], source: str) -> None:
    """Raises a DataError that lists the required columns that are missing, if any are."""
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
    """Builds a table from columns under RLlib's names."""
    if "terminateds" in columns:
        terminateds, truncateds = columns["terminateds"], columns.get("truncateds")
    else:
        # `dones` of the old stack does not say whether an episode terminated or was truncated
        unmarked = np.zeros(len(columns["rewards"]), bool)
        terminateds, truncateds = columns.get("dones", unmarked), None
    if truncateds is not None:
        truncateds = one_a_step(truncateds, "truncateds", source).astype(bool)
    return StepTable(
        source=source,
        observations=columns["obs"],
        actions=columns["actions"],
        rewards=one_a_step(columns["rewards"], "rewards", source),
        terminateds=one_a_step(terminateds, "end flags", source).astype(bool),
        truncateds=truncateds,
        episode_ids=columns.get("eps_id"),
        timesteps=columns.get("t"),
        next_observations=columns.get("new_obs"),
    )
