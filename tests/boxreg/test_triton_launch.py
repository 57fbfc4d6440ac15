"""A kernel that is launched again is the one that Triton would choose for the arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHOSEN = """
import random
import torch
from benchmarks.gpu.kernels import compiling_for
from boxreg.functional import iou_loss
from boxreg.iou.backends import _triton_launch

def boxes(count, dtype, layout, shift):
    # A view that begins `shift` elements into its memory: its address is not always a multiple of 16 bytes.
    if layout == "planes":
        return torch.zeros(8 * count + shift, dtype=dtype)[shift:].view(2, 4, count)
    if layout == "strided":
        return torch.zeros(9 * count + shift, dtype=dtype)[shift:].view(count, 9)[:, 1:8:2]
    return torch.zeros(4 * count + shift, dtype=dtype)[shift:].view(count, 4)

draws, chosen = random.Random(0), set()
with compiling_for(90) as compiler:
    for _ in range(60):
        count = draws.choice([1, 2, 15, 16, 17, 32, 48, 64])
        layout = draws.choice(["rows", "planes", "strided"])
        dim = 1 if layout == "planes" else -1
        dtype = draws.choice([torch.float32, torch.float16])
        pred, target = (boxes(count, dtype, layout, draws.choice([0, 1, 4, 8])) for _ in range(2))
        loss = lambda: iou_loss(pred, target, reduction="sum", dim=dim, backend="triton")
        loss()
        again = compiler.launched[-1]
        kept = dict(_triton_launch._COMPILED)
        loss()
        assert _triton_launch._COMPILED == kept and compiler.launched[-1] == again
        _triton_launch._COMPILED.clear()
        loss()
        assert compiler.launched[-1] == again, (count, layout, dtype)
        _triton_launch._COMPILED.update(kept)
        chosen.add(again)
    print(len(chosen), len(_triton_launch._COMPILED))
"""


VALUES = """
import random
import torch
from benchmarks.gpu.kernels import compiling_for
from boxreg import YOLOv3Decoder
from boxreg.functional import mpdiou_loss, nwd_loss, shapeiou_loss
from boxreg.iou import pairwise_box_iou
from boxreg.iou.backends import _triton_launch, triton

draws = random.Random(0)
pred, target = torch.rand(2, 4, 3, 5, 7, requires_grad=True), torch.rand(2, 4, 3, 5, 7)
weight = torch.rand(2, 3, 5, 7)
rows = torch.rand(6, 4)

def value(low, high):
    # Integers, too: what Triton knows of them must not matter.
    return draws.choice([draws.uniform(low, high), draws.randint(1, 8), 16])

def step():
    decoder = YOLOv3Decoder(stride=value(1, 9), anchors=[(value(1, 9), value(1, 9)) for _ in range(3)])
    options = {"mode": "alpha", "alpha": draws.uniform(1, 9), "inner_ratio": draws.uniform(0.5, 2), "dim": 1}
    options |= {"decoder": decoder, "loss_weight": value(0.5, 2), "reduction": "mean", "backend": "triton"}
    options |= {"weight": weight, "normalizer": value(1, 9)}
    size = {"image_width": value(1, 900), "image_height": value(1, 900)}
    loss = mpdiou_loss(pred, target, **size, **options)
    (loss + shapeiou_loss(pred, target, scale=value(0, 2), **options)).backward()
    del options["inner_ratio"]
    nwd_loss(pred, target, constant=value(1, 90), **options).backward()
    pairwise_box_iou(rows, rows, "mpdiou", backend="triton", **size)

with compiling_for(90) as compiler:
    step()
    compiled, launched = len(compiler.found), set(compiler.launched)
    caches = len(_triton_launch._COMPILED), triton._constants.cache_info().currsize
    for _ in range(800):
        step()
    assert len(compiler.found) == compiled and set(compiler.launched) == launched
    assert caches == (len(_triton_launch._COMPILED), triton._constants.cache_info().currsize)
    print(compiled)
"""


def printed_by(script: str) -> list[int]:
    """The numbers that a script prints in a process where Triton compiles."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(number) for number in done.stdout.split()]


def test_what_is_launched_is_what_triton_would_choose() -> None:
    kernels, kept = printed_by(CHOSEN)
    assert kernels >= 6
    assert kept >= kernels


def test_ten_thousand_values_make_no_kernel_and_fill_no_cache() -> None:
    assert printed_by(VALUES) == [4]


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from boxreg.iou.backends import _triton_launch

    class Kernel:
        arg_names = ("number", "CONSTANT")

        def __getitem__(self, grid: object) -> object:
            return lambda *arguments, **constants: {(8, 1, 1): seen.append}

    class Driver:
        def get_current_device(self) -> int:
            return 0

    seen: list[object] = []
    monkeypatch.setattr(_triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(_triton_launch, "_MOST_COMPILED", 5)
    monkeypatch.setattr(_triton_launch, "_COMPILED", {})
    monkeypatch.setattr(_triton_launch.triton.runtime.driver, "_active", Driver())
    kernel = Kernel()
    for key in range(100):
        _triton_launch.launch(kernel, 8, key, (7,), {"CONSTANT": None}, 4)
        assert len(_triton_launch._COMPILED) <= 5
