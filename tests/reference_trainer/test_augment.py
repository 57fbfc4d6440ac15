from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_trainer.config import NO_AUGMENTATION, AugmentConfig
from reference_trainer.data.augment import Augmentation
from reference_trainer.data.toy import draw_scene

SIDE = 96
SEEDS = 25
# Bilinear edges put the half-way pixel within half a pixel of the true edge, at either end.
PIXEL = {"rtol": 0.0, "atol": 1.0}

RECTANGLES = {
    "middle": (30, 40, 60, 55),
    "small": (70, 12, 80, 22),
    "large": (8, 10, 88, 86),
    "left edge": (0, 40, 20, 70),
    "right edge": (80, 30, SIDE, 60),
    "top edge": (30, 0, 60, 15),
    "bottom edge": (30, 70, 64, SIDE),
    "corner": (0, 0, 24, 30),
    "across": (0, 40, SIDE, 60),
    "one pixel off": (1, 1, 30, 30),
}

STRENGTHS = {
    "preset": AugmentConfig(),
    "strong": AugmentConfig(
        translate=0.4, scale=0.6, crop=0.5, brightness=0.3, contrast=0.3, saturation=0.3, colour=1
    ),
    "shift": AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"translate": 0.5}),
    "zoom": AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"scale": 0.6}),
    "crop": AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"crop": 0.5}),
    "flips": AugmentConfig.model_validate(
        NO_AUGMENTATION.model_dump() | {"hflip": 0.5, "vflip": 0.5, "dflip": 0.5}
    ),
}


class Augmented(NamedTuple):
    image: Tensor
    box: Tensor


def augment(image: Tensor, box: tuple[float, ...], config: AugmentConfig, seed: int) -> Augmented:
    images, boxes = Augmentation(config)(image[None], torch.tensor([box]).float(), [seed])
    return Augmented(images[0], boxes[0])


def rectangle(box: tuple[int, int, int, int]) -> Tensor:
    """One bright rectangle on a plain dark picture."""
    x1, y1, x2, y2 = box
    image = torch.full((3, SIDE, SIDE), 20, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = 220
    return image


def bright(image: Tensor) -> Tensor:
    """The pixels nearer to the brightest than to the darkest."""
    grey = image.float().mean(0)
    return grey > (grey.amin() + grey.amax()) / 2


def rectangle_area(box: tuple[float, ...]) -> float:
    x1, y1, x2, y2 = box
    return (x2 - x1) * (y2 - y1)


def tight_box(pixels: Tensor) -> Tensor:
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten().float()


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("place", RECTANGLES)
def test_the_box_still_bounds_the_object_s_pixels(place: str, strength: str) -> None:
    image = rectangle(RECTANGLES[place])
    for seed in range(SEEDS):
        augmented, box = augment(image, RECTANGLES[place], STRENGTHS[strength], seed)
        pixels = bright(augmented)
        tight = tight_box(pixels)
        torch.testing.assert_close(box, tight, **PIXEL, msg=lambda text, s=seed: f"seed {s}: {text}")
        # A rectangle fills its tight box but for its blurred corners: there is no second object.
        width, height = (tight[2:] - tight[:2]).tolist()
        zoom = (width * height / rectangle_area(RECTANGLES[place])) ** 0.5
        assert pixels.sum() >= width * height - 4 * max(zoom, 1) ** 2, f"seed {seed}"


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("place", RECTANGLES)
def test_the_object_stays_whole_and_in_shape(place: str, strength: str) -> None:
    x1, y1, x2, y2 = RECTANGLES[place]
    for seed in range(SEEDS):
        image, box = augment(rectangle((x1, y1, x2, y2)), (x1, y1, x2, y2), STRENGTHS[strength], seed)
        assert image.shape == (3, SIDE, SIDE)
        assert image.dtype == torch.uint8
        torch.testing.assert_close(
            box, box.clamp(0, SIDE), rtol=0, atol=SIDE * torch.finfo(torch.float32).eps
        )
        # Cut, it would be shorter along one side only.
        short, long = sorted((box[2:] - box[:2]).tolist())
        original_short, original_long = sorted((x2 - x1, y2 - y1))
        assert short / long == pytest.approx(original_short / original_long, rel=1e-4), f"seed {seed}"


def test_the_object_stays_on_its_toy_picture_s_pixels() -> None:
    for index in range(40):
        scene = draw_scene(5, index, SIDE)
        plain = scene._replace(
            background=np.full_like(scene.background, 0.1), colour=np.full_like(scene.colour, 0.9)
        )
        # Where a pixel is covered by a quarter it counts, so that the toy box is the tight box.
        solid = plain._replace(coverage=np.ceil(scene.coverage))
        image = torch.from_numpy(solid.render(with_noise=False))
        augmented, box = augment(image, tuple(map(float, scene.box)), AugmentConfig(), index)
        torch.testing.assert_close(box, tight_box(bright(augmented)), rtol=0, atol=1.5)


def test_every_augmentation_does_something() -> None:
    names = set(AugmentConfig.model_fields) - {"colour"}  # the others' probability
    image, box = torch.from_numpy(draw_scene(0, 0, SIDE).render()), (20.0, 30.0, 50.0, 60.0)
    for name in names:
        strength = {"crop": 0.5, "hflip": 1.0, "vflip": 1.0, "dflip": 1.0}.get(name, 0.5)
        colour = float(name in ("brightness", "contrast", "saturation"))
        config = AugmentConfig.model_validate(
            NO_AUGMENTATION.model_dump() | {name: strength, "colour": colour}
        )
        changed = augment(image, box, config, seed=1)
        assert not torch.equal(changed.image, image), name
        moves = name in {"hflip", "vflip", "dflip", "translate", "scale", "crop"}
        assert (changed.box.tolist() != list(box)) == moves, name


def test_the_strengths_are_the_bounds() -> None:
    config = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"scale": 0.25})
    sides = [augment(rectangle((40, 40, 56, 56)), (40, 40, 56, 56), config, seed).box for seed in range(200)]
    zooms = torch.stack([(box[2] - box[0]) / 16 for box in sides])
    assert 0.74 < zooms.min() < 0.78
    assert 1.22 < zooms.max() < 1.27

    config = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"translate": 0.25})
    boxes = [augment(rectangle((40, 40, 56, 56)), (40, 40, 56, 56), config, seed).box for seed in range(200)]
    shifts = torch.stack(boxes)[:, :2] - 40
    assert shifts.abs().max() <= 0.25 * SIDE + 0.5
    assert shifts.amin() < -0.23 * SIDE
    assert shifts.amax() > 0.23 * SIDE


