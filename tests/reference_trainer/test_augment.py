from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_trainer.config import AUGMENTATIONS, AugmentConfig
from reference_trainer.data.augment import LEAST_SHARE, LEAST_SIDE, Augmentation
from reference_trainer.data.toy import ToyImages, draw_scene

SIDE = 96
NO_AUGMENTATION = AUGMENTATIONS["off"]
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
    boxes, labels = torch.tensor([box]).float(), torch.zeros(1, dtype=torch.int64)
    images, (boxes,), (labels,) = Augmentation(config)(image[None], [boxes], [labels], [seed])
    assert labels.tolist() == [0]
    return Augmented(images[0], boxes[0])


def rectangle(box: tuple[int, int, int, int]) -> Tensor:
    """One bright rectangle on a plain dark image."""
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


def test_the_object_stays_on_its_toy_image_s_pixels() -> None:
    for index in range(40):
        scene = draw_scene(5, index, SIDE)
        (each,) = scene.objects
        # Where a pixel is covered by a quarter it counts, so that the toy box is the tight box.
        solid = scene._replace(
            background=np.full_like(scene.background, 0.1),
            objects=[each._replace(coverage=np.ceil(each.coverage))],
            colours=[np.full(3, 0.9, dtype=np.float32)],
        )
        image = torch.from_numpy(solid.render(with_noise=False))
        augmented, box = augment(image, tuple(map(float, each.box)), AugmentConfig(), index)
        torch.testing.assert_close(box, tight_box(bright(augmented)), rtol=0, atol=1.5)


def test_every_augmentation_does_something() -> None:
    names = set(AugmentConfig.model_fields) - {"colour"}  # the others' probability
    image, box = torch.from_numpy(draw_scene(0, 0, SIDE).render()), (20.0, 30.0, 50.0, 60.0)
    for name in names:
        others = {"crop": 0.5, "hflip": 1.0, "vflip": 1.0, "dflip": 1.0, "rotate": 20.0, "blur": 3.0}
        strength = others.get(name, 0.5)
        colour = float(name in ("brightness", "contrast", "saturation"))
        config = AugmentConfig.model_validate(
            NO_AUGMENTATION.model_dump() | {name: strength, "colour": colour}
        )
        changed = augment(image, box, config, seed=1)
        assert not torch.equal(changed.image, image), name
        moves = name in {"hflip", "vflip", "dflip", "translate", "scale", "crop", "rotate"}
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


ROTATIONS = {
    "rotate": AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"rotate": 20}),
    "heavy, without blur": AUGMENTATIONS["heavy"].model_copy(update={"blur": 0.0, "colour": 0.0}),
}


@pytest.mark.parametrize("strength", ROTATIONS)
@pytest.mark.parametrize("place", RECTANGLES)
def test_a_rotated_box_bounds_the_object_s_pixels_and_is_tight(place: str, strength: str) -> None:
    turned = 0
    for seed in range(SEEDS):
        augmented, box = augment(rectangle(RECTANGLES[place]), RECTANGLES[place], ROTATIONS[strength], seed)
        pixels = bright(augmented)
        torch.testing.assert_close(
            box, tight_box(pixels), rtol=0, atol=1.5, msg=lambda text, s=seed: f"seed {s}: {text}"
        )
        width, height = (box[2:] - box[:2]).tolist()
        turned += pixels.sum() < 0.9 * width * height
    at_edge = min(RECTANGLES[place]) <= 0 or max(RECTANGLES[place]) >= SIDE
    # One at the edge would be smeared beyond it: such images stay upright.
    least = SEEDS // 2 if strength == "rotate" else 1
    assert (turned == 0) if at_edge else (turned >= least)


def test_a_rotation_is_at_most_the_strength_and_goes_either_way() -> None:
    config = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"rotate": 15})
    given = torch.tensor([[40.0, 46, 56, 50], [14, 47, 18, 49]])  # the second turns about the middle
    angles = []
    for seed in range(0, 400, 2):  # the lot falls on the first
        image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
        _, (boxes,), _ = Augmentation(config)(image, [given], [torch.arange(2)], [seed])
        x, y = ((boxes[1, :2] + boxes[1, 2:]) / 2 - SIDE / 2).tolist()
        angles.append(np.degrees(np.arctan2(-y, -x)))
    assert -15 <= min(angles) < -14
    assert 14 < max(angles) <= 15


def test_noise_and_blur_are_as_strong_as_they_say() -> None:
    grey = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)
    noisy = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"noise": 0.1})
    deviations = [augment(grey, (20, 20, 40, 40), noisy, seed).image.float().std() for seed in range(40)]
    assert max(deviations) < 25.5
    assert max(deviations) > 23
    edge = rectangle((48, 0, SIDE, SIDE))
    blur = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"blur": 2.0})
    steepest = [
        augment(edge, (48, 0, SIDE, SIDE), blur, seed).image[0].float().diff(dim=1).amax()
        for seed in range(40)
    ]
    # The steepest slope of an edge of height 200 under a Gaussian of deviation s is 200 / (s sqrt(2 pi)).
    assert min(steepest) == pytest.approx(200 / (2 * np.sqrt(2 * np.pi)), rel=0.1)
    assert max(steepest) == 200


