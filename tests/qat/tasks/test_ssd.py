"""The objective of SSDs: loss as torchvision's, no loss for a copy, boxes found where they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import box_iou

from qat.graph import trace
from qat.models import ssd300, ssdlite320
from qat.models.ssd import Ssd
from qat.tasks import SsdDetection, objective_of

BUILDERS: dict[str, tuple[Callable[[int], Ssd], int]] = {"ssdlite320": (ssdlite320, 320), "ssd300": (ssd300, 300)}
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
    assert isinstance(objective, SsdDetection) and objective.score == "ap50"
    maps = tuple(part.requires_grad_() for part in random_maps(model, size))
    loss = objective.loss(maps, TARGETS)
    assert torch.isfinite(loss)
    loss.backward()
    # Levels whose default boxes match nothing may teach nothing: their boxes, and their classes without hard negatives.
    taught = [part.grad is not None and bool(part.grad.any()) for part in maps]
    assert taught[0] and sum(taught) >= 4
    if name == "ssd300":  # what reads the first map is trained in float
        assert all(
            parameter.grad is not None and bool(parameter.grad.any())
            for parameter in (model.backbone.scale_weight, model.head.classification_head.module_list[0].weight)
        )
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
    objective = SsdDetection(model.float_part)
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
    loss = SsdDetection(ours.float_part).loss(ours((images - 0.5) / 0.5), targets)
    torch.testing.assert_close(loss, expected)
