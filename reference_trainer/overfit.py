"""Can a configuration learn a few images by heart? `boxreg.overfit` on what the trainer would train."""

from __future__ import annotations

import torch

import boxreg
from boxreg import OverfitReport

from .checkpoint import pick_device
from .config import TrainConfig
from .data.loading import Squares, open_sources, to_batch
from .model import answer, build_model, prepare_images
from .objective import Criterion
from .recipe import build_optimizer
from .tasks import refuse_grid


def overfit_config(config: TrainConfig, images: int, seconds: float) -> OverfitReport:
    """Learn the first training images with the network, loss and optimizer that `config` names.

    Raises:
        UserError: if the configuration or its data cannot be used.
    """
    refuse_grid(config, "overfit")
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    criterion = Criterion(config.loss)
    squares = Squares(open_sources(config.data, config.seed).splits["train"], config.data.size)
    batch = to_batch([squares[index] for index in range(min(images, len(squares)))])
    model = build_model(config.model, squares.prior())
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return boxreg.overfit(
        model,
        criterion,
        (prepare_images(batch.images.to(device)), batch.targets.to(device)),
        optimizer=build_optimizer(config.optimizer, model),
        boxes=lambda prediction: answer(prediction)[0],
        max_steps=100_000,
        max_seconds=seconds,
    )
