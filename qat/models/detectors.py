"""torchvision's detectors in two parts: what hardware runs, and what stays in float behind it.

| detector               | hardware part                           | stays in float                          |
|------------------------|-----------------------------------------|-----------------------------------------|
| SSDlite320-MobileNetV3 | backbone and the head's convolutions    | default boxes, softmax, suppression     |
| SSD300-VGG16           | the same, less the first level's        | also length and head of conv4_3's map   |
| RetinaNet, FCOS        | ResNet and feature pyramid              | head (its weights serve all levels in   |
|                        |                                         | turn; FCOS's has group norm), boxes     |
| Faster R-CNN           | ResNet and feature pyramid              | proposals, pooling of regions, box head |

The SSDs are trained and quantized whole (`qat.models.ssd`); of the others the hardware part alone is converted.

Source: torchvision.models.detection, of which the modules are used as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from qat.errors import TraceError
from qat.models.ssd import Ssd, SsdFloatPart


class PyramidPart(nn.Module):
    """ResNet and feature pyramid, for images whose sides are multiples of 32 (128 with levels P6 and P7).

    Args:
        backbone: Its modules are shared, not copied.
    """

    def __init__(self, backbone: BackboneWithFPN) -> None:
        super().__init__()
        self.body = backbone.body
        self.inner_blocks = backbone.fpn.inner_blocks
        self.layer_blocks = backbone.fpn.layer_blocks
        self.extra_blocks = backbone.fpn.extra_blocks

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pyramid's maps, the finest first.

        Args:
            x: Normalised images (N, 3, H, W).
        """
        stages = list(self.body(x).values())
        merged = self.inner_blocks[-1](stages[-1])
        maps = [self.layer_blocks[-1](merged)]
        for stage, inner, layer in zip(
            stages[-2::-1], self.inner_blocks[-2::-1], self.layer_blocks[-2::-1], strict=True
        ):
            merged = inner(stage) + F.interpolate(merged, scale_factor=2, mode="nearest")
            maps.insert(0, layer(merged))
        if isinstance(self.extra_blocks, LastLevelMaxPool):
            maps.append(F.max_pool2d(maps[-1], 1, 2, 0))
        elif self.extra_blocks is not None:
            source = maps[-1] if self.extra_blocks.use_P5 else stages[-1]
            sixth = self.extra_blocks.p6(source)
            maps += [sixth, self.extra_blocks.p7(F.relu(sixth))]
        return tuple(maps)


def hardware_part(detector: nn.Module) -> nn.Module:
    """The part of a torchvision detector that hardware runs; it shares the detector's weights.

    Raises:
        TraceError: The detector has none.
    """
    if isinstance(detector, SSD):
        return Ssd(detector)
    if isinstance(detector, RetinaNet | FCOS | FasterRCNN) and isinstance(detector.backbone, BackboneWithFPN):
        return PyramidPart(detector.backbone)
    raise TraceError(
        f"{type(detector).__name__} has no part that hardware runs; expected SSD, or RetinaNet, FCOS or "
        "Faster R-CNN with a feature pyramid"
    )


@torch.no_grad()
def finish(
    detector: SSD | RetinaNet | FCOS | FasterRCNN, maps: Sequence[Tensor], x_NCHW: Tensor
) -> list[dict[str, Tensor]]:
    """What a detector answers, of the maps of its hardware part.

    Args:
        detector: In inference mode.
        maps: Of the hardware part, in float or dequantized; a map of one pixel may be (N, C).
        x_NCHW: The images that the maps belong to; only their size matters.

    Returns:
        "boxes" in pixels, "scores" and "labels" for each image.
    """
    sizes = [(int(x_NCHW.shape[-2]), int(x_NCHW.shape[-1]))] * len(x_NCHW)
    if isinstance(detector, SSD):
        part = SsdFloatPart(detector)
        logits, offsets = part.rows(maps)
        anchors = [part.default_boxes(maps)] * len(x_NCHW)
        outputs = {"cls_logits": logits, "bbox_regression": offsets}
        found: list[dict[str, Tensor]] = detector.postprocess_detections(outputs, anchors, sizes)
        return found
    # A quantized network gives a map of one pixel as a row.
    maps = [part if part.dim() == 4 else part[:, :, None, None] for part in maps]
    images = ImageList(x_NCHW, sizes)
    if isinstance(detector, FasterRCNN):
        names = [*map(str, range(len(maps) - 1)), "pool"]
        features = OrderedDict(zip(names, maps, strict=True))
        proposals, _ = detector.rpn(images, features)
        found, _ = detector.roi_heads(features, proposals, sizes)
        return found
    outputs = detector.head(list(maps))
    anchors = detector.anchor_generator(images, list(maps))
    cells = [part.shape[-2] * part.shape[-1] for part in maps]
    per_cell = outputs["cls_logits"].shape[1] // sum(cells)
    counts = [cell * per_cell for cell in cells]
    by_level = {name: list(value.split(counts, 1)) for name, value in outputs.items()}
    anchors_by_level = [list(own.split(counts)) for own in anchors]
    found = detector.postprocess_detections(by_level, anchors_by_level, sizes)
    return found
