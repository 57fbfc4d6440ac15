from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from reference_trainer import report
from reference_trainer.config import TrainConfig
from reference_trainer.meter import Step
from reference_trainer.objective import Objective
from reference_trainer.tasks import build_task

TERMS = {"coord": torch.tensor(0.25), "iou": torch.tensor(1.5)}
STEP = Step(
    Objective(torch.tensor(1.75), TERMS, TERMS, torch.tensor(2.0)),
    {"iou": torch.tensor([0.5, 0.75])},
    torch.tensor(1.0),
)


def new_report(out: Path, steps_per_epoch: int) -> report.RunReport:
    config = TrainConfig(epochs=2, out=out)
    return report.RunReport(config, build_task(config), steps_per_epoch)


def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """What the progress over three of four steps writes, on a terminal or elsewhere."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    monkeypatch.setattr(report, "console", console)
    run = new_report(tmp_path, steps_per_epoch=2)
    with run.bar() as bar:
        for _ in range(3):
            run.step(2, STEP, 3e-3, 321.0)
        bar.refresh()
    return stream.getvalue()


def test_a_terminal_gets_one_bar_with_all_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = shown(tmp_path, monkeypatch, terminal=True)
    for figure in ("epoch 2", "coord 0.25", "iou 1.50", "IoU 0.625", "lr 3.0e-03", "321 images/s", "eta"):
        assert figure in written, figure
    assert "\x1b[" in written
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    # Three of four steps on ten columns: seven and a half.
    assert f"epoch 2 {'━' * 7}╸{'━' * 2} train IoU" in plain
    assert written.endswith("\x1b[2K"), "the bar is wiped away at the end"


def test_elsewhere_no_bar_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(tmp_path, monkeypatch, terminal=False) == ""


@pytest.mark.parametrize(
    ("typed", "on_path", "shown"),
    [
        (".venv/bin/reference_trainer", None, ".venv/bin/reference_trainer"),
        ("/bin/reference_trainer", "/bin/reference_trainer", "reference_trainer"),
        ("/lib/reference_trainer/__main__.py", None, "reference_trainer"),
    ],
)
def test_what_to_type_next_can_be_typed(
    typed: str, on_path: str | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [typed, "train"])
    monkeypatch.setattr("shutil.which", lambda _: on_path)
    run = new_report(tmp_path, steps_per_epoch=2)
    assert run.command("resume") == f"{shown} resume {run.folder}"
