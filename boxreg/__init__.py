"""Box-regression losses, heads, decoders and parameter groups for PyTorch."""

from . import functional as functional
from .assign import AnchorRatioAssigner as AnchorRatioAssigner
from .assign import Assigner as Assigner
from .assign import Assignment as Assignment
from .assign import ResponsibleCellAssigner as ResponsibleCellAssigner
from .assign import Targets as Targets
from .assign import TaskAlignedAssigner as TaskAlignedAssigner
from .assign import pad_targets as pad_targets
from .box_loss import BoxLoss as BoxLoss
from .box_loss import BoxLossTerms as BoxLossTerms
from .boxes import convert as convert
from .decoders import Decoder as Decoder
from .decoders import GridCellDecoder as GridCellDecoder
from .decoders import UnitSquareDecoder as UnitSquareDecoder
from .dense import DensePrediction as DensePrediction
from .dfl import DFLoss as DFLoss
from .dfl import dfl_integral as dfl_integral
from .grids import Level as Level
from .grids import Points as Points
from .grids import points_of as points_of
from .heads import BoxHead as BoxHead
from .iou import box_iou as box_iou
from .iou import pairwise_box_iou as pairwise_box_iou
from .losses import CIoULoss as CIoULoss
from .losses import DIoULoss as DIoULoss
from .losses import EIoULoss as EIoULoss
from .losses import GIoULoss as GIoULoss
from .losses import IoULoss as IoULoss
from .losses import MPDIoULoss as MPDIoULoss
from .losses import NWDLoss as NWDLoss
from .losses import ShapeIoULoss as ShapeIoULoss
from .losses import SIoULoss as SIoULoss
from .losses import WIoULoss as WIoULoss
from .param_groups import Rule as Rule
from .param_groups import param_groups as param_groups
from .param_groups import param_table as param_table
from .rotated import GWDLoss as GWDLoss
from .rotated import KLDLoss as KLDLoss
from .rotated import ProbIoULoss as ProbIoULoss
from .weighting import FocalWeighting as FocalWeighting
from .weighting import WiseWeighting as WiseWeighting
from .yolo_loss import YOLOLoss as YOLOLoss
from .yolo_loss import YOLOLossTerms as YOLOLossTerms

__version__ = "0.1.0"
