"""Registers "DT" with Ray once Ray Tune or RLlib is imported.

Importing RLlib takes seconds and is not needed to load a policy or read data, so `import rllib_dt`
does not do it. The registered name matters only in a process that imports Tune or RLlib.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from rllib_dt import compat

_WATCHED = ("ray.tune", "ray.rllib")
_ALGORITHM = "rllib_dt.algorithm"


def register_with_ray() -> None:
    """Registers now if Tune or RLlib is imported already, and otherwise when one is."""
    if any(_is_whole(name) for name in _WATCHED):
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


def register_first() -> None:
    """Registers now, unless this is one of Ray's workers, or the algorithm is being imported."""
    if not compat.in_ray_task():
        _register()


def _register() -> None:
    """Imports the algorithm, which registers itself, unless that is under way."""
    if _ALGORITHM not in sys.modules:
        importlib.import_module(_ALGORITHM)


def _is_whole(name: str) -> bool:
    """Returns whether a module is imported, and its import is not under way."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


class _Watcher(MetaPathFinder):
    """Finds the watched modules like the finders after it, and learns when they are imported."""

    def __init__(self) -> None:
        self._imported: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Returns the spec of a watched module, with a loader that reports back."""
        if fullname not in _WATCHED:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                spec.loader = _Reporting(spec.loader, self)
                return spec  # type: ignore[no-any-return]
        return None

    def report(self, fullname: str) -> None:
        """Takes note of an import that is done, and registers if no other is under way."""
        self._imported.add(fullname)
        if all(name in self._imported for name in _WATCHED if name in sys.modules):
            sys.meta_path.remove(self)
            _register()


class _Reporting(Loader):
    """A module's own loader, which tells a watcher when the module is loaded."""

    def __init__(self, loader: Any, watcher: _Watcher):
        self._loader, self._watcher = loader, watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # what tools ask of a loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Creates the module as its own loader does."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, and reports that."""
        self._loader.exec_module(module)
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._watcher.report(module.__name__)
