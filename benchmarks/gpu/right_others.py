"""What is checked beside the cases of the IoU family, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from boxreg import BoxLoss, DeltaDecoder, DFLDecoder, FocalWeighting, WiseWeighting, YOLOv3Decoder
from boxreg import functional as F
from boxreg.boxes import FORMATS, convert
from boxreg.iou import functional
from boxreg.iou.spec import FAMILY, IOU, MODES

from .boxes import some_pairs, upright, wild_pairs
from .device import Cuda
from .report import Figures, LeftOutError
from .right_cases import EPS, PARAMETERS, TOLERANCE, largest, loss_error

Check = Callable[[Cuda], Figures]


def held_against(
    device: Cuda, function: Callable[..., Tensor], inputs: list[Tensor], slack: float = 1.0, **options: Any
) -> Figures:
    """Compare a function on the device, in each of three dtypes, with the same function in float64.

    Args:
        device: where it is computed.
        function: a function of the inputs; gets `backend` if `options` has one, eager for float64.
        inputs: float64 tensors, each of which needs a gradient.
        slack: how many times the usual rounding error is allowed.
        **options: for the function.
    """
    worst = 0.0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        leaves = [side.to(device.torch, dtype).requires_grad_() for side in inputs]
        exact = [side.detach().double().requires_grad_() for side in leaves]
        found = function(*leaves, **options)
        expected = function(*exact, **options | ({"backend": "eager"} if "backend" in options else {}))
        upstream = torch.randn(
            expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        upstream = upstream.to(device.torch)
        gradients = torch.autograd.grad(found, leaves, upstream.to(found.dtype))
        exactly = torch.autograd.grad(expected, exact, upstream.to(found.dtype).double())
        loose = torch.full_like(expected.detach(), slack)
        worst = max(
            worst,
            loss_error(found.detach(), expected.detach(), loose + torch.finfo(found.dtype).eps / EPS / 64),
        )
        for gradient, reference in zip(gradients, exactly, strict=True):
            # The largest of all boxes, since a gradient here may be summed over many of them.
            unit = reference.abs().amax() * torch.ones_like(reference)
            allowed = (slack * TOLERANCE + 2 * torch.finfo(dtype).eps) * unit
            worst = max(worst, largest(gradient.double(), reference, allowed))
    assert worst <= 1, f"off by {worst:.3g} times what is allowed"
    return {"error": round(worst, 3)}


def pairwise(kind: str, fmt: str, device: Cuda) -> Figures:
    """Scores of all pairs and the gradients of both sides."""
    rows, columns = device.pick((37, 101), (5, 7))
    generator = torch.Generator().manual_seed(4)
    a, b = (convert(upright(2 * n, generator).view(2, n, 4), "xyxy", fmt) for n in (rows, columns))
    scores = partial(functional.pairwise_box_iou, kind=kind, fmt=fmt, **PARAMETERS.get(kind, {}))
    return held_against(device, scores, [a, b], slack=2.0, backend="triton")


def rotated(name: str, options: dict[str, Any], device: Cuda) -> Figures:
    """A loss of rotated boxes."""
    pairs = rotated_boxes(device.pick(2000, 50))
    return held_against(device, partial(getattr(F, name), **options), list(pairs), slack=8.0)


def rotated_boxes(count: int) -> tuple[Tensor, Tensor]:
    """Rotated boxes that overlap, (count, 5), float64."""
    generator = torch.Generator().manual_seed(5)
    boxes = torch.rand(2, count, 5, generator=generator, dtype=torch.float64)
    boxes[..., 2:4] += 0.5
    pred, target = boxes.unbind(0)
    return pred, target


def coarse(values: Tensor) -> Tensor:
    """To the nearest sixteenth, which every dtype holds up to 16."""
    return (16 * values).round() / 16


def dfl(device: Cuda) -> Figures:
    """The distribution focal loss on planes."""
    generator = torch.Generator().manual_seed(6)
    shape = device.pick((2, 4, 16, 20, 20), (2, 4, 16, 2, 3))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = coarse(15 * torch.rand(logits.select(2, 0).shape, generator=generator, dtype=torch.float64))

    def loss(logits: Tensor) -> Tensor:
        return F.dfl_loss(logits, target.to(logits), dim=2)

    return held_against(device, loss, [logits], slack=2.0)


def dfl_expectation(device: Cuda) -> Figures:
    """The expectation of a distribution, on planes."""
    generator = torch.Generator().manual_seed(7)
    shape = device.pick((2, 4, 16, 20, 20), (2, 4, 16, 2, 3))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    return held_against(device, partial(F.dfl_integral, dim=2), [logits], slack=16.0)


def weighted_by_fit(device: Cuda) -> Figures:
    """Focal-EIoU and WIoU v3, with their gradients."""
    pred, target = overlapping(device.pick(3000, 60))

    def loss(pred: Tensor, target: Tensor, backend: str) -> Tensor:
        options: dict[str, Any] = {"backend": backend, "reduction": "sum"}
        focal = F.eiou_loss(pred, target, weighting=FocalWeighting(), **options)
        wise = F.wiou_loss(pred, target, weighting=WiseWeighting().to(pred.device), **options)
        return focal + wise

    return held_against(device, loss, [pred, target], slack=8.0, backend="triton")


def overlapping(count: int) -> tuple[Tensor, Tensor]:
    """Upright boxes, each moved a little from its target; xyxy, float64."""
    generator = torch.Generator().manual_seed(8)
    target = upright(count, generator)
    return target + 0.2 * torch.rand(count, 4, generator=generator, dtype=torch.float64), target


def box_loss(device: Cuda) -> Figures:
    """CIoU with centre and size terms, and a divisor that lies on the device."""
    pred, target = (convert(side, "xyxy", "cxcywh") for side in overlapping(device.pick(3000, 60)))

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        normalizer = torch.full((), 17.0, device=pred.device)
        total: Tensor = BoxLoss()(pred, target, normalizer=normalizer).total
        return total

    return held_against(device, loss, [pred, target], slack=8.0)


def decoded_outside(device: Cuda) -> Figures:
    """Losses of raw outputs whose decoder has no kernel of its own: distributions, and deltas from boxes."""
    generator = torch.Generator().manual_seed(9)
    rows, cols = device.pick((20, 24), (3, 4))
    bins = DFLDecoder(stride=0.25, bins=9)
    raw = torch.randn(2, bins.channels, rows, cols, generator=generator, dtype=torch.float64)
    place = coarse(upright(2 * rows * cols, generator)).view(2, rows, cols, 4).movedim(-1, 1)
    about = convert(place, "xyxy", "cxcywh", 1)

    def loss(raw: Tensor, backend: str) -> Tensor:
        target = place.to(raw)
        options: dict[str, Any] = {"dim": 1, "backend": backend, "reduction": "sum"}
        deltas = DeltaDecoder().about(about.to(raw), dim=1)
        return F.ciou_loss(raw, target, decoder=bins, **options) + F.ciou_loss(
            0.25 * raw[:, :4], target, decoder=deltas, **options
        )

    return held_against(device, loss, [raw], slack=16.0, backend="triton")


def wild(kind: str, device: Cuda) -> Figures:
    """Ten million pairs of any finite numbers: loss and gradients are finite, in every mode."""
    count = device.pick(10_000_000, 2_000)
    pred, target = (side.requires_grad_() for side in wild_pairs(count, device.torch))
    for mode in MODES:
        loss = functional.aligned_loss(
            kind, pred, target, mode=mode, backend="triton", **PARAMETERS.get(kind, {})
        )
        gradients = torch.autograd.grad(loss, (pred, target), torch.ones_like(loss))
        for name, part in (
            ("loss", loss),
            ("pred's gradient", gradients[0]),
            ("target's gradient", gradients[1]),
        ):
            wrong = ~part.detach().isfinite()
            if wrong.any():
                place = wrong.nonzero()[0, 0]
                boxes = pred[place].tolist(), target[place].tolist()
                raise AssertionError(f"{mode}: {int(wrong.sum())} of {name} are not finite; first {boxes}")
    return {"pairs": count}


def promises(kind: str, device: Cuda) -> Figures:
    """Identical boxes cost at most 4 ulp; scaling by 2^k changes nothing; NaN stays in its own pair."""
    pred, target = (side.float().to(device.torch) for side in some_pairs(device.pick(2000, 60)))
    parameters = PARAMETERS.get(kind, {})
    loss = partial(functional.aligned_loss, kind, backend="triton")
    upright_boxes = target[(target[:, 2:] > target[:, :2]).all(-1)]
    worst = 0.0
    for power in (-100, -30, 0, 30, 100):
        boxes = upright_boxes * 2.0**power
        worst = max(worst, float(loss(boxes, boxes.clone(), **parameters).abs().max()))
    assert worst <= 4 * EPS, f"identical boxes cost {worst}"
    expected = loss(pred, target, **parameters)
    for power in (-20, 20):
        lengths = {name: value * 2.0**power for name, value in parameters.items() if name != "scale"}
        found = loss(pred * 2.0**power, target * 2.0**power, **parameters | lengths)
        assert torch.equal(found, expected), f"2^{power} changes the loss by {(found - expected).abs().max()}"
    broken = pred.clone()
    broken[1::2, 2] = torch.nan
    found = loss(broken, target, **parameters)
    assert found[1::2].isnan().all(), "NaN is lost"
    assert torch.equal(found[::2], expected[::2]), "NaN reached another box"
    return {"identical, ulp": round(worst / EPS, 2)}


def scaler(device: Cuda) -> Figures:
    """With a GradScaler, float16 gradients overflow as torch's own do, and the scale is reduced."""

    def run(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[float], Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(16, 4).to(device.torch)
        # One image of small numbers: nothing but the loss's own gradient leaves float16's range.
        inputs = 0.5 * torch.rand(1, 16).to(device.torch)
        target = upright(1, torch.Generator().manual_seed(1)).float().to(device.torch)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
        scaler = torch.amp.GradScaler(device.torch.type, init_scale=2.0**16, growth_interval=1000)
        scales = []
        for _ in range(12):
            optimizer.zero_grad()
            with torch.autocast(device.torch.type, torch.float16):
                boxes = model(inputs)
            scaler.scale(loss(boxes, target)).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        assert model.bias.grad is not None
        return scales, model.bias.grad / scales[-1]

    ours, gradient = run(lambda boxes, target: F.ciou_loss(boxes, target, reduction="sum", backend="triton"))
    torchs, expected = run(
        lambda boxes, target: F.ciou_loss(boxes.float(), target, reduction="sum", backend="eager")
    )
    assert ours == torchs, f"scales differ: {ours}, torch's {torchs}"
    apart = float((gradient - expected).abs().max() / expected.abs().max())
    assert apart < 0.01, f"gradients are apart by {apart}"
    return {"scale at the end": ours[-1], "apart": apart}


def beyond_float16(device: Cuda) -> Figures:
    """A float16 gradient that leaves the range is infinite, and in the range it is as in float32."""
    # Sides of a thousandth: the gradients are about a thousand times the upstream gradient.
    target = 2.0**-10 * torch.tensor([[0.0, 0.0, 1.0, 2.0], [2.0, 1.0, 4.0, 3.0]])
    pred, target = ((target + move).to(device.torch, torch.float16) for move in (2.0**-12, 0.0))
    infinite = 0
    for above in (1.0, 16.0, 2.0**10, 2.0**16):
        leaf, exact = pred.clone().requires_grad_(), pred.float().requires_grad_()
        loss = F.giou_loss(leaf, target, reduction="sum", backend="triton")
        (found,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, above))
        (expected,) = torch.autograd.grad(
            F.giou_loss(exact, target.float(), reduction="sum", backend="eager"), exact
        )
        expected = above * expected.double()
        beyond = expected.abs() > 1.01 * torch.finfo(torch.float16).max
        assert torch.equal(found.isinf(), beyond), (
            f"under {above}: {found.tolist()}, exactly {expected.tolist()}"
        )
        apart = (found.double() - expected).abs() / expected.abs().clamp(min=above)
        assert not (apart > 0.002).logical_and(~beyond).any(), f"under {above}: apart by {apart.tolist()}"
        infinite += int(beyond.sum())
    assert infinite > 0, "nothing leaves the range"
    return {"infinite": infinite}


