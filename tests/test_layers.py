"""The layers of the package: what each may import, and where private parts may be used."""

import ast
from pathlib import Path

import pytest

import rllib_dt
from tests.scripts import run_script

PACKAGE = Path(__file__).resolve().parents[1] / "rllib_dt"
# from the lowest; a module may import from its own layer and from those before it
LAYERS = [
    ("types", "safe_pickle"),
    ("spaces",),
    ("episodes",),
    ("network",),
    ("policy",),
    ("formats",),
    ("compat", "hook", "threads"),
    ("reading",),
    ("rollout",),
    ("learning",),
    ("algorithm",),
    (
        "huggingface",
        "plots",
        "examples",
        "runtime",
        "cards",
        "conversion",
        "serve",
        "runs",
        "cli",
        "__init__",
    ),
]
# modules without torch in layers that use it: reading tasks and runners' connectors import them
NUMPY_ONLY = {"spaces/leaves.py", "policy/context.py"}
FOREIGN = {
    "types": {"torch", "ray"},
    "spaces": {"ray"},
    "episodes": {"torch", "ray"},
    "network": {"ray"},
    "policy": {"ray", "transformers"},
    "formats": {"torch", "ray"},
    "reading": {"torch"},
}
# parts of `spaces` that need torch, for layers that must not import it
TORCH_MODULES = {
    f"rllib_dt.spaces.{name}"
    for name in (
        "action_head", "box_head", "choice_heads", "composite_head", "encoders", "exact",
        "gaussian_head", "heads",
    )
}  # fmt: skip
PRIVATE_MODULES = ("ray._private", "ray.tune.registry", "ray.experimental.internal_kv")
# What RLlib marks private and subclasses of its classes use all the same: methods that are meant
# to be overridden, and attributes of the parent. Each has a contract test or breaks at once.
INHERITED = {
    "algorithm/config.py": {
        "_is_online",
        "_model_config",
        "_validate_offline_settings",
        "_rl_module_spec",
        "_value_error",
    },
    "algorithm/evaluation.py": {
        "_before_evaluate",
        "_check_component",
        "_run_one_evaluation",
        "_should_create_evaluation_env_runners",
        "_storage",
    },
    "algorithm/offline.py": {"_iteration"},
    "algorithm/online.py": {"_check_component"},
    "algorithm/settings.py": {"_model_config", "_train_batch_size_per_learner"},
    "learning/learner.py": {
        "_check_component",
        "_create_iterator_if_necessary",
        "_device",
        "_log_steps_trained_metrics",
        "_module",
        "_named_optimizers",
        "_params",
        "_weights_seq_no",
    },
    "learning/rl_module.py": {"_forward_exploration", "_forward_inference", "_forward_train"},
    "rollout/env_runner.py": {
        "_env_to_module",
        "_make_on_episode_callback",
        "_module_to_env",
        "_ongoing_episodes",
    },
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def layer_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def rank(layer):
    return next(i for i, names in enumerate(LAYERS) if layer in names)


def imports(path):
    """Absolute names of every module that the file imports, except for types only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_uses(path):
    """(owner, name) of each `owner._name` in a file, but for names that the file itself defines."""
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    own = {n.name for n in ast.walk(tree) if isinstance(n, kinds)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    own |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and ast.unparse(n.value) in ("self", "cls")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if node.attr.startswith("__") or ast.unparse(node) == "os._exit":
                continue
            yield ast.unparse(node.value), node.attr, node.attr in own


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_from_its_own_and_earlier_layers_only(path):
    layer = layer_of(path)
    foreign = FOREIGN.get(layer, set()) | ({"torch"} if name_of(path) in NUMPY_ONLY else set())
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in foreign, f"{path} imports {name}"
        if top == "rllib_dt" and rest:
            # a name of the top level counts as the module that it comes from
            home = rllib_dt._HOMES.get(rest[0], name).split(".")[1]
            assert rank(home) <= rank(layer), f"{path} imports {name}"
        if "torch" in foreign:
            assert name not in TORCH_MODULES, f"{path} imports {name}"
        if layer != "compat":
            assert not name.startswith(PRIVATE_MODULES), f"{path} imports {name}"


def test_every_module_is_in_a_layer():
    assert {layer_of(p) for p in modules()} == {name for names in LAYERS for name in names}
    assert len(modules()) > 50


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_private_parts_of_others_are_used_in_compat_only(path):
    if name_of(path) == "compat.py":
        return
    inherited = INHERITED.get(name_of(path), set())
    for owner, name, is_own in private_uses(path):
        if owner in ("self", "cls", "super()", "config"):
            assert is_own or name in inherited, f"{path}: {owner}.{name}"
        else:
            assert is_own, f"{path}: {owner}.{name}"


def test_inherited_private_names_are_listed_only_where_they_are_used():
    for name, listed in INHERITED.items():
        tree = ast.parse((PACKAGE / name).read_text())
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        used |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        used |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign)
                 if isinstance(n.target, ast.Name)}  # fmt: skip
        assert listed <= used, f"{name} does not use {listed - used}"


def test_overridden_private_methods_are_listed():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            is_override = isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).startswith("override(") for decorator in node.decorator_list
            )
            if is_override and node.name.startswith("_") and not node.name.startswith("__"):
                own_base = ast.unparse(node.decorator_list[0]) == "override(SlotEnvs)"
                assert own_base or node.name in INHERITED[name_of(path)], f"{path}: {node.name}"


@pytest.mark.parametrize(
    ("blocked", "layers"),
    [
        ("torch", ("types", "spaces.leaves", "episodes", "network.config", "policy.context",
                   "formats", "compat", "reading")),
        ("ray", ("types", "spaces", "episodes", "network", "policy", "formats", "huggingface")),
    ],
)  # fmt: skip
def test_layers_import_without_the_libraries_that_they_must_not_need(blocked, layers):
    names = []
    for layer in layers:
        place = PACKAGE / layer.replace(".", "/")
        found = place.glob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        names += [name_of(p).removesuffix(".py").replace("/", ".") for p in sorted(found)]
    run_script(f"""
        import importlib, sys
        if {blocked!r} != "ray":  # as in a reading task, which does not load the algorithm
            import ray._private.worker as worker
            worker.global_worker.set_mode(worker.WORKER_MODE)
        sys.modules[{blocked!r}] = None
        for name in {names!r}:
            importlib.import_module("rllib_dt." + name.removesuffix(".__init__"))
        assert "ray.rllib" not in sys.modules or "reading.offline_data" in {names!r}
    """)


def test_reading_tasks_load_neither_torch_nor_rllib():
    out = run_script("""
        import sys
        import ray._private.worker as worker
        worker.global_worker.set_mode(worker.WORKER_MODE)  # as in a task
        import rllib_dt.reading.tasks
        import rllib_dt.formats.files
        print([name for name in ("torch", "ray.rllib") if name in sys.modules])
    """)
    assert out.strip() == "[]"
