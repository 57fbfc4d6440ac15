"""Breaks the trainer on purpose, many times, and counts how often nothing was lost.

    python -m benchmarks.faults                        the whole table, into benchmarks/results
    python -m benchmarks.faults --breaks 4 --bits 10 --cuts 5 --turns 1 --out /tmp  a trial

A child process is forked for each run. The full disk is a tmpfs of its own where mounting is allowed (root).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from reference_trainer import evaluate, train
from reference_trainer.checkpoint import newest_state, states, unpack_state
from reference_trainer.errors import CheckpointError
from reference_trainer.learner import Learner

from .bare_loop import IMAGES, bare_speed, trainer_speed
from .breaking import (
    SETTINGS,
    STEPS,
    counted,
    fingerprint,
    finish,
    kill_after_a_state,
    run_folder,
    start,
)
from .machine import describe

HERE = Path(__file__).parent
EPOCHS = 3
RUN = ["train", *SETTINGS, "--epochs", str(EPOCHS)]
DISK = 5 * 2**20
"""Bytes of the full file system: room for the first states of a run, but not for all it keeps."""


def main() -> int:
    options = arguments()
    draws = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        finish(start([*RUN, "--data.workers", "0", "--out", str(work / "whole")], nothing, work / "log"))
        whole = fingerprint(run_folder(work / "whole"))
        rows = [
            *terms(work, whole, options.breaks, draws),
            kills(work, whole, options.breaks, draws),
            damages(run_folder(work / "whole"), options.bits, options.cuts, draws),
            full_disk(work),
            speed(options.turns),
        ]
    written = options.out / "faults.md"
    written.write_text(markdown(rows))
    print(written.read_text())
    return 0 if all(met for *_, met in rows) else 1


Row = tuple[str, str, str, bool]
"""What was done, the aim, what was measured, whether that meets the aim."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--breaks", type=int, default=20, help="runs that get SIGTERM, and as many SIGKILL")
    parser.add_argument("--bits", type=int, default=200, help="bits to flip, one at a time")
    parser.add_argument("--cuts", type=int, default=50, help="truncations")
    parser.add_argument("--turns", type=int, default=3, help="of the trainer and the bare loop")
    parser.add_argument("--seed", type=int, default=0, help="decides where runs break")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write to")
    return parser.parse_args()


def nothing() -> None:
    """Leave a run as it is."""


def stopping(owner: object, name: str, at: int) -> Callable[[], None]:
    """What makes a run send itself SIGTERM before call number `at` of a function."""

    def ready() -> None:
        stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        setattr(owner, name, counted(getattr(owner, name), at, stop))

    return ready


def forget_random_numbers() -> None:
    """Resume without restoring torch's generators."""
    setattr(train, "restore_random_state", lambda state: None)  # noqa: B010 (mypy: not exported)


def terms(work: Path, whole: str, breaks: int, draws: random.Random) -> Iterator[Row]:
    """SIGTERM at random steps, one in four inside validation; resumed with another number of workers."""
    same = differs = places = 0
    for number in range(breaks):
        validating = number % 4 == 3
        most = EPOCHS if validating else EPOCHS * STEPS - 1
        owner, name = (evaluate, "prepare_images") if validating else (Learner, "gradients")
        out = work / f"term-{number}"
        ready, workers = stopping(owner, name, draws.randint(1, most)), number % 2
        first = [*RUN, "--data.workers", str(1 - workers), "--out", str(out)]
        if finish(start(first, ready, work / "log")) != 128 + signal.SIGTERM:
            continue
        run, places = run_folder(out), places + validating
        twin = Path(shutil.copytree(run, work / f"twin-{number}"))
        finish(start(["resume", str(run), "--workers", str(workers)], nothing, work / "log"))
        same += fingerprint(run) == whole
        finish(start(["resume", str(twin), "--workers", "0"], forget_random_numbers, work / "log"))
        differs += fingerprint(twin) != whole
    yield (
        f"SIGTERM at {breaks} random steps, {places} of them inside validation; resumed with other workers",
        "the same weights, average, optimizer and metrics.jsonl as without a break",
        f"{same} of {breaks}",
        same == breaks,
    )
    yield (
        "the same without restoring the random numbers",
        "a difference is seen",
        f"{differs} of {breaks}",
        # A break after the last step that draws has nothing to restore.
        differs > 0,
    )


