"""Compiles every kernel for GPUs that are not here: `python -m benchmarks.gpu.kernels`.

The losses are called as on a GPU, through Triton's own launcher, with a driver that compiles and does not
launch. So each kernel is the one that a GPU would run: registers and spilled bytes from the compiled object,
bytes that a program moves from its PTX. Without arguments the table goes to benchmarks/results/kernels.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from boxreg.iou import dispatch, functional
from boxreg.iou.spec import FAMILY

from ..machine import describe
from .device import StandIn
from .right_cases import CASES, PARAMETERS, Case, inputs, results

CAPABILITIES = (80, 90)
"""The compute capabilities of an A100, and of an H100 or H200."""

MOST = 1.2
"""Largest allowed ratio of the bytes that a kernel moves to the minimum."""


class Kernel(NamedTuple):
    """A compiled kernel, and what it costs."""

    work: str
    name: str
    capability: int
    registers: int
    spilled: int
    """Bytes of a thread's registers that were put into memory."""
    moved: float
    """Bytes loaded and stored per pair."""
    must: float
    """Bytes a pair that cannot be avoided."""
    instructions: float
    """Instructions of a thread, for each pair; those that only the last program runs are counted, too."""
    widest: int
    """Bytes of the widest load."""
    seconds: float
    """To compile."""


NUMBERS = count()


class Compiler:
    """A driver of a GPU that is not there: kernels are compiled for it, and their launches do nothing."""

    def __init__(self, capability: int) -> None:
        self.capability, self.number = capability, next(NUMBERS)
        self.found: list[tuple[Any, dict[str, str], float]] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 160 * 2**10},
            load_binary=lambda *arguments: (object(), 0, 0, 0, 1024),
            unload_module=lambda module: None,
        )
        self.launched: list[str] = []
        self.launcher_cls = lambda source, metadata: lambda *arguments: self.launched.append(metadata.hash)

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """A unique number: Triton caches compiled kernels and their target by device number."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0

    def hear(self, *, src: Any, metadata_group: Any, times: Any, **others: Any) -> None:
        """What Triton calls for each kernel that it has compiled or found in its cache."""
        self.found.append((src, dict(metadata_group), times.total / 1e6))


@contextmanager
def compiling_for(capability: int) -> Iterator[Compiler]:
    """While entered, losses on the CPU with `backend="triton"` compile their kernels, and compute nothing."""
    compiler = Compiler(capability)
    with (
        mock.patch.object(dispatch, "_is_interpreted", return_value=True),
        mock.patch.object(triton.knobs.compilation, "listener", compiler.hear),
        tempfile.TemporaryDirectory() as cache,
        mock.patch.object(triton.knobs.cache, "dir", cache),
        mock.patch.object(triton.runtime.driver, "_active", compiler),
    ):
        yield compiler


def kernels(work: str, capability: int, run: Callable[[], object]) -> list[Kernel]:
    """The kernels that some work launches."""
    with compiling_for(capability) as compiler:
        run()
        return [measured(work, capability, *found) for found in compiler.found]


def measured(work: str, capability: int, source: Any, files: dict[str, str], seconds: float) -> Kernel:
    """What a compiled kernel costs, from its files."""
    by_kind = {name.rpartition(".")[2]: Path(path) for name, path in files.items()}
    usage, code = (dumped(by_kind["cubin"], what) for what in ("-res-usage", "-sass"))
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M))
    registers, stack, local = (
        int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL")
    )
    threads = 32 * json.loads(by_kind["json"].read_text())["num_warps"]
    named = {source.fn.arg_names[place[0]]: value for place, value in source.constants.items()}
    accesses = list(accesses_of_a_thread(by_kind["ptx"].read_text()))
    name = source.fn.__name__
    pairs, must = least(name, source.signature, named)
    moved = sum(width for _, width in accesses) * threads / pairs
    spilled = stack + local
    of_pair = instructions * threads / pairs
    widest = max(width for kind, width in accesses if kind == "ld")
    return Kernel(work, name, capability, registers, spilled, moved, must, of_pair, widest, seconds)


def dumped(binary: Path, what: str) -> str:
    """What the tool that comes with Triton tells of a compiled object."""
    command = [triton.knobs.nvidia.cuobjdump.path, what, binary]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


ACCESS = re.compile(r"^\s*(@!?%p\d+)?\s*(ld|st)\.(global|local)((?:\.\w+)*)\.[bfu](\d+)")


def accesses_of_a_thread(ptx: str) -> Iterator[tuple[str, int]]:
    """Loads ("ld") and stores ("st") of a thread, each with its bytes.

    Partial sums, which only one thread per program handles, are not counted.
    """
    one_thread = set(re.findall(r"^\s*(@!?%p\d+)\s*atom\.global", ptx, re.M))
    for line in ptx.splitlines():
        found = ACCESS.match(line)
        if found and found[1] not in one_thread and ".cg" not in found[4]:
            width = re.search(r"\.v(\d)", found[4])
            yield found[2], int(found[5]) // 8 * (int(width[1]) if width else 1)


def least(name: str, signature: dict[str, Any], constants: dict[str, Any]) -> tuple[int, float]:
    """Pairs per program (per loop iteration, if it loops), and the minimum bytes moved per pair."""
    if name == "scores_kernel":
        rows, columns = constants["ROWS"], constants["COLUMNS"]
        return rows * columns, 4 + 16 * (rows + columns) / (rows * columns)
    if name == "gradient_kernel":
        own, others = constants["OWN"], constants["OTHERS"]
        return own * others, 4 + 16 * others / (own * others)
    boxes = sum(4 * SIZES[signature[side]] for side in ("pred", "target"))
    gradients = sum(16 for side in ("GRAD_OF_PRED", "GRAD_OF_TARGET") if constants[side])
    one_a_pair = 4 * (constants["WEIGHTED"] + (not constants["REDUCED"]))
    return constants["BLOCK"], boxes + gradients + one_a_pair


SIZES = {"*fp32": 4, "*fp16": 2, "*bf16": 2}
"""Bytes of a number by a pointer's type."""


