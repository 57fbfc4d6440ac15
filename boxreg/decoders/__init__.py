"""Decoders: the raw outputs of a network to boxes and back, one class a scheme.

| class | centre | size | unit |
|---|---|---|---|
| `UnitSquareDecoder` | sigmoid, anywhere in the image | softplus | fractions |
| `GridCellDecoder` | sigmoid, in or near a cell | softplus | that of `image_size` |
| `YOLOv3Decoder` | sigmoid, in a cell | anchor times exp | that of `stride` |
| `YOLOv5Decoder` | twice a sigmoid, about a cell | anchor times (2 sigmoid)² | that of `stride` |
| `LTRBDecoder` | distances of the sides from the middle of a cell | | that of `stride` |
| `DFLDecoder` | the same, as distributions over bins | | that of `stride` |
| `DeltaDecoder` | shifted from another box | times exp | that of the other box |

Boxes are cxcywh throughout. `decode` turns raw outputs into boxes and `encode` is its inverse, in
closed form. Both take the coordinate axis as `dim`, so rows (N, 4) and planes (B, 4, H, W) go in
as they are. K boxes a cell are planes (B, 4, K, H, W), a view of what a convolution makes.

`decode` never clamps: a box that reaches over the image's border keeps its value and its gradient.
`encode` clips, because no finite raw output stands for a size of 0 or a centre on the edge of its range:

| dtype of the boxes | centre, as a fraction of its range | size, as a fraction of the image or anchor |
|---|---|---|
| float64 | 2.2e-16 from either end | at least 2.2e-308 |
| float32, bfloat16 | 1.2e-7 from either end | at least 1.2e-38 |
| float16 | 6.1e-5 from either end | at least 6.1e-5 |

The size's bound is the smallest normal number of the boxes' dtype; the centre's is the same, or the epsilon
of the dtype computed in (float32 for the two half formats) where that is larger. The distances of sides, in
strides, are bounded as centres are. So finite boxes always encode to finite numbers, and decoding those has a
gradient that the dtype can hold.
"""

from .anchors import YOLOv3Decoder as YOLOv3Decoder
from .anchors import YOLOv5Decoder as YOLOv5Decoder
from .axis import SCHEMES as SCHEMES
from .axis import AxisDecoder as AxisDecoder
from .axis import Settings as Settings
from .axis import axis_arguments as axis_arguments
from .axis import cell_indices as cell_indices
from .axis import decode_planes as decode_planes
from .axis import of_boxes as of_boxes
from .base import Decoder as Decoder
from .base import check_decoder as check_decoder
from .deltas import DeltaDecoder as DeltaDecoder
from .distributions import DFLDecoder as DFLDecoder
from .distributions import dfl_integral as dfl_integral
from .grid_cell import GridCellDecoder as GridCellDecoder
from .sides import LTRBDecoder as LTRBDecoder
from .unit_square import UnitSquareDecoder as UnitSquareDecoder
