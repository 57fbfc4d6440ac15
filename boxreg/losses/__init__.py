"""Box losses, a file each: maths, gradient, parameters, function and module together."""

# ruff: noqa: I001 - in the family's order, in which they are listed everywhere

from ._family import IoUFamilyLoss as IoUFamilyLoss
from ._sum import Loss as Loss
from ._sum import LossSum as LossSum
from .iou import IoULoss as IoULoss
from .iou import iou_loss as iou_loss
from .giou import GIoULoss as GIoULoss
from .giou import giou_loss as giou_loss
from .diou import DIoULoss as DIoULoss
from .diou import diou_loss as diou_loss
from .ciou import CIoULoss as CIoULoss
from .ciou import ciou_loss as ciou_loss
from .eiou import EIoULoss as EIoULoss
from .eiou import eiou_loss as eiou_loss
from .siou import SIoULoss as SIoULoss
from .siou import siou_loss as siou_loss
from .wiou import WIoULoss as WIoULoss
from .wiou import wiou_loss as wiou_loss
from .mpdiou import MPDIoULoss as MPDIoULoss
from .mpdiou import mpdiou_loss as mpdiou_loss
from .shapeiou import ShapeIoULoss as ShapeIoULoss
from .shapeiou import shapeiou_loss as shapeiou_loss
from .nwd import NWDLoss as NWDLoss
from .nwd import nwd_loss as nwd_loss

LOSSES: dict[str, type[IoUFamilyLoss]] = {
    loss.kind: loss
    for loss in (
        IoULoss,
        GIoULoss,
        DIoULoss,
        CIoULoss,
        EIoULoss,
        SIoULoss,
        WIoULoss,
        MPDIoULoss,
        ShapeIoULoss,
        NWDLoss,
    )
}
"""The losses of the family by their kind."""
