"""Checks of the optimizer and of the parameters that it moves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from ...parameters import param_table
from .findings import Check, Finding, Found, NotCheckedError
from .probe import Probe

ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax")
LR_RANGES: dict[str, tuple[float, float]] = {"SGD": (1e-4, 1.0), **dict.fromkeys(ADAPTIVE, (1e-5, 2e-2))}
"""Peak learning rates between which trainings from scratch and fine-tunings usually lie."""

DECAY_LIMITS: dict[str, float] = {"SGD": 5e-3, **dict.fromkeys(ADAPTIVE, 0.3)}
"""Weight decay above these is rarely meant."""

BETA2_RANGE = (0.95, 0.9999)

SLOWEST_UPDATE = 1e-6
"""A matrix that a step at the peak rate changes by less than this share of its norm does not learn."""

UNEVEN_UPDATES, SLOW_UPDATE = 100.0, 2e-4
"""Times that one matrix may change faster than another, while the middle one changes less than that share.

A head with weights near 0 changes fast beside layers that do well.
"""


def _kind(probe: Probe) -> str:
    """The optimizer's class, or of its base classes the first that is known."""
    names = [cls.__name__ for cls in type(probe.optimizer).__mro__]
    return next((name for name in names if name in LR_RANGES), names[0])


def _peak(group: dict[str, Any]) -> float:
    """The learning rate of a group before a schedule scaled it."""
    return float(group.get("initial_lr", group["lr"]))


def _some(names: list[str]) -> list[str]:
    return names[:5] + (["..."] if len(names) > 5 else [])


def optimizer_kind(probe: Probe) -> Found:
    """The optimizer is the one that was declared."""
    declared = probe.settings.declared.get("optimizer")
    if declared is None:
        raise NotCheckedError("needs declared={'optimizer': ...}, what the configuration says")
    actual = type(probe.optimizer).__name__
    if str(declared).lower() != actual.lower():
        yield Finding(
            "optimizer-kind",
            "error",
            f"the configuration says {declared}, what runs is {actual}",
            {"declared": str(declared), "actual": actual},
            "a learning rate, decay and schedule chosen for one optimizer do not suit another: SGD wants "
            "some 10 to 100 times the rate of Adam",
            f"build torch.optim.{declared}, or declare {actual} and choose its learning rate anew",
        )


def declared_rates(probe: Probe) -> Found:
    """Learning rate, decay and batch size are those that were declared."""
    declared = {
        name: value
        for name, value in probe.settings.declared.items()
        if name in ("lr", "weight_decay", "batch_size")
    }
    if not declared:
        raise NotCheckedError(
            "needs declared={'lr': ..., 'weight_decay': ..., 'batch_size': ...} or one of them"
        )
    groups = probe.optimizer.param_groups
    actual = {
        "lr": max(map(_peak, groups)),
        "weight_decay": max(float(group.get("weight_decay", 0.0)) for group in groups),
        "batch_size": float(probe.batch_size),
    }
    for name, value in declared.items():
        if abs(actual[name] - float(value)) > 1e-6 * abs(float(value)):
            yield Finding(
                "declared-rates",
                "error",
                f"{name} is declared as {value:g}, what runs is {actual[name]:g}",
                {"declared": float(value), "actual": actual[name]},
                "what is written down is not what is trained: no comparison between runs means anything",
                f"pass {name}={value:g} on, or declare {actual[name]:g}",
            )


def learning_rate(probe: Probe) -> Found:
    """The peak learning rate lies in the usual range of its optimizer."""
    kind = _kind(probe)
    rates = [_peak(group) for group in probe.optimizer.param_groups]
    stopped = [rate for rate in rates if rate == 0]
    if stopped:
        yield Finding(
            "learning-rate",
            "error",
            f"{len(stopped)} of {len(rates)} parameter groups have a learning rate of 0",
            {"peak_lr": rates},
            "their parameters never change",
            "set a learning rate, or freeze them with requires_grad_(False) if that is meant",
        )
        return
    if kind not in LR_RANGES:
        raise NotCheckedError(f"no usual range is known for {kind}")
    low, high = LR_RANGES[kind]
    # Slow groups, such as a pretrained backbone, are meant to be slow.
    peak = max(rates)
    if not low <= peak <= high:
        yield Finding(
            "learning-rate",
            "warning",
            f"{kind} with a peak learning rate of {peak:g}; usual are {low:g} to {high:g}",
            {"peak_lr": peak, "usual": [low, high]},
            "a rate made for another optimizer either hardly moves the weights or throws them about",
            f"start from {1e-3 if kind in ADAPTIVE else 1e-2:g}, and look for the largest rate that "
            "still falls",
        )


