"""The objective of torchvision's detectors: their losses, no loss for a copy, boxes found where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from hwmodel import uniform
from qat.convert import prepare
from qat.graph import trace
from qat.models import Pyramid, ssd300, ssdlite320, with_batch_norm
from qat.models.detectors import hardware_part
from qat.models.ssd import Ssd
from qat.tasks import FloatPartDetection, objective_of

BUILDERS: dict[str, tuple[Callable[[int], Ssd], int]] = {
    "ssdlite320": (ssdlite320, 320),
    "ssd300": (ssd300, 300),
}
TARGETS = torch.tensor(
    [
        [[2, 0.1, 0.2, 0.5, 0.7, 0], [0, 0.6, 0.1, 0.9, 0.4, 0], [1, 0.0, 0.0, 0.1, 0.1, 1]],
        [[-1, 0, 0, 0, 0, 0]] * 3,
    ]
)


def random_maps(model: Ssd, size: int) -> tuple[Tensor, ...]:
    """Maps of the right shapes, without the time that the network takes."""
    network = trace(model, (3, size, size))
    layers = [network.by_name[name] for name in network.outputs]
    return tuple(torch.randn(2, layer.out_channels, layer.out_height, layer.out_width) for layer in layers)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_losses_and_detections_of_maps(name: str) -> None:
    torch.manual_seed(0)
    build, size = BUILDERS[name]
    model = build(3)
    objective = objective_of(model)
    assert isinstance(objective, FloatPartDetection) and objective.score == "ap50"
    maps = tuple(part.requires_grad_() for part in random_maps(model, size))
    loss = objective.loss(maps, TARGETS)
    assert torch.isfinite(loss)
    loss.backward()
    # Levels whose default boxes match nothing may teach nothing: their boxes, and their classes without hard negatives.
    taught = [part.grad is not None and bool(part.grad.any()) for part in maps]
    assert taught[0] and sum(taught) >= 4
    # An image without boxes teaches nothing: three negatives for each of no matches.
    assert not any(bool(part.grad[1].any()) for part in maps if part.grad is not None)
    assert float(objective.distillation_loss(maps, maps, 3.0).detach()) == pytest.approx(0.0, abs=1e-4)
    other = tuple(part.detach() + 0.5 * torch.randn_like(part) for part in maps)
    assert float(objective.distillation_loss(maps, other, 3.0).detach()) > 0.01
    assert objective.hits(maps, TARGETS) is None
    for found in objective.detections(maps):
        assert 0 < len(found.labels_K) <= 100 and set(found.labels_K.tolist()) <= {0, 1, 2}
        assert bool((found.boxes_K4 >= 0).all()) and bool((found.boxes_K4 <= 1).all())


def test_perfect_maps_are_measured_as_perfect() -> None:
    """Maps that say what the default boxes should: AP50 of 1 and next to no loss."""
    model = ssdlite320(3)
    objective = FloatPartDetection(model.float_part)
    maps = [torch.zeros_like(part) for part in random_maps(model, 320)]
    defaults = model.float_part.default_boxes(maps)
    logits = torch.zeros(2, len(defaults), 4)
    logits[:, :, 0] = 20.0
    offsets = torch.zeros(2, len(defaults), 4)
    real = TARGETS[0][TARGETS[0][:, 5] == 0]
    matched = model.float_part.detector.proposal_matcher(box_iou(real[:, 1:5] * 320, defaults))
    for box in range(len(real)):
        own = matched == box
        logits[0, own] = 0.0
        logits[0, own, int(real[box, 0]) + 1] = 20.0
        true = (real[box, 1:5] * 320).repeat(int(own.sum()), 1)
        offsets[0, own] = model.float_part.detector.box_coder.encode_single(true, defaults[own])
    start = 0
    for classes, boxes in zip(maps[0::2], maps[1::2], strict=True):
        cells = classes.shape[2] * classes.shape[3]
        count = cells * classes.shape[1] // 4
        for part, values in ((classes, logits), (boxes, offsets)):
            rows = values[:, start : start + count].reshape(2, classes.shape[2], classes.shape[3], -1)
            part.copy_(rows.permute(0, 3, 1, 2))
        start += count
    meter = objective.meter()
    meter.update(tuple(maps), TARGETS)
    figures = meter.compute()
    assert figures["ap50"] == pytest.approx(1.0) and figures["ap"] == pytest.approx(1.0)
    assert figures["loss"] < 1e-3


def test_loss_is_that_of_the_whole_detector() -> None:
    torch.manual_seed(0)
    detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    # Batch norms in inference mode: with two images, statistics of one-pixel maps would be all that is measured.
    detector.train()
    detector.backbone.eval()
    detector.head.eval()
    images = torch.rand(2, 3, 320, 320)
    targets = TARGETS[:, :2]
    theirs = [
        {"boxes": rows[:, 1:5][rows[:, 0] >= 0] * 320, "labels": rows[:, 0][rows[:, 0] >= 0].long() + 1}
        for rows in targets
    ]
    expected = sum(detector(list(images), theirs).values())
    ours = Ssd(detector)
    loss = FloatPartDetection(ours.float_part).loss(ours((images - 0.5) / 0.5), targets)
    torch.testing.assert_close(loss, expected)


def pyramid(name: str) -> Pyramid:
    """The smallest of its kind, with three classes."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"backbone_name": "resnet18", "weights": None, "trainable_layers": 5}
    options["norm_layer"] = nn.BatchNorm2d
    if name == "faster_rcnn":
        detector = FasterRCNN(resnet_fpn_backbone(**options), 4, box_score_thresh=0.01)
    else:
        options |= {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        build = RetinaNet if name == "retinanet" else FCOS
        detector = build(resnet_fpn_backbone(**options), 3, score_thresh=0.005)
        if name == "fcos_bn":
            with_batch_norm(detector)
    part = hardware_part(detector)
    assert isinstance(part, Pyramid)
    return part


HEADS = {"retinanet": ["head"], "fcos": ["head"], "fcos_bn": ["head"], "faster_rcnn": ["rpn"]}
PYRAMIDS = tuple(HEADS)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_losses_of_a_pyramid_are_those_of_the_whole_detector(name: str) -> None:
    model = pyramid(name).train()
    detector = model.float_part.detector
    detector.train()
    detector.transform = GeneralizedRCNNTransform(128, 128, [0.0] * 3, [1.0] * 3)
    detector.transform.torch_choice = min  # of one size, without a random number
    images = torch.rand(2, 3, 128, 128)
    theirs = [
        {
            "boxes": rows[:, 1:5][rows[:, 5] == 0] * 128,
            "labels": rows[:, 0][rows[:, 5] == 0].long() + model.float_part.first_label,
        }
        for rows in (TARGETS[0], TARGETS[0])
    ]
    objective = objective_of(model)
    assert isinstance(objective, FloatPartDetection)
    found = []
    for way in (
        lambda: sum(detector(list(images), theirs).values()),
        lambda: objective.loss(model(images), TARGETS[:1].expand(2, -1, -1)),
    ):
        torch.manual_seed(1)  # Faster R-CNN draws the regions that it learns from
        found.append(way())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_pyramid_is_trained_float_and_quantized(name: str) -> None:
    """The float part learns with the float network, and stays as it is behind the quantized one."""
    model = pyramid(name).train()
    objective = objective_of(model)
    images = torch.rand(2, 3, 128, 128)
    objective.loss(model(images), TARGETS).backward()
    missing = [name for name, weights in model.named_parameters() if weights.grad is None]
    assert not missing
    network = trace(model, (3, 128, 128))
    assert {layer.name.split(".")[0] for layer in network.weighted} == {"backbone", *HEADS[name]}
    quantized = prepare(model.requires_grad_(False), uniform(network, 1, 8, end_bit_width=8), (3, 128, 128))
    quantized.calibrate([images])
    outputs, teacher = quantized.train()(images), model(images)
    loss = objective.loss(outputs, TARGETS) + objective.distillation_loss(outputs, teacher, 1.0)
    loss.backward()
    assert all(layer.weight.grad is not None for layer in quantized.weighted_layers.values())
    assert float(objective.distillation_loss(teacher, teacher, 1.0).detach()) == pytest.approx(0, abs=1e-6)
    assert float(objective.distillation_loss(outputs, teacher, 1.0).detach()) > 0
    meter = objective.meter()
    with torch.no_grad():
        meter.update(quantized.eval()(images), TARGETS)
    assert objective.image_size(outputs) == (128, 128)
    figures = meter.compute()
    assert set(figures) == {"ap50", "ap", "loss"} and 0 <= figures["ap"] <= figures["ap50"] <= 1


@pytest.mark.parametrize("name", PYRAMIDS)
def test_answers_of_a_pyramid_are_counted_from_zero_in_shares_of_the_image(name: str) -> None:
    model = pyramid(name).eval()
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 128, 128))
        theirs = model.float_part.answers(maps)[0]
        (ours,) = objective_of(model).detections(maps)
    assert len(ours.labels_K) > 0
    torch.testing.assert_close(ours.boxes_K4 * 128, theirs["boxes"])
    assert set(ours.labels_K.tolist()) <= {0, 1, 2}
