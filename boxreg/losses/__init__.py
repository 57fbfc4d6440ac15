"""Box losses, a file each: maths, gradient, parameters, function and module together.

This is the only list of the IoU family: `boxreg` and `boxreg.functional` offer all that `__all__` names.
"""

# ruff: noqa: I001 - in the family's order, in which they are listed everywhere

from ._family import IoUFamilyLoss as IoUFamilyLoss
from ._sum import Loss as Loss, LossSum
from .iou import IoULoss, iou_loss
from .giou import GIoULoss, giou_loss
from .diou import DIoULoss, diou_loss
from .ciou import CIoULoss, ciou_loss
from .eiou import EIoULoss, eiou_loss
from .siou import SIoULoss, siou_loss
from .wiou import WIoULoss, wiou_loss
from .mpdiou import MPDIoULoss, mpdiou_loss
from .shapeiou import ShapeIoULoss, shapeiou_loss
from .nwd import NWDLoss, nwd_loss

# Type checkers read these lines too, so each name is written out.
__all__ = ["IoULoss", "iou_loss"]
__all__ += ["GIoULoss", "giou_loss"]
__all__ += ["DIoULoss", "diou_loss"]
__all__ += ["CIoULoss", "ciou_loss"]
__all__ += ["EIoULoss", "eiou_loss"]
__all__ += ["SIoULoss", "siou_loss"]
__all__ += ["WIoULoss", "wiou_loss"]
__all__ += ["MPDIoULoss", "mpdiou_loss"]
__all__ += ["ShapeIoULoss", "shapeiou_loss"]
__all__ += ["NWDLoss", "nwd_loss"]
__all__ += ["LossSum"]

LOSSES: dict[str, type[IoUFamilyLoss]] = {loss.kind: loss for loss in IoUFamilyLoss.__subclasses__()}
"""The losses of the family by their kind."""
