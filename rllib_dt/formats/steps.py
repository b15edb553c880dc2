"""Turns columns of steps, under RLlib's old or new names, into a `StepTable`."""

from collections.abc import Collection, Mapping

import numpy as np

from rllib_dt.episodes.episode import DataError
from rllib_dt.formats.fragments import StepTable, end_flags, one_a_step
from rllib_dt.types import Array, Tree

REQUIRED = ("obs", "actions", "rewards")
OPTIONAL = ("eps_id", "t", "new_obs", "terminateds", "truncateds", "dones")


END_FLAGS = ("terminateds", "truncateds", "dones")

_LARGEST_TIMESTEP = 2**53


def check_columns(present: Collection[str], names: Mapping[str, str], source: str) -> None:
    """Raises a DataError that lists the columns that are missing, if any are."""
    needed = [*REQUIRED, *(name for name in OPTIONAL if name in names)]
    missing = [names.get(name, name) for name in needed if names.get(name, name) not in present]
    ends = [names.get(name, name) for name in (*END_FLAGS, "eps_id")]
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


def step_table(columns: Mapping[str, Tree], source: str) -> StepTable:
    """Builds a table from columns under RLlib's names.

    Every column of end flags counts. `dones` does not say whether an episode terminated or was
    truncated: alone it counts as termination, beside one of the others as the other kind.
    """
    flags = {name: end_flags(columns[name], name, source) for name in END_FLAGS if name in columns}
    dones, truncateds = flags.get("dones"), flags.get("truncateds")
    terminateds = flags.get("terminateds")
    if terminateds is None:
        terminateds = np.zeros(len(columns["rewards"]), bool) if dones is None else dones
        if truncateds is not None:
            terminateds = terminateds & ~truncateds
    elif dones is not None and (dones & ~terminateds).any():
        others = dones & ~terminateds
        truncateds = others if truncateds is None else truncateds | others
    return StepTable(
        source=source,
        observations=columns["obs"],
        actions=columns["actions"],
        rewards=one_a_step(columns["rewards"], "rewards", source),
        terminateds=terminateds,
        truncateds=truncateds,
        episode_ids=columns.get("eps_id"),
        timesteps=_timesteps(columns["t"], source) if "t" in columns else None,
        next_observations=columns.get("new_obs"),
    )


def _timesteps(values: Array, source: str) -> Array:
    """Turns whole numbers of any dtype into (n,) int64; raises a DataError for any other."""
    steps = one_a_step(values, "t", source)
    if steps.dtype.kind in "iuf":
        bad = ~((steps >= 0) & (steps <= _LARGEST_TIMESTEP)) | (steps != np.floor(steps))
        if not bad.any():
            return steps.astype(np.int64)
        row = int(np.argmax(bad))
        found = f"{steps[row]} at row {row}"
    else:
        found = f"{steps.dtype}"
    raise DataError(
        source,
        f"the timesteps t hold {found}",
        "number the steps of each episode 0, 1, 2, … or leave the column out",
    )
