"""The detection objective: its loss, its imitation of a teacher, its figures, and a training that works."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwmodel import uniform
from qat.data.boxes import Boxes, pack
from qat.data.detection import DetectionDataModule, DetectionSplits
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.scenes import digit_scenes
from qat.deployment import deploy
from qat.errors import ConfigError
from qat.graph import trace
from qat.models import digits_yolo
from qat.models.heads import FastestHead, Head, Suppression, YoloHead
from qat.normalization import Normalization
from qat.search.trial import Fidelity
from qat.tasks import Detection, Recipe, TrainingTask, evaluate, fit, objective_of
from qat.tasks.detection_loss import detection_loss, imitation_loss
from qat.tasks.fit import Machine
from qat.tasks.quantize import SensitivityProbe, TrialEvaluator, quantize

CPU = Machine(accelerator="cpu", progress_bar=False)
NORMALIZATION = Normalization((0.1,), (0.2,))
COARSE = YoloHead(((32.0, 32.0), (48.0, 16.0)), 16, 3, True)
FINE = YoloHead(((8.0, 8.0),), 8, 3, True)


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def answer(head: YoloHead, size: int, place: tuple[int, int, int], values: list[float]) -> torch.Tensor:
    """A map that sees nothing but one box; in `place`, anchor, row and column."""
    parts = torch.zeros(1, len(head.anchors), 5 + head.num_classes, size, size)
    parts[:, :, 4] = -30.0
    parts[0, place[0], :, place[1], place[2]] = torch.tensor(values)
    return parts.flatten(1, 2)


def one_box(*box: float, label: int = 1, ignored: bool = False) -> torch.Tensor:
    return pack([Boxes.from_lists([box], [label], [ignored])], 3)


class TestLoss:
    # A box of 32 x 32 pixels around (40, 24), of an image of 64 x 64: row 1, column 2, first anchor, half a cell in.
    BOX = (24 / 64, 8 / 64, 56 / 64, 40 / 64)
    RIGHT = [0.0, 0.0, 0.0, 0.0, 30.0, -30.0, 30.0, -30.0]  # noqa: RUF012

    def test_a_perfect_answer_costs_nothing(self) -> None:
        maps = (answer(COARSE, 4, (0, 1, 2), self.RIGHT), answer(FINE, 8, (0, 0, 0), [0] * 4 + [-30.0] + [0] * 3))
        assert detection_loss((COARSE, FINE), maps, one_box(*self.BOX)) == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize(
        "place", [(1, 1, 2), (0, 2, 2), (0, 1, 1)], ids=["another anchor", "another row", "another column"]
    )
    def test_in_another_place_it_is_wrong(self, place: tuple[int, int, int]) -> None:
        assert detection_loss((COARSE,), answer(COARSE, 4, place, self.RIGHT), one_box(*self.BOX)) > 10

    def test_each_part_by_hand(self) -> None:
        values = [0.0, 0.0, math.log(0.5), 0.0, logit(0.25), 0.0, math.log(2.0), 0.0]
        loss = detection_loss((COARSE,), answer(COARSE, 4, (0, 1, 2), values), one_box(*self.BOX))
        # Half as wide, same centre: overlap 1/2, and the difference of shapes v = 4/pi^2 (atan 1 - atan 1/2)^2.
        shape = 4 / math.pi**2 * (math.pi / 4 - math.atan(0.5)) ** 2
        box = 0.5 + shape * shape / (0.5 + shape)
        assert float(loss) == pytest.approx(3 * box - math.log(0.25) - math.log(2 / 4), rel=1e-4)

    def test_a_near_answer_is_no_mistake(self) -> None:
        """The second anchor's answer in the same cell overlaps the true box by two thirds: it may be sure or not."""
        parts = answer(COARSE, 4, (0, 1, 2), self.RIGHT).view(1, 2, 8, 4, 4).clone()
        parts[0, 1, :, 1, 2] = torch.tensor([0.0, 0.0, 0.0, math.log(2.0), 30.0, 0.0, 0.0, 0.0])
        loss = detection_loss((COARSE,), parts.flatten(1, 2), one_box(*self.BOX))
        assert float(loss) == pytest.approx(0, abs=1e-5)
        parts[0, 1, 3, 1, 2] = math.log(0.5)  # now it overlaps by 1/6
        assert float(detection_loss((COARSE,), parts.flatten(1, 2), one_box(*self.BOX))) == pytest.approx(30, rel=1e-3)

    def test_an_ignored_box_need_not_be_found(self) -> None:
        nothing = answer(COARSE, 4, (0, 0, 0), [0.0] * 4 + [-30.0] + [0.0] * 3)
        found = answer(COARSE, 4, (0, 1, 2), self.RIGHT)
        for maps in (nothing, found):
            assert detection_loss((COARSE,), maps, one_box(*self.BOX, ignored=True)) == pytest.approx(0, abs=1e-5)
        assert detection_loss((COARSE,), nothing, one_box(*self.BOX)) > 10

    def test_without_boxes(self) -> None:
        empty = pack([Boxes.from_lists([], [])], 3)
        assert float(detection_loss((COARSE,), torch.zeros(1, 16, 4, 4), empty)) == pytest.approx(32 * math.log(2))

    @settings(max_examples=4, deadline=None)
    @given(st.integers(0, 1000), st.booleans())
    def test_its_gradient_leads_to_the_boxes(self, seed: int, softmax: bool) -> None:
        """Any boxes can be learned by any head: descent on the maps alone makes the loss small."""
        generator = torch.Generator().manual_seed(seed)
        heads: tuple[Head, ...] = (YoloHead(((12.0, 12.0), (30.0, 24.0)), 16, 2, softmax), FastestHead(8, 2))[
            seed % 2 :
        ]
        heads = heads[:1]
        corner = torch.rand(2, 4, generator=generator)
        boxes = [
            Boxes.from_lists([[x, y, x + 0.2 + 0.3 * w, y + 0.2 + 0.3 * h]], [int(w > 0.5)])
            for x, y, w, h in (corner * torch.tensor([0.5, 0.5, 1, 1])).tolist()
        ]
        shape = (2, 14, 4, 4) if isinstance(heads[0], YoloHead) else (2, 7, 8, 8)
        maps = torch.zeros(shape, requires_grad=True)
        optimizer = torch.optim.Adam([maps], 0.2)
        targets = pack(boxes, 2)
        first = float(detection_loss(heads, maps.detach(), targets))
        for _ in range(120):
            optimizer.zero_grad()
            loss = detection_loss(heads, maps, targets)
            loss.backward()
            optimizer.step()
        assert float(detection_loss(heads, maps.detach(), targets)) < 0.05 * first
        meter = Detection(heads, Suppression(0.3)).meter()
        meter.update(maps.detach(), targets)
        assert meter.compute()["ap50"] == pytest.approx(1.0)


