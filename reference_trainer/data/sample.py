"""The one interface that every dataset is read by, and what is done to any image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_END, BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
GREY = 114

Counts = npt.NDArray[np.int64]
"""A number for each image."""

_SHOWN = 20
_ORIENTATION = 0x0112
_ON_THE_SIDE = (5, 6, 7, 8)

_HEAD = 4096
# Markers of a JPEG: those of its frame, and those of segments that do not affect its size. E1 is EXIF.
_FRAMES = (0xC0, 0xC1, 0xC2)
_PASSED_OVER = frozenset({0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE})


class DataError(UserError):
    """Everything that is wrong with a dataset, found in one pass.

    Attributes:
        problems: one string a problem, `file:line: what is wrong: the value`. The message shows the first
            20 and counts the rest.
    """

    def __init__(self, *problems: str) -> None:
        # Kept as `args`, so that the error survives pickling on its way out of a data loader's worker.
        super().__init__(*problems)
        self.problems: list[str] = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        shown = "\n".join(f"  {problem}" for problem in self.problems[:_SHOWN])
        rest = f"\n  ... and {count - _SHOWN} more" if count > _SHOWN else ""
        return f"{count} problem{'' if count == 1 else 's'} in the data:\n{shown}{rest}"


class AnnotatedImage(NamedTuple):
    """One image with its objects.

    Attributes:
        image: uint8 (3, H, W), RGB.
        boxes: float32 (K, 4), xyxy in pixels; K may be 0.
        labels: int64 (K,), indices into the source's `names`.
        source: where it came from, for messages.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    source: str


class ImageSource(Protocol):
    """A dataset: a sequence of images, and what is known of it without decoding one."""

    @property
    def names(self) -> list[str]:
        """The classes' names, in the order of their labels."""
        ...

    @property
    def box_counts(self) -> Counts:
        """The number of boxes of each image."""
        ...

    @property
    def clipped(self) -> int:
        """How many boxes stuck out of their image by a little and were clipped to it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnnotatedImage: ...


class Subset:
    """Some images of a source, in a given order.

    Args:
        source: the images to choose from.
        indices: which of them.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int] | Counts) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)

    @property
    def names(self) -> list[str]:
        """The classes' names, those of the whole source."""
        return self.source.names

    @property
    def box_counts(self) -> Counts:
        """The number of boxes of each image."""
        return self.source.box_counts[self.indices]

    @property
    def clipped(self) -> int:
        """How many boxes of the whole source were clipped."""
        return self.source.clipped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self.source[int(self.indices[index])]


class Renumbered:
    """A source whose classes get the numbers that `names` gives them; classes of other names follow.

    Args:
        source: the images.
        names: the names of the first classes, in the order of their numbers.

    Raises:
        DataError: if none of the source's classes is among `names`.
    """

    def __init__(self, source: ImageSource, names: Sequence[str]) -> None:
        if not set(names) & set(source.names):
            raise DataError(
                f"no class in common: the data has {', '.join(source.names)}; expected some of "
                f"{', '.join(names)}"
            )
        self.source = source
        self.names = [*names, *(name for name in source.names if name not in names)]
        self._numbers = torch.tensor([self.names.index(name) for name in source.names])

    @property
    def box_counts(self) -> Counts:
        """The number of boxes of each image."""
        return self.source.box_counts

    @property
    def clipped(self) -> int:
        """How many boxes were clipped."""
        return self.source.clipped

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> AnnotatedImage:
        annotated = self.source[index]
        return annotated._replace(labels=self._numbers[annotated.labels])


class LeftOut(NamedTuple):
    """How many images `one_box_only` left out, and why."""

    no_box: int
    several_boxes: int


def one_box_only(source: ImageSource) -> tuple[Subset, LeftOut]:
    """Keep the images that hold exactly one box; nothing is decoded.

    Returns:
        The images kept, in their order, and the counts of those left out.
    """
    counts = source.box_counts
    kept = np.flatnonzero(counts == 1)
    return Subset(source, kept), LeftOut(int((counts == 0).sum()), int((counts > 1).sum()))


class Letterbox(NamedTuple):
    """How an image was fitted into a square: letterboxed = original * scale + (left, top).

    Attributes:
        scale: letterboxed pixels per original pixel, the same in both directions.
        left: where the original's left edge lies, in letterboxed pixels.
        top: where the original's top edge lies, in letterboxed pixels.
        width: the width of the original in pixels.
        height: the height of the original in pixels.
    """

    scale: float
    left: float
    top: float
    width: int
    height: int

    def apply(self, boxes: Tensor) -> Tensor:
        """Map boxes (..., 4), xyxy in original pixels, to letterboxed pixels."""
        return boxes * self.scale + boxes.new_tensor([self.left, self.top, self.left, self.top])

    def undo(self, boxes: Tensor) -> Tensor:
        """Map boxes (..., 4), xyxy in letterboxed pixels, to original pixels; nothing is clipped."""
        return (boxes - boxes.new_tensor([self.left, self.top, self.left, self.top])) / self.scale


