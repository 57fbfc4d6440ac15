"""Dense heads: untrained they predict their priors, in the order that assigners and losses expect."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from boxreg import (
    AnchorRatioAssigner,
    CIoULoss,
    DenseHead,
    DensePrediction,
    DFLDecoder,
    GridCellDecoder,
    Level,
    LTRBDecoder,
    ResponsibleCellAssigner,
    TaskAlignedAssigner,
    UnitSquareDecoder,
    YOLOv3Decoder,
    YOLOv5Decoder,
    convert,
    dfl_integral,
    pad_targets,
    points_of,
)
from boxreg.decoders import Decoder
from tests.cases import Recorder, eps, seeded

CHANNELS = (16, 64)
LEVELS = (Level(5, 7, 8.0), Level(3, 4, 16.0))
ANCHORS = (((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)), ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)))

DECODERS: dict[str, list[Decoder]] = {
    "yolov3": [YOLOv3Decoder(stride, anchors) for stride, anchors in zip((8.0, 16.0), ANCHORS, strict=True)],
    "yolov5": [YOLOv5Decoder(stride, anchors) for stride, anchors in zip((8.0, 16.0), ANCHORS, strict=True)],
    "ltrb": [LTRBDecoder(stride, "relu") for stride in (8.0, 16.0)],
    "dfl": [DFLDecoder(stride, bins=9) for stride in (8.0, 16.0)],
    "grid_cell": [GridCellDecoder((7 * 8.0, 5 * 8.0)), GridCellDecoder((4 * 16.0, 3 * 16.0), stretch=2.0)],
}
SIZES = {"ltrb": (41.0, 33.0), "dfl": (41.0, 33.0), "grid_cell": (41.0, 33.0)}
"""Where the decoders have no anchors."""
every_scheme = pytest.mark.parametrize("scheme", DECODERS)


def make(scheme: str, **options: Any) -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(CHANNELS, DECODERS[scheme], **{"classes": 3, "prior": SIZES.get(scheme), **options})


def make_features(seed: int = 0, batch: int = 2) -> list[Tensor]:
    generator = seeded(seed)
    return [
        torch.randn(batch, channels, level.rows, level.cols, generator=generator)
        for channels, level in zip(CHANNELS, LEVELS, strict=True)
    ]


def sizes_of(scheme: str) -> list[tuple[tuple[float, float], ...]]:
    """The prior sizes of each level."""
    return [(SIZES[scheme],)] * 2 if scheme in SIZES else list(ANCHORS)


def shake(head: DenseHead) -> DenseHead:
    """A head whose predictions differ from cell to cell."""
    generator = seeded(7)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return head


# The priors


@every_scheme
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 100.0])
def test_untrained_head_predicts_its_priors_in_every_cell(scheme: str, magnitude: float) -> None:
    head = make(scheme, objectness_prior=[0.02, 0.05], class_prior=0.3, depth=0)
    boxes, objectness, classes, _, levels = head([magnitude * maps for maps in make_features()])
    assert levels == LEVELS
    sizes = sizes_of(scheme)
    per_cell = len(sizes[0])
    # The order: level by level, of each level box by box, row by row.
    x, y, _ = points_of(levels, per_cell=per_cell)
    w, h = (
        torch.cat(
            [
                torch.tensor([size[i] for size in of_level]).repeat_interleave(level.rows * level.cols)
                for of_level, level in zip(sizes, levels, strict=True)
            ]
        )
        for i in (0, 1)
    )
    # With features of 100, weights of 3e-6 make raw outputs off by a thousandth; anchors are up to 119.
    tolerance = 0.2 if magnitude else 1e-4
    assert_close(boxes, torch.stack((x, y, w, h)).expand(2, -1, -1), rtol=0, atol=tolerance)
    counts = torch.tensor([per_cell * level.rows * level.cols for level in levels])
    probability = torch.tensor([0.02, 0.05]).repeat_interleave(counts)
    assert_close(objectness.sigmoid(), probability.expand(2, -1), rtol=2e-3, atol=0)
    assert_close(classes.sigmoid(), torch.full((2, 3, counts.sum()), 0.3), rtol=2e-3, atol=0)


def test_default_priors_of_scores() -> None:
    with_objectness = make("ltrb")(make_features())
    assert_close(with_objectness.scores, torch.full((2, 3, 47), 0.01 / 3), rtol=1e-4, atol=0)
    without = make("ltrb", objectness=False)(make_features())
    assert_close(without.scores, torch.full((2, 3, 47), 0.01), rtol=1e-4, atol=0)


def test_default_sizes_are_eight_cells_or_the_anchors() -> None:
    features = make_features()
    boxes = DenseHead(CHANNELS, DECODERS["ltrb"])(features).boxes
    sides = torch.tensor([64.0, 128.0]).repeat_interleave(torch.tensor([35, 12]))
    assert_close(boxes[0, 2:], sides.expand(2, -1), rtol=1e-4, atol=0)


def test_one_size_for_all_anchors_and_several_boxes_without_any() -> None:
    found = make("yolov3", prior=(20.0, 25.0))(make_features()).boxes
    assert_close(found[0, 2:, 0], torch.tensor([20.0, 25.0]), rtol=1e-4, atol=0)
    assert_close(found[0, 2:].amin(1), found[0, 2:].amax(1), rtol=1e-4, atol=0)
    several = [[(20.0, 25.0), (40.0, 30.0)], [(50.0, 60.0), (70.0, 80.0)]]
    boxes = make("ltrb", prior=several)(make_features()).boxes
    first = boxes[0, 2:, : 2 * 35].unflatten(1, (2, 35)).mean(2)
    assert_close(first.T, torch.tensor(several[0]), rtol=1e-4, atol=0)


def test_count_prior() -> None:
    levels = [(80, 60, 8), (40, 30, 16), (1, 1, 640)]
    assert DenseHead.count_prior(6, levels) == (6 / 4800, 6 / 1200, 0.5)
    assert DenseHead.count_prior(6, levels, per_cell=3) == (2 / 4800, 2 / 1200, 0.5)
    with pytest.raises(ValueError, match="objects: got 0, expected a number above 0"):
        DenseHead.count_prior(0, levels)


# What comes out


@every_scheme
def test_predictions_lie_as_the_maps_do(scheme: str) -> None:
    head, features = shake(make(scheme)), make_features()
    prediction = head(features)
    start = 0
    for number, (level, decoder) in enumerate(zip(LEVELS, DECODERS[scheme], strict=True)):
        of_level: Any = head.levels[number]
        maps = of_level.tower(features[number])
        per_cell = len(sizes_of(scheme)[number])
        stop = start + per_cell * level.rows * level.cols
        raw = of_level.box(maps).view(2, decoder.channels, per_cell, level.rows, level.cols)
        assert_close(prediction.boxes[..., start:stop], decoder.decode(raw, dim=1).flatten(2))
        assert_close(prediction.objectness[:, start:stop], of_level.objectness(maps).flatten(1))
        classes = of_level.classes(maps).view(2, 3, -1)
        assert_close(prediction.classes[..., start:stop], classes)
        start = stop
    assert start == prediction.boxes.shape[2]


def test_bins_are_those_that_the_boxes_come_from() -> None:
    boxes, _, _, bins, levels = shake(make("dfl"))(make_features())
    assert bins.shape == (2, 4, 9, 47)
    x, y, stride = points_of(levels)
    left, top, right, bottom = dfl_integral(bins, dim=2).unbind(1)
    corners = torch.stack((x - left * stride, y - top * stride, x + right * stride, y + bottom * stride), 1)
    assert_close(convert(boxes, "cxcywh", "xyxy", dim=1), corners)
    assert make("ltrb")(make_features()).bins is None


def test_what_scores() -> None:
    features = make_features()
    both = shake(make("ltrb"))(features)
    assert_close(both.scores, both.classes.sigmoid() * both.objectness.sigmoid().unsqueeze(1))
    alone = shake(make("ltrb", objectness=False))(features)
    assert alone.objectness is None
    assert_close(alone.scores, alone.classes.sigmoid())
    single = shake(make("ltrb", classes=1))(features)
    assert single.classes is None
    assert_close(single.scores, single.objectness.sigmoid().unsqueeze(1))
    one = shake(make("ltrb", classes=1, objectness=False))(features)
    assert (one.objectness, one.classes.shape) == (None, (2, 1, 47))


@every_scheme
def test_nothing_is_permuted(scheme: str) -> None:
    head, features = make(scheme), make_features()
    with torch.no_grad(), Recorder() as recorder:
        head(features)
    assert not recorder.names & {"permute", "transpose", "clone", "copy_", "index", "gather"}


# Together with assigners


def places(head: DenseHead, boxes: Tensor) -> Tensor:
    """One box, encoded for every prediction and decoded again: (4, A)."""
    decoded = []
    for level, of_level in zip(LEVELS, head.levels, strict=True):
        decoder, per_cell = of_level.decoder, len(of_level.priors)
        maps = boxes.view(4, 1, 1, 1).expand(4, per_cell, level.rows, level.cols)
        decoded.append(decoder.decode(decoder.encode(maps, dim=0), dim=0).flatten(1))
    return torch.cat(decoded, 1)


@pytest.mark.parametrize("scheme", ["yolov5", "ltrb", "dfl", "grid_cell"])
def test_a_positive_can_become_its_object(scheme: str) -> None:
    head = make(scheme)
    box = torch.tensor([29.0, 18.0, 26.0, 24.0])
    targets = pad_targets([convert(box, "cxcywh", "xyxy").view(1, 4)] * 2, [torch.tensor([1])] * 2)
    prediction = head(make_features())
    pred = convert(prediction.boxes.detach(), "cxcywh", "xyxy", dim=1)
    assigner = {
        "yolov5": AnchorRatioAssigner(anchors=ANCHORS),
        "grid_cell": ResponsibleCellAssigner(),
    }.get(scheme, TaskAlignedAssigner(topk=5))
    found = assigner(pred, targets, prediction.levels, prediction.scores.detach())
    assert found.positive.any(1).all()
    at_best = places(head, box)[:, found.positive[0]]
    assert_close(at_best, box.unsqueeze(1).expand_as(at_best), rtol=1e-4, atol=1e-3)


def test_the_responsible_box_is_that_of_its_anchor() -> None:
    # The same centre in every box of a cell: the anchor most like the object decides.
    head = make("yolov3")
    prediction = head(make_features())
    box = torch.tensor([[20.0, 28.0, 17.0, 29.0]])
    targets = pad_targets([box] * 2)
    found = ResponsibleCellAssigner(fmt="cxcywh")(prediction.boxes.detach(), targets, prediction.levels)
    # Box 1, (16, 30), of the cell in row 3, column 2 of the first level.
    assert found.positive[0].nonzero().flatten().tolist() == [1 * 35 + 3 * 7 + 2]


@every_scheme
def test_a_head_learns_where_its_objects_are(scheme: str) -> None:
    head, features = make(scheme, depth=0), make_features()
    target = head(features).boxes.detach() * torch.tensor([1.0, 1.0, 0.8, 1.15]).view(4, 1)
    target[:, :2] += 1.5
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    criterion = CIoULoss(fmt="cxcywh", dim=1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = criterion(head(features).boxes, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_every_feature_gets_a_gradient_from_the_first_step() -> None:
    head = make("yolov5")
    features = [maps.requires_grad_() for maps in make_features()]
    prediction = head(features)
    (prediction.boxes.square().mean() + prediction.scores.mean()).backward()
    for leaf in (*features, *head.parameters()):
        assert leaf.grad is not None
        assert (leaf.grad != 0).any()


# Dtypes, devices and transforms


@every_scheme
def test_autocast_does_not_coarsen_boxes(scheme: str) -> None:
    head = shake(make(scheme, depth=0))
    features = [maps.bfloat16() for maps in make_features()]
    expected = head([maps.float() for maps in features])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(features)
    for part, other in zip(found[:4], expected[:4], strict=True):
        assert part is None or part.dtype == torch.float32
        assert_close(part, other, rtol=0, atol=0) if part is not None else None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_head_in_another_dtype(dtype: torch.dtype) -> None:
    head = make("yolov5").to(dtype)
    head.reset_parameters()
    found = head([maps.to(dtype) for maps in make_features()])
    assert found.boxes.dtype == dtype
    x, y, _ = points_of(LEVELS, per_cell=3, dtype=dtype)
    assert_close(found.boxes[0, :2], torch.stack((x, y)), rtol=4 * eps(dtype) + 1e-5, atol=0.02)


def test_meta_head_materialises() -> None:
    with torch.device("meta"):
        head = make("yolov5")
    found = head([maps.to("meta") for maps in make_features()])
    assert found.boxes.shape == (2, 4, 3 * 47)
    head.to_empty(device="cpu").reset_parameters()
    assert_close(head(make_features()).boxes, make("yolov5")(make_features()).boxes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", ["yolov5", "dfl"])
def test_compiles_without_a_graph_break(scheme: str) -> None:
    head, features = shake(make(scheme)), make_features()
    torch._dynamo.reset()
    found = torch.compile(head, fullgraph=True, backend="aot_eager")(features)
    assert isinstance(found, DensePrediction)
    for part, other in zip(found, head(features), strict=True):
        assert_close(part, other) if isinstance(other, Tensor) else None
    assert found.levels == LEVELS


@pytest.mark.parametrize("scheme", ["yolov5", "dfl"])
def test_exports_for_any_batch_and_size(scheme: str) -> None:
    head = shake(make(scheme)).eval()
    batch, *sides = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "h", "w", "k", "l"))
    sizes = [{0: batch, 2: sides[0], 3: sides[1]}, {0: batch, 2: sides[2], 3: sides[3]}]
    exported = torch.export.export(head, (make_features(),), dynamic_shapes=(sizes,)).module()
    other = [torch.randn(3, 16, 9, 6), torch.randn(3, 64, 4, 8)]
    for features in (make_features(), other):
        found, expected = exported(features), head(features)
        assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
        assert_close(found.scores, expected.scores)
        assert tuple(tuple(level) for level in found.levels) == expected.levels


def test_copies_and_names() -> None:
    head = make("dfl")
    twin = copy.deepcopy(head)
    assert torch.equal(twin(make_features()).boxes, head(make_features()).boxes)
    names = {name.split(".", 2)[2].rsplit(".", 1)[0] for name in head.state_dict()}
    assert names == {"tower.0.0", "tower.0.1", "box", "objectness", "classes"}
    assert "decoder=DFLDecoder(stride=8.0, bins=9)" in repr(head)


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 0}, ValueError, "classes: got 0, expected at least 1"),
        ({"classes": 2.0}, TypeError, "classes: got float, expected an int"),
        ({"depth": -1}, ValueError, "depth: got -1, expected at least 0"),
        (
            {"in_channels": [16]},
            ValueError,
            r"in_channels: got \[16\], expected one for each of the 2 levels",
        ),
        ({"in_channels": [16, 0]}, ValueError, "in_channels: got 0, expected at least 1"),
        ({"decoders": []}, ValueError, r"decoders: got \[\], expected one for each level"),
        ({"decoders": [LTRBDecoder, 8]}, TypeError, "decoder: got .*, expected an instance of a Decoder"),
        (
            {"decoders": [UnitSquareDecoder()] * 2},
            ValueError,
            "expected schemes that read the cells of a grid",
        ),
        (
            {"decoders": [LTRBDecoder(8), DFLDecoder(16)]},
            ValueError,
            "decoders: got .*, expected the same scheme on every level",
        ),
        ({"prior": [(10, 10)]}, ValueError, "prior: got .*, expected one for each of the 2 levels"),
        ({"prior": [[(9, 9)], [(9, 9), (5, 5)]]}, ValueError, "expected as many boxes a cell on every level"),
        ({"prior": (10, 0)}, ValueError, "prior: got .* a width and a height above 0"),
        ({"prior": [[10], [20]]}, ValueError, r"prior: got .*, expected \(w, h\), or several"),
        (
            {"decoders": [GridCellDecoder()] * 2},
            ValueError,
            r"prior: got None, expected a size \(w, h\): GridCellDecoder.* has none of its own",
        ),
        ({"objectness_prior": 1.0}, ValueError, "objectness_prior: got 1.0, expected a probability"),
        ({"objectness_prior": [0.1]}, ValueError, "objectness_prior: got .*, expected one for each of the 2"),
        ({"class_prior": 0}, ValueError, "class_prior: got 0, expected a probability between 0 and 1"),
        (
            {"decoders": [DFLDecoder(8), DFLDecoder(16)], "prior": (300, 20)},
            ValueError,
            "prior: got .*, expected what DFLDecoder.* can express",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DenseHead(**{"in_channels": [16, 64], "decoders": [LTRBDecoder(8), LTRBDecoder(16)], **options})


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([torch.zeros(1, 16, 3, 3)], ValueError, "features: got 1 maps, expected 2, one a level"),
        (
            [torch.zeros(1, 16, 3, 3), torch.zeros(1, 16, 3, 3)],
            ValueError,
            r"features\[1\]: got shape \(1, 16, 3, 3\), expected \(B, 64, H, W\) with in_channels=64",
        ),
        ([torch.zeros(16, 3, 3), torch.zeros(1, 64, 3, 3)], ValueError, r"features\[0\]: got shape"),
        ([torch.zeros(1, 16, 3, 3, dtype=torch.int64)] * 2, TypeError, r"features\[0\]: got a tensor of"),
    ],
)
def test_bad_features(features: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make("ltrb")(features)


def test_a_map_that_does_not_fit_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="level: got 4 rows and 4 columns, expected square cells"):
        make("grid_cell")([torch.zeros(1, 16, 4, 4), torch.zeros(1, 64, 3, 4)])
