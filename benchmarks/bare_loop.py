"""A loop of nothing but PyTorch with the trainer's model and data, and the trainer: images a second."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

import torch

from reference_trainer.config import DataConfig, TrainConfig
from reference_trainer.data.loading import Squares, train_loader
from reference_trainer.tasks import build_task

IMAGES = 400
"""Toy images; four fifths are trained on."""

EPOCHS = 3
"""The first one draws the images and is not counted."""

CONFIG = TrainConfig(epochs=EPOCHS, device="cpu", data=DataConfig(images=IMAGES, workers=0))


def bare_speed() -> float:
    """Forward, backward, step and no more, in a process of its own as the trainer's."""
    return float(subprocess.check_output([sys.executable, "-m", __name__], text=True))


def bare_loop() -> float:
    """Trains, and returns the images a second."""
    torch.manual_seed(0)
    task = build_task(CONFIG)
    with redirect_stderr(io.StringIO()):
        sources = task.open_data(["train", "val"]).splits
    dataset = Squares(sources["train"], CONFIG.data.size)
    loader, batches = train_loader(dataset, CONFIG, task.collate)
    model = task.build_model(sources["train"].names, dataset)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    started = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        if epoch == 2:
            started = time.perf_counter()
        batches.epoch = epoch
        for batch in loader:
            images = batch.images.contiguous(memory_format=torch.channels_last).float().div_(255)
            loss = task.objective(model(images), batch).total
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return (EPOCHS - 1) * len(dataset) / (time.perf_counter() - started)


def trainer_speed() -> float:
    """The real command line, with all that it does between two epochs but the last one's validation."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "reference_trainer", "train", "--epochs", str(EPOCHS + 1)]
        command += ["--device", "cpu", "--data.images", str(IMAGES), "--data.workers", "0"]
        command += ["--validate-every", "1000", "--out", out]
        subprocess.run(command, check=True, capture_output=True)
        (metrics,) = Path(out).glob("*/metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    # From the end of the first epoch to that of the last but one; a row is written before its state is saved.
    images = sum(row["images"] for row in rows[1:EPOCHS])
    return float(images / (rows[EPOCHS - 1]["seconds"] - rows[0]["seconds"]))


if __name__ == "__main__":
    print(bare_loop())
