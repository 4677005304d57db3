"""torchvision's SSDs, as networks that are trained, quantized and exported: SSDlite320-MobileNetV3 and SSD300-VGG16.

```
images -> Ssd (hardware) -> maps -> SsdFloatPart (float) -> class logits and box offsets of all default boxes
```

Axes: N images, K default boxes of an image over all maps, C classes without the background.

Source: Liu et al., "SSD" (arXiv 1512.02325); torchvision.models.detection, of which the modules are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG

from qat.models.float_part import FloatPart, Given, as_4d, by_level, rows_of
from qat.models.heads import Detections, Suppression, suppress


class SsdFloatPart(FloatPart):
    """What stays in float behind an SSD's maps: default boxes and their suppression.

    Args:
        detector: Its modules are shared, not copied.
        suppression: Which boxes remain.
    """

    detector: SSD

    def __init__(self, detector: SSD, suppression: Suppression | None = None) -> None:
        super().__init__(detector, pixels=8, first_label=1)
        self.suppression = suppression or Suppression()

    def image_size(self, maps: Sequence[Tensor] = ()) -> tuple[int, int]:
        """Rows and columns of the images that the default boxes are made for."""
        columns, rows = self.detector.transform.fixed_size
        return int(rows), int(columns)

    def stand_ins(self, maps: Sequence[Tensor]) -> Mapping[str, nn.Module]:
        """A backbone of maps for their sizes, and the head with what it makes of them."""
        logits_NKC, offsets_NK4 = self.rows(maps)
        head = Given({"cls_logits": logits_NKC, "bbox_regression": offsets_NK4})
        return {"backbone": Given(by_level(self._features(maps))), "head": head}

    @torch.no_grad()
    def detections(self, maps: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image; all images of a batch at once."""
        logits_NKC, offsets_NK4 = self.rows(maps)
        boxes_NK4 = self.boxes(offsets_NK4, self.default_boxes(maps))
        return suppress(boxes_NK4, logits_NKC.softmax(2)[:, :, 1:], self.suppression)

    def imitation(self, maps: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
        """Divergence of classes everywhere, and of boxes as far as the teacher sees an object, by what it sees."""
        logits_NKC, offsets_NK4 = self.rows(maps)
        teacher_NKC, teacher_NK4 = self.rows(teacher)
        object_NK = 1 - teacher_NKC.softmax(2)[:, :, 0]
        own, other = (logits_NKC / temperature).log_softmax(2), (teacher_NKC / temperature).log_softmax(2)
        classes = temperature**2 * F.kl_div(own, other, reduction="sum", log_target=True)
        boxes_NK = F.smooth_l1_loss(offsets_NK4, teacher_NK4, reduction="none").sum(2)
        return (classes + (boxes_NK * object_NK).sum()) / object_NK.sum().clamp_min(1.0)

    def rows(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, K, 1 + C), the background first, and offsets from default boxes (N, K, 4)."""
        levels = as_4d(maps)
        return rows_of(levels[0::2], self.detector.head.classification_head.num_columns), rows_of(levels[1::2], 4)

    def _features(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map of each level: default boxes look at no more than sizes."""
        return as_4d(maps)[0::2]

    def default_boxes(self, maps: Sequence[Tensor]) -> Tensor:
        """Left, top, right and bottom of all default boxes in pixels, shape (K, 4)."""
        rows, columns = self.image_size()
        features = self._features(maps)
        images = ImageList(features[0].new_empty((1, 1, rows, columns)), [(rows, columns)])
        boxes_K4: Tensor = self.detector.anchor_generator(images, features)[0]
        return boxes_K4

    def boxes(self, offsets_NK4: Tensor, defaults_K4: Tensor) -> Tensor:
        """Boxes in shares of the image, cut at its edges, shape (N, K, 4).

        Args:
            offsets_NK4: From the default boxes.
            defaults_K4: In pixels.
        """
        count = len(offsets_NK4)
        flat: Tensor = self.detector.box_coder.decode_single(offsets_NK4.flatten(0, 1), defaults_K4.repeat(count, 1))
        rows, columns = self.image_size()
        return (flat.view(count, -1, 4) / flat.new_tensor([columns, rows, columns, rows])).clamp(0, 1)


class Ssd(nn.Module):
    """Backbone and head of an SSD; parameters have torchvision's names, so that its published weights load.

    Args:
        detector: Its modules are shared, not copied.
    """

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.head
        self.float_part = SsdFloatPart(detector)  # no module: its weights are those above

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of classes and boxes, level by level.

        Args:
            x: Normalised images (N, 3, H, W).
        """
        classify = self.head.classification_head.module_list
        regress = self.head.regression_head.module_list
        maps: list[Tensor] = []
        for level, features in enumerate(self._levels(x)):
            maps += [classify[level](features), regress[level](features)]
        return tuple(maps)

    def _levels(self, x: Tensor) -> list[Tensor]:
        """What the head reads."""
        backbone = self.backbone
        if not isinstance(backbone, SSDFeatureExtractorVGG):
            return list(backbone(x).values())
        x = backbone.features(x)
        levels = [backbone.scale_weight.view(1, -1, 1, 1) * F.normalize(x)]
        for block in backbone.extra:
            x = block(x)
            levels.append(x)
        return levels


def ssdlite320(num_classes: int) -> Ssd:
    """SSDlite320-MobileNetV3 for images of 320x320.

    Args:
        num_classes: Without the background.
    """
    return Ssd(
        detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes + 1)
    )


def blood_ssdlite320(num_classes: int) -> Ssd:
    """SSDlite320-MobileNetV3 with default boxes of 7 to 60 % of the image, for blood cells.

    torchvision's are of 20 to 95 %: a platelet of 6 % overlaps none of them by more than 0.2.

    Args:
        num_classes: Without the background.
    """
    detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes + 1)
    detector.anchor_generator = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.07, max_ratio=0.6)
    return Ssd(detector)


def ssd300(num_classes: int) -> Ssd:
    """SSD300-VGG16 for images of 300x300.

    Args:
        num_classes: Without the background.
    """
    return Ssd(detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=num_classes + 1))
