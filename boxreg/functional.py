"""The functional forms: a loss function for each loss of the IoU family, IoU scores, rotated boxes, DFL."""

from .decoders import dfl_integral as dfl_integral
from .iou.functional import box_iou as box_iou
from .iou.functional import pairwise_box_iou as pairwise_box_iou
from .losses import ciou_loss as ciou_loss
from .losses import diou_loss as diou_loss
from .losses import eiou_loss as eiou_loss
from .losses import giou_loss as giou_loss
from .losses import iou_loss as iou_loss
from .losses import mpdiou_loss as mpdiou_loss
from .losses import nwd_loss as nwd_loss
from .losses import shapeiou_loss as shapeiou_loss
from .losses import siou_loss as siou_loss
from .losses import wiou_loss as wiou_loss
from .losses.dfl import dfl_loss as dfl_loss
from .losses.rotated import gwd_loss as gwd_loss
from .losses.rotated import kld_loss as kld_loss
from .losses.rotated import probiou_loss as probiou_loss
