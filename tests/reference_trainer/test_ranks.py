"""Several ranks that train together: the same as one rank alone, and none waits for a lost one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.breaking import SETTINGS, counted, fingerprint, finish, run_folder, start
from reference_trainer import ranks
from reference_trainer import train as train_module
from reference_trainer.__main__ import main
from reference_trainer.checkpoint import newest_state
from reference_trainer.data.loading import Batch, ObjectBatch
from reference_trainer.errors import ConfigError
from reference_trainer.learner import Learner
from reference_trainer.meter import Step
from tests.reference_trainer.runs import ROOT, command

pytestmark = [
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch is built without torch.distributed"
    ),
]

# 50 images to train on in batches of 7: the last of an epoch has one image, and one rank none.
UNEVEN = ["--data.images", "63", "--data.size", "64", "--data.workers", "0", "--model.width", "8"]
UNEVEN += ["--batch-size", "7", "--validate-every", "6", "--device", "cpu"]

Ready = Callable[[], None]


def nothing() -> None: ...


def together(
    log: Path, arguments: list[str], ready: dict[int, Ready] | None = None, count: int = 2
) -> list[int | None]:
    """Processes as torchrun starts them, but forked; what they say goes to `log`.0, `log`.1 and so on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int) -> Ready:
        def act() -> None:
            meeting = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": count,
            }
            os.environ.update({name: str(value) for name, value in meeting.items()})
            os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
            # Not those that pytest has put there.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            (ready or {}).get(rank, nothing)()

        return act

    logs = [log.with_name(f"{log.name}.{rank}") for rank in range(count)]
    processes = [start(arguments, begin(rank), logs[rank]) for rank in range(count)]
    return [finish(process) for process in processes]


def said_by(rank: int, folder: Path) -> str:
    """What a rank has said."""
    return (folder / f"log.{rank}").read_text()


def at_step(number: int, act: Ready) -> Ready:
    """Have a rank do something before it computes a step."""

    def patch() -> None:
        Learner.gradients = counted(Learner.gradients, number, act)  # type: ignore[method-assign]

    return patch


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [
        (["--model.head", "dense"], "7"),
        # AdamW's first steps go as far for a gradient that is rounded away from 0 as for any other.
        (["--model.head", "pooled", "--data.scales", "48", "64", "--optimizer.name", "sgd"], "2"),
        (["--task", "grid", "--accumulate", "3", "--optimizer.name", "sgd"], "2"),
    ],
    ids=["dense", "pooled, sizes", "grid, accumulated"],
)
def test_two_ranks_learn_what_one_learns(kind: list[str], epochs: str, tmp_path: Path) -> None:
    settings = ["train", *UNEVEN, "--epochs", epochs, *kind, "--validate-every", "2", "--ema-decay", "0.5"]
    assert main([*settings, "--out", str(tmp_path / "one")]) == 0
    assert together(tmp_path / "log", [*settings, "--out", str(tmp_path / "two")]) == [0, 0]
    runs = [run_folder(tmp_path / name) for name in ("one", "two")]
    one, two = (newest_state(run).state for run in runs)
    assert two["step"] == 8 * int(epochs)
    for name in ("model", "ema"):
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for ours, theirs in zip(*rows, strict=True):
        for name in ("loss", "train_iou", "gradient_norm", "val_mean_iou", "val_median_iou", "val_ap"):
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], rel=1e-3), name
        assert (theirs["images"], theirs["steps"]) == (50, 8)
    assert said_by(1, tmp_path) == "", "rank 0 alone speaks"
    assert "shared by 2 ranks" in said_by(0, tmp_path)


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    settings = ["train", *SETTINGS, "--epochs", "2", "--data.workers", "0"]
    assert together(tmp_path / "log", [*settings, "--out", str(tmp_path / "whole")]) == [0, 0]
    stop = {1: at_step(11, lambda: signal.raise_signal(signal.SIGTERM))}
    assert together(tmp_path / "log", [*settings, "--out", str(tmp_path / "run")], stop) == [143, 0]
    run = run_folder(tmp_path / "run")
    assert newest_state(run).state["step"] == 11
    assert "stopped by SIGTERM after step 11; go on with" in said_by(0, tmp_path)
    # With the same number of ranks as before it is bit for bit the same, dropout included.
    assert together(tmp_path / "log", ["resume", str(run)]) == [0, 0]
    assert fingerprint(run) == fingerprint(run_folder(tmp_path / "whole"))


