"""torchvision's detectors with a feature pyramid, as networks that are trained, quantized and exported.

```
images -> Pyramid (hardware) -> maps of all levels -> FloatPart (float) -> losses, or boxes with scores and classes
```

| detector             | maps of the hardware, level by level   | stays in float                             |
|----------------------|----------------------------------------|--------------------------------------------|
| RetinaNet            | classes and boxes by turns             | decoding, suppression                      |
| Faster R-CNN         | features; then objectness and boxes by | the same of proposals; pooling of regions, |
|                      | turns                                  | linear layers of the box head              |
| FCOS                 | classes, boxes, centredness by turns   | decoding, suppression                      |

The weights of a head serve all levels.  What stays in float and has weights is trained with the float network; the
quantized network leaves it as it is, and learns to give it good maps.

Source: Lin et al., "Feature Pyramid Networks" (arXiv 1612.03144); torchvision.models.detection, of which the modules
are used as they are.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import resnet18
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from qat.errors import TraceError
from qat.models.float_part import FloatPart
from qat.models.heads import Suppression
from qat.models.pyramid_float_part import DenseFloatPart, TwoStageFloatPart

Dense = TypeVar("Dense", RetinaNet, FCOS)

_RANDOM = {"weights": None, "weights_backbone": None}


class Pyramid(nn.Module):
    """ResNet and feature pyramid, for images whose sides are multiples of 32 (128 with levels P6 and P7).

    Parameters have torchvision's names, so that its published weights load; those of the float part are among them.

    Args:
        detector: Its modules are shared, not copied.
        float_part: What is done with the maps.
    """

    backbone: Any
    head: Any
    rpn: Any

    def __init__(self, detector: nn.Module, float_part: FloatPart) -> None:
        super().__init__()
        for name, module in detector.named_children():
            if name != "transform":
                self.add_module(name, module)
        self.float_part = float_part  # no module: its weights are those above

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pyramid's maps, the finest first.

        Args:
            x: Normalised images (N, 3, H, W).
        """
        fpn = self.backbone.fpn
        stages = list(self.backbone.body(x).values())
        merged = fpn.inner_blocks[-1](stages[-1])
        maps = [fpn.layer_blocks[-1](merged)]
        for stage, inner, layer in zip(stages[-2::-1], fpn.inner_blocks[-2::-1], fpn.layer_blocks[-2::-1], strict=True):
            merged = inner(stage) + F.interpolate(merged, scale_factor=2, mode="nearest")
            maps.insert(0, layer(merged))
        if isinstance(fpn.extra_blocks, LastLevelMaxPool):
            maps.append(F.max_pool2d(maps[-1], 1, 2, 0))
        elif fpn.extra_blocks is not None:
            source = maps[-1] if fpn.extra_blocks.use_P5 else stages[-1]
            sixth = fpn.extra_blocks.p6(source)
            maps += [sixth, fpn.extra_blocks.p7(F.relu(sixth))]
        return tuple(maps)


class DensePyramid(Pyramid):
    """A pyramid with the head of RetinaNet or FCOS on every level."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of classes, boxes and, in FCOS, centredness by turns, the finest level first.

        Args:
            x: Normalised images (N, 3, H, W).
        """
        classes, boxes = self.head.classification_head, self.head.regression_head
        maps: list[Tensor] = []
        for level in super().forward(x):
            hidden = boxes.conv(level)
            offsets = boxes.bbox_reg(hidden)
            maps.append(classes.cls_logits(classes.conv(level)))
            if hasattr(boxes, "bbox_ctrness"):  # FCOS: distances to the sides, and how central a cell is
                maps += [F.relu(offsets), boxes.bbox_ctrness(hidden)]
            else:
                maps.append(offsets)
        return tuple(maps)