def beta2(probe: Probe) -> Found:
    """Adam's memory of squared gradients suits the run."""
    betas = {tuple(group["betas"]) for group in probe.optimizer.param_groups if "betas" in group}
    if not betas:
        raise NotCheckedError(f"{type(probe.optimizer).__name__} has no beta2")
    for _, second in betas:
        if not BETA2_RANGE[0] <= float(second) <= BETA2_RANGE[1]:
            yield Finding(
                "beta2",
                "warning",
                f"beta2 is {float(second):g}; usual are {BETA2_RANGE[0]} to {BETA2_RANGE[1]}",
                {"beta2": float(second), "steps_remembered": 1 / max(1 - float(second), 1e-12)},
                "too low, every noisy gradient sets its own scale; too high, the scale of the "
                "first steps stays",
                "set betas=(0.9, 0.99) for runs of some thousand steps, (0.9, 0.999) for longer ones",
            )


def weight_decay(probe: Probe) -> Found:
    """Decay spares norms and biases, and is of a usual strength."""
    decays = {
        parameter: float(group.get("weight_decay", 0.0))
        for group in probe.optimizer.param_groups
        for parameter in group["params"]
    }
    rows = [row for row in param_table(probe.model) if not row.decay and decays.get(row.parameter, 0.0) > 0]
    if rows:
        yield Finding(
            "weight-decay",
            "warning",
            f"{len(rows)} norms, biases and scales are decayed",
            {
                "parameters": len(rows),
                "names": _some([row.name for row in rows]),
                "weight_decay": max(decays[row.parameter] for row in rows),
            },
            "decay moves a bias and a norm's scale towards 0, which is no simpler model: boxes are drawn "
            "away from where the bias puts them",
            f"torch.optim.{type(probe.optimizer).__name__}(boxreg.param_groups(model, "
            "weight_decay=...), ...)",
        )
    kind, strongest = _kind(probe), max(decays.values(), default=0.0)
    if strongest > DECAY_LIMITS.get(kind, float("inf")):
        yield Finding(
            "weight-decay",
            "warning",
            f"weight decay of {strongest:g} with {kind}; above {DECAY_LIMITS[kind]:g} is rarely meant",
            {"weight_decay": strongest},
            "too much regularisation pushes every prediction towards the mean box",
            f"lower weight_decay to {0.05 if kind in ADAPTIVE else 5e-4:g}",
        )


def parameters_in_groups(probe: Probe) -> Found:
    """Every trainable parameter is in exactly one group of the optimizer."""
    counts = Counter(p for group in probe.optimizer.param_groups for p in group["params"])
    absent = [name for name, parameter in probe.trainable.items() if not counts[parameter]]
    if absent:
        yield Finding(
            "parameters-in-groups",
            "error",
            f"{len(absent)} trainable parameters are in no group of the optimizer",
            {"parameters": len(absent), "names": _some(absent)},
            "they get gradients and never change",
            "build the optimizer from boxreg.param_groups(model, ...) after the model is complete",
        )
    twice = [probe.names.get(parameter, "?") for parameter, count in counts.items() if count > 1]
    if twice:
        yield Finding(
            "parameters-in-groups",
            "error",
            f"{len(twice)} parameters are in the optimizer more than once",
            {"parameters": len(twice), "names": _some(twice)},
            "they are stepped twice a step, at twice the learning rate",
            "build the optimizer from boxreg.param_groups(model, ...), which lists each once",
        )
    foreign = [parameter for parameter in counts if parameter not in probe.names]
    if foreign:
        yield Finding(
            "parameters-in-groups",
            "warning",
            f"the optimizer holds {len(foreign)} tensors that are not the model's",
            {"tensors": len(foreign), "shapes": [list(parameter.shape) for parameter in foreign[:5]]},
            "an optimizer that was built before a layer was replaced goes on moving the old one",
            "build the optimizer after the model is complete; give parameters of the loss to the model",
        )


