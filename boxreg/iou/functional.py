"""Entry points of the IoU family: check, choose a backend, call."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_boxes, check_choice, check_number, check_same_device, check_same_shape
from .._dtypes import promote, working_dtype
from ..boxes import FORMATS, convert
from ..decoders import AxisDecoder, Decoder, check_decoder
from ..reduction import REDUCTIONS, Normalizer, check_normalizer, check_weight, divide, without_ignored
from ..weighting import Weighting, check_weighting
from . import autograd, dispatch
from .backends import eager
from .spec import SCORE, Spec, check_parameters


def aligned_loss(
    kind: str,
    pred: Tensor,
    target: Tensor,
    *,
    fmt: str = "xyxy",
    reduction: str = "none",
    weight: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dim: int = -1,
    backend: str = "auto",
    decoder: Decoder | None = None,
    mode: str = "linear",
    alpha: float | None = None,
    inner_ratio: float | None = None,
    weighting: Weighting | None = None,
    loss_weight: float = 1.0,
    **parameters: float,
) -> Tensor:
    """A loss of the IoU family by name; arguments as in its own function, such as `ciou_loss`.

    Args:
        kind: the loss, a key of `boxreg.iou.spec.FAMILY`.
        pred: predicted boxes (..., 4), four coordinates along `dim`, or raw outputs if there is a `decoder`.
        target: target boxes of the same shape and unit.
        fmt: format of both; of `target` alone if there is a `decoder`.
        reduction: `"none"`, `"mean"` or `"sum"`.
        weight: a factor per box.
        normalizer: divisor of `"mean"` in place of the number of boxes.
        dim: the coordinate axis.
        backend: a name in `boxreg.iou.dispatch.NAMES`.
        decoder: turns `pred` into boxes.
        mode: a key of `boxreg.iou.spec.MODES`.
        alpha: exponent of mode `"alpha"`.
        inner_ratio: scale of the boxes between which the IoU is taken.
        weighting: a factor per box from its IoU.
        loss_weight: multiplies the result.
        **parameters: of the loss.

    Returns:
        A loss per box (shape of `pred` without `dim`), or a scalar; float32, or float64 for float64 input.

    Raises:
        TypeError: if a tensor is not floating, or a parameter is not a number.
        ValueError: for an unknown name, a parameter that is missing or out of its range, no axis of four
            coordinates, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.iou import aligned_loss
        >>> aligned_loss("iou", torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([0.6667])
    """
    if alpha is not None:
        parameters["alpha"] = alpha
    values = check_parameters(kind, mode, inner_ratio, parameters)
    if loss_weight != 1:
        check_number("loss_weight", loss_weight, minimum=0)
    if backend not in dispatch.NAMES or reduction not in REDUCTIONS or fmt not in FORMATS:
        check_choice("backend", backend, dispatch.NAMES)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("fmt", fmt, FORMATS)
    check_pair(pred, target, dim, decoder)
    factor = loss_weight
    if normalizer is not None:
        check_normalizer(normalizer, reduction)
        reduction = "sum"
        if not isinstance(normalizer, Tensor) and normalizer:
            factor, normalizer = factor / normalizer, None
    spec = Spec(kind, mode, inner_ratio is not None, fmt, fmt, reduction, parameters=values, factor=factor)
    if weight is not None or weighting is not None:
        weight = _weight(weight, weighting, pred, target, fmt, dim, decoder)
    name = dispatch.choose(backend, pred, target)
    if decoder is not None:
        inside = _decode_inside(spec, decoder, name, backend, pred)
        pred = pred if inside else _decoded(decoder, pred, target, weight, fmt, dim)
        spec = inside or spec
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        name = "eager"
    if name == "eager":
        loss = eager.aligned(spec, pred, target, weight, dim)
    else:
        loss = autograd.aligned(name, spec, pred, target, weight, dim)
    return loss if normalizer is None else divide(loss, normalizer)


def check_pair(pred: Tensor, target: Tensor, dim: int, decoder: Decoder | None = None) -> None:
    """Raise unless a loss can compare these boxes, or the raw outputs of a decoder and boxes."""
    if decoder is None:
        check_boxes("pred", pred, dim)
        check_boxes("target", target, dim)
        check_same_shape("pred", pred, "target", target)
        return
    check_decoder(decoder)
    decoder.check_raw("pred", pred, dim)
    check_boxes("target", target, dim)
    within = f" without dim {dim}"
    check_same_shape("pred" + within, pred.select(dim, 0), "target" + within, target.select(dim, 0))


def _decode_inside(spec: Spec, decoder: Decoder, name: str, backend: str, raw: Tensor) -> Spec | None:
    """The spec with the decoder in it; None if it must decode by itself, before the loss."""
    if not isinstance(decoder, AxisDecoder):
        return None
    spec = spec._replace(
        pred_fmt="cxcywh",
        scheme=decoder.scheme,
        settings=decoder.settings,
        anchor_sides=decoder.anchor_sides,
    )
    error = dispatch.cannot_decode(name, spec, raw)
    if error is None:
        return spec
    if backend != "auto":
        raise ValueError(f"decoder: got {decoder}, which backend {backend!r} cannot compile: {error}")
    return None


def _decoded(
    decoder: Decoder, raw: Tensor, target: Tensor, weight: Tensor | None, fmt: str, dim: int
) -> Tensor:
    raw = promote(raw, target)[0]
    if weight is not None:  # the gradient of an ignored box is 0, and 0 times NaN would be NaN
        raw = without_ignored(raw, weight, dim)
    return convert(decoder.decode(raw, dim), "cxcywh", fmt, dim)


def _weight(
    weight: Tensor | None,
    weighting: Weighting | None,
    pred: Tensor,
    target: Tensor,
    fmt: str,
    dim: int,
    decoder: Decoder | None,
) -> Tensor:
    """The factor of each box, in the dtype of the loss."""
    dtype = working_dtype(pred, target)
    check_weighting(weighting)
    if weight is not None:
        check_weight(weight, target.select(dim, 0))
    if weighting is None:
        assert weight is not None
        return weight.to(dtype)
    with torch.no_grad():
        boxes = pred if decoder is None else _decoded(decoder, pred, target, weight, fmt, dim)
        factor = weighting(box_iou(boxes.detach(), target.detach(), fmt=fmt, dim=dim), weight).to(dtype)
    if weight is None:
        return factor
    return torch.where(weight == 0, 0.0, factor * weight.to(dtype))


def prepare(pred: Tensor, target: Tensor, weight: Tensor | None, fmt: str, dim: int) -> tuple[Tensor, Tensor]:
    """Check a loss's boxes, and put ordinary ones in place of those of weight 0."""
    check_choice("fmt", fmt, FORMATS)
    check_pair(pred, target, dim)
    if weight is None:
        return pred, target
    check_weight(weight, target.select(dim, 0))
    return eager.blank_ignored(pred, target, weight, dim)


def box_iou(
    a: Tensor,
    b: Tensor,
    kind: str = "iou",
    fmt: str = "xyxy",
    dim: int = -1,
    backend: str = "auto",
    **parameters: float,
) -> Tensor:
    r"""The IoU score of aligned boxes, box by box.

    \[ \mathrm{score} = \mathrm{IoU} - \mathrm{penalty} \]

    Args:
        a: boxes, four coordinates along `dim`, any shape and unit; integers become float32.
        b: boxes of the same shape and unit.
        kind: a loss of the family; `"iou"` lies in [0, 1], a penalised kind may be negative, and `"nwd"` is
            the NWD itself.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for both.
        dim: the coordinate axis.
        backend: `"auto"`, or a name in `boxreg.iou.dispatch.NAMES`, which says what each is for.
        **parameters: of the loss, such as `image_width`.

    Returns:
        A score per pair, shape of `a` without `dim`; 0 IoU where both boxes have no area. float32, or
        float64 for float64 input.

    Raises:
        TypeError: if `a` or `b` is not a tensor, or the loss has no parameter of that name.
        ValueError: for an unknown name, no axis of four coordinates, shapes that differ, or a backend that
            cannot compute such boxes.

    Example:
        >>> import torch
        >>> from boxreg import box_iou
        >>> box_iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 1, 3, 3]]))
        tensor([0.1429])
    """
    spec = _score_spec(kind, fmt, backend, parameters)
    check_boxes("a", a, dim, floating=False)
    check_boxes("b", b, dim, floating=False)
    check_same_shape("a", a, "b", b)
    name = dispatch.choose(backend, a, b)
    if name == "eager":
        return eager.aligned(spec, a, b, None, dim)
    return autograd.aligned(name, spec, a, b, None, dim)


def pairwise_box_iou(
    a: Tensor,
    b: Tensor,
    kind: str = "iou",
    fmt: str = "xyxy",
    backend: str = "auto",
    **parameters: float,
) -> Tensor:
    """The IoU score of every box of `a` with every box of `b`.

    Memory is that of the output, also when a gradient is asked for: the pairs are then computed again in
    backward (except under torch.func).

    Args:
        a: boxes (..., N, 4), any unit; integers become float32.
        b: boxes (..., M, 4) with the same leading axes and unit.
        kind: a loss of the family, as in `box_iou`.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for both.
        backend: `"auto"`, or a name in `boxreg.iou.dispatch.NAMES`, which says what each is for.
        **parameters: of the loss, such as `image_width`.

    Returns:
        Scores (..., N, M); float32, or float64 for float64 input.

    Raises:
        TypeError: if `a` or `b` is not a tensor, or the loss has no parameter of that name.
        ValueError: for an unknown name, no last axis of four coordinates, leading axes or devices that
            differ, or a backend that cannot compute such boxes.

    Example:
        >>> import torch
        >>> from boxreg import pairwise_box_iou
        >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
        >>> pairwise_box_iou(a, b)
        tensor([[1.0000, 0.3333, 0.0000]])
    """
    spec = _score_spec(kind, fmt, backend, parameters)
    check_boxes("a", a, -1, floating=False)
    check_boxes("b", b, -1, floating=False)
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            "a and b must be (..., N, 4) and (..., M, 4) with the same leading axes: "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    check_same_device("a", a, "b", b)
    name = dispatch.choose(backend, a, b)
    a, b = promote(a, b)
    return eager.pairwise(spec, a, b) if name == "eager" else autograd.pairwise(name, spec, a, b)


def _score_spec(kind: str, fmt: str, backend: str, parameters: dict[str, float]) -> Spec:
    check_choice("fmt", fmt, FORMATS)
    check_choice("backend", backend, dispatch.NAMES)
    return Spec(
        kind, SCORE, False, fmt, fmt, parameters=check_parameters(kind, SCORE, None, dict(parameters))
    )
