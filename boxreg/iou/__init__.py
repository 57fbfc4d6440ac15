"""The IoU family: its maths once (`family`, `penalties`), and the entry points that run it (`functional`)."""

from .functional import box_iou as box_iou
from .functional import overlap_loss as overlap_loss
from .functional import pairwise_box_iou as pairwise_box_iou