def test_stronger_names_move_more() -> None:
    image, box = torch.from_numpy(draw_scene(0, 2, SIDE).render()), (30.0, 40.0, 50.0, 60.0)

    def change(config: AugmentConfig) -> float:
        moved = [augment(image, box, config, seed) for seed in range(60)]
        return float(
            torch.stack([(each.image.float() - image.float()).abs().mean() for each in moved]).mean()
        )

    changes = [change(config) for config in AUGMENTATIONS.values()]
    assert changes[0] == 0
    assert changes == sorted(changes)


def test_strength_0_leaves_the_image_as_it_is() -> None:
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


def test_an_image_does_not_depend_on_its_batch() -> None:
    toys = ToyImages(8, SIDE, seed=0, most=6)
    images, boxes, labels, _ = zip(*(toys[index] for index in range(8)), strict=True)
    augmentation = Augmentation(STRENGTHS["strong"])
    together = augmentation(torch.stack(images), boxes, labels, range(8))
    for index in range(8):
        alone = augmentation(images[index][None], [boxes[index]], [labels[index]], [index])
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[index], rtol=0, atol=0)


def test_a_flip_moves_pixels_and_changes_none() -> None:
    image, box = torch.from_numpy(draw_scene(0, 3, SIDE).render()), (20.0, 30.0, 50.0, 60.0)
    config = AugmentConfig.model_validate(NO_AUGMENTATION.model_dump() | {"hflip": 1})
    flipped = augment(image, box, config, seed=0)
    torch.testing.assert_close(flipped.image, image.flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(flipped.box, torch.tensor([SIDE - 50.0, 30.0, SIDE - 20.0, 60.0]))


MANY = {
    "apart": ((8, 10, 30, 24), (40, 12, 80, 40), (12, 50, 34, 88), (50, 60, 84, 80)),
    "at the edges": ((0, 30, 20, 60), (76, 20, SIDE, 50), (30, 0, 60, 20), (30, 80, 60, SIDE)),
    "small and large": ((4, 4, 12, 12), (20, 20, 80, 90), (82, 4, 94, 13), (86, 50, 94, 60)),
}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("places", MANY)
def test_the_boxes_of_several_objects_still_bound_their_pixels(places: str, strength: str) -> None:
    # Each object is drawn alone on an image of its own; all of them move in the same way.
    images = torch.stack([rectangle(box) for box in MANY[places]])
    given, numbers = torch.tensor(MANY[places]).float(), torch.arange(4)
    for seed in range(SEEDS):
        augmentation = Augmentation(STRENGTHS[strength])
        moved, boxes, labels = augmentation(images, [given] * 4, [numbers] * 4, [seed] * 4)
        assert all(torch.equal(one, other) for each in (boxes, labels) for one, other in pairwise(each))
        assert seed % 4 in labels[0], "the one that the lot fell on stays"
        for box, label in zip(boxes[0], labels[0].tolist(), strict=True):
            tight = tight_box(bright(moved[label]))
            torch.testing.assert_close(box, tight, **PIXEL, msg=lambda text, s=seed: f"seed {s}: {text}")


def test_objects_that_leave_or_get_too_small_are_removed_with_their_labels() -> None:
    given = torch.tensor([[44.0, 44, 52, 52], [2, 2, 22, 22], [60, 40, 62, 60], [90, 90, 91, 96]])
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    config = STRENGTHS["strong"].model_copy(update={"hflip": 0, "vflip": 0, "dflip": 0})
    part_kept, part_gone, width_kept, width_gone = [], [], [], []
    for seed in range(0, 2000, 4):  # the lot falls on the first, which shows where all others went
        _, (boxes,), (labels,) = Augmentation(config)(image, [given], [torch.arange(4)], [seed])
        zoom = float(boxes[0, 2] - boxes[0, 0]) / 8
        moved = given * zoom + (boxes[0, :2] - given[0, :2] * zoom).repeat(2)
        cut = moved.clamp(0, SIDE)
        torch.testing.assert_close(boxes, cut[labels], rtol=0, atol=1e-3)
        part = (cut[:, 2:] - cut[:, :2]).prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1)
        (part_kept if 1 in labels else part_gone).append(float(part[1]))
        if part[2] == 1:  # in sight, so that its width alone decides
            (width_kept if 2 in labels else width_gone).append(2 * zoom)
    assert 0.3 > min(part_kept) >= LEAST_SHARE > max(part_gone) > 0.2
    assert 2.1 > min(width_kept) >= LEAST_SIDE > max(width_gone) > 1.9


def test_images_without_an_object_are_augmented_too() -> None:
    image = torch.from_numpy(draw_scene(0, 2, SIDE).render())
    none = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    images, boxes, labels = Augmentation(AugmentConfig())(
        torch.stack([image, image]), [none[0], none[0]], [none[1], none[1]], [1, 2]
    )
    assert [tuple(each.shape) for each in (*boxes, *labels)] == [(0, 4), (0, 4), (0,), (0,)]
    assert not torch.equal(images[0], image)
    assert not torch.equal(images[0], images[1])
