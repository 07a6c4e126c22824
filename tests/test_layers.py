"""The packages of kikitori: imports go down, no cycles, and no folder grows past a handful of files."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kikitori

SOURCE = Path(kikitori.__file__).parent
# From the top: a package imports only packages of lower layers, and none of its own layer but itself.
LAYERS = (
    ("cli", "sweeps"),
    ("compare", "demo", "pipelines"),
    ("publishing", "steps"),
    ("runs", "transcripts"),
    ("engines", "exports", "guard", "training"),
    ("config", "data", "inference"),
    ("joining",),
    ("augmentation", "corpora", "model", "optim"),
    ("adapters", "references"),
    ("audio", "metrics", "runtime"),
)
LAYER = {package: depth for depth, packages in enumerate(LAYERS) for package in packages}
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in SOURCE.glob("*/*.py")
    if path.stem != "__init__"
}


@cache
def imported(path: Path) -> set[str]:
    """Modules of kikitori that a file imports, at its top or inside a function, such as `data.collate`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "kikitori":
            # A public name counts as its module; the version belongs to no package.
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            found |= {kikitori._EXPORTS.get(name, f"kikitori.{name}").removeprefix("kikitori.") for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kikitori."):
            names = {f"{node.module}.{alias.name}".removeprefix("kikitori.") for alias in node.names}
            found |= names & MODULES.keys() or {str(node.module).removeprefix("kikitori.")}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("kikitori.") for a in node.names if a.name.startswith("kikitori.")}
    return found


@cache
def libraries(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}


def test_every_package_has_a_layer() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(LAYER)


@pytest.mark.parametrize("package", sorted(LAYER))
def test_a_package_imports_only_packages_of_lower_layers(package: str) -> None:
    outside = {
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imported(path)
        if name.startswith(f"{package}.")
        and other.split(".")[0] != package
        and LAYER[other.split(".")[0]] <= LAYER[package]
    }
    assert not outside


def test_no_two_modules_import_each_other() -> None:
    graph = {name: imported(path) & MODULES.keys() for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError and names the cycle


@pytest.mark.parametrize("package", sorted(LAYER))
def test_a_package_holds_few_modules(package: str) -> None:
    names = sorted(name for name in MODULES if name.startswith(f"{package}."))
    assert len(names) <= {"cli": 14, "exports": 10, "runtime": 9, "transcripts": 9}.get(package, 8), names


def test_benchmarks_have_no_import_cycle() -> None:
    folder = SOURCE.parents[1] / "benchmarks"
    files = {path.stem: path for path in folder.glob("*.py")}
    graph = {name: libraries(path) & files.keys() for name, path in files.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_only_the_normalizer_imports_sudachi() -> None:
    assert [name for name, path in MODULES.items() if "sudachipy" in libraries(path)] == ["metrics.normalizer"]