def of_case(case: Case) -> None:
    """The step of a case of `right_cases.py`."""
    results(case, *inputs(case, StandIn()), "triton")


def of_pairs(kind: str) -> None:
    """Pairwise scores and the gradients of both sides."""
    a, b = (torch.rand(2, boxes, 4, requires_grad=True) for boxes in (48, 64))
    scores = functional.pairwise_box_iou(a, b, kind, backend="triton", **PARAMETERS.get(kind, {}))
    torch.autograd.grad(scores.sum(), (a, b))


def of_timed(layout: str, dtype: torch.dtype) -> None:
    """Mean CIoU of a dense head, as in `fast.py`: sizes that are multiples of 16."""
    pred, target = (torch.rand(16, 8_400, 4, dtype=dtype) for _ in range(2))
    if layout == "planes":
        pred, target = pred.movedim(-1, 1).contiguous(), target.movedim(-1, 1).contiguous()
    options: dict[str, Any] = {
        "dim": 1 if layout == "planes" else -1,
        "reduction": "mean",
        "backend": "triton",
    }
    loss = functional.aligned_loss("ciou", pred.requires_grad_(), target, **options)
    torch.autograd.grad(loss, pred)


def jobs() -> list[tuple[str, Callable[[], object]]]:
    """All that is compiled: a name to group it by, and what launches it."""
    timed = [(layout, dtype) for layout in ("rows", "planes") for dtype in (torch.float32, torch.float16)]
    return [
        *(
            (f"mean CIoU, {layout}, {str(dtype)[6:]}", partial(of_timed, layout, dtype))
            for layout, dtype in timed
        ),
        *((f"{case.kind}, all specs", partial(of_case, case)) for case in CASES),
        *((f"{kind}, pairwise", partial(of_pairs, kind)) for kind in FAMILY),
    ]


def compiled(number: int, capability: int) -> list[Kernel]:
    """The kernels of a job, for a process of a pool."""
    return kernels(jobs()[number][0], capability, jobs()[number][1])