def values_at_run_time(kind: str, device: Cuda) -> Figures:
    """Other values of parameters, settings, anchors and factors: the same kernel, and the right results."""
    from boxreg.iou.backends import _triton_launch

    pred, target = overlapping(device.pick(3_000, 24))
    raw, count = pred.to(device.torch).T.reshape(1, 4, 1, 1, -1), device.pick(200, 4)
    boxes = [side.float().to(device.torch).T.reshape(raw.shape) for side in (pred, target)]
    inner = FAMILY[kind].overlap is IOU
    worst, kept = 0.0, None
    for number in range(count):
        factor = 1.0 + number / count
        decoder = YOLOv3Decoder(stride=0.25 * factor, anchors=[(factor, 2.0 / factor)])
        options: dict[str, Any] = {
            "mode": "alpha",
            "alpha": 1.0 + factor,
            "loss_weight": 3.0 / factor,
            "dim": 1,
        }
        options |= {name: value * factor for name, value in PARAMETERS.get(kind, {}).items()}
        options |= {"inner_ratio": 0.5 * factor} if inner else {}
        options |= {"decoder": decoder, "reduction": "mean"}
        leaf, exact = boxes[0].clone().requires_grad_(), boxes[0].double().requires_grad_()
        found = functional.aligned_loss(kind, leaf, boxes[1], backend="triton", **options)
        expected = functional.aligned_loss(kind, exact, boxes[1].double(), backend="eager", **options)
        gradient, reference = (
            torch.autograd.grad(loss, side)[0].double() for loss, side in ((found, leaf), (expected, exact))
        )
        worst = max(worst, float((found - expected).detach().abs() / expected.detach().clamp(min=1.0)))
        worst = max(worst, float((gradient - reference).abs().max() / reference.abs().max()))
        kernels = len(_triton_launch._COMPILED)
        assert kept is None or kernels == kept, f"value {number} makes another kernel"
        kept = kernels
    assert worst < 1e-4, f"apart by {worst:.2g}"
    return {"values": count, "apart": worst}


