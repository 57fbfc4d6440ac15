"""Entry points of the IoU family: check, choose a backend, call."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from .._checks import check_boxes, check_choice, check_same_device, check_same_shape
from .._dtypes import promote
from ..boxes import FORMATS, convert
from ..decoders import AxisDecoder, Decoder, check_decoder
from ..reduction import REDUCTIONS, Normalizer, check_weight, reduce_loss, without_ignored
from ..weighting import Weighting, check_weighting
from ._pairwise import Pairwise, pairwise
from ._pass import Pass
from .backends import BACKENDS, choose, pick
from .variants import form_of, score_of


class OverlapOptions(TypedDict, total=False):
    """The keyword arguments that every loss function of the family takes; see `overlap_loss`."""

    fmt: str
    reduction: str
    weight: Tensor | None
    normalizer: Normalizer | None
    dim: int
    backend: str
    decoder: Decoder | None
    mode: str
    alpha: float
    inner_ratio: float | None
    weighting: Weighting | None


def overlap_loss(
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
    inner_ratio: float | None = None,
    weighting: Weighting | None = None,
    **parameters: float,
) -> Tensor:
    r"""The loss of a row of the family between predicted and target boxes, aligned.

    \[ L = 1 - \mathrm{IoU} + \mathrm{penalty} \]

    `mode` says what becomes of IoU and penalty, of any row:

    - `"linear"`: as above.
    - `"log"`: \( -\log \mathrm{IoU} + \mathrm{penalty} \) (Yu et al. 2016, "UnitBox", arXiv:1608.01471).
      Below an IoU of 2^-20 (1e-6) the logarithm goes on as its tangent, up to 14.9 where boxes do not meet.
    - `"square"`: \( 1 - \mathrm{IoU}^2 + \mathrm{penalty} \).
    - `"alpha"`: \( 1 - \mathrm{IoU}^\alpha + \mathrm{penalty}^\alpha \), with `alpha` (default 3) from 1 to
      10 (He et al. 2021, "Alpha-IoU", arXiv:2110.13675). The power is that of the whole penalty, as the
      paper writes its general form; in its CIoU, whose penalty is a sum, it raises each part by itself. The
      whole is what every row has. A penalty above 4 (MPDIoU's, far off) goes on as the tangent. Boxes that
      touch their targets from outside feel no pull of the IoU: its power is flat there.

    `inner_ratio` takes the IoU between boxes scaled by this factor about their own centres; the penalty stays
    that of the boxes (Zhang et al. 2023, "Inner-IoU", arXiv:2311.02877, with ratios from 0.5 to 1.5). Smaller
    than 1, it pulls harder on boxes that nearly fit; larger, it reaches boxes that do not meet.

    Any finite input gives a finite loss and gradient, boxes without area and inverted boxes
    (x2 < x1) included: an inverted box never costs less than the same box with its corners sorted,
    and its gradient un-crosses them. NaN or infinity gives NaN for that pair alone. Slopes grow as
    1 / side and saturate below a side of 2^-100.

    Args:
        kind: a row of `boxreg.iou.variants.VARIANTS`, such as `"ciou"`.
        pred: predicted boxes, four coordinates along `dim`, any shape and unit, floating; with a `decoder`,
            its raw numbers.
        target: target boxes, the same shape and unit; nothing is broadcast.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for both; with a `decoder`, for `target` alone.
        reduction: `"none"`, `"mean"` or `"sum"`.
        weight: a factor per box, `pred`'s shape without `dim`; a box of weight 0 gives exactly 0 loss
            and 0 gradient, even if it holds NaN.
        normalizer: the divisor of `"mean"` in place of the number of boxes, such as the positives of
            all ranks; 0 gives 0.
        dim: the coordinate axis: -1 for rows (N, 4), 1 for planes (B, 4, H, W).
        backend: `"auto"`, or a name in `boxreg.iou.backends.BACKENDS`, which says what each is for.
        decoder: turns `pred` into boxes first. The loss and its gradient at the raw numbers are still
            found in one pass if it is an `AxisDecoder`; any other decodes through autograd.
        mode: `"linear"`, `"log"`, `"square"` or `"alpha"`.
        inner_ratio: from 0.1 to 10; None for the boxes themselves. NWD, which has no IoU, takes none.
        weighting: a factor per box from its IoU, such as `FocalWeighting()`; it comes before `weight`.
        **parameters: of the row (see its own function), and `alpha` of the mode.

    Returns:
        A loss per box (`pred`'s shape without `dim`), or a scalar; float32, or float64 for float64 input.

    Raises:
        TypeError: if a tensor is not floating, or a parameter not a number.
        ValueError: for an unknown name, a parameter that is missing or out of its range, no axis of four
            coordinates, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.iou import overlap_loss
        >>> pred = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 2.0]])
        >>> overlap_loss("iou", pred, target)
        tensor([0.6667])
        >>> overlap_loss("iou", pred, target, mode="log")
        tensor([1.0986])
    """
    form = form_of(kind, mode, inner_ratio, parameters)
    check_choice("backend", backend, ("auto", *BACKENDS))
    check_choice("reduction", reduction, REDUCTIONS)
    check_weighting(weighting)
    pred, target = prepare(pred, target, weight, fmt, dim, decoder)
    # A backend reduces in the same pass; weights, and a divisor of the user's, come after it.
    by_box = weight is not None or weighting is not None
    plain = not by_box and normalizer is None
    wanted = Pass(form, fmt, fmt, reduction if plain else "none" if by_box else "sum")
    factor = None if weighting is None else _factor(weighting, pred, target, weight, fmt, dim, decoder)
    if isinstance(decoder, AxisDecoder):
        wanted = wanted._replace(
            pred_fmt="cxcywh",
            scheme=decoder.scheme,
            settings=decoder.settings,
            anchor_sides=decoder.anchor_sides,
        )
    elif decoder is not None:
        pred = _decoded(decoder, pred, target, fmt, dim)
    loss = pick(backend, pred, target)(wanted, pred, target, dim)
    loss = loss if factor is None else loss * factor.to(loss.dtype)
    return loss if plain else reduce_loss(loss, reduction, weight=weight, normalizer=normalizer)


def _decoded(decoder: Decoder, raw: Tensor, target: Tensor, fmt: str, dim: int) -> Tensor:
    return convert(decoder.decode(promote(raw, target)[0], dim), "cxcywh", fmt, dim)


@torch.no_grad()
def _factor(
    weighting: Weighting,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    fmt: str,
    dim: int,
    decoder: Decoder | None,
) -> Tensor:
    boxes = pred if decoder is None else _decoded(decoder, pred, target, fmt, dim)
    return weighting(box_iou(boxes.detach(), target.detach(), fmt=fmt, dim=dim), weight)


def prepare(
    pred: Tensor, target: Tensor, weight: Tensor | None, fmt: str, dim: int, decoder: Decoder | None = None
) -> tuple[Tensor, Tensor]:
    """Check a loss's boxes, or the raw numbers of a decoder, and blank those of weight 0."""
    check_choice("fmt", fmt, FORMATS)
    if decoder is None:
        check_boxes("pred", pred, dim)
        check_boxes("target", target, dim)
        check_same_shape("pred", pred, "target", target)
    else:
        check_decoder(decoder)
        decoder.check_raw("pred", pred, dim)
        check_boxes("target", target, dim)
        within = f" without dim {dim}"
        check_same_shape("pred" + within, pred.select(dim, 0), "target" + within, target.select(dim, 0))
    if weight is None:
        return pred, target
    check_weight(weight, target.select(dim, 0))
    # In place of an ignored box, in any format, an ordinary one, made on the device.
    place = torch.arange(4, device=pred.device).view(
        -1, *[1] * (-1 - dim if dim < 0 else target.ndim - 1 - dim)
    )
    ordinary = (place > 1).to(target.dtype)
    return (
        without_ignored(pred, weight, dim, ordinary.to(pred.dtype) if decoder is None else 0.0),
        without_ignored(target, weight, dim, ordinary),
    )


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
        kind: a row of the family; `"iou"` lies in [0, 1], a penalised kind may be negative, and `"nwd"` is
            the NWD itself.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for both.
        dim: the coordinate axis.
        backend: `"auto"`, or a name in `boxreg.iou.backends.BACKENDS`, which says what each is for.
        **parameters: of the row, as for its loss.

    Returns:
        A score per pair, shape of `a` without `dim`; 0 IoU where both boxes have no area. float32, or
        float64 for float64 input.

    Raises:
        ValueError: for an unknown name, no axis of four coordinates, shapes that differ, or a backend that
            cannot serve such boxes.

    Example:
        >>> import torch
        >>> from boxreg import box_iou
        >>> box_iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 1, 3, 3]]))
        tensor([0.1429])
    """
    form = score_of(kind, parameters)
    _check_metric(fmt, a, b, dim, backend)
    check_same_shape("a", a, "b", b)
    return pick(backend, a, b)(Pass(form, fmt, fmt), a, b, dim)


def pairwise_box_iou(
    a: Tensor,
    b: Tensor,
    kind: str = "iou",
    fmt: str = "xyxy",
    backend: str = "auto",
    **parameters: float,
) -> Tensor:
    """The IoU score of every box of `a` with every box of `b`.

    Works in blocks, so that memory is that of the output, also when a gradient is asked for: the pairs are
    then computed again in the backward pass (except under torch.func).

    Args:
        a: boxes (..., N, 4), any unit; integers become float32.
        b: boxes (..., M, 4) with the same leading axes and unit.
        kind: a row of the family, as in `box_iou`.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for both.
        backend: `"auto"`, or a name in `boxreg.iou.backends.BACKENDS`, which says what each is for.
        **parameters: of the row, as for its loss.

    Returns:
        Scores (..., N, M); float32, or float64 for float64 input.

    Raises:
        ValueError: for an unknown name, no last axis of four coordinates, leading axes or devices that
            differ, or a backend that cannot serve such boxes.

    Example:
        >>> import torch
        >>> from boxreg import pairwise_box_iou
        >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
        >>> pairwise_box_iou(a, b)
        tensor([[1.0000, 0.3333, 0.0000]])
    """
    form = score_of(kind, parameters)
    _check_metric(fmt, a, b, -1, backend)
    if a.ndim < 2 or b.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            "a and b must be (..., N, 4) and (..., M, 4) with the same leading axes: "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    check_same_device("a", a, "b", b)
    return pairwise(choose(backend, a, b), Pairwise(form, fmt), a, b)


def _check_metric(fmt: str, a: Tensor, b: Tensor, dim: int, backend: str) -> None:
    check_choice("fmt", fmt, FORMATS)
    check_choice("backend", backend, ("auto", *BACKENDS))
    check_boxes("a", a, dim, floating=False)
    check_boxes("b", b, dim, floating=False)
