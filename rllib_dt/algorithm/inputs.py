"""Makes the paths of data settings absolute, and refuses those that contain credentials."""

import os

from rllib_dt.formats.minari import located
from rllib_dt.formats.paths import absolute
from rllib_dt.reading.credentials import check_no_credentials
from rllib_dt.types import Paths

_ONLINE = "sampler"
"""RLlib's `input_` for algorithms that collect their own data; not a path."""


def absolute_inputs(paths: Paths) -> Paths:
    """Makes local paths absolute, since Tune's trials run in their own folders.

    Args:
        paths: a path, a URI, the id of a Minari data set, a list of them, or anything else, which
            is returned unchanged.
    """
    if isinstance(paths, list | tuple):
        return [absolute_inputs(path) for path in paths]
    if isinstance(paths, str | os.PathLike) and paths != _ONLINE:
        return absolute(located(os.fspath(paths)))
    return paths


def are_paths(paths: Paths) -> bool:
    """Returns whether a setting holds paths, and not, for example, one of Tune's search spaces."""
    return isinstance(paths, str | os.PathLike | list | tuple)


def has_inputs(paths: Paths) -> bool:
    """Returns whether a setting holds the paths of data, and not RLlib's own word for none."""
    return are_paths(paths) and paths != _ONLINE


def check_inputs(name: str, paths: Paths) -> None:
    """Raises a ValueError that names the setting if a path is empty or contains credentials."""
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    for path in given:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ValueError(f"{name}={paths!r} holds {path!r}, which is no path")
        check_no_credentials(os.fspath(path))
