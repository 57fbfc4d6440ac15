"""A training set-up on copies, and what is measured on it once for all checks."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ...boxes import convert
from ...parameters import _wrapped_child
from .findings import NotCheckedError

T = TypeVar("T")

Batch = tuple[Any, Any]
"""Inputs and targets."""


class Loss(NamedTuple):
    """A loss and its named terms: as they enter the total, and without their lambda where that is known."""

    total: Tensor
    weighted: Mapping[str, Tensor]
    unweighted: Mapping[str, Tensor]


def read_loss(value: Any) -> Loss:
    """Understand what a criterion returns.

    Raises:
        TypeError: if it is not what `boxreg.audit` lists.
        ValueError: if the total is not a single number.
    """
    weighted: Mapping[str, Tensor] = {}
    unweighted: Mapping[str, Tensor] = {}
    total = value
    if hasattr(value, "total") and hasattr(value, "weighted"):
        total, weighted, unweighted = value.total, value.weighted, getattr(value, "unweighted", {})
    elif isinstance(value, Mapping):
        weighted = {name: term for name, term in value.items() if isinstance(term, Tensor)}
        total = torch.stack([term.sum() for term in weighted.values()]).sum() if weighted else None
    elif isinstance(value, tuple | list) and value:
        total = value[0]
        if len(value) > 1 and isinstance(value[1], Mapping):
            weighted = {name: term for name, term in value[1].items() if isinstance(term, Tensor)}
    if not isinstance(total, Tensor):
        raise TypeError(
            f"criterion: returned {type(value).__name__}, expected a scalar tensor, a mapping of "
            "named terms, "
            "(total, terms) or an object with total and weighted"
        )
    if total.numel() != 1:
        raise ValueError(
            f"criterion: returned a loss of shape {tuple(total.shape)}, expected a single number"
        )
    return Loss(total.reshape(()), weighted, unweighted)


def forward(model: nn.Module, inputs: Any, *more: Any) -> Any:
    """Call a model: a tuple of inputs is spread, a mapping becomes keywords."""
    if isinstance(inputs, tuple):
        return model(*inputs, *more)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs, *more)


def floating(tree: Any) -> list[Tensor]:
    """The floating tensors in a nested structure."""
    return [
        leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def replaced(tree: Any, values: Sequence[Tensor]) -> Any:
    """The same structure with other floating tensors."""
    leaves, spec = pytree.tree_flatten(tree)
    fresh = iter(values)
    return pytree.tree_unflatten(
        [next(fresh) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in leaves],
        spec,
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and data-parallel wrappers."""
    while child := _wrapped_child(model):
        model = getattr(model, child)
    return model


