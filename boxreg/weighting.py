"""Weights of boxes by how well they fit: what multiplies an IoU loss box by box, before it is reduced.

A weighting is called with the IoU of each box, detached, and the weight that the caller gave it (or None),
and returns a factor of the IoU's shape. Factors are constants under differentiation. Anything that is called
so can be given to a loss; those that learn from what they see are modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._checks import check_number

Weighting = Callable[[Tensor, Tensor | None], Tensor]
"""From the IoU and the weight of each box to a factor."""

LEAST_MEAN = 2.0**-100


def check_weighting(value: object) -> None:
    """Raise unless `value` is None or may be called."""
    if value is not None and not callable(value):
        raise TypeError(
            f"weighting: got {type(value).__name__}, expected a weighting such as FocalWeighting()"
        )


class FocalWeighting(nn.Module):
    r"""The focal weight of Focal-EIoU, \( \mathrm{IoU}^\gamma \): boxes that fit better count more.

    Zhang et al. 2021, "Focal and Efficient IOU Loss for Accurate Bounding Box Regression"
    (arXiv:2101.08158). The paper weighs its EIoU; the weight goes with any loss. A box that does not meet
    its target has weight 0 and learns nothing.

    The weight is a constant here. Implementations differ; but differentiated,
    \( \mathrm{IoU}^\gamma (1 - \mathrm{IoU}) \) rises with the IoU as long as that is below
    \( \gamma / (1 + \gamma) \) (a third, for gamma = 0.5): boxes would be driven off their targets.

    Args:
        gamma: how much less boxes count that fit badly; 0 for not at all.

    Raises:
        TypeError: if `gamma` is not a number.
        ValueError: if it is negative or not finite.

    Example:
        >>> import torch
        >>> from boxreg import EIoULoss, FocalWeighting
        >>> pred, target = torch.tensor([[0.0, 0.0, 1.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> EIoULoss()(pred, target), EIoULoss(weighting=FocalWeighting(gamma=2.0))(pred, target)
        (tensor(0.7812), tensor(0.1953))
    """

    def __init__(self, gamma: float = 0.5) -> None:
        super().__init__()
        check_number("gamma", gamma, minimum=0)
        self.gamma = gamma

    def forward(self, iou: Tensor, weight: Tensor | None = None) -> Tensor:
        """The factor of each box."""
        return iou**self.gamma

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"gamma={self.gamma}"


class WiseWeighting(nn.Module):
    r"""The non-monotonic focusing of WIoU v3: boxes that fit neither well nor badly count most.

    \[ r = \frac{\beta}{\delta\, \alpha^{\beta - \delta}}, \qquad
       \beta = \frac{1 - \mathrm{IoU}}{\text{running mean of } 1 - \mathrm{IoU}} \]

    Tong et al. 2023, "Wise-IoU" (arXiv:2301.10051): `WIoULoss(weighting=WiseWeighting())` is WIoU v3. The
    factor is 1 at beta = delta, largest at 1 / log(alpha), and a constant under differentiation.

    The mean is a buffer, saved in the `state_dict`. It starts at 1, and moves first and is used then; in
    training mode alone, over the boxes whose weight is not 0 and whose IoU is finite, and not at all if there
    are none. It lives on the device of the boxes: move the loss there with `.to(device)`. Processes do not
    share it: each follows its own boxes, which at this momentum comes to the same; all-reduce `mean` between
    epochs to make them equal.

    Args:
        alpha: how fast the factor falls for boxes that fit badly.
        delta: the outlier degree beta whose factor is 1.
        momentum: how far the mean moves towards that of a batch. The paper has \( 1 - 0.05^{1 / tn} \) for n
            batches an epoch and t epochs, after which 95 % of the start is forgotten; the default is that of
            its authors' code, n = 890 and t = 34.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is out of its range.

    Example:
        >>> import torch
        >>> from boxreg import WIoULoss, WiseWeighting
        >>> criterion = WIoULoss(weighting=WiseWeighting(momentum=0.5))
        >>> loss = criterion(torch.tensor([[0.0, 0.0, 1.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
        >>> criterion.weighting.mean
        tensor(0.7500)
    """

    mean: Tensor

    def __init__(
        self, alpha: float = 1.9, delta: float = 3.0, momentum: float = 1 - 0.05 ** (1 / (890 * 34))
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, minimum=1)
        check_number("delta", delta, minimum=0.01)
        check_number("momentum", momentum, minimum=0, maximum=1)
        self.alpha, self.delta, self.momentum = alpha, delta, momentum
        self.register_buffer("mean", torch.ones(()))

    def forward(self, iou: Tensor, weight: Tensor | None = None) -> Tensor:
        """The factor of each box; in training mode the mean moves first."""
        if self.mean.device != iou.device:
            raise ValueError(
                f"weighting: its mean is on {self.mean.device} and the boxes are on {iou.device}; "
                "move the loss with .to(device)"
            )
        missing = 1.0 - iou
        if self.training:
            self._follow(missing, weight)
        outlier_degree = missing / self.mean.to(iou.dtype).clamp(min=LEAST_MEAN)
        focus: Tensor = outlier_degree / (self.delta * self.alpha ** (outlier_degree - self.delta))
        return focus

    def _follow(self, missing: Tensor, weight: Tensor | None) -> None:
        counted = missing.isfinite() if weight is None else missing.isfinite() & (weight != 0)
        count = counted.sum()
        of_batch = torch.where(counted, missing, 0.0).sum() / count.clamp(min=1)
        self.mean.lerp_(torch.where(count > 0, of_batch.to(self.mean.dtype), self.mean), self.momentum)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"alpha={self.alpha}, delta={self.delta}, momentum={self.momentum:.3g}"
