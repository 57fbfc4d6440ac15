"""The package: its public names, what importing it costs, which way its imports run, its examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import boxreg
from boxreg import functional
from boxreg.iou.spec import FAMILY
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

CHECKS = {"boxreg._checks"}
LEAVES = {
    "boxreg._checks",
    "boxreg._dtypes",
    "boxreg._raw",
    "boxreg.boxes",
    "boxreg.grids",
    "boxreg.reduction",
    "boxreg.weighting",
}
# Raw outputs are decoded in the pass that finds the loss, so a loss knows decoders; they know no loss.
UNDER_LOSSES = LEAVES | {"boxreg.decoders", "boxreg.iou", "boxreg.losses"}
MAY_IMPORT = {
    **dict.fromkeys(LEAVES, CHECKS),
    "boxreg.decoders": LEAVES | {"boxreg.decoders"},
    "boxreg.heads": LEAVES | {"boxreg.decoders"},
    "boxreg.dense": LEAVES | {"boxreg.decoders", "boxreg.heads"},
    "boxreg.iou": LEAVES | {"boxreg.decoders", "boxreg.iou"},
    "boxreg.warm": {"boxreg.iou"},
    "boxreg.assigners": LEAVES | {"boxreg.iou", "boxreg.assigners"},
    "boxreg.losses": UNDER_LOSSES,
    "boxreg.losses.yolo": UNDER_LOSSES | {"boxreg.assigners", "boxreg.dense"},
    "boxreg.functional": {"boxreg.decoders", "boxreg.iou", "boxreg.losses"},
    "boxreg.parameters": CHECKS,
    "boxreg.diagnostics": LEAVES
    | {"boxreg.decoders", "boxreg.heads", "boxreg.iou", "boxreg.parameters", "boxreg.diagnostics"},
}
"""What each part of boxreg may import of boxreg; the package itself may import all of it."""

MATHS = ("geometry", "modes", "overlaps", "distances")
"""Files of `boxreg.iou` that are nothing but the maths, which backends compile."""

KERNELS = {"numba": {"numba", "llvmlite", "numpy"}, "triton": {"triton"}}
"""What the backends beside eager are made of, by what their files are named after."""

OTHER_LOSSES = {"box", "dfl", "rotated", "yolo"}
"""Files of `boxreg.losses` that are not of the IoU family."""


def part_of(module: str) -> str:
    """The part that a module belongs to: `boxreg.iou.spec` is of `boxreg.iou`."""
    return ".".join(module.split(".")[:2])


def kernel_of(module: str) -> str | None:
    """The backend beside eager whose file this is, if it is one."""
    if not module.startswith("boxreg.iou.backends."):
        return None
    return next((kernel for kernel in KERNELS if kernel in module.rpartition(".")[2]), None)


def renamed(text: str) -> str:
    """The text of GIoU as that of a loss "mine"."""
    return text.replace("giou", "mine").replace("GIoU", "Mine")


USES_OF_A_LOSS = """
import torch
from boxreg import BoxLoss, GIoULoss, MineLoss, box_iou
from boxreg.functional import giou_loss, mine_loss
from boxreg.losses import LOSSES
pred, target = torch.rand(2, 8, 4)
assert LOSSES["mine"] is MineLoss and list(LOSSES)[:3] == ["iou", "giou", "mine"]
assert torch.equal(mine_loss(pred, target), giou_loss(pred, target))
assert torch.equal(MineLoss()(pred, target), GIoULoss()(pred, target))
assert torch.equal(BoxLoss("mine")(pred, target).total, BoxLoss("giou")(pred, target).total)
assert torch.equal(box_iou(pred, target, "mine"), box_iou(pred, target, "giou"))
"""


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
            if name.endswith("_loss") and value.__module__.rpartition(".")[2] not in OTHER_LOSSES
        }
        modules = {cls for cls in IoUFamilyLoss.__subclasses__() if cls.__module__.startswith("boxreg.")}
        assert functions == set(LOSSES) == set(KINDS)
        assert modules == set(LOSSES.values())

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_loss_is_one_file(self, kind: str) -> None:
        file = f"boxreg.losses.{kind}"
        assert kind == importlib.import_module(file).KIND
        assert LOSSES[kind].__module__ == getattr(functional, f"{kind}_loss").__module__ == file
        penalty, overlap = FAMILY[kind]
        files = {term.__module__ for term in (penalty.value, penalty.grad, overlap.value, overlap.grad)}
        assert files <= {file, "boxreg.iou.overlaps"}

    def test_a_new_loss_is_its_file_and_its_lines_in_the_list(self, tmp_path: Path) -> None:
        """GIoU under another name: whatever offers losses finds it."""
        shutil.copytree(ROOT / "boxreg", tmp_path / "boxreg", ignore=shutil.ignore_patterns("__pycache__"))
        losses = tmp_path / "boxreg" / "losses"
        (losses / "mine.py").write_text(renamed((losses / "giou.py").read_text()))
        listed = losses / "__init__.py"
        text, lines = re.subn(
            r".*\bgiou_loss\b.*\n", lambda line: line[0] + renamed(line[0]), listed.read_text()
        )
        assert lines == 2
        listed.write_text(text)
        subprocess.run([sys.executable, "-c", USES_OF_A_LOSS], cwd=tmp_path, check=True)

    @pytest.mark.parametrize("name", ["box_iou", "pairwise_box_iou", "convert", "BoxLoss", "__version__"])
    def test_the_names_that_the_documentation_starts_with(self, name: str) -> None:
        assert hasattr(boxreg, name)

    def test_types_are_published(self) -> None:
        assert (ROOT / "boxreg" / "py.typed").exists()


HEAVY = (
    "numba",
    "llvmlite",
    "triton",
    "torchvision",
    "torch._dynamo",
    "torch._inductor",
    "numpy",
    "sympy",
    "reference_trainer",
)

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
        kernel = kernel_of(module)
        allowed = {"torch", "boxreg", *sys.stdlib_module_names, *(KERNELS[kernel] if kernel else ())}
        assert {name for name in IMPORTS[module] if name.split(".")[0] not in allowed} == set()

    @pytest.mark.parametrize("module", [module for module in BOXREG if module != "boxreg"])
    def test_imports_run_one_way(self, module: str) -> None:
        parts = {part_of(name) for name in IMPORTS[module] if name.split(".")[0] == "boxreg"}
        assert parts <= MAY_IMPORT.get(module, MAY_IMPORT[part_of(module)])

    @pytest.mark.parametrize("name", MATHS)
    def test_maths_is_maths_alone(self, name: str) -> None:
        ours = {module for module in IMPORTS[f"boxreg.iou.{name}"] if module.startswith("boxreg.")}
        assert ours <= {f"boxreg.iou.{other}" for other in MATHS}

    @pytest.mark.parametrize("module", [module for module in BOXREG if not kernel_of(module)])
    def test_kernels_are_chosen_in_one_place(self, module: str) -> None:
        kernels = {name for name in IMPORTS[module] if kernel_of(name)}
        assert not kernels or module in ("boxreg.iou.dispatch", "boxreg.warm")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_loss_of_the_family_knows_none_outside_of_it(self, kind: str) -> None:
        assert IMPORTS[f"boxreg.losses.{kind}"] & {f"boxreg.losses.{name}" for name in OTHER_LOSSES} == set()

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


WALKED = [info.name for info in pkgutil.walk_packages(boxreg.__path__, "boxreg.")]


def imported_module(name: str) -> ModuleType:
    """The module; skips the test if it is of a backend whose library is not installed."""
    if kernel := kernel_of(name):
        pytest.importorskip(kernel)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", WALKED)
def test_no_module_is_shadowed(name: str) -> None:
    module = imported_module(name)
    found = boxreg
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert found is module


def test_constants_that_the_documentation_names_are_reached() -> None:
    audit = boxreg.diagnostics.audit
    assert {check.__name__ for check in audit.CHECKS} >= {"optimizer_kind", "loss_terms"}
    assert audit.training.CHECKS[0] in audit.CHECKS
    assert boxreg.iou.spec.FAMILY.keys() == boxreg.losses.LOSSES.keys()
    assert "auto" in boxreg.iou.dispatch.NAMES


@pytest.mark.parametrize("name", ["boxreg", *WALKED])
def test_examples_run(name: str) -> None:
    results = doctest.testmod(imported_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