def letterbox(image: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor, Letterbox]:
    """Fit an image into a square without distorting it, centred, on grey 114.

    The image is padded to a square first and resized after: only then is one scale exact in both
    directions. Resizing first rounds the shorter side to whole pixels, which moves boxes by up to half
    a pixel.

    Args:
        image: uint8 (3, H, W).
        boxes: floating (K, 4), xyxy in pixels of `image`.
        size: side of the square in pixels, at least 2.

    Returns:
        The image (3, size, size), the boxes in its pixels, and the mapping between the two. An image
        that already is size x size comes back untouched.

    Raises:
        ValueError: if `size` is less than 2.
    """
    if size < 2:
        raise ValueError(f"size: got {size}, expected at least 2")
    height, width = image.shape[-2:]
    if height == width == size:
        return image, boxes, Letterbox(1.0, 0.0, 0.0, width, height)
    # Imported where it is needed: it takes as long as torch itself, and the toy data does without.
    from torchvision.transforms.v2 import functional

    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    padding = [left, top, side - width - left, side - height - top]
    square = functional.pad(image, padding, fill=GREY)
    resized = functional.resize(square, [size, size], antialias=True)
    box = Letterbox(size / side, left * size / side, top * size / side, width, height)
    return resized, box.apply(boxes), box


def decode_image(path: str | Path) -> Tensor:
    """Read a JPEG, PNG, WebP or BMP file as RGB, turned as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images are converted; an alpha channel is dropped. Pillow decodes:
    torchvision's own decoders end the process on a damaged PNG, and are deprecated since 0.29.

    Returns:
        uint8 (3, H, W).

    Raises:
        DataError: if the file cannot be read, or is broken or truncated.
    """
    with _naming(path):
        data = BytesIO(Path(path).read_bytes())
        # Decoding stops when the pixels are complete; only verify looks at all of a PNG's checksums.
        Image.open(data, formats=FORMATS).verify()
        with Image.open(data, formats=FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            # 16-bit grey, which Pillow's own conversion would cut off at 255.
            deep = image.mode.startswith("I")
            upright = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image
            pixels = np.array(upright.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def measure_image(path: str | Path) -> tuple[int, int]:
    """Width and height of an image, from its header: a tenth of the time of decoding it, or less.

    A file that is cut off is found too; other damage is not.

    Raises:
        DataError: if the file cannot be read, is no image or is cut off.
    """
    with _naming(path), open(path, "rb", buffering=0) as unbuffered:
        size = _plain_jpeg_size(unbuffered.read(_HEAD))
        if size and _ends_well(unbuffered, "JPEG"):
            return size
    with _naming(path), open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        # A PNG without EXIF in its header would be decoded to look for it behind the pixels.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(_ORIENTATION, 1) in _ON_THE_SIDE
        whole = _ends_well(file, str(image.format))
    if not whole:  # or only odd: decoding tells
        _, height, width = decode_image(path).shape
        return width, height
    return (height, width) if turned else (width, height)


def _plain_jpeg_size(head: bytes) -> tuple[int, int] | None:
    """The size that the first bytes of a JPEG without EXIF say; None leaves it to Pillow, which is slower."""
    at = 2 if head.startswith(b"\xff\xd8\xff") else len(head)
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in _FRAMES:
            height, width = (int.from_bytes(head[at + skip : at + skip + 2], "big") for skip in (5, 7))
            plain = head[at + 4] == 8 and head[at + 9] in (1, 3, 4) and width and height
            return (width, height) if plain else None
        if marker not in _PASSED_OVER:
            return None
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _ends_well(file: BinaryIO | FileIO, kind: str) -> bool:
    """Whether an image file goes on to where its format says that it ends."""
    length = file.seek(0, SEEK_END)
    if kind in ("JPEG", "PNG"):
        file.seek(max(length - 64, 0))
        return (b"\xff\xd9" if kind == "JPEG" else b"IEND") in file.read()
    file.seek(0)
    head = file.read(8)
    expected = head[2:6] if kind == "BMP" else head[4:8]  # WebP counts from behind its first 8 bytes
    return length >= int.from_bytes(expected, "little") + (0 if kind == "BMP" else 8)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong while an image is read becomes a `DataError` that names it."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        content = f"not {', '.join(FORMATS)}" if Path(path).stat().st_size else "0 bytes"
        raise DataError(f"{path}: broken image: {content}") from error
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise DataError(f"{path}: broken image: {error}") from error
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # Pillow's decoders raise nearly every type there is.
        raise DataError(f"{path}: broken image: {str(error) or type(error).__name__}") from error