def faults(found: Sequence[Kernel]) -> list[Kernel]:
    """Kernels that spill registers, move too much, or read contiguous boxes in pieces.

    Threads of a pairwise kernel share the boxes of a tile, and all but the first find them in the nearest
    cache: what they load says nothing of what moves.
    """
    return [
        kernel
        for kernel in found
        if kernel.spilled
        or (kernel.name == "aligned_kernel" and kernel.moved > MOST * kernel.must)
        or (kernel.widest < 16 and (kernel.work in ROWS or kernel.name != "aligned_kernel"))
    ]


ROWS = ("mean CIoU, rows, float32",)
"""Work whose boxes are read 16 bytes at a time."""


def table(found: Sequence[Kernel]) -> Iterator[str]:
    """A line for each group of kernels and GPU: the worst of each figure."""
    yield (
        "| work | kernels | GPU | registers | spilled | bytes a pair | times the minimum "
        "| instructions a pair | compile, s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for work, capability in dict.fromkeys((kernel.work, kernel.capability) for kernel in found):
        own = [kernel for kernel in found if (kernel.work, kernel.capability) == (work, capability)]
        worst = max(own, key=lambda kernel: kernel.moved / kernel.must)
        yield (
            f"| {work} | {len(own)} | sm_{capability} | {max(kernel.registers for kernel in own)} "
            f"| {max(kernel.spilled for kernel in own)} | {worst.moved:.3g} | {worst.moved / worst.must:.2f} "
            f"| {max(kernel.instructions for kernel in own):.0f} "
            f"| {statistics.median(kernel.seconds for kernel in own):.1f} |"
        )


def host_time(turns: int = 1000) -> tuple[float, float]:
    """Microseconds that the host takes for mean CIoU of 64 pairs, alone and with its gradient; medians.

    Without the launch itself, which does nothing here; the product in backward is computed by the CPU.
    """
    pred, target = torch.rand(64, 4, requires_grad=True), torch.rand(64, 4)
    upstream = torch.ones(())
    alone, whole = [], []
    with compiling_for(CAPABILITIES[-1]):
        for _ in range(turns):
            begin = time.perf_counter()
            loss = functional.aligned_loss("ciou", pred, target, reduction="mean", backend="triton")
            alone.append(time.perf_counter() - begin)
            torch.autograd.grad(loss, pred, upstream)
            whole.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(alone), 1e6 * statistics.median(whole)


PAGE = """\
# Kernels, compiled without a GPU

Written by `python -m benchmarks.gpu.kernels`: {count} kernels of the IoU family, compiled by Triton {triton}
under torch {torch} for sm_80 (A100) and sm_90 (H100, H200). Registers and spilled bytes are those of a
thread, from the compiled object; bytes a pair are what the program loads and stores, from its PTX. The worst
of each group is shown. Other versions of Triton allocate registers differently.

The minimum is that of the kernel: boxes in, float32 gradients and losses out. In `backward` the product with
the upstream gradient reads the gradients and writes them once more. Threads of a pairwise kernel load the
same boxes, which come from the nearest cache after the first time.

No kernel may spill registers. Only pairwise kernels may load and store more than {most:g} times the minimum.
Kernels that break these rules: {wrong}.

The host takes {alone:.0f} us for mean CIoU of 64 pairs, {whole:.0f} us with its gradient, without the
launches themselves ({processor}, Python {python}).
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results_folder = Path(__file__).parents[1] / "results"
    parser.add_argument("--out", type=Path, default=results_folder / "kernels.md", help="file to write")
    parser.add_argument("--every", type=int, default=1, help="compile every N-th kernel, for a trial")
    options = parser.parse_args()
    every = [(number, capability) for number in range(len(jobs())) for capability in CAPABILITIES]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(compiled, *zip(*every[:: options.every], strict=True)))
    found = [kernel for part in parts for kernel in part]
    found.sort(key=lambda kernel: [name for name, _ in jobs()].index(kernel.work))
    wrong = faults(found)
    machine = describe(torch.device("cpu"))
    alone, whole = host_time()
    page = PAGE.format(count=len(found), most=MOST, wrong=len(wrong), alone=alone, whole=whole, **machine)
    lines = [page, *table(found)]
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())
    for kernel in wrong:
        print("wrong:", kernel, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
