"""Data sets: one interface, generated toy pictures, YOLO folders."""

from .sample import DataError as DataError
from .sample import LeftOut as LeftOut
from .sample import Letterbox as Letterbox
from .sample import Picture as Picture
from .sample import PictureSource as PictureSource
from .sample import Subset as Subset
from .sample import decode_picture as decode_picture
from .sample import letterbox as letterbox
from .sample import one_box_only as one_box_only
from .toy import ToyPictures as ToyPictures
from .toy import toy_splits as toy_splits
from .yolo import YoloFolder as YoloFolder
from .yolo import open_yolo_splits as open_yolo_splits
from .yolo import write_yolo_folder as write_yolo_folder