def kills(work: Path, whole: str, breaks: int, draws: random.Random) -> Row:
    """SIGKILL at random moments of a run that saves every step."""
    same = training = 0
    for number in range(breaks):
        out = work / f"kill-{number}"
        first = [*RUN, "--data.workers", str(number % 2), "--save-every", "1", "--out", str(out)]
        training += kill_after_a_state(start(first, nothing, work / "log"), out, draws.uniform(0, 2.5))
        run = run_folder(out)
        finish(start(["resume", str(run), "--workers", str(1 - number % 2)], nothing, work / "log"))
        same += fingerprint(run) == whole
    return (
        f"SIGKILL at {breaks} random moments, {training} before the run's end, with a save every step",
        "resumes to the same",
        f"{same} of {breaks}",
        same == breaks,
    )


def damages(run: Path, bits: int, cuts: int, draws: random.Random) -> Row:
    """Flipped bits and truncations of the newest state."""
    before, newest = states(run)[-2:]
    whole, seen = newest.read_bytes(), 0
    size = len(whole)
    for number in range(bits + cuts):
        if number < bits:
            broken, bit = bytearray(whole), draws.randrange(8 * size)
            broken[bit // 8] ^= 1 << bit % 8
        else:
            broken = bytearray(whole[: draws.randrange(size)])
        newest.write_bytes(broken)
        found = newest_state(run)
        seen += found.path == before and str(newest) in found.damaged.get(newest, "")
    newest.write_bytes(whole)
    return (
        f"{bits} flipped bits and {cuts} truncations of the newest state, of {size:,} bytes",
        "named, and the one before it used",
        f"{seen} of {bits + cuts}",
        seen == bits + cuts,
    )


def full_disk(work: Path) -> Row:
    """A run on a file system that is too small for it."""
    what = f"a file system of {DISK // 2**20} MiB, full"
    aim = "training goes on, the states saved before stay whole, exit code and last message say so"
    with tmpfs(work / "tiny") as tiny:
        if tiny is None:
            return what, aim, "not measured: mounting is not allowed", False
        log = work / "full"
        out = tiny / "runs"
        code = finish(start([*RUN, "--data.workers", "0", "--out", str(out)], nothing, log))
        run, last = run_folder(out), log.read_text().splitlines()[-2]
        trained = sum(line.startswith("epoch ") for line in log.read_text().splitlines())
        whole = [path for path in states(run) if is_whole(path)]
        left = list(run.rglob("*.unfinished"))
        met = code == 1 and "NOT SAVED" in last and trained == EPOCHS and whole == states(run) and not left
    return (
        what,
        aim,
        f"{trained} of {EPOCHS} epochs, {len(whole)} whole states, exit code {code}, “{last.split(';')[0]}”",
        met,
    )


def is_whole(path: Path) -> bool:
    """Whether a state passes its check."""
    try:
        unpack_state(path)
    except CheckpointError:
        return False
    return True


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[Path | None]:
    """A small file system in memory, or None where mounting is not allowed."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def speed(turns: int) -> Row:
    """The trainer against a bare loop, in turns."""
    pairs = [(trainer_speed(), bare_speed()) for _ in range(turns)]
    trainer, bare = (median(column) for column in zip(*pairs, strict=True))
    return (
        f"the trainer, saving each epoch, against a bare loop; median of {turns}, {IMAGES} images",
        "at least 0.9 of its images/s",
        f"{trainer / bare:.2f} ({trainer:.0f} and {bare:.0f} images/s)",
        trainer / bare >= 0.9,
    )


def markdown(rows: list[Row]) -> str:
    """The rows, with the machine they were measured on."""
    machine = ", ".join(f"{name} {value}" for name, value in describe(torch.device("cpu")).items())
    head = [
        "# Faults: runs that are broken on purpose",
        "",
        f"Written by `python -m benchmarks.faults` on {time.strftime('%Y-%m-%d')}. {machine}.",
        "",
        "| what was done | aim | measured | met |",
        "|---|---|---|---|",
    ]
    body = [f"| {' | '.join(cells)} | {'yes' if met else 'NO'} |" for *cells, met in rows]
    return "\n".join([*head, *body]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