@contextmanager
def own_randomness(seed: int = 0) -> Iterator[None]:
    """Random numbers of our own: every generator that models draw from is afterwards as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    numpy = sys.modules.get("numpy")
    kept, numpy_kept = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(kept)
        if numpy is not None:
            numpy.random.set_state(numpy_kept)


@dataclass
class Step:
    """What one optimizer step came to: loss, gradient norm before clipping, names without a gradient."""

    loss: float
    gradient_norm: float
    missing: set[str]
    zero: set[str]
    update_ratios: dict[str, float]


@dataclass
class Settings:
    """What is known about the set-up beside the model; None where nobody said."""

    fmt: str
    image_size: tuple[float, float]
    boxes: Callable[[Any], Tensor] | None
    target_boxes: Callable[[Any], Tensor] | None
    declared: Mapping[str, Any] = field(default_factory=dict)
    schedule: Any = None
    epochs: int | None = None
    images: int | None = None
    patience: int | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    redraw: Callable[[], Batch] | None = None
    val_batch: Batch | None = None
    train_data: Any = None
    val_data: Any = None
    trained: bool = False
    steps: int = 8


@dataclass
class Layer:
    """The last layer with parameters before the boxes, what it gave, and the name of its module."""

    name: str
    module: nn.Module
    raw: Tensor


class Probe:
    """Copies of a set-up, and measurements that several checks read."""

    def __init__(
        self, model: nn.Module, criterion: Any, optimizer: Optimizer, batch: Batch, settings: Settings
    ) -> None:
        memo: dict[int, Any] = {}
        try:
            self.model = copy.deepcopy(unwrapped(model), memo)
            self.optimizer: Optimizer = copy.deepcopy(optimizer, memo)
            self.criterion = copy.deepcopy(criterion, memo)
        except RuntimeError as error:
            raise ValueError(f"model: cannot be copied, so nothing was run: {error}") from error
        self.settings = settings
        self.inputs, self.targets = pytree.tree_map(_detached_copy, batch)
        self.names = {parameter: name for name, parameter in self.model.named_parameters()}
        if not self.model.training:
            self.model.train()
        self._known: dict[Any, Any] = {}
        self._start = copy.deepcopy((self.model, self.optimizer, self.criterion))

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that ask for a gradient."""
        return {name: p for p, name in self.names.items() if p.requires_grad}

    def once(self, measure: Callable[[Probe], T]) -> T:
        """What a function measures on this set-up; it is called at most once."""
        if measure not in self._known:
            self._known[measure] = measure(self)
        found: T = self._known[measure]
        return found

    def loss(self, model: nn.Module, criterion: Any, batch: Batch) -> Loss:
        """The training loss of a batch."""
        inputs, targets = batch
        if criterion is None:
            return read_loss(forward(model, inputs, targets))
        return read_loss(criterion(forward(model, inputs), targets))

    def loss_of(self, output: Any) -> Loss:
        """The loss of an output that need not come from the model."""
        if self.criterion is None:
            raise NotCheckedError("the model computes its loss itself: give a criterion(outputs, targets)")
        return read_loss(self.criterion(output, self.targets))

    def respond(self) -> Any:
        """What the model says of the batch, as it trains but without dropout."""
        if self.criterion is None:
            raise NotCheckedError("the model computes its loss itself: give a criterion(outputs, targets)")
        with without_dropout(self.model), kept_buffers(self.model):
            return forward(self.model, self.inputs)

    @cached_property
    def output(self) -> Any:
        """What the model says of the batch, with its graph."""
        return self.respond()

    def boxes_of(self, output: Any) -> Tensor:
        """The decoded boxes (N, 4) in an output, in the format and unit of the targets.

        Raises:
            NotCheckedError: if nobody says how to find them.
        """
        if self.settings.boxes is not None:
            boxes = self.settings.boxes(output)
        elif isinstance(output, Tensor) and output.shape[-1:] == (4,):
            boxes = output
        else:
            raise NotCheckedError("needs boxes, a function from the model's output to boxes (N, 4)")
        boxes = boxes.reshape(-1, 4)
        if boxes.shape != self.target.shape:
            raise NotCheckedError(
                f"needs one predicted box a target box: got {tuple(boxes.shape)} and "
                f"{tuple(self.target.shape)}"
            )
        return boxes

    def target_of(self, targets: Any) -> Tensor:
        """The target boxes (N, 4) of a batch."""
        if self.settings.target_boxes is not None:
            return self.settings.target_boxes(targets).reshape(-1, 4).float()
        if isinstance(targets, Tensor) and targets.shape[-1:] == (4,):
            return targets.reshape(-1, 4).float()
        raise NotCheckedError("needs target_boxes, a function from a batch's targets to boxes (N, 4)")

    @cached_property
    def target(self) -> Tensor:
        """The target boxes (N, 4)."""
        return self.target_of(self.targets)

    @cached_property
    def predicted(self) -> Tensor:
        """The predicted boxes (N, 4), with their graph."""
        return self.boxes_of(self.output)

    @property
    def aligned(self) -> bool:
        """Whether the model gives exactly one box for each target, and nothing else."""
        leaves = floating(self.output)
        return len(leaves) == 1 and leaves[0].numel() == self.target.numel()

    def fractions(self, boxes: Tensor, fmt: str | None = None) -> Tensor:
        """Boxes as xyxy in fractions of the image."""
        width, height = self.settings.image_size
        return convert(boxes, fmt or self.settings.fmt, "xyxy") / boxes.new_tensor(
            [width, height, width, height]
        )

    @cached_property
    def batch_size(self) -> int:
        """Images in the batch."""
        first = pytree.tree_leaves(self.inputs)
        if isinstance(self.inputs, list):
            return len(self.inputs)
        return len(first[0]) if first and isinstance(first[0], Tensor) and first[0].ndim else 1

    @cached_property
    def layer(self) -> Layer:
        """The layer that the boxes come out of."""
        calls: list[Layer] = []
        hooks = [
            module.register_forward_hook(
                lambda module, _, raw, name=name: (
                    calls.append(Layer(name, module, raw)) if isinstance(raw, Tensor) else None
                )
            )
            for name, module in self.model.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        try:
            boxes = self.boxes_of(self.respond())
        finally:
            for hook in hooks:
                hook.remove()
        for call in reversed(calls):
            if (
                call.raw.requires_grad
                and torch.autograd.grad(boxes.sum(), call.raw, retain_graph=True, allow_unused=True)[0]
                is not None
            ):
                return call
        raise NotCheckedError("the predicted boxes do not depend on any layer with parameters")

    def pushed(self, push: Tensor | float) -> tuple[Any, Tensor]:
        """The output when a number is added to what the last layer gives, and that layer's pushed numbers."""
        seen: list[Tensor] = []

        def add(module: nn.Module, _: Any, raw: Tensor) -> Tensor:
            moved = raw.detach() + push
            seen.append(moved.requires_grad_())
            return moved

        hook = self.layer.module.register_forward_hook(add)
        try:
            return self.respond(), seen[-1]
        finally:
            hook.remove()

    @cached_property
    def steps(self) -> list[Step]:
        """A few real steps on the batch."""
        model, optimizer, criterion = copy.deepcopy(self._start)
        names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return [self._step(model, optimizer, criterion, names) for _ in range(self.settings.steps)]

    def _step(
        self, model: nn.Module, optimizer: Optimizer, criterion: Any, names: dict[nn.Parameter, str]
    ) -> Step:
        total = self.loss(model, criterion, (self.inputs, self.targets)).total
        if not total.requires_grad:
            return Step(total.item(), 0.0, set(names.values()), set(), {})
        gradients = torch.autograd.grad(total, list(names), allow_unused=True)
        for parameter, gradient in zip(names, gradients, strict=True):
            parameter.grad = gradient
        got = [gradient for gradient in gradients if gradient is not None]
        norm = float(nn.utils.get_total_norm(got))
        if self.settings.clip_norm is not None and norm > self.settings.clip_norm:
            for gradient in got:
                gradient.mul_(self.settings.clip_norm / norm)
        before = {parameter: parameter.detach().clone() for parameter in names}
        optimizer.step()
        ratios = {
            name: float((p.detach() - before[p]).norm() / before[p].norm().clamp(min=1e-12))
            for p, name in names.items()
            if p.ndim > 1 and before[p].any()
        }
        pairs = list(zip(names.values(), gradients, strict=True))
        missing = {name for name, gradient in pairs if gradient is None}
        zero = {name for name, gradient in pairs if gradient is not None and not gradient.any()}
        return Step(total.item(), norm, missing, zero, ratios)


def _detached_copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off, all else as it is."""
    dropped = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    for module in dropped:
        module.eval()
    try:
        yield
    finally:
        for module in dropped:
            module.train()


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """The running statistics of norms are afterwards as before."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, kept in buffers:
            # Through data: a backward pass to come may have kept the buffer, and would count a change.
            buffer.data.copy_(kept)
