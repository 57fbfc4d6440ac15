"""Box losses: each row of the IoU family as a function; as modules they are in `boxreg.losses`."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from .iou.functional import OverlapOptions, overlap_loss


def iou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""IoU loss, \( 1 - \mathrm{IoU} \).

    Yu et al. 2016, "UnitBox" (arXiv:1608.01471) use its logarithm; this is the linear form. Boxes that
    do not touch have no gradient.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 1] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import iou_loss
        >>> iou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor([0.7500])
    """
    return overlap_loss("iou", pred, target, **options)


def giou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Generalised IoU loss, \( 1 - \mathrm{IoU} + (C - U) / C \).

    C is the area of the smallest enclosing box, U of the union. Rezatofighi et al. 2019,
    "Generalized Intersection over Union" (arXiv:1902.09630).

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 2] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import giou_loss
        >>> giou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.5000])
    """
    return overlap_loss("giou", pred, target, **options)


def diou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Distance IoU loss, \( 1 - \mathrm{IoU} + \rho^2 / c^2 \).

    rho is the distance of the centres, c the diagonal of the smallest enclosing box. Zheng et al.
    2020, "Distance-IoU Loss" (arXiv:1911.08287).

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 2] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import diou_loss
        >>> diou_loss(torch.tensor([[0.0, 0.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 4.0, 3.0]]))
        tensor([1.3600])
    """
    return overlap_loss("diou", pred, target, **options)


def ciou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Complete IoU loss, \( 1 - \mathrm{IoU} + \rho^2 / c^2 + \alpha v \).

    \[ v = \frac{4}{\pi^2} \left( \arctan\frac{w_t}{h_t} - \arctan\frac{w}{h} \right)^2, \qquad
       \alpha = \frac{v}{1 - \mathrm{IoU} + v} \]

    alpha is a constant under differentiation, as in the paper; the slope of v keeps its true
    1 / (w^2 + h^2). A box that is a point counts as a square. Zheng et al. 2020, "Distance-IoU Loss"
    (arXiv:1911.08287).

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 3] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import ciou_loss
        >>> ciou_loss(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
        tensor([0.7629])
    """
    return overlap_loss("ciou", pred, target, **options)


def eiou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Efficient IoU loss: the distance of the centres, and the difference of the sizes.

    \[ 1 - \mathrm{IoU} + \frac{\rho^2}{c^2} + \frac{(w - w_t)^2}{C_w^2} + \frac{(h - h_t)^2}{C_h^2} \]

    rho is the distance of the centres; c, C_w and C_h are the diagonal and the sides of the smallest
    enclosing box. Zhang et al. 2021, "Focal and Efficient IOU Loss for Accurate Bounding Box
    Regression" (arXiv:2101.08158), without its focal weight. The Extended IoU of the same year, which
    some libraries call EIoU too, is another loss.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 3.25] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import eiou_loss
        >>> eiou_loss(torch.tensor([[1.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
        tensor([0.7500])
    """
    return overlap_loss("eiou", pred, target, **options)


def siou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""SIoU loss, \( 1 - \mathrm{IoU} + (\Delta + \Omega) / 2 \): angle, distance and shape costs.

    \[ \Lambda = \frac{2 |d_x d_y|}{d_x^2 + d_y^2}, \qquad
       \Delta = \sum_{t = x, y} \left( 1 - e^{-(2 - \Lambda) (d_t / C_t)^2} \right), \qquad
       \Omega = \sum_{s = w, h} \left( 1 - e^{-|s - s_t| / \max(s, s_t)} \right)^4 \]

    d is the offset of the centres, C_x and C_y are the sides of the smallest enclosing box, and Lambda
    is the paper's \( 1 - 2 \sin^2(\arcsin x - \pi / 4) \) without its arcsine; it is 0 where the
    centres coincide. Gevorgyan 2022, "SIoU Loss: More Powerful Learning for Bounding Box Regression"
    (arXiv:2205.12740).

    Implementations differ. Here d / C is squared; C is a side of the enclosing box, although the paper
    writes c_w and c_h for the offset too; the exponent is negative, so that the loss rises as boxes
    move apart; the paper's theta is 4; and Lambda has its gradient.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 2.03] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import siou_loss
        >>> siou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.3377])
    """
    return overlap_loss("siou", pred, target, **options)


def wiou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""WIoU loss, version 1: \( R\, (1 - \mathrm{IoU}) \) with \( R = e^{\rho^2 / c^2} \).

    rho is the distance of the centres, c the diagonal of the smallest enclosing box. c^2 is a constant
    under differentiation, as in the paper: the gradient through it would move boxes apart to enlarge the
    enclosing box. Some implementations differentiate it. Tong et al. 2023, "Wise-IoU"
    (arXiv:2301.10051). Its version 3 is `WIoULoss(weighting=WiseWeighting())`.

    As a row it is a penalty of (R - 1) (1 - IoU), to which `mode` and `inner_ratio` apply as to any other.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, e] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import wiou_loss
        >>> wiou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.6979])
    """
    return overlap_loss("wiou", pred, target, **options)