def test_strength_0_leaves_the_picture_as_it_is() -> None:
    image, box = torch.from_numpy(draw_scene(0, 1, SIDE).render()), (3.25, 10.0, 50.5, 90.75)
    for seed in range(5):
        same = augment(image, box, NO_AUGMENTATION, seed)
        torch.testing.assert_close(same.image, image, rtol=0, atol=0)
        torch.testing.assert_close(same.box, torch.tensor(box), rtol=0, atol=0)


def test_a_seed_decides_everything() -> None:
    image, box = torch.from_numpy(draw_scene(0, 2, SIDE).render()), (20.0, 30.0, 50.0, 60.0)
    first, again = (
        [augment(image, box, AugmentConfig(), seed) for seed in seeds] for seeds in (range(10), range(10))
    )
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len({tuple(box.tolist()) for _, box in first}) == 10


def test_a_picture_does_not_depend_on_its_batch() -> None:
    images = torch.stack([torch.from_numpy(draw_scene(0, index, SIDE).render()) for index in range(5)])
    boxes = torch.tensor([draw_scene(0, index, SIDE).box for index in range(5)]).float()
    augmentation = Augmentation(AugmentConfig())
    together = augmentation(images, boxes, range(5))
    for index in range(5):
        alone = augmentation(images[index : index + 1], boxes[index : index + 1], [index])
        torch.testing.assert_close(alone[0][0], together[0][index], rtol=0, atol=0)
        torch.testing.assert_close(alone[1][0], together[1][index], rtol=0, atol=0)


def test_a_flip_moves_pixels_and_changes_none() -> None:
    image, box = torch.from_numpy(draw_scene(0, 3, SIDE).render()), (20.0, 30.0, 50.0, 60.0)
    config = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"hflip": 1})
    flipped = augment(image, box, config, seed=0)
    torch.testing.assert_close(flipped.image, image.flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(flipped.box, torch.tensor([SIDE - 50.0, 30.0, SIDE - 20.0, 60.0]))
