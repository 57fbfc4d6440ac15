"""A run short of memory, in a process of its own: `python -m benchmarks.gpu.trainer_memory cuda FOLDER`.

On a GPU the process may have so much memory that half of what a batch needs is missing. In a rehearsal on
the CPU memory ends where more than a few images come at once.
"""

from __future__ import annotations

import gc
import json
import sys

import torch
from torch import Tensor

from reference_trainer import learner
from reference_trainer.__main__ import main as command_line
from reference_trainer.model import prepare_images

from ..breaking import SETTINGS, undraw
from .trainer_steps import learner_of, take

SHARE = 0.5
"""Fraction of a batch's memory, beyond the weights, that the process may use."""

BATCH = 256
MOST = 3
"""Images at once in a rehearsal, of batches of 8."""


def main() -> int:
    device, out = torch.device(sys.argv[1]), sys.argv[2]
    undraw()
    if device.type == "cuda":
        figures = limit_memory(torch.device("cuda", torch.cuda.current_device()))
        settings = ["--data.images", "400", "--batch-size", str(BATCH), "--device", "cuda"]
    else:
        figures, settings = {}, SETTINGS
        pretend()
    code = command_line(["train", *settings, "--epochs", "1", "--data.workers", "0", "--out", out])
    print(json.dumps(figures))
    return code


def limit_memory(device: torch.device) -> dict[str, float]:
    """Measure what a step needs, give it all back, and let this process have less from here on."""
    peak, resting = measured(device)
    gc.collect()
    torch.cuda.empty_cache()
    limit = resting + SHARE * (peak - resting)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(limit / total)
    return {"peak MiB": peak / 2**20, "resting MiB": resting / 2**20, "limit MiB": limit / 2**20}


def measured(device: torch.device) -> tuple[int, int]:
    """Bytes that a training step needs at its highest, and those that stay."""
    trained, batch = learner_of(device, BATCH)
    for _ in range(2):
        take(trained, batch)
    trained.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    take(trained, batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), resting


def pretend() -> None:
    """Have memory end with many images, as it does on a GPU."""

    def prepare_few(images: Tensor) -> Tensor:
        if len(images) > MOST:
            raise torch.OutOfMemoryError("no room")
        return prepare_images(images)

    setattr(learner, "prepare_images", prepare_few)  # noqa: B010 (mypy: not exported)


if __name__ == "__main__":
    sys.exit(main())
