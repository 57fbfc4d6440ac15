from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reference_trainer.data.sample import GREY, DataError, decode_image, letterbox
from reference_trainer.data.toy import ToyImages
from tests.reference_trainer.images import ramp, save


def test_the_message_shows_twenty_problems_and_counts_the_rest() -> None:
    error = DataError(*(f"problem {number}" for number in range(23)))
    assert str(error).startswith("23 problems in the data:\n  problem 0\n")
    assert str(error).endswith("\n  problem 19\n  ... and 3 more")
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_a_damaged_png_is_found_wherever_the_damage_is(tmp_path: Path) -> None:
    file = tmp_path / "bad.png"
    save(ramp(), file)
    whole = file.read_bytes()
    # The last 12 bytes are the end marker, which holds nothing.
    for place in range(len(whole) - 12):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DataError, match="broken image"):
            decode_image(file)


def test_an_image_that_is_not_there_is_not_called_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png: cannot be read: No such file"):
        decode_image(tmp_path / "absent.png")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_png_becomes_8_bit_rgb(tmp_path: Path, mode: str) -> None:
    grey = ramp()[0]
    if mode == "I;16":
        stored = Image.fromarray(grey.numpy().astype("uint16") * 257)
    else:
        stored = Image.fromarray(grey.numpy()).convert(mode)
    stored.save(tmp_path / "a.png")
    expected = torch.from_numpy(np.array(stored.convert("L"))) if mode in {"1", "P"} else grey
    image = decode_image(tmp_path / "a.png")
    torch.testing.assert_close(image, expected.reshape(20, 30).byte().expand(3, -1, -1), rtol=0, atol=0)


@settings(deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    size=st.integers(2, 150),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_letterbox_is_centred_undistorted_and_undone_exactly(
    width: int, height: int, size: int, corners: list[float]
) -> None:
    boxes = torch.tensor([corners], dtype=torch.float64) * torch.tensor([width, height, width, height])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    fitted, mapped, box = letterbox(image, boxes, size)
    assert fitted.shape == (3, size, size)
    torch.testing.assert_close(box.undo(mapped), boxes, rtol=1e-12, atol=1e-9)
    whole = box.apply(torch.tensor([0.0, 0.0, width, height], dtype=torch.float64))
    assert whole.min() >= 0
    assert whole.max() <= size + 1e-9
    # One scale for both directions, and centred to half a pixel of the original.
    torch.testing.assert_close((whole[2:] - whole[:2]) / box.scale, torch.tensor([width, height]).double())
    margins = torch.stack([whole[:2], size - whole[2:]])
    assert (margins[0] - margins[1]).abs().max() <= box.scale + 1e-9
    assert (box.width, box.height) == (width, height)


def test_letterboxed_boxes_still_frame_their_objects() -> None:
    image = torch.full((3, 90, 160), 10, dtype=torch.uint8)
    image[:, 30:60, 40:120] = 250
    fitted, boxes, _ = letterbox(image, torch.tensor([[40.0, 30.0, 120.0, 60.0]]), 80)
    torch.testing.assert_close(boxes, torch.tensor([[20.0, 32.5, 60.0, 47.5]]))
    bright = (fitted[0] > 180).nonzero()
    assert bright.amin(0).tolist() == [33, 20]
    assert bright.amax(0).tolist() == [46, 59]
    assert (fitted[:, :16] == GREY).all()
    assert (fitted[:, 64:] == GREY).all()


def test_letterbox_leaves_an_image_of_the_right_size_untouched() -> None:
    annotated = ToyImages(1, side=64)[0]
    image, boxes, box = letterbox(annotated.image, annotated.boxes, 64)
    assert image is annotated.image
    assert boxes is annotated.boxes
    torch.testing.assert_close(box.undo(boxes), boxes, rtol=0, atol=0)
    with pytest.raises(ValueError, match="size: got 1"):
        letterbox(image, boxes, 1)
