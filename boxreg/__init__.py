"""Box-regression losses, heads, decoders and parameter groups for PyTorch."""

from . import functional as functional
from .assigners import AnchorRatioAssigner as AnchorRatioAssigner
from .assigners import Assigner as Assigner
from .assigners import Assignment as Assignment
from .assigners import ResponsibleCellAssigner as ResponsibleCellAssigner
from .assigners import Targets as Targets
from .assigners import TaskAlignedAssigner as TaskAlignedAssigner
from .assigners import pad_targets as pad_targets
from .boxes import convert as convert
from .decoders import Decoder as Decoder
from .decoders import DeltaDecoder as DeltaDecoder
from .decoders import DFLDecoder as DFLDecoder
from .decoders import GridCellDecoder as GridCellDecoder
from .decoders import LTRBDecoder as LTRBDecoder
from .decoders import UnitSquareDecoder as UnitSquareDecoder
from .decoders import YOLOv3Decoder as YOLOv3Decoder
from .decoders import YOLOv5Decoder as YOLOv5Decoder
from .decoders import dfl_integral as dfl_integral
from .dense import DenseHead as DenseHead
from .dense import DensePrediction as DensePrediction
from .diagnostics.audit import AuditReport as AuditReport
from .diagnostics.audit import Finding as Finding
from .diagnostics.audit import audit as audit
from .diagnostics.overfit import OverfitReport as OverfitReport
from .diagnostics.overfit import overfit as overfit
from .grids import Level as Level
from .grids import Points as Points
from .grids import points_of as points_of
from .heads import BoxHead as BoxHead
from .iou import box_iou as box_iou
from .iou import pairwise_box_iou as pairwise_box_iou
from .losses import *
from .losses.box import BoxLoss as BoxLoss
from .losses.box import BoxLossTerms as BoxLossTerms
from .losses.dfl import DFLoss as DFLoss
from .losses.rotated import GWDLoss as GWDLoss
from .losses.rotated import KLDLoss as KLDLoss
from .losses.rotated import ProbIoULoss as ProbIoULoss
from .losses.yolo import YOLOLoss as YOLOLoss
from .losses.yolo import YOLOLossTerms as YOLOLossTerms
from .parameters import Rule as Rule
from .parameters import param_groups as param_groups
from .parameters import param_table as param_table
from .weighting import FocalWeighting as FocalWeighting
from .weighting import WiseWeighting as WiseWeighting

__version__ = "0.1.0"
