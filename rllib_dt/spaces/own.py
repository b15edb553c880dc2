"""Finds encoders of users' own by name, so that settings and checkpoints hold text only."""

import importlib
from typing import Any


def name_of(encoder: Any) -> Any:
    """Returns a class's name to import it by; other values unchanged."""
    return f"{encoder.__module__}.{encoder.__qualname__}" if isinstance(encoder, type) else encoder


def imported(name: str) -> Any:
    """Imports what a name like "my_package.MyEncoder" stands for.

    Raises:
        ValueError: there is no such module, or it has no such name.
    """
    module, _, attribute = name.rpartition(".")
    if not module or module == "__main__" or "<locals>" in name:
        raise ValueError(
            f"encoders: {name!r} cannot be imported by other processes; define the encoder in a "
            "module and name it 'my_package.MyEncoder'"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"encoders: {name!r} cannot be imported ({error})") from error
