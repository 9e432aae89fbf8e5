"""Which modules may import which, checked against the source."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"arrays", "bounds", "checks", "mapping", "memo", "optimizers", "paths", "shards", "trees", "types"}
RULES = {"averaging", "regularizers", "schedules", "stopping"}
MIDDLE = {"activations", "augment", "data", "losses", "metrics", "ops", "uncertainty", *RULES}
MAY_IMPORT = {
    "checks": set(),
    "bounds": {"checks"},
    "mapping": set(),
    "memo": set(),
    "arrays": {"checks"},
    "paths": {"checks"},
    "trees": set(),
    "optimizers": {"checks", "trees"},
    "types": {"arrays", "checks", "optimizers"},
    "shards": {"types"},
    "tables": set(),
    **dict.fromkeys(MIDDLE, BASE),
    "activations": BASE | {"ops"},
    "losses": BASE | {"ops"},
    "metrics": BASE | {"losses", "ops"},
    "uncertainty": BASE | {"ops"},
    "models": BASE | {"activations", "ops"},
    "distributed": {"checks"},
    "training": BASE | {"averaging", "data", "distributed", "losses", "metrics", "saving", "stopping"},
    "saving": BASE | {"checkpoint", "data", "training"},
    "checksums": {"checks"},
    "checkpoint": BASE | {"checksums", "distributed"},
    "sessions": BASE | {"checkpoint", "data", "distributed", "saving", "stopping", "training"},
    "sweeps": BASE | {"data", "distributed", "sessions", "stopping", "tables", "training", "uncertainty"},
    "search": BASE | {"data", "distributed", "sessions", "stopping", "sweeps", "training"},
    "insight": BASE | MIDDLE | {"models", "tables", "training"},
    "forecasting": BASE | {"data", "losses", "metrics", "models", "ops", "tables", "training", "uncertainty"},
    "sklearn": BASE | {"data", "distributed", "losses", "models", "regularizers", "sweeps", "training"},
    "compatibility": set(),
    "compilation_cache": {"checks", "paths"},
    "cpu": {"checks", "compilation_cache", "paths"},
}
MAY_IMPORT["__init__"] = set(MAY_IMPORT)
ONLY_WHERE_USED = {
    *("equinox", "grain", "haiku", "keras", "matplotlib", "orbax", "pooch", "safetensors", "sklearn", "tensorboard"),
    *("datasets", "jax2onnx", "onnxruntime", "optuna", "pandas", "polars", "pyarrow", "torch", "tqdm", "tyro"),
}
LATE = {("training", "saving")}
"""Layers that import others only within functions: `Run` has doors to what is built on it."""
FILES = sorted((ROOT / "nnfx").rglob("*.py"))


def imports(tree: ast.AST) -> set[str]:
    """Return every module that a file imports, including within functions and from packages."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(path: Path) -> str:
    return path.relative_to(ROOT / "nnfx").with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_keep_to_the_layers(path):
    own = layer(path)
    for module in imports(ast.parse(path.read_text())):
        top, *rest = module.split(".")
        assert top != "experiments", "the library does not import its experiments"
        if top == "nnfx" and rest[0] != own:
            assert rest[0] in MAY_IMPORT[own], f"{own} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_heavy_packages_are_imported_late(path):
    heavy = ONLY_WHERE_USED - {layer(path)}  # nnfx.sklearn is imported where it is used
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {module.split(".")[0] for module in imports(node)} & heavy
            assert "flax.nnx" not in imports(node)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_doors_are_imported_late(path):
    others = {other for own, other in LATE if own == layer(path)}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {module.split(".")[1] for module in imports(node) if module.startswith("nnfx.")} & others


def test_no_imports_go_in_circles():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {}
    for name, path in modules.items():
        taken = imports(ast.parse(path.read_text()))
        graph[name] = {each if each in modules else each.rpartition(".")[0] for each in taken} & modules.keys() - {name}
    assert len(graph) > 100
    del graph["nnfx"]  # it re-exports what all the others define
    graphlib.TopologicalSorter({name: others - {"nnfx"} for name, others in graph.items()}).prepare()


def test_the_walk_finds_a_forbidden_import():
    assert imports(ast.parse("def f():\n    from nnfx.training import step")) == {"nnfx.training.step"}
    assert "training" not in MAY_IMPORT["models"]
    assert "models" not in MAY_IMPORT["training"]