class TestImitation:
    @pytest.mark.parametrize("head", [COARSE, YoloHead(((8.0, 8.0), (9.0, 9.0)), 16, 3, False), FastestHead(16, 11)])
    def test_a_copy_costs_nothing_and_a_difference_something(self, head: Head) -> None:
        torch.manual_seed(0)
        maps = torch.randn(2, 16, 4, 4)
        assert imitation_loss((head,), maps, maps, 3.0) == pytest.approx(0, abs=1e-5)
        for channel in range(16):
            other = maps.clone()
            other[:, channel] += 1.0
            assert imitation_loss((head,), other, maps, 3.0) > 1e-3

    def test_what_the_teacher_does_not_see_is_free(self) -> None:
        teacher = torch.randn(1, 16, 4, 4).view(1, 2, 8, 4, 4)
        teacher[:, :, 4] = -30.0
        student = teacher.clone()
        student[:, :, :4] += 1.0
        student[:, :, 5:] *= -1.0
        loss = imitation_loss((COARSE,), student.flatten(1, 2), teacher.flatten(1, 2), 2.0)
        assert loss == pytest.approx(0, abs=1e-5)


class TestObjective:
    def test_what_a_network_is_for(self) -> None:
        assert objective_of(nn.Linear(2, 2)).score == "accuracy"
        assert objective_of(digits_yolo(4)).score == "ap50"
        with pytest.raises(ConfigError, match=r"Linear is no detector: it has no attribute `heads`"):
            Detection.of(nn.Linear(2, 2))

    def test_figures_of_a_perfect_and_a_blind_detector(self) -> None:
        objective = Detection((COARSE,))
        perfect, blind = objective.meter(), objective.meter()
        perfect.update(answer(COARSE, 4, (0, 1, 2), TestLoss.RIGHT), one_box(*TestLoss.BOX))
        blind.update(answer(COARSE, 4, (0, 1, 2), [0.0] * 4 + [-30.0] + [0.0] * 3), one_box(*TestLoss.BOX))
        figures = perfect.compute()
        assert (figures["ap50"], figures["ap"]) == (pytest.approx(1), pytest.approx(1))
        assert blind.compute()["ap50"] == 0.0
        assert objective.hits(torch.zeros(1, 16, 4, 4), one_box(*TestLoss.BOX)) is None


