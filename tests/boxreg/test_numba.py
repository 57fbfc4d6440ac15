"""The kernels of the CPU: threads, processes, the cache on disk, and what they must not keep."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from boxreg import CIoULoss, pairwise_box_iou, warm
from boxreg.decoders import GridCellDecoder
from tests.cases import KINDS, aligned_loss, eps, seeded, upright, value_and_gradients, wild_pairs

numba = pytest.importorskip("numba")

from boxreg.iou.backends import _numba_maths  # noqa: E402
from boxreg.iou.backends import numba as backend  # noqa: E402

MANY = 40_000
"""Pairs that several threads share."""


@pytest.fixture
def threads() -> object:
    """Sets the number of threads, and puts back what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def many(count: int = MANY) -> tuple[Tensor, Tensor]:
    pred, target = (upright(seeded(seed), count).float() for seed in (1, 2))
    return pred.requires_grad_(), target


def loss_and_grad(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = CIoULoss()(pred, target)
    return loss.detach(), *torch.autograd.grad(loss, pred)


class TestThreads:
    def test_any_number_gives_the_same_bits(self, threads) -> None:  # type: ignore[no-untyped-def]
        pred, target = many()
        other = target[:4000]
        found = []
        for number in (1, 2, 3, 8):
            threads(number)
            scores = pairwise_box_iou(pred[:700], other[:600])
            (grad,) = torch.autograd.grad(scores.square().sum(), pred)
            found.append([*loss_and_grad(pred, target), scores.detach(), grad])
        for parts in found[1:]:
            assert all(map(torch.equal, parts, found[0]))

    def test_any_split_gives_the_same_losses(self) -> None:
        pred, target = (side.detach() for side in many(1000))
        expected = aligned_loss("ciou", pred, target)
        for start, end in ((0, 1), (1, 8), (255, 257), (300, 999), (0, 777)):
            assert torch.equal(aligned_loss("ciou", pred[start:end], target[start:end]), expected[start:end])

    def test_several_python_threads_at_once(self, threads) -> None:  # type: ignore[no-untyped-def]
        threads(2)
        pred, target = many()
        expected = loss_and_grad(pred, target)
        with ThreadPoolExecutor(6) as pool:
            for found in pool.map(lambda _: loss_and_grad(pred, target), range(24)):
                assert all(map(torch.equal, found, expected))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_process(self, threads) -> None:  # type: ignore[no-untyped-def]
        threads(2)
        pred, target = many()
        expected = aligned_loss("ciou", pred.detach(), target, reduction="sum")  # starts threads
        child = os.fork()
        if child == 0:
            found = aligned_loss("ciou", pred.detach(), target, reduction="sum")
            os._exit(0 if torch.equal(found, expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONWARNINGS": "", **environment},
    )


AT_EXIT = """
import atexit, torch
from boxreg import CIoULoss
torch.set_num_threads(2)
pred, target = torch.rand(40000, 4, requires_grad=True), torch.rand(40000, 4)
def step():
    CIoULoss()(pred, target).backward()
    return float(pred.grad.abs().sum())
expected = step()
def last():
    pred.grad = None
    assert step() == expected
    print("computed at exit")
atexit.register(last)
"""


def test_at_the_interpreters_exit() -> None:
    done = run(AT_EXIT)
    assert (done.returncode, done.stdout.strip()) == (0, "computed at exit"), done.stderr


ONE_LOSS = """
import torch
from boxreg import IoULoss
print(IoULoss()(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])).item())
"""


class TestCache:
    def test_one_that_cannot_be_written_is_no_error(self) -> None:
        places = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), "/dev/null")
        done = run(ONE_LOSS, NUMBA_CACHE_DIR="/dev/null/nowhere", **places)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(2 / 3)

    def test_one_that_is_broken_is_no_error(self, tmp_path: Path) -> None:
        assert run(ONE_LOSS, NUMBA_CACHE_DIR=str(tmp_path)).returncode == 0
        files = [path for path in tmp_path.rglob("*.nb?") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[:40])
        done = run(ONE_LOSS, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(2 / 3)

    def test_other_maths_gets_another_kernel(self, tmp_path: Path) -> None:
        changed = "from boxreg.iou import geometry\ngeometry.SMALLEST = 2.0\n" + ONE_LOSS
        for code, expected in ((ONE_LOSS, 2 / 3), (changed, 5 / 6), (ONE_LOSS, 2 / 3)):
            done = run(code, NUMBA_CACHE_DIR=str(tmp_path))
            assert done.returncode == 0, done.stderr
            assert float(done.stdout) == pytest.approx(expected)

    def test_the_command_that_fills_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for kind, code, output in (
            ("iou", 0, "loaded from the cache, in"),
            ("iuo", 1, "did you mean 'iou'?"),
        ):
            monkeypatch.setattr(sys, "argv", ["boxreg.warm", kind])
            assert warm.main() == code
            assert output in "".join(capsys.readouterr())


class TestMaths:
    """The functions that stand in for libm, against it."""

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_few_ulp(self, dtype: str) -> None:
        from boxreg import _raw

        language = _numba_maths.language(dtype)
        xp, torch_dtype = language.xp, getattr(torch, dtype)
        step = eps(torch_dtype)
        x = torch.cat([torch.linspace(-85, 85, 4001), torch.linspace(-1, 1, 2001)]).to(torch_dtype)
        positive = torch.cat([x.double().exp().to(torch_dtype), 1 + x[-2001:] * 1e-3, torch.tensor([1e-40])])
        positive = positive.to(torch_dtype)
        angle = torch.linspace(-4, 4, 801, dtype=torch_dtype).repeat(9)
        length = torch.logspace(-3, 3, 9, dtype=torch_dtype).repeat_interleave(801)
        cases = [
            (xp.exp, (x,), torch.exp),
            (xp.log, (positive,), torch.log),
            (xp.atan2, (angle, length), torch.atan2),
            (language.copy(_raw.sigmoid), (x,), torch.sigmoid),
            (language.copy(_raw.softplus), (x,), torch.nn.functional.softplus),
        ]
        for function, arguments, reference in cases:
            found = self.evaluate(function, *arguments)
            expected = reference(*(argument.double() for argument in arguments))
            if dtype == "float64" and reference is torch.nn.functional.softplus:
                expected = torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)
            size = expected.abs().clamp(min=torch.finfo(torch_dtype).tiny)
            assert ((found.double() - expected).abs() / size).max() < 4 * step, reference

    def evaluate(self, function, *arguments: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        out = torch.empty_like(arguments[0])

        @numba.njit(error_model="numpy")
        def loop(out, arguments):  # type: ignore[no-untyped-def]
            for i in range(len(out)):
                out[i] = function(arguments[0][i]) if len(arguments) == 1 else 0

        @numba.njit(error_model="numpy")
        def loop_of_two(out, a, b):  # type: ignore[no-untyped-def]
            for i in range(len(out)):
                out[i] = function(a[i], b[i])

        arrays = [argument.numpy() for argument in arguments]
        if len(arrays) == 1:
            loop(out.numpy(), (arrays[0],))
        else:
            loop_of_two(out.numpy(), *arrays)
        return out

    def test_special_values(self) -> None:
        for dtype in (torch.float32, torch.float64):
            xp = _numba_maths.language(str(dtype).removeprefix("torch.")).xp
            inf, nan = float("inf"), float("nan")
            special = torch.tensor([0.0, inf, -inf, nan, -1.0, 1e4, -1e4], dtype=dtype)
            torch.testing.assert_close(self.evaluate(xp.exp, special), special.exp(), equal_nan=True)
            torch.testing.assert_close(self.evaluate(xp.log, special), special.log(), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_or_an_infinity_makes_the_gradient_of_its_pair_nan(kind: str) -> None:
    """In all coordinates, as by the eager backend; other pairs are as they are without it."""
    boxes = upright(seeded(2), 12).float()
    for fmt in ("xyxy", "cxcywh"):
        for bad in (float("nan"), float("inf"), -float("inf")):
            for side, number in ((side, number) for side in (0, 1) for number in range(4)):
                pair = [boxes[:6].clone(), boxes[6:].clone()]
                expected = value_and_gradients(kind, *pair, fmt=fmt, backend="numba")
                pair[side][2, number] = bad
                for found, other in zip(
                    value_and_gradients(kind, *pair, fmt=fmt, backend="numba"), expected, strict=True
                ):
                    assert found[2].isnan().all(), (fmt, bad, side, number)
                    assert torch.equal(found[[0, 1, 3, 4, 5]], other[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("kind", KINDS)
def test_wild_pairs_in_full_tiles_and_alone(kind: str) -> None:
    """Any floats: finite, and the same whether a pair is computed alone or among thousands."""
    for dtype in (torch.float32, torch.float64):
        pred, target = wild_pairs(3000, dtype, seed=5)
        found = value_and_gradients(kind, pred, target, backend="numba")
        for part in found:
            assert part.isfinite().all()
        alone = aligned_loss(kind, pred[:7], target[:7], backend="numba")
        assert torch.equal(alone, found[0][:7])


def test_ten_thousand_shapes_and_parameters_keep_nothing() -> None:
    import resource

    boxes = torch.rand(2000, 4)
    decoder = None

    def step(number: int) -> None:
        count = 1 + number % 1999
        aligned_loss("mpdiou", boxes[:count], boxes[-count:], image_width=1 + number * 1e-3, image_height=2.0)
        aligned_loss("iou", boxes[:count], boxes[-count:], inner_ratio=0.5 + number * 1e-5)
        nonlocal decoder
        decoder = GridCellDecoder(stretch=1 + number * 1e-4)
        grid = boxes[:12].view(1, 4, 3, 4)
        aligned_loss("ciou", grid, grid, decoder=decoder, fmt="cxcywh", dim=1)

    for number in range(500):
        step(number)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(500, 3500):
        step(number)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB
    assert backend._struct.cache_info().currsize < 40
