"""The package: its public names, what importing it costs, which way its imports run, its examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import boxreg
from boxreg import functional
from boxreg.losses import LOSSES, IoUFamilyLoss
from tests.cases import KINDS

ROOT = Path(boxreg.__file__).parent.parent
PUBLIC = [name for name in vars(boxreg) if not name.startswith("_")]


def sources(package: str) -> dict[str, Path]:
    """Every module of a package in the tree: dotted name and file."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, at its top or anywhere inside."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in MODULES else origin


MODULES = {**sources("boxreg"), **sources("reference_trainer")}
IMPORTS = {module: set(imported(module, path)) for module, path in MODULES.items()}
BOXREG = [module for module in MODULES if module.split(".")[0] == "boxreg"]
TRAINER = [module for module in MODULES if module.split(".")[0] == "reference_trainer"]

LEAVES = {"boxreg._checks", "boxreg._dtypes", "boxreg.boxes", "boxreg.reduction"}
LOSS_LEAVES = {"boxreg._checks", "boxreg._dtypes", "boxreg.reduction"}
MAY_IMPORT = {
    "boxreg._checks": set(),
    "boxreg._dtypes": set(),
    "boxreg._gaussians": set(),
    "boxreg._raw": set(),
    "boxreg.boxes": {"boxreg._checks"},
    "boxreg.grids": {"boxreg._checks"},
    "boxreg.reduction": {"boxreg._checks"},
    "boxreg.weighting": {"boxreg._checks"},
    "boxreg.iou": LEAVES | {"boxreg._raw", "boxreg.decoders", "boxreg.iou", "boxreg.weighting"},
    "boxreg.losses": LEAVES | {"boxreg.decoders", "boxreg.iou", "boxreg.losses", "boxreg.weighting"},
    "boxreg.box_loss": LEAVES | {"boxreg.iou", "boxreg.losses", "boxreg.weighting"},
    "boxreg.assign": LEAVES | {"boxreg.iou", "boxreg.grids", "boxreg.assign"},
    "boxreg.rotated": LOSS_LEAVES | {"boxreg._gaussians"},
    "boxreg.dfl": LOSS_LEAVES,
    "boxreg.functional": {"boxreg.iou", "boxreg.losses", "boxreg.rotated", "boxreg.dfl"},
    "boxreg.decoders": {
        "boxreg._checks",
        "boxreg._raw",
        "boxreg.boxes",
        "boxreg.decoders",
        "boxreg.dfl",
        "boxreg.grids",
    },
    "boxreg.heads": {"boxreg._checks", "boxreg.boxes", "boxreg.decoders"},
    "boxreg.dense": {"boxreg._checks", "boxreg.decoders", "boxreg.grids", "boxreg.heads"},
    "boxreg.param_groups": {"boxreg._checks"},
}
"""What each part of boxreg may import of boxreg; the package itself and later parts may import all of it."""


def part_of(module: str) -> str:
    """The part of the layering that a module belongs to: `boxreg.iou.family` is of `boxreg.iou`."""
    return ".".join(module.split(".")[:2])


class TestNames:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_public_names_are_documented(self, name: str) -> None:
        value = getattr(boxreg, name)
        assert (value.__doc__ or "").strip()

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_loss_has_a_function_and_a_module(self, kind: str) -> None:
        assert callable(getattr(functional, f"{kind}_loss"))
        (name,) = [name for name in PUBLIC if name.lower() == f"{kind}loss"]
        module = getattr(boxreg, name)
        assert issubclass(module, IoUFamilyLoss)
        assert module.kind == kind

    def test_every_function_and_module_is_listed(self) -> None:
        functions = {
            name.removesuffix("_loss")
            for name, value in vars(functional).items()
            if name.endswith("_loss") and value.__module__.startswith("boxreg.losses.")
        }
        modules = {cls for cls in IoUFamilyLoss.__subclasses__() if cls.__module__.startswith("boxreg.")}
        assert functions == set(LOSSES) == set(KINDS)
        assert modules == set(LOSSES.values())

    @pytest.mark.parametrize("name", ["box_iou", "pairwise_box_iou", "convert", "BoxLoss", "__version__"])
    def test_the_names_that_the_documentation_starts_with(self, name: str) -> None:
        assert hasattr(boxreg, name)

    def test_types_are_published(self) -> None:
        assert (ROOT / "boxreg" / "py.typed").exists()


HEAVY = ("triton", "torchvision", "torch._dynamo", "torch._inductor", "numpy", "sympy", "reference_trainer")

ADDED_BY_IMPORT = """
import sys
import torch
before = set(sys.modules)
import boxreg, boxreg.functional
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def test_importing_costs_nothing_beyond_torch() -> None:
    process = subprocess.run(
        [sys.executable, "-c", ADDED_BY_IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    added = process.stdout.split()
    assert "boxreg" in added
    assert [name for name in added if name.startswith(HEAVY)] == []
    allowed = {"boxreg", "torch", *sys.stdlib_module_names}
    assert [name for name in added if name.split(".")[0] not in allowed] == []


class TestImports:
    @pytest.mark.parametrize("module", BOXREG)
    def test_boxreg_needs_torch_alone(self, module: str) -> None:
        allowed = {"torch", "boxreg", *sys.stdlib_module_names}
        # Where they are there: imported when they are first wanted, and done without otherwise.
        optional = {"boxreg.iou._libraries": "numpy"}
        allowed |= {optional.get(module, "triton" if "._triton" in module else "torch")}
        assert {name for name in IMPORTS[module] if name.split(".")[0] not in allowed} == set()

    @pytest.mark.parametrize("module", [module for module in BOXREG if part_of(module) in MAY_IMPORT])
    def test_imports_run_one_way(self, module: str) -> None:
        parts = {part_of(name) for name in IMPORTS[module] if name.split(".")[0] == "boxreg"}
        assert parts <= MAY_IMPORT[part_of(module)]

    @pytest.mark.parametrize("module", TRAINER)
    def test_the_trainer_uses_the_public_face(self, module: str) -> None:
        private = {
            name
            for name in IMPORTS[module]
            if name.startswith("boxreg.") and any(part.startswith("_") for part in name.split("."))
        }
        assert private == set()

    @pytest.mark.parametrize("module", [*BOXREG, *TRAINER])
    def test_packages_do_not_import_tests_or_benchmarks(self, module: str) -> None:
        assert {name for name in IMPORTS[module] if name.split(".")[0] in ("tests", "benchmarks")} == set()

    def test_the_reader_of_imports_sees_them(self) -> None:
        assert "boxreg.iou.spec" in IMPORTS["boxreg.iou.functional"]
        assert "boxreg._checks" in IMPORTS["boxreg.iou.functional"]
        assert "boxreg.losses" in IMPORTS["boxreg"]


WALKED = [
    info.name
    for info in pkgutil.walk_packages(boxreg.__path__, "boxreg.")
    if not info.name.endswith("._triton")  # imported only where a GPU asks for it
]


@pytest.mark.parametrize("name", ["boxreg", *WALKED])
def test_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
