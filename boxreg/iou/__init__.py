"""What every loss of the IoU family runs on: the geometry of a pair of boxes, backends, scores by name."""

from .functional import aligned_loss as aligned_loss
from .functional import box_iou as box_iou
from .functional import pairwise_box_iou as pairwise_box_iou
