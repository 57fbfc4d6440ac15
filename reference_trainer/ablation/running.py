"""Many trainings side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

from .plan import Job

Training = Callable[[Any, Path], dict[str, Any]]
"""From a configuration, and a folder for its files, to what came of it; UserError if it cannot go on."""

MESSAGES = "messages.txt"
KEPT = 2_000
"""How many characters of an error are kept."""


def train_once(config: Any, folder: Path) -> dict[str, Any]:
    """Train; returns the scores of the last and of the best epoch. Nothing is drawn."""
    import torch

    from .. import ranks
    from ..report import machine
    from ..stopping import StopRequest
    from ..train import learn, prepare

    started = time.perf_counter()
    with ranks.joined():
        run = prepare(config.model_copy(update={"out": folder}), None)
        run.report.batch_drawn = True
        learn(run, StopRequest())
    scores = [row["val_mean_iou"] for row in run.progress.rows]
    return {
        "final": scores[-1],
        "best": max(scores),
        "best_epoch": scores.index(max(scores)) + 1,
        "epochs": len(scores),
        "steps": run.progress.step,
        "train_iou": run.progress.rows[-1]["train_iou"],
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine()
        | {"cores": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability()},
    }


class Ended(NamedTuple):
    """A run that is over: its result, or `error` in it, and `died` if its process ended without a word."""

    job: Job
    result: dict[str, Any]
    folder: Path


def run_all(
    jobs: Sequence[Job], side_by_side: int, threads: int, folder: Path, training: Training = train_once
) -> Generator[Ended, None, None]:
    """Train all jobs, `side_by_side` at a time, in their order; yields each as it ends. Leaving ends all.

    Args:
        jobs: what to train.
        side_by_side: processes.
        threads: how many each has.
        folder: for the files of runs, each in a folder of its own.
        training: what each process does.
    """
    # Forked from a process that has imported torch and nothing more: a start takes no time, and no thread
    # is lost in a fork.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = cast("multiprocessing.context.SpawnContext", multiprocessing.get_context(method))
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["reference_trainer.train"])
    waiting, running = list(reversed(jobs)), dict[Connection, tuple[Any, Job, Path]]()
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                job = waiting.pop()
                place = Path(tempfile.mkdtemp(prefix=f"{job.digest}-seed{job.seed}-", dir=folder))
                answers, end = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(end, training, job.config, place, threads))
                # Before it is started: an interruption may come between any two lines.
                running[answers] = process, job, place
                process.start()
                end.close()
            for ready in wait(list(running)):
                answers = cast("Connection", ready)
                process, job, place = running[answers]
                try:
                    result = answers.recv()
                except EOFError:
                    process.join()
                    result = {"error": _last_words(process.exitcode, place), "died": True}
                process.join()
                answers.close()
                del running[answers]
                yield Ended(job, result, place)
    finally:
        started = [process for process, _, _ in running.values() if process.pid]
        for process in started:
            process.kill()
        for process in started:
            process.join()


def _child(answers: Connection, training: Training, config: Any, folder: Path, threads: int) -> None:
    """What a process of its own does; it ends with the one that started it, however that ends."""
    # Ctrl-C reaches all processes of a terminal: the first of them says what becomes of the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    messages = os.open(folder / MESSAGES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(messages, sys.stdout.fileno())
    os.dup2(messages, sys.stderr.fileno())
    import torch

    from ..errors import UserError

    torch.set_num_threads(threads)
    try:
        result = training(config, folder)
    except UserError as error:
        result = {"error": str(error)[:KEPT]}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"[:KEPT]}
    answers.send(result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _last_words(code: int | None, folder: Path) -> str:
    said = (folder / MESSAGES).read_text(errors="replace") if (folder / MESSAGES).exists() else ""
    return f"its process ended with code {code}: {said.strip()[-KEPT:]}"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that what is running is ended first."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
