"""Datasets: one interface, generated toy images, YOLO, COCO and VOC files."""

from .opening import OpenedData as OpenedData
from .opening import open_data as open_data
from .sample import AnnotatedImage as AnnotatedImage
from .sample import DataError as DataError
from .sample import ImageSource as ImageSource
from .sample import LeftOut as LeftOut
from .sample import Letterbox as Letterbox
from .sample import Subset as Subset
from .sample import decode_image as decode_image
from .sample import letterbox as letterbox
from .sample import one_box_only as one_box_only
from .toy import ToyImages as ToyImages
from .toy import toy_splits as toy_splits
from .writing import write_yolo_folder as write_yolo_folder