def mpdiou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    image_width: float,
    image_height: float,
    **options: Unpack[OverlapOptions],
) -> Tensor:
    r"""MPDIoU loss, \( 1 - \mathrm{IoU} + (d_1^2 + d_2^2) / (W^2 + H^2) \).

    d_1 is the distance of the first corners (x1, y1) of the two boxes, d_2 that of the second (x2, y2); W
    and H are the sides of the picture. Ma and Xu 2023, "MPDIoU: A Loss for Efficient and Accurate Bounding
    Box Regression" (arXiv:2307.07662).

    Implementations differ in what they take for the picture: its size, a feature map's, or a constant.
    Here it is the paper's, the network's input, in the unit of the boxes: 1 and 1 for fractions. The loss
    has no bound; distances beyond 2^40 diagonals count as that.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        image_width: W, from 2^-28 to 2^28.
        image_height: H.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box, not negative, or a scalar.

    Raises:
        TypeError: if a tensor is not floating, or a parameter not a number.
        ValueError: for an unknown name, a parameter out of its range, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import mpdiou_loss
        >>> pred, target = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]])
        >>> mpdiou_loss(pred, target, image_width=4.0, image_height=2.0)
        tensor([1.1000])
    """
    return overlap_loss("mpdiou", pred, target, image_width=image_width, image_height=image_height, **options)


def shapeiou_loss(
    pred: Tensor, target: Tensor, *, scale: float = 0.0, **options: Unpack[OverlapOptions]
) -> Tensor:
    r"""Shape-IoU loss: distance and shape costs weighed by the target's shape.

    \[ 1 - \mathrm{IoU} + \frac{a d_x^2 + b d_y^2}{c^2}
       + \frac{1}{2} \left( (1 - e^{-a \omega_w})^4 + (1 - e^{-b \omega_h})^4 \right) \]

    \[ a = \frac{2 h_t^s}{w_t^s + h_t^s}, \qquad b = \frac{2 w_t^s}{w_t^s + h_t^s}, \qquad
       \omega_w = \frac{|w - w_t|}{\max(w, w_t)}, \qquad \omega_h = \frac{|h - h_t|}{\max(h, h_t)} \]

    d is the offset of the centres, c the diagonal of the smallest enclosing box, s the exponent `scale`.
    Zhang and Zhang 2023, "Shape-IoU" (arXiv:2312.17663).

    The weights are constants under differentiation: they hold nothing of the predicted box, and a gradient
    at the target is that of distance and shape alone. With the authors' default, s = 0, they are 1.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        scale: s, from 0 to 16; the paper relates it to the sizes of a data set's objects.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 3.28] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating, or a parameter not a number.
        ValueError: for an unknown name, a parameter out of its range, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import shapeiou_loss
        >>> pred, target = torch.tensor([[1.0, 0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        >>> shapeiou_loss(pred, target), shapeiou_loss(pred, target, scale=1.0)
        (tensor([0.7667]), tensor([0.7333]))
    """
    return overlap_loss("shapeiou", pred, target, scale=scale, **options)


def nwd_loss(pred: Tensor, target: Tensor, *, constant: float, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""NWD loss, \( 1 - e^{-W_2 / C} \): the Wasserstein distance of the boxes as Gaussians.

    \[ W_2^2 = d_x^2 + d_y^2 + \frac{(w - w_t)^2 + (h - h_t)^2}{4} \]

    d is the offset of the centres: the Gaussians have the boxes' centres and half of their sizes. Wang et
    al. 2021, "A Normalized Gaussian Wasserstein Distance for Tiny Object Detection" (arXiv:2110.13389).

    There is no IoU in it: `mode` applies to the NWD in place of the IoU, and `inner_ratio` not at all. The
    gradient of identical boxes, the tip of a cone, is 0.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        constant: C, in the unit of the boxes, from 2^-28 to 2^28. The paper relates it to the sizes of a
            data set's objects; a few constants away the loss is all but 1 and all but flat.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`, `mode`,
            `alpha`, `inner_ratio`, `weighting`: see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 1], but for inverted boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating, or a parameter not a number.
        ValueError: for an unknown name, a parameter out of its range, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import nwd_loss
        >>> pred, target = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[3.0, 4.0, 7.0, 8.0]])
        >>> nwd_loss(pred, target, constant=10.0)
        tensor([0.3935])
    """
    return overlap_loss("nwd", pred, target, constant=constant, **options)