def frozen_parameters(probe: Probe) -> Found:
    """No parameter is frozen by mistake."""
    optimized = {parameter for group in probe.optimizer.param_groups for parameter in group["params"]}
    frozen = {name: p for p, name in probe.names.items() if not p.requires_grad}
    if not frozen:
        return
    listed = [name for name, parameter in frozen.items() if parameter in optimized]
    share = sum(p.numel() for p in frozen.values()) / sum(p.numel() for p in probe.names)
    yield Finding(
        "frozen-parameters",
        "warning" if listed else "info",
        f"{len(frozen)} parameters are frozen, {len(listed)} of them although the optimizer holds them",
        {"frozen": len(frozen), "in_optimizer": len(listed), "share": share, "names": _some([*frozen])},
        "what is frozen does not learn; the optimizer was given them as if they should",
        "call requires_grad_(True) on them, or leave them out of the optimizer if they are to stay",
    )


def parameters_without_gradient(probe: Probe) -> Found:
    """Every trainable parameter gets a gradient that is not zero."""
    if not probe.steps:
        raise NotCheckedError("needs steps of at least 1")
    unused = [name for name in probe.trainable if all(name in step.missing for step in probe.steps)]
    if unused:
        yield Finding(
            "parameters-without-gradient",
            "error",
            f"the loss does not depend on {len(unused)} of {len(probe.trainable)} trainable parameters",
            {"parameters": len(unused), "names": _some(unused)},
            "something detaches them: .detach(), .data, .item(), torch.no_grad(), argmax, or they "
            "are not used",
            "follow the tensors from these layers to the loss; drop the layers if they are not needed",
        )
    dead = [
        name
        for name in probe.trainable
        if name not in unused and all(name in step.zero or name in step.missing for step in probe.steps)
    ]
    if dead:
        yield Finding(
            "parameters-without-gradient",
            "error" if len(dead) > len(probe.trainable) // 2 else "warning",
            f"{len(dead)} of {len(probe.trainable)} trainable parameters get a gradient of exactly 0",
            {"parameters": len(dead), "names": _some(dead), "steps": len(probe.steps)},
            "a clamp, a dead ReLU or a loss without overlap stops the gradient on its way",
            "see the findings on outputs and loss; compute the loss on unclamped outputs",
        )


def update_size(probe: Probe) -> Found:
    """A step at the peak rate changes the layers by amounts that one learning rate can serve."""
    from statistics import median  # which takes 3 ms to import

    if not probe.steps:
        raise NotCheckedError("needs steps of at least 1")
    if any(_peak(group) == 0 for group in probe.optimizer.param_groups):
        raise NotCheckedError("a learning rate is 0")
    scales = {
        probe.names.get(parameter): _peak(group) / max(float(group["lr"]), 1e-12)
        for group in probe.optimizer.param_groups
        for parameter in group["params"]
    }
    ratios = {
        name: scales.get(name, 0.0) * median(step.update_ratios[name] for step in probe.steps)
        for name in probe.steps[0].update_ratios
        if all(step.update_ratios.get(name) for step in probe.steps)
    }
    if not ratios:
        raise NotCheckedError("no weight matrix moved")
    slowest, fastest = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    spread = ratios[fastest] / ratios[slowest]
    sgd = not isinstance(probe.optimizer, torch.optim.Adam) and _kind(probe) not in ADAPTIVE
    middle = median(ratios.values())
    if middle < SLOWEST_UPDATE or (sgd and spread > UNEVEN_UPDATES and middle < SLOW_UPDATE):
        yield Finding(
            "update-size",
            "warning",
            f"a step changes {slowest} by {ratios[slowest]:.1e} of its norm, {fastest} by "
            f"{ratios[fastest]:.1e}",
            {"slowest": ratios[slowest], "fastest": ratios[fastest], "median": middle},
            "about 1e-3 a step is healthy; where layers differ a hundredfold one rate cannot suit "
            "all of them",
            "use torch.optim.AdamW with lr about 1e-3, which steps every layer alike, or "
            "normalisation layers",
        )


CHECKS: list[Check] = [
    optimizer_kind,
    declared_rates,
    learning_rate,
    beta2,
    weight_decay,
    parameters_in_groups,
    frozen_parameters,
    parameters_without_gradient,
    update_size,
]
