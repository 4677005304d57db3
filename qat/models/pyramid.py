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

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from qat.models.float_part import FloatPart, as_4d
from qat.models.heads import Detections, Suppression, suppress_candidates

SMALLEST_BOX = 1e-2
"""Sides of boxes in pixels, at least: torchvision's `RoIHeads.postprocess_detections`."""

_RANDOM = {"weights": None, "weights_backbone": None}


class DenseFloatPart(FloatPart):
    """RetinaNet's and FCOS's heads, with the answers of all images of a batch at once.

    The rules are those of the detector's `postprocess_detections`, which goes image by image.

    Args:
        detector: Its modules are shared, not copied.
    """

    detector: RetinaNet | FCOS

    def __init__(self, detector: RetinaNet | FCOS) -> None:
        super().__init__(detector, pixels=8, first_label=0)

    @torch.no_grad()
    def detections(self, maps: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image; all images of a batch at once."""
        detector, levels = self.detector, as_4d(maps)
        images, (rows, columns) = len(levels[0]), self.image_size(levels)
        with torch.autocast(levels[0].device.type, enabled=False):
            found = detector.head.to(levels[0].device)(list(levels))
        scores_NKC = found["cls_logits"].sigmoid()
        if isinstance(detector, FCOS):
            scores_NKC = (scores_NKC * found["bbox_ctrness"].sigmoid()).sqrt()
        batch = ImageList(levels[0].new_empty((1, 1, rows, columns)), [(rows, columns)])
        anchors_K4 = detector.anchor_generator(batch, list(levels))[0]
        scores, anchors, labels = self._candidates(scores_NKC, levels)
        image, rank = (scores > detector.score_thresh).nonzero(as_tuple=True)
        anchor = anchors[image, rank]
        offsets_K4 = found["bbox_regression"][image, anchor]
        decode = detector.box_coder.decode if isinstance(detector, FCOS) else detector.box_coder.decode_single
        boxes_K4 = decode(offsets_K4, anchors_K4[anchor]) / offsets_K4.new_tensor([columns, rows, columns, rows])
        rule = Suppression(detector.score_thresh, detector.nms_thresh, keep=detector.detections_per_img)
        return suppress_candidates(boxes_K4.clamp(0, 1), scores[image, rank], image, labels[image, rank], images, rule)

    def _candidates(self, scores_NKC: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, anchors and classes of each level's best, shape (N, candidates) each."""
        per_cell = self.detector.anchor_generator.num_anchors_per_location()
        counts = [level.shape[2] * level.shape[3] * count for level, count in zip(levels, per_cell, strict=True)]
        classes, start = scores_NKC.shape[2], 0
        scores, anchors, labels = [], [], []
        for count in counts:
            flat = scores_NKC[:, start : start + count].flatten(1)
            best, place = flat.topk(min(self.detector.topk_candidates, flat.shape[1]), 1)
            scores.append(best)
            anchors.append(start + place.div(classes, rounding_mode="floor"))
            labels.append(place % classes)
            start += count
        return torch.cat(scores, 1), torch.cat(anchors, 1), torch.cat(labels, 1)


class TwoStageFloatPart(FloatPart):
    """Faster R-CNN's proposals, pooling and box head, with the answers of all images of a batch at once.

    The rules are those of the detector's `filter_proposals` and `postprocess_detections`, which go image by image.

    Args:
        detector: Its modules are shared, not copied.
    """

    detector: FasterRCNN

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__(detector, pixels=4, first_label=1)

    @torch.no_grad()
    def detections(self, maps: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image; all images of a batch at once."""
        heads, size = self.detector.roi_heads, self.image_size(maps)
        regions = self._proposals(as_4d(maps))
        with torch.autocast(maps[0].device.type, enabled=False):
            pooled = heads.box_roi_pool(self.given(maps)["backbone"], regions, [size] * len(regions))
            logits_KC, offsets = heads.to(maps[0].device).box_predictor(heads.box_head(pooled))
        boxes_KC4 = clip_boxes_to_image(heads.box_coder.decode(offsets, regions), size)[:, 1:]
        scores_KC = logits_KC.softmax(1)[:, 1:]
        sides_KC2 = boxes_KC4[:, :, 2:] - boxes_KC4[:, :, :2]
        region, label = ((scores_KC > heads.score_thresh) & (sides_KC2 >= SMALLEST_BOX).all(2)).nonzero(as_tuple=True)
        image_K = torch.cat([torch.full((len(own),), number, device=own.device) for number, own in enumerate(regions)])
        rule = Suppression(heads.score_thresh, heads.nms_thresh, keep=heads.detections_per_img)
        pixels = boxes_KC4.new_tensor([size[1], size[0], size[1], size[0]])
        return [
            Detections(one.boxes_K4 / pixels, one.scores_K, one.labels_K)
            for one in suppress_candidates(
                boxes_KC4[region, label],
                scores_KC[region, label],
                image_K[region],
                label,
                len(regions),
                rule,
            )
        ]

    def _proposals(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Boxes in pixels that may hold an object, of each image, shape (K, 4)."""
        rpn = self.detector.rpn.to(levels[0].device).eval()
        images, (rows, columns) = len(levels[0]), self.image_size(levels)
        with torch.autocast(levels[0].device.type, enabled=False):
            logits, offsets = rpn.head(list(levels))
        counts = [level[0].numel() for level in logits]
        batch = ImageList(levels[0].new_empty((1, 1, rows, columns)), [(rows, columns)])
        anchors_K4 = rpn.anchor_generator(batch, list(levels))[0]
        logits_K1, offsets_K4 = concat_box_prediction_layers(logits, offsets)
        boxes_NK4 = rpn.box_coder.decode_single(offsets_K4, anchors_K4.repeat(images, 1)).view(images, -1, 4)
        scores_NK = logits_K1.view(images, -1)
        start, scores, places, numbers = 0, [], [], []
        for number, count in enumerate(counts):
            best, place = scores_NK[:, start : start + count].topk(min(rpn.pre_nms_top_n(), count), 1)
            scores.append(best.sigmoid())
            places.append(place + start)
            numbers.append(torch.full_like(place, number))
            start += count
        score, place, level = torch.cat(scores, 1), torch.cat(places, 1), torch.cat(numbers, 1)
        boxes = clip_boxes_to_image(boxes_NK4.gather(1, place[:, :, None].expand(-1, -1, 4)), (rows, columns))
        sides = boxes[:, :, 2:] - boxes[:, :, :2]
        image, rank = ((score >= rpn.score_thresh) & (sides >= rpn.min_size).all(2)).nonzero(as_tuple=True)
        rule = Suppression(rpn.score_thresh, rpn.nms_thresh, keep=rpn.post_nms_top_n())
        kept = suppress_candidates(boxes[image, rank], score[image, rank], image, level[image, rank], images, rule)
        return [one.boxes_K4 for one in kept]


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
        self.float_part: FloatPart  # no module: its weights are those above
        if isinstance(detector, FasterRCNN):
            self.float_part = TwoStageFloatPart(detector)
        else:
            self.float_part = DenseFloatPart(detector)

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