def test_a_run_goes_on_in_another_number_of_ranks(tmp_path: Path) -> None:
    settings = ["train", *UNEVEN, "--epochs", "2"]
    assert main([*settings, "--out", str(tmp_path / "one")]) == 0
    # Inside the first validation.
    stop = {0: at_step(8, lambda: os.kill(os.getpid(), signal.SIGINT))}
    assert together(tmp_path / "log", [*settings, "--out", str(tmp_path / "two")], stop) == [130, 0]
    run = run_folder(tmp_path / "two")
    assert main(["resume", str(run)]) == 0
    one, two = (newest_state(run_folder(tmp_path / name)).state for name in ("one", "two"))
    assert two["step"] == 16
    torch.testing.assert_close(two["model"], one["model"], rtol=0, atol=1e-5)


def test_a_killed_process_ends_the_job_and_no_step_is_lost(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = command("train", *SETTINGS, "--epochs", "500", "--data.workers", "0", "--out", tmp_path / "runs")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen([*torchrun, *run[1:]], cwd=ROOT, env=environment, stderr=log, stdout=log)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/step-*.pt")))
        before = time.monotonic()
        os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
        assert job.wait(timeout=60) == 1
        assert time.monotonic() - before < 10
    finally:
        job.kill()
    said = (tmp_path / "log").read_text()
    assert "rank 0: another rank is gone, which may have said why" in said
    state = newest_state(run_folder(tmp_path / "runs")).state
    assert f"stopped by the end of another rank after step {state['step']}; go on with" in said
    assert "Signal 9" in said, "torchrun names the process"


def wait_for(there: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(parent: int) -> list[int]:
    """The processes that torchrun has started, those of higher rank last."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("the children of a process are not known")
    return sorted(map(int, children.read_text().split()))


def test_other_weights_are_found_after_the_epoch_and_the_process_named(tmp_path: Path) -> None:
    def disturb() -> None:
        move = Learner.move

        def moved(learner: Learner, step: Step) -> None:
            move(learner, step)
            with torch.no_grad():
                next(learner.model.parameters())[0, 0, 0, 0] += 1e-6

        Learner.move = moved  # type: ignore[method-assign]

    settings = ["train", *UNEVEN, "--epochs", "1", "--out", str(tmp_path / "runs")]
    assert together(tmp_path / "log", settings, {1: disturb}) == [2, 0]
    assert "the weights of rank 1 are not those of the other ranks" in said_by(0, tmp_path)
    assert said_by(1, tmp_path) == ""


def test_what_is_wrong_with_the_data_is_said_once(tmp_path: Path) -> None:
    settings = [
        "train",
        "--data",
        str(tmp_path / "nowhere"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert together(tmp_path / "log", settings) == [2, 0]
    assert said_by(0, tmp_path).count("no such file or folder") == 1
    assert said_by(1, tmp_path) == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--batchsize", "3"], "unknown option --batchsize"),
        (["--schedule.warmup-steps", "900"], "warmup_steps: got 900, but the run has 8 steps"),
    ],
    ids=["argument", "setting"],
)
def test_what_is_wrong_with_a_setting_is_said_once(wrong: list[str], message: str, tmp_path: Path) -> None:
    settings = ["train", *UNEVEN, "--epochs", "1", *wrong, "--out", str(tmp_path / "runs")]
    assert together(tmp_path / "log", settings) == [2, 0]
    assert said_by(0, tmp_path).count(message) == 1
    assert said_by(1, tmp_path) == ""
    assert not (tmp_path / "runs").exists()


def test_what_one_process_alone_finds_before_it_trains_it_says_and_the_other_ends(tmp_path: Path) -> None:
    def refuse() -> None:
        def no_room(*settings: object) -> int:
            raise ConfigError("not on this machine")

        train_module.warmup_steps = no_room  # type: ignore[attr-defined]

    settings = ["train", *UNEVEN, "--epochs", "1", "--out", str(tmp_path / "runs")]
    assert together(tmp_path / "log", settings, {1: refuse}) == [0, 2]
    assert "rank 1: not on this machine" in said_by(1, tmp_path)
    assert said_by(0, tmp_path) == ""


def test_an_error_of_one_process_ends_the_others_with_their_state_saved(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("the disk of this machine is gone")

    settings = ["train", *UNEVEN, "--epochs", "1", "--out", str(tmp_path / "runs")]
    assert together(tmp_path / "log", settings, {1: at_step(4, fail)}) == [1, 2]
    assert "rank 1: the disk of this machine is gone" in said_by(1, tmp_path)
    assert "after step 3; go on with" in said_by(0, tmp_path)
    assert newest_state(run_folder(tmp_path / "runs")).state["step"] == 3


def test_what_is_not_finite_in_one_process_stops_all_and_its_images_are_named(tmp_path: Path) -> None:
    settings = ["train", *UNEVEN, "--epochs", "1", "--optimizer.name", "sgd", "--optimizer.lr", "1e12"]
    settings += ["--clip-norm", "None", "--out", str(tmp_path / "runs")]
    assert together(tmp_path / "log", settings) == [2, 0]
    said = said_by(0, tmp_path)
    assert "loss or gradient not finite at step" in said
    assert "reference_trainer replay" in said
    state = torch.load(run_folder(tmp_path / "runs") / "nonfinite.pt", weights_only=True)
    assert len(state["images"]) == len(state["batch"]["images"]) == 7
    assert said_by(1, tmp_path) == ""


@pytest.mark.parametrize(
    ("digests", "expected"), [("aaa", []), ("aab", [2]), ("abb", [0]), ("ab", [1]), ("abca", [1, 2])]
)
def test_the_ranks_that_differ_are_those_unlike_most(digests: str, expected: list[int]) -> None:
    assert ranks.differing(digests) == expected


def say_the_group() -> None:
    """Have a rank say, at each step, which group it is in and what computes its gradients."""
    gradients = Learner.gradients

    def said(learner: Learner, batch: Batch | ObjectBatch) -> Step:
        group = f"{torch.distributed.get_backend()} of {torch.distributed.get_world_size()}"
        print(f"group {group}, {type(learner.parallel).__name__}")
        return gradients(learner, batch)

    Learner.gradients = said  # type: ignore[method-assign]


@pytest.mark.parametrize("task", ["single", "grid"])
def test_a_process_that_torchrun_starts_alone_forms_a_group_and_changes_no_bit(
    task: str, tmp_path: Path
) -> None:
    settings = ["train", *SETTINGS, "--task", task, "--epochs", "1", "--data.workers", "0"]
    finish(start([*settings, "--out", str(tmp_path / "alone")], nothing, tmp_path / "log"))
    ready = {0: say_the_group}
    assert together(tmp_path / "log", [*settings, "--out", str(tmp_path / "group")], ready, count=1) == [0]
    assert said_by(0, tmp_path).count("group gloo of 1, DistributedDataParallel") == 8
    alone, group = (fingerprint(run_folder(tmp_path / name)) for name in ("alone", "group"))
    assert group == alone


def no_memory_once() -> None:
    """Have memory end once, late in a backward pass, when most gradients have been seen."""
    backward, left = Learner._backward, [1]

    def no_room(gradient: Tensor) -> None:
        if left:
            left.pop()
            raise torch.OutOfMemoryError("no room")

    def short(learner: Learner, batch: Batch | ObjectBatch) -> Any:
        hook = next(learner.model.parameters()).register_hook(no_room)
        try:
            return backward(learner, batch)
        finally:
            hook.remove()

    Learner._backward = short  # type: ignore[method-assign]


def test_out_of_memory_in_a_group_of_one_the_batch_is_worked_on_in_parts(tmp_path: Path) -> None:
    settings = ["train", *SETTINGS, "--epochs", "1", "--data.workers", "0"]
    finish(start([*settings, "--out", str(tmp_path / "alone")], no_memory_once, tmp_path / "log"))
    ready = {0: no_memory_once}
    assert together(tmp_path / "log", [*settings, "--out", str(tmp_path / "group")], ready, count=1) == [0]
    assert "from here on each batch is worked on in 2 parts" in said_by(0, tmp_path)
    alone, group = (fingerprint(run_folder(tmp_path / name)) for name in ("alone", "group"))
    assert group == alone


@pytest.mark.parametrize(("gpus", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_a_group_exchanges_what_is_on_the_cpu_and_what_is_on_a_gpu(
    gpus: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", asked.append)
    with ranks.joined():
        assert asked == [backend]


def test_who_says_that_there_is_one_process_without_torchrun_forms_no_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with ranks.joined():
        assert not ranks.in_group()


def test_a_single_process_communicates_with_nobody() -> None:
    with ranks.joined():
        assert (ranks.rank(), ranks.world_size(), ranks.on_this_machine()) == (0, 1, 1)
        assert list(ranks.share(3)) == [0, 1, 2]
        assert ranks.from_rank_zero(lambda: 5) == 5