class TwoStagePyramid(Pyramid):
    """A pyramid with the convolutions of Faster R-CNN's proposals on every level."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pyramid's maps; then maps of objectness and boxes by turns; the finest level first.

        Args:
            x: Normalised images (N, 3, H, W).
        """
        levels, head = super().forward(x), self.rpn.head
        maps = [*levels]
        for hidden in map(head.conv, levels):
            maps += [head.cls_logits(hidden), head.bbox_pred(hidden)]
        return tuple(maps)


def pyramid_of(detector: RetinaNet | FCOS | FasterRCNN) -> Pyramid:
    """The hardware part of a detector; its modules are shared, not copied.

    Raises:
        TraceError: The pyramid stands on another backbone than ResNet's stages.
    """
    pixels = _finest_stride(detector)
    if isinstance(detector, FasterRCNN):
        return TwoStagePyramid(detector, TwoStageFloatPart(detector, pixels))
    return DensePyramid(detector, DenseFloatPart(detector, pixels))


def _finest_stride(detector: RetinaNet | FCOS | FasterRCNN) -> int:
    """Pixels of the image per cell of the finest map: 4 behind ResNet's first stage, doubled by each."""
    stages = list(getattr(detector.backbone.body, "return_layers", {}))
    numbers = {f"layer{number}": number for number in range(1, 5)}
    if not stages or any(stage not in numbers for stage in stages):
        raise TraceError(
            f"{type(detector).__name__} has a pyramid on {stages}, expected stages layer1..layer4 of a ResNet"
        )
    return int(2 ** (numbers[stages[0]] + 1))


def with_batch_norm(detector: Dense) -> Dense:
    """The detector, FCOS or RetinaNet, with batch norms in place of its head's group norms.

    They cost hardware nothing, while a group norm needs the whole map before it can start.  All levels share them, as
    they share the head.  They start as new ones: published weights of the head need training.
    """
    for parent in list(detector.head.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.GroupNorm):
                setattr(parent, name, nn.BatchNorm2d(module.num_channels))
    return detector


def retinanet_r50(num_classes: int) -> Pyramid:
    """RetinaNet-R50-FPN.

    Args:
        num_classes: Without a background, which it does not have.
    """
    rule = Suppression()
    return pyramid_of(
        detection.retinanet_resnet50_fpn(
            **_RANDOM, num_classes=num_classes, score_thresh=rule.score_threshold, detections_per_img=rule.keep
        )
    )


def fcos_r50(num_classes: int) -> Pyramid:
    """FCOS-R50-FPN.

    Args:
        num_classes: Without a background, which it does not have.
    """
    return pyramid_of(_fcos(num_classes))


def _fcos(num_classes: int) -> FCOS:
    rule = Suppression()
    return detection.fcos_resnet50_fpn(
        **_RANDOM, num_classes=num_classes, score_thresh=rule.score_threshold, detections_per_img=rule.keep
    )


def blood_fcos(num_classes: int) -> Pyramid:
    """FCOS on ResNet-18 with a pyramid and a head of 64 channels: small enough to train on a CPU.

    Args:
        num_classes: Without a background, which it does not have.
    """
    rule = Suppression()
    stages = {f"layer{number}": str(number - 2) for number in (2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(weights=None), stages, [128, 256, 512], 64, LastLevelP6P7(64, 64))
    return pyramid_of(FCOS(backbone, num_classes, score_thresh=rule.score_threshold, detections_per_img=rule.keep))


def fcos_r50_bn(num_classes: int) -> Pyramid:
    """FCOS-R50-FPN with batch norms in its head, which cost hardware nothing.

    Args:
        num_classes: Without a background, which it does not have.
    """
    return pyramid_of(with_batch_norm(_fcos(num_classes)))


def faster_rcnn_r50(num_classes: int) -> Pyramid:
    """Faster R-CNN-R50-FPN.

    Args:
        num_classes: Without the background.
    """
    rule = Suppression()
    return pyramid_of(
        detection.fasterrcnn_resnet50_fpn(
            **_RANDOM,
            num_classes=num_classes + 1,
            box_score_thresh=rule.score_threshold,
            box_detections_per_img=rule.keep,
        )
    )
