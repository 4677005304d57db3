"""torchvision's detectors with a feature pyramid, as networks that are trained, quantized and exported.

```
images -> Pyramid (hardware) -> maps of all levels -> FloatPart (float) -> losses, or boxes with scores and classes
```

RetinaNet's and FCOS's heads, and Faster R-CNN's proposals, pooling of regions and box head, stay in float.  They are
trained with the float network; the quantized network leaves them as they are, and learns to give them good maps.

Source: Lin et al., "Feature Pyramid Networks" (arXiv 1612.03144); torchvision.models.detection, of which the modules
are used as they are.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from qat.models.float_part import FloatPart
from qat.models.heads import Suppression

_RANDOM = {"weights": None, "weights_backbone": None}


class Pyramid(nn.Module):
    """ResNet and feature pyramid, for images whose sides are multiples of 32 (128 with levels P6 and P7).

    Parameters have torchvision's names, so that its published weights load; those of the float part are among them.

    Args:
        detector: Its modules are shared, not copied.
    """

    backbone: Any

    def __init__(self, detector: RetinaNet | FCOS | FasterRCNN) -> None:
        super().__init__()
        for name, module in detector.named_children():
            if name != "transform":
                self.add_module(name, module)
        has_background = isinstance(detector, FasterRCNN)
        self.float_part = FloatPart(detector, pixels=4 if has_background else 8, first_label=int(has_background))

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


def retinanet_r50(num_classes: int) -> Pyramid:
    """RetinaNet-R50-FPN.

    Args:
        num_classes: Without a background, which it does not have.
    """
    rule = Suppression()
    return Pyramid(
        detection.retinanet_resnet50_fpn(
            **_RANDOM, num_classes=num_classes, score_thresh=rule.score_threshold, detections_per_img=rule.keep
        )
    )


def fcos_r50(num_classes: int) -> Pyramid:
    """FCOS-R50-FPN.

    Args:
        num_classes: Without a background, which it does not have.
    """
    rule = Suppression()
    return Pyramid(
        detection.fcos_resnet50_fpn(
            **_RANDOM, num_classes=num_classes, score_thresh=rule.score_threshold, detections_per_img=rule.keep
        )
    )


def faster_rcnn_r50(num_classes: int) -> Pyramid:
    """Faster R-CNN-R50-FPN.

    Args:
        num_classes: Without the background.
    """
    rule = Suppression()
    return Pyramid(
        detection.fasterrcnn_resnet50_fpn(
            **_RANDOM,
            num_classes=num_classes + 1,
            box_score_thresh=rule.score_threshold,
            box_detections_per_img=rule.keep,
        )
    )
