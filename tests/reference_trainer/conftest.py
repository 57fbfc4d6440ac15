"""Runs that several files look at; each is trained once."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.breaking import undraw
from reference_trainer.__main__ import main
from tests.reference_trainer.runs import LEARN, SIZE, SMALL, Done, call


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Runs that draw nothing."""
    with pytest.MonkeyPatch.context() as patch:
        undraw(patch.setattr)
        yield


@pytest.fixture(scope="session")
def small(folder: Path) -> Done:
    return call("train", *SMALL, "--out", folder / "small")


@pytest.fixture(scope="session")
def learned(folder: Path) -> Done:
    return call("train", *LEARN, "--out", folder / "learned")


@pytest.fixture(scope="session")
def yolo(folder: Path) -> Path:
    """The toy images of the small run as a YOLO folder."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        place = str(folder / "toy-folder")
        assert main(["data", "write", place, "--images", "40", "--size", str(SIZE)]) == 0
    assert json.loads(out.getvalue()) == {"data": place, "train": 32, "val": 8}
    return folder / "toy-folder"
