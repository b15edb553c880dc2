"""D4RL's HDF5 layout: flat arrays, `terminals` and (in most files) `timeouts`."""

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from rllib_dt.episodes.record import DataError
from rllib_dt.runtime.readers.fragments import Fragment, StepTable, one_a_step

_REQUIRED = ("observations", "actions", "rewards", "terminals")


def read_d4rl(file: Any, source: str, time_limit: int | None) -> Iterator[Fragment]:
    """Fragments of a D4RL file; a step with either flag, or both, ends its episode.

    Args:
        file: an open binary file.
        source: its name, for messages.
        time_limit: the environment's, for files without `timeouts`.
    """
    try:
        with h5py.File(file, "r") as data:
            missing = [name for name in _REQUIRED if name not in data]
            if missing:
                raise DataError(
                    source,
                    f"datasets {missing} are missing; it has {sorted(data)}",
                    "use D4RL's layout (docs/dataset_format.md)",
                )
            arrays = {name: data[name][()] for name in _REQUIRED}
            timeouts = data["timeouts"][()] if "timeouts" in data else None
    except (OSError, LookupError, RuntimeError, TypeError, OverflowError) as error:
        raise DataError(
            source, f"it is no whole HDF5 file ({error})", "copy or download it again"
        ) from error
    terminals = one_a_step(arrays["terminals"], "terminals", source).astype(bool)
    if timeouts is None:
        timeouts = _timeouts(terminals, time_limit, source)
    table = StepTable(
        source=source,
        observations=arrays["observations"],
        actions=arrays["actions"],
        rewards=one_a_step(arrays["rewards"], "rewards", source),
        terminateds=terminals,
        truncateds=one_a_step(timeouts, "timeouts", source).astype(bool),
        may_drop_tail=True,
    )
    yield from table.fragments()


def _timeouts(terminals: np.ndarray, time_limit: int | None, source: str) -> np.ndarray:
    if time_limit is None:
        raise DataError(
            source,
            "it has no 'timeouts', so episodes cannot be told apart",
            "set offline_data(time_limit=…) to the environment's step limit",
        )
    timeouts = np.zeros(len(terminals), bool)
    start = 0
    for stop in [*(np.flatnonzero(terminals) + 1), len(terminals)]:
        timeouts[start + time_limit - 1 : stop : time_limit] = True
        start = stop
    return timeouts
