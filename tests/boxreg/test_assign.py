"""Assigners: cases worked by hand, and arguments that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boxreg import (
    AnchorRatioAssigner,
    Assignment,
    ResponsibleCellAssigner,
    Targets,
    TaskAlignedAssigner,
    pad_targets,
)
from tests.assign_cases import ANCHORS, NAN, batch, one, owners, planes, same


class TestPadTargets:
    def test_by_hand(self) -> None:
        boxes = [
            torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
            torch.zeros(0, 4),
            torch.tensor([[2.0, 2, 9, 9]]),
        ]
        labels = [
            torch.tensor([3, 1]),
            torch.tensor([], dtype=torch.int32),
            torch.tensor([2], dtype=torch.uint8),
        ]
        targets = pad_targets(boxes, labels)
        filler = [0, 0, 1, 1]
        assert targets.boxes.tolist() == [
            [[1, 2, 3, 4], [5, 6, 7, 8]],
            [filler, filler],
            [[2, 2, 9, 9], filler],
        ]
        assert targets.labels.tolist() == [[3, 1], [0, 0], [2, 0]]
        assert targets.labels.dtype == torch.int64
        assert targets.mask.tolist() == [[True, True], [False, False], [True, False]]

    def test_without_labels(self) -> None:
        targets = pad_targets([torch.rand(2, 4, dtype=torch.float64)])
        assert targets.labels.tolist() == [[0, 0]]
        assert targets.boxes.dtype == torch.float64

    @pytest.mark.parametrize("images", [1, 3])
    def test_no_objects(self, images: int) -> None:
        targets = pad_targets([torch.zeros(0, 4)] * images, [torch.zeros(0, dtype=torch.int64)] * images)
        assert [tuple(part.shape) for part in targets] == [(images, 0, 4), (images, 0), (images, 0)]
        assert (targets.labels.dtype, targets.mask.dtype) == (torch.int64, torch.bool)

    @pytest.mark.parametrize("most", [2, 5])
    def test_to_a_fixed_number(self, most: int) -> None:
        targets = pad_targets([torch.rand(2, 4), torch.rand(1, 4)], max_objects=most)
        assert targets.mask.shape == (2, most)
        assert targets.mask.sum(1).tolist() == [2, 1]
        assert torch.equal(targets.boxes[1, 1:], torch.tensor([[0.0, 0, 1, 1]] * (most - 1)))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([],), ValueError, "boxes: got none, expected those of at least one image"),
            ((torch.rand(2, 3, 4),), TypeError, "boxes: got Tensor, expected a sequence"),
            (
                ([torch.rand(2, 4), torch.rand(4)],),
                ValueError,
                r"boxes\[1\]: got shape \(4,\), expected \(M, 4\)",
            ),
            (([torch.ones(2, 4, dtype=torch.int64)],), TypeError, r"boxes\[0\]: got a tensor of torch.int64"),
            (([torch.rand(2, 4)], []), ValueError, "labels: got those of 0 images, expected 1"),
            (
                ([torch.rand(2, 4)], [torch.tensor([1])]),
                ValueError,
                r"labels\[0\]: got shape \(1,\), expected \(2,\)",
            ),
            (
                ([torch.rand(1, 4)], [torch.tensor([1.0])]),
                TypeError,
                r"labels\[0\]: got a tensor of torch.float32",
            ),
        ],
    )
    def test_bad_arguments(self, arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            pad_targets(*arguments)  # type: ignore[arg-type]

    def test_too_many_objects(self) -> None:
        with pytest.raises(ValueError, match="max_objects: got 2, expected at least 3"):
            pad_targets([torch.rand(3, 4)], max_objects=2)


class TestResponsibleCell:
    """A map of 1 by 2 cells of 8 pixels, two boxes a cell: predictions 0 and 2 are of the left cell."""

    PRED = planes([[0, 0, 8, 8], [8, 0, 16, 8], [2, 2, 6, 6], [10, 2, 14, 6]])

    def found(self, boxes: list[list[float]], kind: str = "iou", pred: Tensor = PRED) -> Assignment:
        return ResponsibleCellAssigner(kind=kind)(pred, one(boxes), [(1, 2, 8)])

    @pytest.mark.parametrize(
        ("box", "owner", "score"),
        [
            ([0.0, 0, 8, 8], 0, 1.0),
            ([2.0, 2, 6, 6], 2, 1.0),
            ([10.0, 0, 14, 8], 1, 0.5),  # a tie: 32 / 64 with the large box, 16 / 32 with the small one
            ([10.0, 2, 14, 8], 3, 2 / 3),
        ],
    )
    def test_the_best_box_of_the_cell(self, box: list[float], owner: int, score: float) -> None:
        found = self.found([box])
        assert owners(found) == [0 if p == owner else None for p in range(4)]
        assert found.score[0, owner].item() == pytest.approx(score)
        assert found.boxes[0, :, owner].tolist() == box

    @pytest.mark.parametrize(
        ("cx", "cell"),
        [(0.0, "left"), (7.99, "left"), (8.0, "right"), (16.0, "right"), (16.01, None), (-0.01, None)],
    )
    def test_centres_on_borders(self, cx: float, cell: str | None) -> None:
        found = self.found([[cx - 2, 2, cx + 2, 6]])
        assert found.positive[0].view(2, 2).any(0).tolist() == [cell == "left", cell == "right"]

    @pytest.mark.parametrize("cells", [3, 7, 13, 49])
    def test_the_far_border_of_a_unit_image(self, cells: int) -> None:
        pred = torch.tensor([0.5, 0.5, 0.6, 0.6]).view(1, 4, 1).expand(1, 4, cells * cells)
        targets = pad_targets([torch.tensor([[0.9, 0.9, 1.1, 1.1]])])
        found = ResponsibleCellAssigner()(pred, targets, [(cells, cells, 1 / cells)])
        assert found.positive[0].nonzero().tolist() == [[cells * cells - 1]]

    def test_two_objects_share_a_cell(self) -> None:
        # Both fit the small box better; the second fits it best, so the first gets the large one.
        found = self.found([[2, 2, 6, 7], [2, 2, 6, 6]])
        assert owners(found) == [0, None, 1, None]
        assert found.score[0].tolist() == pytest.approx([20 / 64, 0, 1, 0])

    def test_a_third_object_gets_none(self) -> None:
        found = self.found([[2, 2, 6, 7], [2, 2, 6, 6], [1, 1, 6, 6]])
        # In the first turn all want the small box. In the second 25 / 64 beats 20 / 64.
        assert owners(found) == [2, None, 1, None]

    def test_identical_objects_get_a_box_each(self) -> None:
        assert sorted(filter(lambda n: n is not None, owners(self.found([[2, 2, 6, 6]] * 3)))) == [0, 1]  # type: ignore[type-var]

    def test_cells_of_a_pyramid_compete(self) -> None:
        pred = planes([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16], [0, 0, 16, 16]])
        found = ResponsibleCellAssigner()(pred, one([[1, 1, 15, 15], [1, 1, 7, 7]]), [(2, 2, 8), (1, 1, 16)])
        # The centre (8, 8) is in the last cell of the first level, whose box covers a quarter of the object.
        assert owners(found) == [1, None, None, None, 0]

    def test_penalised_kinds_tell_distant_boxes_apart(self) -> None:
        pred = planes([[90, 0, 98, 8], [0, 0, 0, 0], [20, 0, 28, 8], [0, 0, 0, 0]])
        assert owners(self.found([[0, 0, 8, 8]], "iou", pred)) == [0, None, None, None]
        found = self.found([[0, 0, 8, 8]], "giou", pred)
        assert owners(found) == [None, None, 0, None]
        assert not found.score.any()


class TestAnchorRatio:
    """A map of 3 by 3 cells of 8 pixels with one anchor of 8 by 8, unless a case has it otherwise."""

    def cells(self, boxes: list[list[float]], fits: float = 4.0) -> list[list[int | None]]:
        assigner = AnchorRatioAssigner(anchors=[[(8, 8)]], max_ratio=fits)
        flat = owners(assigner(torch.zeros(1, 4, 9), one(boxes), [(3, 3, 8)]))
        return [flat[0:3], flat[3:6], flat[6:9]]

    @pytest.mark.parametrize(
        ("cx", "cy", "expected"),
        [
            (11, 11, ["010", "110", "000"]),  # nearer to the left and to the upper neighbour
            (13, 14, ["000", "011", "010"]),
            (11, 14, ["000", "110", "010"]),
            (12, 12, ["000", "010", "000"]),  # exactly between: no neighbour
            (12, 10, ["010", "010", "000"]),
            (2, 3, ["100", "000", "000"]),  # neighbours would be off the map
            (0, 0, ["100", "000", "000"]),
            (24, 24, ["000", "000", "001"]),  # the far border belongs to the last cell
            (24, 10, ["001", "001", "000"]),
            (24.1, 12, ["000", "000", "000"]),
        ],
    )
    def test_cells(self, cx: float, cy: float, expected: list[str]) -> None:
        found = self.cells([[cx - 4, cy - 4, cx + 4, cy + 4]])
        assert ["".join("0" if n is None else "1" for n in row) for row in found] == expected

    @pytest.mark.parametrize(
        ("width", "height", "fits"),
        [(8, 8, True), (31, 8, True), (32, 8, False), (2, 8, False), (3, 31, True)],
    )
    def test_ratio(self, width: float, height: float, fits: bool) -> None:
        found = self.cells([[12 - width / 2, 12 - height / 2, 12 + width / 2, 12 + height / 2]])
        assert (found[1][1] == 0) == fits

    def test_an_object_goes_before_its_neighbours(self) -> None:
        # Alike, in adjacent cells, each nearer to the other's: each keeps its own.
        found = self.cells([[3, 8, 11, 16], [5, 8, 13, 16]])
        assert found == [[None] * 3, [0, 1, None], [None] * 3]

    def test_of_two_in_a_cell_the_better_fit_wins(self) -> None:
        assert self.cells([[4, 4, 20, 20], [7, 7, 17, 17]])[1][1] == 1
        assert self.cells([[10, 10, 14, 14], [7, 7, 17, 17]])[1][1] == 1

    def test_levels_and_anchors(self) -> None:
        assigner = AnchorRatioAssigner(anchors=[[(4, 4), (8, 8)], [(16, 16), (100, 100)]], max_ratio=2.5)
        boxes = torch.zeros(1, 4, 2 * 4 + 2)
        found = assigner(boxes, one([[0, 0, 8, 8]], [2]), [(2, 2, 8), (1, 1, 16)])
        # 8 / 4 and 16 / 8 pass, 100 / 8 does not; on the coarser level the neighbours are off the map.
        assert owners(found) == [0, None, None, None, 0, None, None, None, 0, None]
        assert found.labels[0].tolist() == [2, 0, 0, 0, 2, 0, 0, 0, 2, 0]
        assert found.score[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0]

    @pytest.mark.parametrize("box", [[4, 4, 20, 20.0], [7, 7, 17, 17]])
    def test_predictions_are_not_looked_at(self, box: list[float]) -> None:
        assigner = AnchorRatioAssigner(anchors=[[(8, 8)]])
        same(
            assigner(torch.full((1, 4, 9), NAN), one([box]), [(3, 3, 8)]),
            assigner(torch.rand(1, 4, 9), one([box]), [(3, 3, 8)]),
        )


class TestTaskAligned:
    """A map of 1 by 4 cells of 8 pixels; their points are at 4, 12, 20 and 28."""

    def found(
        self,
        targets: Targets,
        pred: list[list[float]],
        scores: list[list[float]],
        topk: int = 10,
        kind: str = "iou",
    ) -> Assignment:
        probabilities = torch.tensor([scores], dtype=torch.float64)
        assigner = TaskAlignedAssigner(topk=topk, alpha=1.0, beta=2.0, kind=kind)
        return assigner(planes(pred), targets, [(1, 4, 8)], probabilities)

    def test_alignment_by_hand(self) -> None:
        pred = [[0.0, 0, 24, 8], [0, 0, 12, 8], [0, 0, 24, 8], [0, 0, 24, 8]]
        found = self.found(one([[0, 0, 24, 8]]), pred, [[0.2, 1.0, 0.4, 1.0]])
        # t = 0.2, 1 * 0.5^2, 0.4; the last point is not inside. The largest overlap is 1.
        assert owners(found) == [0, 0, 0, None]
        assert found.score[0].tolist() == pytest.approx([0.5, 0.625, 1.0, 0.0])

    def test_the_largest_score_is_the_largest_overlap(self) -> None:
        pred = [[0.0, 0, 12, 8], [0, 0, 6, 8], [0, 0, 3, 8], [0, 0, 24, 8]]
        found = self.found(one([[0, 0, 24, 8]]), pred, [[0.1, 1.0, 1.0, 1.0]])
        # t = 0.1 / 4, 1 / 16, 1 / 64; the largest t is not that of the largest overlap, 1 / 2.
        assert found.score[0].tolist() == pytest.approx([0.5 * 0.4, 0.5, 0.5 * 0.25, 0.0])

    @pytest.mark.parametrize(("topk", "expected"), [(1, [None, None, 0, None]), (2, [None, 0, 0, None])])
    def test_top_k(self, topk: int, expected: list[int | None]) -> None:
        pred = [[0.0, 0, 24, 8], [0, 0, 12, 8], [0, 0, 24, 8], [0, 0, 24, 8]]
        assert owners(self.found(one([[0, 0, 24, 8]]), pred, [[0.2, 1.0, 0.4, 1.0]], topk)) == expected

    def test_the_score_of_the_own_class_counts(self) -> None:
        pred = [[0.0, 0, 32, 8]] * 4
        scores = [[0.9, 0.1, 0.8, 0.2], [0.1, 0.9, 0.2, 0.8]]
        found = self.found(one([[0, 0, 32, 8]], [1]), pred, scores, topk=2)
        assert owners(found) == [None, 0, None, 0]
        assert found.labels[0].tolist() == [0, 1, 0, 1]

    def test_points_on_the_edge_are_not_inside(self) -> None:
        pred = [[4.0, 0, 28, 8]] * 4
        assert owners(self.found(one([[4, 0, 28, 8]]), pred, [[0.5] * 4])) == [None, 0, 0, None]

    def test_a_claimed_prediction_goes_to_the_highest_overlap(self) -> None:
        pred = [[0.0, 0, 8, 8], [0, 0, 16, 8], [8, 0, 24, 8], [24, 0, 32, 8]]
        found = self.found(one([[0, 0, 16, 8], [8, 0, 24, 8]]), pred, [[0.5] * 4])
        # Prediction 1 is inside both: it overlaps the first wholly, the second by 1 / 3.
        assert owners(found) == [0, 0, 1, None]
        # The first object's t: 0.5 / 4 and 0.5.
        assert found.score[0].tolist() == pytest.approx([0.25, 1.0, 1.0, 0.0])

    @pytest.mark.parametrize("cx", [7.0, 8.5, 15.5, 8.0])
    def test_an_object_between_points_has_its_cell(self, cx: float) -> None:
        found = self.found(one([[cx - 0.5, 6, cx + 0.5, 7]]), [[0.0, 0, 32, 8]] * 4, [[0.5] * 4])
        assert owners(found) == [0 if p == int(cx // 8) else None for p in range(4)]

    def test_on_every_level(self) -> None:
        pred = planes([[0, 0, 16, 16]] * 5)
        assigner = TaskAlignedAssigner()
        found = assigner(pred, one([[1, 1, 2, 2]]), [(2, 2, 8), (1, 1, 16)], torch.full((1, 1, 5), 0.5))
        assert owners(found) == [0, None, None, None, 0]

    def test_an_object_outside_gets_none(self) -> None:
        found = self.found(one([[40, 2, 60, 6], [33, 1, 34, 2]]), [[0.0, 0, 32, 8]] * 4, [[0.5] * 4])
        assert not found.positive.any()

    def test_an_object_that_reaches_in_has_the_points_that_it_contains(self) -> None:
        found = self.found(one([[26, 0, 60, 8]]), [[20.0, 0, 60, 8]] * 4, [[0.5] * 4])
        assert owners(found) == [None, None, None, 0]

    def test_without_any_overlap_the_nearest_are_taken(self) -> None:
        pred = [[100.0 + 50 * distance, 0, 108 + 50 * distance, 8] for distance in (3, 1, 2, 0)]
        found = self.found(one([[0, 0, 32, 8]]), pred, [[0.5] * 4], topk=2, kind="ciou")
        assert owners(found) == [None, 0, None, 0]
        assert not found.score.any()

    def test_tiny_overlaps_and_scores_are_ranked(self) -> None:
        # In float32 t would be 0 for all.
        pred = [[0.0, 0, 10.0**-n, 8] for n in (9, 7, 8, 6)]
        targets = pad_targets([torch.tensor([[0.0, 0, 32, 8]])])
        assigner = TaskAlignedAssigner(topk=2, kind="iou")
        found = assigner(planes(pred).float(), targets, [(1, 4, 8)], torch.full((1, 1, 4), 1e-30))
        assert owners(found) == [None, 0, None, 0]
        assert found.score[0].tolist() == pytest.approx([0, 1e-6 / 32 * 1e-6, 0, 1e-6 / 32], rel=1e-3)

    @pytest.mark.parametrize("label", [-1, 2, 5])
    @pytest.mark.parametrize("image", [0, 1])
    def test_a_label_without_a_score_is_an_error(self, label: int, image: int) -> None:
        labels = [torch.tensor([label if image == n else 0]) for n in (0, 1)]
        targets = pad_targets([torch.tensor([[0.0, 0, 8, 8]])] * 2, labels)
        with pytest.raises(IndexError, match="out of range"):
            TaskAlignedAssigner()(torch.rand(2, 4, 4), targets, [(1, 4, 8)], torch.rand(2, 2, 4))

    def test_scores_are_needed(self) -> None:
        with pytest.raises(TypeError, match="scores: got None"):
            TaskAlignedAssigner()(torch.rand(1, 4, 4), one([[0, 0, 8, 8]]), [(1, 4, 8)])


class TestBadArguments:
    BOXES = torch.rand(2, 4, 4)
    TARGETS = batch((1, 2))

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            (
                {"boxes": torch.rand(2, 3, 4)},
                ValueError,
                r"boxes: got shape \(2, 3, 4\), expected 4 coordinates",
            ),
            ({"boxes": torch.rand(4, 4)}, ValueError, r"must be \(B, 4, A\) and \(B, M, 4\): got \(4, 4\)"),
            ({"boxes": torch.rand(3, 4, 4)}, ValueError, r"got \(3, 4, 4\) and \(2, 2, 4\)"),
            (
                {"boxes": torch.rand(2, 4, 6)},
                ValueError,
                "got 6 predictions, expected a multiple of the 4 cells",
            ),
            (
                {"boxes": torch.rand(2, 4, 0)},
                ValueError,
                "got 0 predictions, expected a multiple of the 4 cells",
            ),
            ({"boxes": [1.0]}, TypeError, "boxes: got list"),
            ({"targets": tuple(TARGETS)}, TypeError, "targets: got tuple, expected Targets"),
            (
                {"targets": TARGETS._replace(mask=torch.ones(2, 2))},
                TypeError,
                "targets.mask: got a tensor of torch.float32",
            ),
            (
                {"targets": TARGETS._replace(labels=torch.ones(2, 2))},
                TypeError,
                "targets.labels: got .*expected integers",
            ),
            (
                {"targets": TARGETS._replace(labels=torch.ones(2, 3, dtype=torch.int64))},
                ValueError,
                "targets.labels and",
            ),
            (
                {"targets": TARGETS._replace(mask=TARGETS.mask[:1])},
                ValueError,
                "targets.mask and targets.boxes",
            ),
            ({"levels": []}, ValueError, "levels: got none"),
            ({"levels": [(2, 2, -1)]}, ValueError, "levels: stride: got -1"),
            ({"scores": torch.rand(2, 4)}, ValueError, r"scores: got shape \(2, 4\), expected \(B, C, A\)"),
            (
                {"scores": torch.rand(2, 3, 5)},
                ValueError,
                r"scores of a class and boxes .*\(2, 5\) and \(2, 4\)",
            ),
            (
                {"scores": torch.ones(2, 3, 4, dtype=torch.int64)},
                TypeError,
                "scores: got a tensor of torch.int64",
            ),
            (
                {"boxes": torch.rand(2, 4, 4, device="meta")},
                ValueError,
                "boxes and targets must be on one device",
            ),
        ],
    )
    def test_of_a_call(self, changes: dict[str, object], error: type[Exception], message: str) -> None:
        call = {"boxes": self.BOXES, "targets": self.TARGETS, "levels": [(2, 2, 8)], **changes}
        with pytest.raises(error, match=message):
            ResponsibleCellAssigner()(**call)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: ResponsibleCellAssigner(fmt="xyhw"), ValueError, "fmt: got 'xyhw'.*did you mean 'xywh'"),
            (lambda: ResponsibleCellAssigner(kind="cio"), ValueError, "kind: got 'cio'"),
            (lambda: TaskAlignedAssigner(kind="cio"), ValueError, "kind: got 'cio'"),
            (lambda: TaskAlignedAssigner(topk=0), ValueError, "topk: got 0"),
            (lambda: TaskAlignedAssigner(topk=2.0), TypeError, "topk: got float, expected an int"),
            (lambda: TaskAlignedAssigner(alpha=-1), ValueError, "alpha: got -1"),
            (lambda: TaskAlignedAssigner(beta=NAN), ValueError, "beta: got nan"),
            (lambda: AnchorRatioAssigner(anchors=[]), ValueError, r"anchors: got \[\]"),
            (lambda: AnchorRatioAssigner(anchors=[[(1, 1)], []]), ValueError, "as many"),
            (lambda: AnchorRatioAssigner(anchors=[[(1, 0)]]), ValueError, "anchors: got a side of 0"),
            (lambda: AnchorRatioAssigner(anchors=[[(1, "2")]]), TypeError, "anchors: got str"),
            (lambda: AnchorRatioAssigner(anchors=ANCHORS, max_ratio=0.5), ValueError, "max_ratio: got 0.5"),
        ],
    )
    def test_of_an_assigner(self, make: object, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            make()  # type: ignore[operator]

    @pytest.mark.parametrize(
        "levels", [[(2, 2, 8)], [(1, 2, 8), (1, 1, 16), (1, 1, 32)]], ids=["levels", "boxes"]
    )
    def test_anchors_must_fit_the_predictions(self, levels: list[tuple[int, int, float]]) -> None:
        with pytest.raises(ValueError, match="anchors: got 2 for each of 3 levels, expected 1 for each of"):
            AnchorRatioAssigner(anchors=ANCHORS)(self.BOXES, self.TARGETS, levels)
