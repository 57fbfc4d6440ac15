"""The commands that the page for beginners shows run, one after the other, made small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.site import DOCS
from tests.reference_trainer.runs import call_here

OURS = re.compile(r"reference_trainer (?!ablate)")
TINY = {
    "data write": ["--images", "20", "--size", "64", "--objects", "3"],
    "train": [
        "--epochs",
        "1",
        "--data.size",
        "64",
        "--data.workers",
        "0",
        "--model.width",
        "8",
        "--device",
        "cpu",
    ],
}


def commands() -> list[str]:
    """The commands of shell blocks, but for hundreds of runs; the one that writes images comes first."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / "start.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if OURS.match(line)]
    return sorted(lines, key=lambda line: "data write" not in line)


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in ("faster_coco_eval", "onnxscript", "onnxruntime"):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    names = {"PATH": "toys", "IMAGE": "toys/images/val", "IMAGES": "toys/images/val"}
    done = []
    for line in commands():
        _, *words = shlex.split(line)
        arguments = [names.get(word, word) for word in words]
        for start, options in TINY.items():
            if line.startswith(f"reference_trainer {start}"):
                arguments += options
        if words[0] == "train" and "--data" not in words:
            arguments += ["--data.images", "20"]
        result = call_here(capsys, *arguments).result
        if words[0] == "train":
            names["RUN"] = result["run"]
        done.append(words[0])
    assert set(done) == {"data", "train", "resume", "evaluate", "predict", "export"}
