"""The configuration: one tree of validated settings, the presets, and its files."""

from .branches import FINEST_STRIDE as FINEST_STRIDE
from .branches import STRIDE as STRIDE
from .branches import WITH_ANCHORS as WITH_ANCHORS
from .branches import AnchorSizes as AnchorSizes
from .branches import AugmentConfig as AugmentConfig
from .branches import DataConfig as DataConfig
from .branches import Device as Device
from .branches import LossConfig as LossConfig
from .branches import ModelConfig as ModelConfig
from .branches import OptimizerConfig as OptimizerConfig
from .branches import Output as Output
from .branches import ScheduleConfig as ScheduleConfig
from .branches import Task as Task
from .presets import AUGMENTATIONS as AUGMENTATIONS
from .presets import PRESETS as PRESETS
from .reading import explain as explain
from .reading import load_config as load_config
from .reading import parse_config as parse_config
from .reading import save_config as save_config
from .tree import TrainConfig as TrainConfig
