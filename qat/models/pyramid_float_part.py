"""What stays in float behind torchvision's detectors with a feature pyramid (`qat.models.pyramid`).

Source: torchvision.models.detection, of which the modules are used as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from qat.models.float_part import FloatPart, Given, as_4d, by_level, in_mode, rows_of
from qat.models.heads import Detections, Suppression, suppress_candidates

SMALLEST_BOX = 1e-2
"""Sides of boxes in pixels, at least: torchvision's `RoIHeads.postprocess_detections`."""


class DenseFloatPart(FloatPart):
    """What RetinaNet and FCOS do behind the maps of their heads, with the answers of all images of a batch at once.

    Maps come by turns, level by level: classes, boxes, and FCOS's centredness.  The rules are those of the detector's
    `postprocess_detections`, which goes image by image.

    Args:
        detector: Its modules are shared, not copied.
        pixels: Pixels of the image per cell of the finest map, in both directions.
    """

    detector: RetinaNet | FCOS

    def __init__(self, detector: RetinaNet | FCOS, pixels: int) -> None:
        super().__init__(detector, pixels, first_label=0)

    @property
    def columns(self) -> dict[str, int]:
        """Numbers for each anchor by torchvision's name of the result, in the order of a level's maps."""
        columns = {"cls_logits": self.detector.head.classification_head.num_classes, "bbox_regression": 4}
        return {**columns, "bbox_ctrness": 1} if isinstance(self.detector, FCOS) else columns

    def features(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map of each level: anchors look at no more than sizes."""
        return as_4d(maps)[0 :: len(self.columns)]

    def head_results(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the detector's head answers over all levels: logits (N, K, C), offsets (N, K, 4), ..."""
        step = len(self.columns)
        return {name: rows_of(maps[first::step], count) for first, (name, count) in enumerate(self.columns.items())}

    def stand_ins(self, maps: Sequence[Tensor]) -> Mapping[str, nn.Module]:
        """A backbone of maps for their sizes, and the head with what it makes of them."""
        head = Given(self.head_results(maps), self.detector.head.compute_loss)
        return {"backbone": Given(by_level(self.features(maps))), "head": head}

    def imitation(self, maps: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
        """Divergence of classes everywhere, of all else as far as the teacher sees an object, by what it sees."""
        own, other = self.head_results(maps), self.head_results(teacher)
        object_NK = other["cls_logits"].sigmoid().amax(2)
        classes_NKC = _divergence(own["cls_logits"] / temperature, other["cls_logits"] / temperature)
        rest_NK = F.smooth_l1_loss(own["bbox_regression"], other["bbox_regression"], reduction="none").sum(2)
        if "bbox_ctrness" in own:
            rest_NK = rest_NK + _divergence(own["bbox_ctrness"], other["bbox_ctrness"]).sum(2)
        return (temperature**2 * classes_NKC.sum() + (rest_NK * object_NK).sum()) / object_NK.sum().clamp_min(1.0)

    @torch.no_grad()
    def detections(self, maps: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image; all images of a batch at once."""
        detector, levels = self.detector, self.features(maps)
        images, (rows, columns) = len(levels[0]), self.image_size(levels)
        found = self.head_results(maps)
        scores_NKC = found["cls_logits"].sigmoid()
        if isinstance(detector, FCOS):
            scores_NKC = (scores_NKC * found["bbox_ctrness"].sigmoid()).sqrt()
        batch = ImageList(levels[0].new_empty((1, 1, rows, columns)), [(rows, columns)])
        anchors_K4 = detector.anchor_generator(batch, levels)[0]
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
    """What Faster R-CNN does behind its maps, with the answers of all images of a batch at once.

    The rules are those of the detector's `filter_proposals` and `postprocess_detections`, which go image by image.

    Args:
        detector: Its modules are shared, not copied.
        pixels: Pixels of the image per cell of the finest map, in both directions.
    """

    detector: FasterRCNN

    def __init__(self, detector: FasterRCNN, pixels: int) -> None:
        super().__init__(detector, pixels, first_label=1)

    def parts(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Features, objectness and offsets of proposals, level by level."""
        levels = as_4d(maps)
        count = len(levels) // 3
        return levels[:count], levels[count::2], levels[count + 1 :: 2]

    def stand_ins(self, maps: Sequence[Tensor]) -> Mapping[str, nn.Module]:
        """The backbone's features, and proposals whose convolutions are known."""
        features, objectness, offsets = self.parts(maps)
        proposals = copy.copy(self.detector.rpn)
        head = Given((objectness, offsets))
        proposals.__dict__["_modules"] = {**self.detector.rpn._modules, "head": head}
        return {"backbone": Given(by_level(features)), "rpn": proposals}

    @torch.no_grad()
    def detections(self, maps: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image; all images of a batch at once."""
        heads, size = self.detector.roi_heads, self.image_size(maps)
        features, objectness, offsets_of_proposals = self.parts(maps)
        regions = self._proposals(features, objectness, offsets_of_proposals)
        with torch.autocast(maps[0].device.type, enabled=False):
            pooled = heads.box_roi_pool(by_level(features), regions, [size] * len(regions))
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

    def _proposals(self, levels: list[Tensor], logits: list[Tensor], offsets: list[Tensor]) -> list[Tensor]:
        """Boxes in pixels that may hold an object, of each image, shape (K, 4)."""
        rpn: Any = in_mode(self.detector.rpn, training=False)
        images, (rows, columns) = len(levels[0]), self.image_size(levels)
        counts = [level[0].numel() for level in logits]
        batch = ImageList(levels[0].new_empty((1, 1, rows, columns)), [(rows, columns)])
        anchors_K4 = rpn.anchor_generator(batch, levels)[0]
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


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Of two probabilities given as logits: cross-entropy less the teacher's entropy, by element."""
    aim = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, aim, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, aim, reduction="none") - entropy