def not_finite_upstream(device: Cuda) -> Figures:
    """An infinite or NaN upstream gradient gives a gradient that is not finite."""
    pred, target = (side.to(device.torch) for side in overlapping(10))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for above in (torch.inf, torch.nan):
            leaf = pred.to(dtype).requires_grad_()
            loss = F.ciou_loss(leaf, target.to(dtype), reduction="mean", backend="triton")
            (gradient,) = torch.autograd.grad(loss * above, leaf)
            assert not gradient.isfinite().any(), f"{dtype}: {above} becomes {gradient[0].tolist()}"
    return {}


def addressing(layout: str, device: Cuda) -> Figures:
    """With more elements than 32 bits can index, the last boxes get the loss and gradient of the first."""
    block = device.pick(1_000_000, 500)
    count = device.pick(720_000_000, 2_000)  # three planes are more than 2^31 elements
    free, a_pair = device.free_bytes(), 60
    if count * a_pair > free:
        raise LeftOutError(f"{count * a_pair / 2**30:.0f} GiB are needed, {free / 2**30:.0f} GiB are free")
    first = [side.to(device.torch, torch.float16) for side in overlapping(block)]
    leaf = first[0].clone().requires_grad_()
    loss = F.ciou_loss(leaf, first[1], backend="triton")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)

    many, dim = [repeated(side, count // block, layout) for side in first], 1 if layout == "planes" else -1
    many[0].requires_grad_()
    losses = F.ciou_loss(*many, dim=dim, backend="triton").flatten()
    assert torch.equal(losses[-block:], loss), "the last losses are others"
    (gradients,) = torch.autograd.grad(losses.sum(), many[0])
    last = gradients[0, :, -block:].t() if layout == "planes" else gradients[-block:]
    assert torch.equal(last, gradient), "the last gradients are others"
    return {"elements": 4 * count}


def repeated(boxes: Tensor, times: int, layout: str) -> Tensor:
    """Boxes (N, 4) repeated `times` times, as rows, or as planes (1, 4, times * N)."""
    if layout == "planes":
        return boxes.t().repeat(1, times).unsqueeze(0)
    return boxes.repeat(times, 1)


def pairwise_addressing(device: Cuda) -> Figures:
    """With more scores than 32 bits can index, the last row equals that of a small call."""
    rows, columns = device.pick((48_000, 50_000), (20, 30))
    free, needed = device.free_bytes(), 4 * rows * columns
    if 2 * needed > free:
        raise LeftOutError(f"{2 * needed / 2**30:.0f} GiB are needed, {free / 2**30:.0f} GiB are free")
    a, b = (upright(n, torch.Generator().manual_seed(n)).float().to(device.torch) for n in (rows, columns))
    scores = functional.pairwise_box_iou(a, b, "ciou", backend="triton")
    alone = functional.pairwise_box_iou(a[-1:], b, "ciou", backend="triton")
    assert torch.equal(scores[-1:], alone), "the last scores are others"
    return {"scores": rows * columns}


OTHERS: dict[str, Check] = {
    "GradScaler": scaler,
    "upstream gradients that are not finite": not_finite_upstream,
    "float16 gradients beyond the range": beyond_float16,
    **{f"values at run time: {kind}": partial(values_at_run_time, kind) for kind in ("ciou", *PARAMETERS)},
    **{f"guarantees: {kind}": partial(promises, kind) for kind in FAMILY},
    **{
        f"pairwise: {kind} {fmt}": partial(pairwise, kind, fmt)
        for kind, fmt in zip(FAMILY, (*FORMATS, *FORMATS, *FORMATS, *FORMATS), strict=False)
    },
    **{f"arbitrary floats: {kind}": partial(wild, kind) for kind in FAMILY},
    **{
        f"rotated: {name} {' '.join(options.values())}": partial(rotated, name, options)
        for name, options in (
            ("probiou_loss", {"mode": "l1"}),
            ("probiou_loss", {"mode": "l2"}),
            ("kld_loss", {"fun": "log1p"}),
            ("kld_loss", {"fun": "sqrt"}),
            ("gwd_loss", {"fun": "log1p"}),
            ("gwd_loss", {"fun": "sqrt"}),
        )
    },
    "DFL": dfl,
    "DFL's expectation": dfl_expectation,
    "weighted by fit": weighted_by_fit,
    "BoxLoss": box_loss,
    "decoders without a kernel": decoded_outside,
}
"""By name; several processes share them."""

ALONE: dict[str, Check] = {
    "64-bit addresses, rows": partial(addressing, "rows"),
    "64-bit addresses, planes": partial(addressing, "planes"),
    "64-bit addresses, pairwise": pairwise_addressing,
}
"""The checks that need most of the memory."""
