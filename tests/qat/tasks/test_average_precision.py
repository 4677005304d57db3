"""Average precision against cases worked out by hand, and against the COCO library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from qat.data.boxes import CROWD, IGNORED, Boxes, pack
from qat.models.heads import Detections
from qat.tasks.average_precision import Found, Rule, Truth, class_average_precision, iou, mean_average_precision
from qat.tasks.detection import DetectionMeter

ONE = [0.0, 0.0, 10.0, 10.0]
TWO = [20.0, 0.0, 30.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def found(*answers: tuple[list[float], float], label: int = 0) -> Found:
    return Found(
        np.array([box for box, _ in answers]).reshape(-1, 4),
        np.array([score for _, score in answers]),
        np.full(len(answers), label),
    )


def truth(*boxes: list[float], ignored: tuple[int, ...] = ()) -> Truth:
    mask = np.isin(np.arange(len(boxes)), ignored)
    return Truth(np.array(boxes).reshape(-1, 4), np.zeros(len(boxes), int), mask)


def test_overlap() -> None:
    boxes = np.array([ONE, [5.0, 0.0, 15.0, 10.0], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(iou(boxes, np.array([ONE, FAR])), [[1, 0], [1 / 3, 0], [0, 0]])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Right, wrong, right at two boxes: precision 1 at recall 0.5, 2/3 at recall 1.
        # 11 points: recall 0..0.5 is 6 points at 1, 0.6..1 is 5 at 2/3.  101 points: 51 at 1, 50 at 2/3.
        ("voc_11_point", (6 + 5 * 2 / 3) / 11),
        ("voc_all_point", 0.5 + 0.5 * 2 / 3),
        ("coco_101_point", (51 + 50 * 2 / 3) / 101),
    ],
)
def test_right_wrong_right(rule: Rule, expected: float) -> None:
    answers = found((ONE, 0.9), (FAR, 0.8), (TWO, 0.7))
    assert class_average_precision([answers], [truth(ONE, TWO)], 0, rule) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["voc_11_point", "voc_all_point", "coco_101_point"])
class TestEveryRule:
    def test_all_right_and_nothing_right(self, rule: Rule) -> None:
        assert mean_average_precision([found((ONE, 0.5))], [truth(ONE)], rule) == pytest.approx(1)
        assert mean_average_precision([found((FAR, 0.5))], [truth(ONE)], rule) == 0
        assert mean_average_precision([found()], [truth(ONE)], rule) == 0
        assert mean_average_precision([found((ONE, 0.5))], [truth()], rule) == 0

    def test_a_box_is_found_once(self, rule: Rule) -> None:
        twice = found((ONE, 0.9), (ONE, 0.8), (TWO, 0.7))
        second_wrong = {
            "voc_11_point": (6 + 5 * 2 / 3) / 11,
            "voc_all_point": 5 / 6,
            "coco_101_point": (51 + 100 / 3) / 101,
        }
        assert mean_average_precision([twice], [truth(ONE, TWO)], rule) == pytest.approx(second_wrong[rule])

    def test_ignored_boxes_do_not_count(self, rule: Rule) -> None:
        answers = found((TWO, 0.9), (ONE, 0.8))
        assert mean_average_precision([answers], [truth(ONE, TWO, ignored=(1,))], rule) == pytest.approx(1)
        assert mean_average_precision([found((ONE, 0.8))], [truth(ONE, TWO, ignored=(1,))], rule) == pytest.approx(1)

    def test_classes_apart(self, rule: Rule) -> None:
        assert mean_average_precision([found((ONE, 0.9), label=1)], [truth(ONE)], rule) == 0

    def test_other_images_boxes_are_not_found(self, rule: Rule) -> None:
        images = [found((TWO, 0.9)), found((ONE, 0.8))]
        assert mean_average_precision(images, [truth(ONE), truth(TWO)], rule) == 0

    def test_threshold(self, rule: Rule) -> None:
        shifted = found(([0.0, 0.0, 10.0, 6.0], 0.9))  # overlap 0.6
        assert mean_average_precision([shifted], [truth(ONE)], rule, 0.6) == pytest.approx(1)
        assert mean_average_precision([shifted], [truth(ONE)], rule, 0.61) == 0


def test_voc_looks_at_the_nearest_box_only() -> None:
    """Two boxes overlap; the second answer is nearest to the taken one, but also finds the free one."""
    boxes = truth([0.0, 0.0, 10.0, 10.0], [0.0, 2.0, 10.0, 12.0])
    answers = found(([0.0, 0.0, 10.0, 10.0], 0.9), ([0.0, 0.5, 10.0, 10.5], 0.8))
    assert mean_average_precision([answers], [boxes], "voc_all_point") == pytest.approx(0.5)
    assert mean_average_precision([answers], [boxes], "coco_101_point") == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_coco_library_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers, images, ours, theirs = [], [], [], []
    for _ in range(rng.integers(1, 5)):
        real, guesses = rng.integers(0, 5), rng.integers(0, 8)
        corner = rng.uniform(0, 40, (real, 2))
        sides = np.concatenate((corner, corner + rng.uniform(5, 30, (real, 2))), 1)
        near = sides[rng.integers(real, size=guesses)] if real else rng.uniform(0, 30, (guesses, 4))
        near = near + rng.normal(0, 2, near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores, labels = rng.permutation(guesses) / 10 + rng.random() / 50, rng.integers(0, 3, guesses)
        crowd = np.zeros(real, bool)
        answers.append(Found(near, scores, labels))
        images.append(Truth(sides, rng.integers(0, 3, real), crowd))
        ours.append({"boxes": torch.tensor(near), "scores": torch.tensor(scores), "labels": torch.tensor(labels)})
        theirs.append({"boxes": torch.tensor(sides), "labels": torch.tensor(images[-1].labels_B)})
    # Its own points are of single precision: 0.6 is a little more than 3 of 5 boxes there.
    points = np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=points, backend="faster_coco_eval")
    metric.update(ours, theirs)
    expected = max(0.0, float(metric.compute()["map"]))  # -1 stands for "no box"
    assert mean_average_precision(answers, images, "coco_101_point") == pytest.approx(expected, abs=1e-5)


class Fixed:
    """An objective whose network answers with boxes as they are."""

    def loss(self, outputs: list[Detections], targets: Tensor) -> Tensor:
        return torch.zeros(())

    def detections(self, outputs: list[Detections]) -> list[Detections]:
        return outputs

    def image_size(self, outputs: list[Detections]) -> tuple[int, int]:
        return 64, 64


def metered(answers: Found, sides: np.ndarray, labels: np.ndarray, kinds: list[int]) -> float:
    """What the meter says of one image, sides in pixels of 64."""
    boxes, scores = torch.tensor(answers.boxes_K4 / 64).float(), torch.tensor(answers.scores_K).float()
    meter = DetectionMeter(Fixed())
    own = Boxes.from_lists(sides / 64, labels.tolist(), kinds)
    meter.update([Detections(boxes, scores, torch.tensor(answers.labels_K))], pack([own], 9))
    return meter.compute()["ap50"]


def test_an_answer_inside_a_difficult_box_is_a_mistake_but_not_inside_a_crowd() -> None:
    sides, labels = np.array([[0.0, 0.0, 32.0, 32.0], [40.0, 40.0, 60.0, 60.0]]), np.array([0, 0])
    inside = found(([4.0, 4.0, 8.0, 8.0], 0.9), ([40.0, 40.0, 60.0, 60.0], 0.5))
    assert metered(inside, sides, labels, [IGNORED, 0]) == pytest.approx(0.5)
    assert metered(inside, sides, labels, [CROWD, 0]) == pytest.approx(1)
    around = found(*(([0.0, 0.0, 32.0, 32.0 - row], 0.9) for row in range(3)), ([40.0, 40.0, 60.0, 60.0], 0.5))
    assert metered(around, sides, labels, [IGNORED, 0]) == pytest.approx(1)  # it excuses any number of answers


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_meter_treats_difficult_boxes_by_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, guesses = rng.integers(1, 8), rng.integers(1, 16)
    corner = rng.uniform(0, 30, (real, 2))
    sides = np.concatenate((corner, corner + rng.uniform(5, 30, (real, 2))), 1)
    near = (sides[rng.integers(real, size=guesses)] + rng.normal(0, 2, (guesses, 4))).clip(0, 64)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    answers = Found(near, rng.permutation(guesses) / 20 + 0.1, rng.integers(0, 2, guesses))
    labels, difficult = rng.integers(0, 2, real), rng.random(real) < 0.5
    expected = mean_average_precision([answers], [Truth(sides, labels, difficult)], "coco_101_point")
    assert metered(answers, sides, labels, difficult.astype(int).tolist()) == pytest.approx(expected, abs=1e-5)
