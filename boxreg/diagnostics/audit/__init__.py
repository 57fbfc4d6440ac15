"""What is wrong with this training set-up? A few real steps on copies, and findings with their evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import check_choice
from ...boxes import FORMATS
from . import data, loss, outputs, parameters, run, training
from .findings import SEVERITIES as SEVERITIES
from .findings import AuditReport as AuditReport
from .findings import Check, run_checks
from .findings import Finding as Finding
from .findings import Severity as Severity
from .probe import Batch, Probe, Settings, own_randomness

CHECKS: list[Check] = [
    *parameters.CHECKS,
    *outputs.CHECKS,
    *loss.CHECKS,
    *run.CHECKS,
    *training.CHECKS,
    *data.CHECKS,
]
"""Every check, in the order in which they run."""


def audit(
    model: nn.Module,
    criterion: Callable[..., Any] | None,
    optimizer: Optimizer,
    batch: Batch,
    *,
    fmt: str = "cxcywh",
    image_size: tuple[float, float] = (1.0, 1.0),
    boxes: Callable[[Any], Tensor] | None = None,
    target_boxes: Callable[[Any], Tensor] | None = None,
    declared: Mapping[str, Any] | None = None,
    schedule: Any = None,
    epochs: int | None = None,
    images: int | None = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    redraw: Callable[[], Batch] | None = None,
    val_batch: Batch | None = None,
    train_data: Sequence[tuple[Tensor, Any]] | None = None,
    val_data: Sequence[tuple[Tensor, Any]] | None = None,
    trained: bool | None = None,
    steps: int = 8,
) -> AuditReport:
    """Find out what keeps a box regressor from learning.

    Copies of the model, the criterion and the optimizer take a few real steps on the batch, are probed and
    thrown away; the originals, their gradients and the random number generators are as before. A model, a
    loss, an optimizer and a batch are enough; each further argument makes further checks possible, and the
    report lists which checks could not run, and why.

    Args:
        model: called as `model(inputs)`; inputs that are a tuple are spread, a mapping becomes keywords.
        criterion: called as `criterion(output, targets)`; None for a model that is called as
            `model(inputs, targets)` and returns its loss, such as torchvision's detectors. The loss is a
            scalar tensor, a mapping of named terms that add up to it, `(total, terms)`, or an object with
            `total`, `weighted` and perhaps `unweighted`, such as that of `boxreg.BoxLoss`.
        optimizer: as it is before the first step, or later.
        batch: inputs and targets, as training gives them to the model.
        fmt: format of the predicted and the target boxes.
        image_size: width and height of an image in the unit of the boxes: (1, 1) for fractions, its size
            for pixels.
        boxes: from the model's output to one decoded box a target (N, 4), as the metric sees them; not
            needed where the output is that already.
        target_boxes: from a batch's targets to their boxes (N, 4); not needed where they are that already.
        declared: what the configuration says: any of `optimizer`, `lr`, `weight_decay`, `batch_size` and
            `lambda_NAME` for a term of the loss.
        schedule: a scheduler of torch that is stepped once an optimizer step, or a function from the step to
            the learning rate or its share of the peak.
        epochs: of the run.
        images: to train on; the length of `train_data` if that is given.
        patience: epochs without a better score that stop the run.
        clip_norm: norm that the gradient is clipped to; `math.inf` for none.
        ema_decay: decay of the averaged weights; 0 for none.
        redraw: draws the same images again, augmented anew; called twice.
        val_batch: inputs and targets that are not trained on.
        train_data: pairs of an image (C, H, W), uint8 or floating in [0, 1], and its targets, not augmented.
        val_data: the same of the images that are not trained on.
        trained: whether the model has been trained; by default, whether the optimizer has taken steps.
        steps: real steps to take.

    Returns:
        The findings, the worst first; `print` shows them with their evidence.

    Raises:
        TypeError: if an argument or what the criterion returns is of the wrong type.
        ValueError: for an unknown format, a loss that is not a single number, or a model that cannot be
            copied.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import boxreg
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(32, 4)
        >>> batch = torch.randn(8, 32), torch.rand(8, 4) * 0.2 + 0.4
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> report = boxreg.audit(model, nn.MSELoss(), optimizer, batch, declared={"optimizer": "AdamW"})
        >>> next(finding.what for finding in report.findings if finding.check == "optimizer-kind")
        'the configuration says AdamW, what runs is SGD'
    """
    _check_arguments(model, optimizer, batch, steps)
    check_choice("fmt", fmt, FORMATS)
    settings = Settings(
        fmt=fmt,
        image_size=image_size,
        boxes=boxes,
        target_boxes=target_boxes,
        declared=declared or {},
        schedule=schedule,
        epochs=epochs,
        images=len(train_data) if images is None and train_data is not None else images,
        patience=patience,
        clip_norm=clip_norm,
        ema_decay=ema_decay,
        redraw=redraw,
        val_batch=val_batch,
        train_data=train_data,
        val_data=val_data,
        trained=bool(optimizer.state) if trained is None else trained,
        steps=steps,
    )
    with own_randomness():
        return run_checks(CHECKS, Probe(model, criterion, optimizer, batch, settings))


def _check_arguments(model: object, optimizer: object, batch: object, steps: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"batch: got {type(batch).__name__}, expected (inputs, targets)")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps: got {steps!r}, expected an int of at least 0")
