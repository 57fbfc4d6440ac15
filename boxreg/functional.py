"""The functional forms: a loss function for each loss of the IoU family, IoU scores, rotated boxes, DFL."""

from .decoders import dfl_integral as dfl_integral
from .iou.functional import box_iou as box_iou
from .iou.functional import pairwise_box_iou as pairwise_box_iou
from .losses import *
from .losses.dfl import dfl_loss as dfl_loss
from .losses.rotated import gwd_loss as gwd_loss
from .losses.rotated import kld_loss as kld_loss
from .losses.rotated import probiou_loss as probiou_loss
