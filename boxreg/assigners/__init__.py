"""Assignment: which predictions of a dense head answer for which object, as dense maps for a loss."""

from .base import Assigner as Assigner
from .base import Assignment as Assignment
from .cells import AnchorRatioAssigner as AnchorRatioAssigner
from .cells import ResponsibleCellAssigner as ResponsibleCellAssigner
from .targets import Targets as Targets
from .targets import pad_targets as pad_targets
from .task_aligned import TaskAlignedAssigner as TaskAlignedAssigner
