"""Compile the CPU kernels of the losses ahead of their first use: `python -m boxreg.warm`.

These are the losses in mode linear with the gradient of predictions, all scores and all decoders. Other
modes, inner boxes and gradients of targets are compiled when they are first used.

Numba keeps compiled code on disk, beside the package where that can be written and in the user's cache folder
otherwise (`NUMBA_CACHE_DIR` names another). Run this once while a container image is built.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable

import torch

from .iou import dispatch
from .iou.spec import FAMILY


def warm(kinds: Iterable[str] = tuple(FAMILY), dtypes: Iterable[torch.dtype] = (torch.float32,)) -> None:
    """Compile the kernels of losses, of their scores and of all decoders, or load them from the cache.

    Args:
        kinds: losses by name, such as `"ciou"`; all of them by default.
        dtypes: `torch.float32`, and `torch.float64` if boxes are that.

    Raises:
        ValueError: if Numba is not installed, or a loss is unknown.

    Example:
        >>> from boxreg.warm import warm
        >>> warm(["ciou"])
    """
    boxes = torch.zeros(1, 4)
    reason = dispatch.no_numba(boxes, boxes)
    if reason:
        raise ValueError(f"warm: {reason}")
    from .iou.backends import numba

    for dtype in dtypes:
        numba.compile_kernels(kinds, dtype)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m boxreg.warm", description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", help="losses, such as ciou; all by default")
    parser.add_argument("--float64", action="store_true", help="for boxes in float64 too")
    arguments = parser.parse_args()
    dtypes = [torch.float32, torch.float64] if arguments.float64 else [torch.float32]
    start = time.perf_counter()
    print("compiling kernels, which takes up to a minute", flush=True)
    try:
        warm(arguments.kinds or FAMILY, dtypes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"compiled, or loaded from the cache, in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