@pytest.fixture(scope="module")
def scenes() -> DetectionDataModule:
    parts = digit_scenes((64, 16, 16), (96, 96), 0)
    return DetectionDataModule(DetectionSplits(*parts), NORMALIZATION, DetectionAugmentation(), (96, 96), 16, 0)


@pytest.fixture(scope="module")
def trained(scenes: DetectionDataModule) -> nn.Module:
    """A detector that has seen a few scenes."""
    torch.manual_seed(0)
    model = digits_yolo(10)
    task = TrainingTask(model, NORMALIZATION, Recipe(learning_rate=5e-3), Detection.of(model))
    fit(task, scenes, CPU, steps=16)
    return model.eval()


def test_training_float_then_quantized(scenes: DetectionDataModule, trained: nn.Module) -> None:
    objective = Detection.of(trained)
    blind = digits_yolo(10)
    start, learned = (
        evaluate(model, scenes.val_dataloader(), NORMALIZATION, objective)["loss"] for model in (blind, trained)
    )
    assert learned < 0.7 * start
    network = trace(trained, scenes.input_shape)
    evaluator = TrialEvaluator(trained, scenes, NORMALIZATION, Recipe(learning_rate=2e-3), CPU, 0, objective)
    one_bit = uniform(network, 1, 4)
    untrained = evaluator(one_bit, Fidelity("none", 0.0), seed=0)
    short = evaluator(one_bit, Fidelity("short", 1.5), seed=0)
    assert short["loss"] < untrained["loss"]
    assert short["accuracy"] == short["ap50"]


def test_the_probe_ranks_precisions(scenes: DetectionDataModule, trained: nn.Module) -> None:
    base = uniform(trace(trained, scenes.input_shape), 8, 8)
    probe = SensitivityProbe(trained, base, scenes, NORMALIZATION, 32, Detection.of(trained))
    one_bit = uniform(trace(trained, scenes.input_shape), 1, 8)
    assert probe(one_bit) > probe(base)


def test_integers_answer_as_the_quantized_network_does(scenes: DetectionDataModule, trained: nn.Module) -> None:
    objective = Detection.of(trained)
    model = quantize(trained, uniform(trace(trained, scenes.input_shape), 8, 8), scenes, NORMALIZATION).eval()
    deployed = deploy(model, NORMALIZATION)
    batches = list(scenes.val_dataloader(limit=8))
    figures = evaluate(model, batches, NORMALIZATION, objective)
    meter = objective.meter()
    for images, targets in batches:
        meter.update(deployed(images).float() * deployed.output_scales[0], targets)
    integers = meter.compute()
    assert integers["loss"] == pytest.approx(figures["loss"], rel=0.02)
    step = deployed.output_scales[0]
    for images, _ in batches:
        difference = deployed(images).float() * step - model(NORMALIZATION(images))
        # Rounding once per layer differs from rounding in float where a value lies between two codes.
        assert difference.abs().mean() < 200 * step
