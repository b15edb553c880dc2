"""The layers import downwards only, and what a layer may lean on."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rllib_dt"
# from the lowest; a module may import from its own layer and those before it
LAYERS = [
    ("episodes",),
    ("network", "huggingface"),
    ("runtime",),
    ("algorithm",),
    ("writer", "plots", "examples", "__init__"),
]
FOREIGN = {"episodes": {"torch", "ray"}, "network": {"ray"}, "huggingface": {"ray", "transformers"}}
# parts of Ray that are private or undecorated belong in compat
PRIVATE = ("ray._private", "ray.tune.registry")


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(part):
    return next(i for i, names in enumerate(LAYERS) if part in names)


def imports(path):
    """Absolute names of every module that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module


def part_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_downwards_only(path):
    own = layer_of(part_of(path))
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in FOREIGN.get(part_of(path), ()), f"{path} imports {name}"
        if top == "rllib_dt" and "." in name:
            assert layer_of(name.split(".")[1]) <= own, f"{path} imports {name}"
        if path.name != "compat.py":
            assert not name.startswith(PRIVATE), f"{path} imports {name}"


def test_every_part_has_a_layer():
    assert {part_of(p) for p in modules()} == {name for layer in LAYERS for name in layer}
    assert len(modules()) > 20
