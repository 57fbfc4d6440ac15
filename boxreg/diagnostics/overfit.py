"""Can this set-up learn a few images by heart? If it cannot, what is to blame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from .._checks import check_choice, check_number
from ..boxes import FORMATS
from ..iou.functional import box_iou
from .audit import AuditReport, Finding, data, loss, outputs, parameters
from .audit.findings import NotCheckedError, run_checks
from .audit.probe import Batch, Probe, Settings, own_randomness, without_dropout

LOOK_EVERY = 10
"""Steps between two looks at the boxes."""

FIRST_CYCLE = 200
"""Steps in which the learning rate first falls to 0 along a cosine; each further cycle is twice as long.

The last hundredths of an IoU need small steps, and how many large ones come before is not known
(Loshchilov and Hutter, 2016, arXiv:1608.03983)."""

SUSPECTS = [*data.CHECKS, *parameters.CHECKS, *outputs.CHECKS, *loss.CHECKS]
"""Checks that may say why nothing is learnt; those of schedules and regularisation have no part in it."""

DEEDS = (
    "learning-rate",
    "parameters-in-groups",
    "target-reading",
    "empty-targets",
    "clamp-in-loss",
    "clamped-outputs",
    "loss-optimum",
    "loss-towards-target",
    "output-range",
    "saturated-outputs",
    "parameters-without-gradient",
    "frozen-parameters",
    "invalid-boxes",
)
"""What explains a failure, the surest first; what else an audit finds slows a training but lets it come."""


@dataclass(frozen=True)
class OverfitReport:
    """What came of it; `print` says it.

    Attributes:
        reached: Whether every box came to the IoU asked for.
        iou: The IoU of each box, at the best look.
        steps: Optimizer steps taken.
        seconds: Time taken, without the search for what is to blame.
        losses: The loss at each look.
        blame: What keeps it from learning, the likeliest; None where it learns, or nothing is found.
        audit: The audit that was made after a failure.
        model: The network that was trained: a copy, or the model itself with `in_place`.
    """

    reached: bool
    iou: list[float]
    steps: int
    seconds: float
    losses: list[float]
    blame: Finding | None
    audit: AuditReport | None = field(repr=False)
    model: nn.Module = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The same for `json.dumps`, without model and audit."""
        return {
            "reached": self.reached,
            "iou": self.iou,
            "steps": self.steps,
            "seconds": self.seconds,
            "blame": self.blame and self.blame.as_dict(),
        }

    def __str__(self) -> str:
        worst, mean = min(self.iou), sum(self.iou) / len(self.iou)
        done = "learnt by heart" if self.reached else "not learnt"
        line = (
            f"{done}: IoU {mean:.4f} on average, {worst:.4f} at least, after {self.steps} steps and "
            f"{self.seconds:.1f} s; loss {self.losses[0]:.3g} to {self.losses[-1]:.3g}"
        )
        return line if self.blame is None else f"{line}\n\nto blame:\n{self.blame}"


