"""The options of the IoU family's losses: name, type and text of each, and what all of them have in common.

Their defaults are those of `aligned_loss` and of `IoUFamilyLoss`.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

from torch import Tensor

from ..decoders import Decoder
from ..iou.functional import aligned_loss
from ..reduction import Normalizer
from ..weighting import Weighting
from ._docs import LossFamily, texts_of


class Reduction(TypedDict, total=False):
    """How losses become one number."""

    reduction: Annotated[str, '`"none"`, `"mean"` or `"sum"` over the boxes.']
    weight: Annotated[
        Tensor | None,
        """a factor for each box, the shape of `pred` without `dim`. A box of weight 0 has a loss and a
        gradient of exactly 0, even if it holds NaN. None: 1 each.""",
    ]
    normalizer: Annotated[
        Normalizer | None,
        """the divisor of `"mean"` in place of the number of boxes, such as the number of positives of all
        ranks: a number or a tensor of one element; with 0 the loss is 0. None: the number of boxes.""",
    ]


class ModuleOptions(TypedDict, total=False):
    """The options that functions and modules take by name."""

    dim: Annotated[int, "the coordinate axis: -1 for boxes (N, 4), 1 for planes (B, 4, H, W)."]
    backend: Annotated[str, '`"auto"`, `"eager"`, `"numba"` (CPU) or `"triton"` (CUDA).']
    decoder: Annotated[
        Decoder | None,
        """how raw outputs stand for boxes: `pred` then holds `decoder.channels` of them along `dim`. Loss and
        gradient at the raw outputs come from one pass if it is an `AxisDecoder`; any other decodes through
        autograd.""",
    ]
    mode: Annotated[str, '`"linear"`, `"log"`, `"square"` or `"alpha"`, see above.']
    alpha: Annotated[
        float | None, 'the exponent of mode `"alpha"`, from 1 to 10; None for 3. No other mode takes one.'
    ]
    inner_ratio: Annotated[
        float | None,
        """the scale of the boxes between which the IoU is taken, from 0.1 to 10; None for the boxes
        themselves. NWD, which has no IoU, takes none.""",
    ]
    weighting: Annotated[
        Weighting | None,
        """a factor for each box from its IoU, such as `FocalWeighting()`; applied before `weight`. If it is a
        module, it is a submodule of the loss's module.""",
    ]


class Options(Reduction, ModuleOptions, total=False):
    """The options of every loss function."""

    fmt: Annotated[
        str,
        """`"xyxy"`, `"xywh"` or `"cxcywh"`, the format of predictions and targets; with a `decoder`, of the
        targets alone.""",
    ]
    loss_weight: Annotated[float, "lambda, the factor of the result, finite and not negative."]


FACTOR = "multiplies the result, as `loss_weight` does; a sum of losses gives it."

BOXES = {
    "pred": """predicted boxes, four coordinates along `dim`, any shape and unit, floating; with a `decoder`,
        its raw outputs.""",
    "target": "target boxes, the same shape and unit; nothing is broadcast.",
}

COMMON = r"""
`mode` combines the overlap, mostly the IoU, with the penalty:

- `"linear"`: \( 1 - \mathrm{IoU} + \mathrm{penalty} \).
- `"log"`: \( -\log \mathrm{IoU} + \mathrm{penalty} \) (Yu et al. 2016, "UnitBox", arXiv:1608.01471).
  Below an IoU of 2^-20 (1e-6) the logarithm continues as its tangent, up to 14.9 at an IoU of 0.
- `"square"`: \( 1 - \mathrm{IoU}^2 + \mathrm{penalty} \).
- `"alpha"`: \( 1 - \mathrm{IoU}^\alpha + \mathrm{penalty}^\alpha \) (He et al. 2021, "Alpha-IoU",
  arXiv:2110.13675). The power is taken of the whole penalty, as in the paper's general form; the paper's
  CIoU raises each part of its penalty separately. A penalty above 4 continues as the tangent. Where boxes
  only touch, the power of the IoU has no gradient.

`inner_ratio` takes the IoU between boxes scaled by this factor about their own centres; the penalty remains
that of the boxes (Zhang et al. 2023, "Inner-IoU", arXiv:2311.02877, with ratios from 0.5 to 1.5). Below 1 the
gradient of nearly fitting boxes is larger; above 1 boxes that do not touch have one too.

Any finite input gives a finite loss and gradient, including boxes without area and inverted boxes (x2 < x1).
An inverted box never costs less than the same box with its corners sorted, and its gradient un-inverts it.
NaN or infinity gives NaN for that pair alone. Gradients grow as 1 / side, up to a side of 2^-100.
"""

IOU_FAMILY = LossFamily(COMMON, {**BOXES, **texts_of(Options)}, "four", called=aligned_loss)
"""What completes each loss of the family."""
