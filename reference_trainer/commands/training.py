"""The commands `train` and `resume`, and `replay` of what stopped them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..config import Device
from ..errors import ElsewhereError, UserError
from .arguments import read, read_known
from .settings import BaseOptions, first_here, settings

STOPPED = {"SIGINT": 130, "SIGTERM": 143}
"""Exit codes of a run that a signal stopped."""

LOST = 1
"""Exit code of a run that could not save all that it should, or that has lost one of its ranks."""


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run exactly where it was last saved; what comes of it is as if it had never stopped."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    epochs: int | None = None
    """Epochs to train in all: a finished run goes on, with the learning rate of a run of that length."""
    workers: int | None = None
    """Processes that augment images from here on; they change no result."""
    device: Device | None = None
    """Where to train from here on; by default where the run was."""


@dataclass(frozen=True)
class ReplayOptions:
    """Meet the batch again whose loss or gradient was not finite, and name what is not; ends with 1 then."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


def train(arguments: list[str]) -> int:
    """The command `train`."""
    with said_once():
        base, rest = read_known(BaseOptions, arguments, "train", add_help=False)
        config = settings(base, rest, "train")

    from ..train import train as run

    return report_end(run(config))


def resume(arguments: list[str]) -> int:
    """The command `resume`."""
    with said_once():
        options = read(ResumeOptions, arguments, "resume")

    from ..train import resume as run

    return report_end(run(options.run, options.epochs, options.workers, options.device))


def replay(arguments: list[str]) -> int:
    """The command `replay`."""
    options = read(ReplayOptions, arguments, "replay")

    from ..nonfinite import replay as run
    from ..report import print_result

    result, lines = run(options.run, options.device)
    print("\n".join(lines))
    print_result(result)
    return 0 if result["finite"] else 1


@contextmanager
def said_once() -> Iterator[None]:
    """All ranks that torchrun starts here find what is wrong with arguments; the first one says it."""
    try:
        yield
    except (UserError, OSError) as error:
        if first_here():
            raise
        raise ElsewhereError from error


def report_end(summary: dict[str, Any]) -> int:
    """Print what came of a training run; returns the exit code. Nothing came of it if rank 0 says it."""
    if not summary:
        return 0
    from ..report import print_result

    lost = ["lost"] if summary["lost"] else []
    print_result({key: summary[key] for key in ("run", "task", *summary["shown"], "seconds", *lost)})
    if lost:
        return LOST
    return STOPPED[summary["stopped_by"]] if summary["stopped_by"] else 0