def overfit(
    model: nn.Module,
    criterion: Callable[..., Any],
    batch: Batch | Callable[[], Batch],
    *,
    optimizer: Optimizer | None = None,
    lr: float = 2e-3,
    fmt: str = "cxcywh",
    image_size: tuple[float, float] = (1.0, 1.0),
    boxes: Callable[[Any], Tensor] | None = None,
    target_boxes: Callable[[Any], Tensor] | None = None,
    target_iou: float = 0.99,
    max_steps: int = 3000,
    max_seconds: float = 60.0,
    in_place: bool = False,
) -> OverfitReport:
    """Learn a few images by heart, and say what is to blame where that fails.

    A network that can place boxes at all brings 1 to 8 images to an IoU of nearly 1. So that nothing else
    stands in the way, dropout and weight decay are off, and the learning rate falls to 0 in cycles of 200
    steps, 400, 800 and so on. The batch should not be augmented.

    Args:
        model: as for `boxreg.audit`; its norms work as in training.
        criterion: as for `boxreg.audit`.
        batch: inputs and targets; or a function that gives them anew for each step, to check that it gives
            the same images the same boxes.
        optimizer: the one to use, with its learning rate and without its weight decay; by default Adam
            with `lr`.
        lr: learning rate of Adam where no optimizer is given.
        fmt: format of the predicted and the target boxes.
        image_size: width and height of an image in the unit of the boxes.
        boxes: from the model's output to its boxes (N, 4), as for `boxreg.audit`.
        target_boxes: from a batch's targets to their boxes (N, 4), as for `boxreg.audit`.
        target_iou: that every box has to reach.
        max_steps: optimizer steps after which it has failed.
        max_seconds: time after which it has failed.
        in_place: train the model itself; otherwise a copy, and the model is as before.

    Returns:
        Whether it was reached, the IoU of each box, and what is to blame.

    Raises:
        TypeError: if an argument or what the criterion returns is of the wrong type.
        ValueError: for a number out of its range, an unknown format, a loss that is not a single number, or
            outputs in which one box a target is not found.

    Example:
        >>> import torch
        >>> from boxreg import BoxHead, CIoULoss, overfit
        >>> _ = torch.manual_seed(0)
        >>> batch = torch.randn(2, 16), torch.tensor([[0.3, 0.4, 0.2, 0.2], [0.6, 0.5, 0.3, 0.4]])
        >>> report = overfit(BoxHead(16, prior=(0.5, 0.5, 0.3, 0.3)), CIoULoss(fmt="cxcywh"), batch, lr=0.02)
        >>> report.reached, min(report.iou) >= 0.99
        (True, True)
    """
    check_choice("fmt", fmt, FORMATS)
    check_number("target_iou", target_iou, minimum=0, maximum=1)
    check_number("max_steps", max_steps, minimum=1)
    check_number("max_seconds", max_seconds, minimum=0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if optimizer is None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A model that is frozen whole still deserves an answer.
        optimizer = torch.optim.Adam(trainable or list(model.parameters()), lr=lr, betas=(0.9, 0.99))
    settings = Settings(fmt=fmt, image_size=image_size, boxes=boxes, target_boxes=target_boxes)
    with own_randomness():
        first = batch() if callable(batch) else batch
        probe = Probe(model, criterion, optimizer, first, settings)
        try:
            _ = probe.predicted
        except NotCheckedError as missing:
            raise ValueError(f"boxes: {missing}") from missing
        trial = _Trial(probe, batch if callable(batch) else None, target_iou, max_steps, max_seconds)
        reached = trial.run()
        report = None
        if not reached:
            report = run_checks(SUSPECTS, Probe(model, criterion, optimizer, first, settings))
    if in_place:
        model.load_state_dict(probe.model.state_dict())
    return OverfitReport(
        reached=reached,
        iou=trial.best.tolist(),
        steps=trial.steps,
        seconds=trial.seconds,
        losses=trial.losses,
        blame=None if report is None else _blame(trial, report),
        audit=report,
        model=model if in_place else probe.model,
    )


class _Trial:
    """The attempt, on the copies of a probe."""

    def __init__(
        self,
        probe: Probe,
        draw: Callable[[], Batch] | None,
        iou_to_reach: float,
        max_steps: int,
        max_seconds: float,
    ) -> None:
        self.probe, self.draw, self.iou_to_reach = probe, draw, iou_to_reach
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self.steps, self.seconds, self.losses = 0, 0.0, list[float]()
        self.best = torch.zeros(len(probe.target))
        self.terms: dict[str, float] = {}
        self.contradictions = 0.0
        self.started = [p.detach().clone() for p in probe.model.parameters()]
        for group in probe.optimizer.param_groups:
            group["weight_decay"] = 0.0
        self.rates = [float(group["lr"]) for group in probe.optimizer.param_groups]

    def run(self) -> bool:
        """Train until every box is there, or the budget ends."""
        begun = time.perf_counter()
        with without_dropout(self.probe.model):
            while self.steps < self.max_steps:
                for group, rate in zip(self.probe.optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = rate * _rate(self.steps)
                loss = self._step()
                self.seconds = time.perf_counter() - begun
                over = self.seconds > self.max_seconds or not math.isfinite(loss)
                if (self.steps % LOOK_EVERY == 0 or over) and self._look(loss):
                    return True
                if over:
                    break
        return False

    def _step(self) -> float:
        batch = self._checked(self.draw()) if self.draw else (self.probe.inputs, self.probe.targets)
        result = self.probe.loss(self.probe.model, self.probe.criterion, batch)
        self.terms = {name: float(term.detach().sum()) for name, term in result.weighted.items()}
        if result.total.requires_grad:
            self.probe.optimizer.zero_grad()
            result.total.backward()  # type: ignore[no-untyped-call]
            self.probe.optimizer.step()
        self.steps += 1
        return float(result.total.detach())

    def _checked(self, batch: Batch) -> Batch:
        """The batch; what contradicts the first one is counted."""
        inputs, targets = batch
        if _same(inputs, self.probe.inputs):
            other = (self.probe.target_of(targets) - self.probe.target).abs().amax(-1) > 1e-4
            self.contradictions = max(self.contradictions, float(other.float().mean()))
        return batch

    @torch.no_grad()
    def _look(self, loss: float) -> bool:
        self.losses.append(loss)
        boxes = self.probe.boxes_of(self.probe.respond())
        iou = box_iou(boxes, self.probe.target, fmt=self.probe.settings.fmt).nan_to_num(0).cpu()
        if iou.min() >= self.best.min():
            self.best = iou
        return bool((iou >= self.iou_to_reach).all())

    @property
    def moved(self) -> bool:
        """Whether any parameter changed."""
        return any(
            not torch.equal(before, after)
            for before, after in zip(self.started, self.probe.model.parameters(), strict=True)
        )


def _rate(step: int) -> float:
    """The share of the learning rate at a step: cosines to 0, each twice as long as the one before."""
    cycle = FIRST_CYCLE
    while step >= cycle:
        step, cycle = step - cycle, 2 * cycle
    return 0.5 * (1.0 + math.cos(math.pi * step / cycle))


def _same(one: Any, other: Any) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _blame(trial: _Trial, report: AuditReport) -> Finding | None:
    """What explains the failure best."""
    found = {finding.check: finding for finding in reversed(report.findings)}
    blamed = next(iter(_contradictions(trial)), None)
    for check in DEEDS if blamed is None else ():
        finding = found.get(check)
        if finding and (finding.severity == "error" or check == "frozen-parameters"):
            return finding
    return blamed or _unmoved(trial) or _term(trial)


def _contradictions(trial: _Trial) -> Iterator[Finding]:
    """Images that are given several boxes, from step to step or within the batch."""
    probe = trial.probe
    if trial.contradictions:
        yield Finding(
            "targets",
            "error",
            f"{trial.contradictions:.0%} of the images get another box from one step to the next",
            {"share_that_changes": trial.contradictions},
            "no network can give one image two boxes: it settles between them",
            "keep images and boxes together: shuffle indices, not one of the two lists",
        )
    if isinstance(probe.inputs, Tensor) and len(probe.inputs) == len(probe.target):
        rows = probe.inputs.flatten(1)
        _, group = torch.unique(rows, dim=0, return_inverse=True)
        pairs = (group[:, None] == group) & ((probe.target[:, None] - probe.target).abs().amax(-1) > 1e-4)
        if pairs.any():
            first, second = pairs.nonzero()[0].tolist()
            yield Finding(
                "targets",
                "error",
                f"images {first} and {second} are the same and have different boxes",
                {"contradicting": int(pairs.any(1).sum()), "images": len(rows)},
                "no network can give one image two boxes: it settles between them",
                "remove one of the labels, or choose which object an image with several is asked for",
            )


def _unmoved(trial: _Trial) -> Finding | None:
    if trial.moved:
        return None
    return Finding(
        "unmoved",
        "error",
        "no parameter of the model changed in any step",
        {"steps": trial.steps, "lr": trial.rates},
        "the optimizer does not move this model",
        "build the optimizer from the parameters of this model, with a learning rate above 0",
    )


def _term(trial: _Trial) -> Finding | None:
    """The term that is left."""
    if len(trial.terms) < 2:
        return None
    largest = max(trial.terms, key=lambda name: abs(trial.terms[name]))
    whole = sum(map(abs, trial.terms.values())) or 1.0
    return Finding(
        "term",
        "warning",
        f"{abs(trial.terms[largest]) / whole:.0%} of what is left of the loss is its term {largest!r}",
        {"terms": trial.terms},
        "the other terms are met; this one is not, or works against them",
        f"look at {largest!r} alone: set the other lambdas to 0; then more steps, or another rate",
    )
