"""What the last maps of a detector mean: boxes, objectness, classes; and the boxes that remain after suppression.

Axes: N images, A anchors, C classes, H rows and W columns of a map, K boxes of an image over all maps.
Boxes are (left, top, right, bottom) in shares of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms

Anchors = tuple[tuple[float, float], ...]
"""Widths and heights."""

LARGEST_EXPONENT = 8.0
"""exp(8) = 2981 times the anchor: larger than any image, far from overflow."""


@dataclass(frozen=True)
class Raw:
    """A map, taken apart.

    Args:
        box_NA4HW: What `Head.boxes` turns into boxes.
        objectness_NAHW: Logits.
        classes_NACHW: Logits.
    """

    box_NA4HW: Tensor
    objectness_NAHW: Tensor
    classes_NACHW: Tensor


class Head(Protocol):
    """Meaning of one map."""

    @property
    def anchors(self) -> Anchors:
        """Widths and heights in pixels of the image, for the choice of an anchor for each true box."""

    @property
    def softmax(self) -> bool:
        """Whether a box has one class of all, or each class on its own."""

    def split(self, map_NCHW: Tensor) -> Raw:
        """Takes a map apart."""

    def boxes(self, box_NA4HW: Tensor) -> Tensor:
        """Boxes, shape (N, A, H, W, 4)."""

    def scores(self, raw: Raw) -> Tensor:
        """Score of each class in [0, 1], shape (N, A, H, W, C)."""

    def image_size(self, map_NCHW: Tensor) -> tuple[int, int]:
        """Rows and columns of the image that a map belongs to."""


@dataclass(frozen=True)
class YoloHead:
    """Anchor boxes of YOLOv2 and YOLOv3.

    Source: Redmon and Farhadi, "YOLO9000" (arXiv 1612.08242), section 2, figure 3; "YOLOv3" (arXiv 1804.02767),
    sections 2.1 and 2.2; order of channels as in darknet: x, y, w, h, objectness, classes for each anchor.

    Args:
        anchors: Widths and heights in pixels of the image.
        pixels: Pixels of the image per cell of the map, in both directions.
        num_classes: Number of classes.
        softmax: Whether a box has one class of all (YOLOv2), or each class on its own (YOLOv3).
    """

    anchors: Anchors
    pixels: int
    num_classes: int
    softmax: bool

    def split(self, map_NCHW: Tensor) -> Raw:
        """Takes a map (N, A * (5 + C), H, W) apart."""
        parts = map_NCHW.reshape(len(map_NCHW), len(self.anchors), -1, *map_NCHW.shape[2:])
        return Raw(parts[:, :, :4], parts[:, :, 4], parts[:, :, 5:])

    def boxes(self, box_NA4HW: Tensor) -> Tensor:
        """Centre inside its cell by a sigmoid, size by the exponential of its anchor's."""
        rows, columns = box_NA4HW.shape[-2:]
        x, y, width, height = box_NA4HW.unbind(2)
        anchors_A2 = torch.tensor(self.anchors, device=x.device) / self.pixels
        size_x = width.clamp(max=LARGEST_EXPONENT).exp() * anchors_A2[:, 0, None, None] / columns
        size_y = height.clamp(max=LARGEST_EXPONENT).exp() * anchors_A2[:, 1, None, None] / rows
        return _corners(*_centres(x.sigmoid(), y.sigmoid()), size_x, size_y)

    def scores(self, raw: Raw) -> Tensor:
        """Objectness times class."""
        classes = raw.classes_NACHW.softmax(2) if self.softmax else raw.classes_NACHW.sigmoid()
        return (raw.objectness_NAHW.sigmoid().unsqueeze(2) * classes).movedim(2, -1)

    def image_size(self, map_NCHW: Tensor) -> tuple[int, int]:
        """Rows and columns of the image that a map belongs to."""
        return map_NCHW.shape[-2] * self.pixels, map_NCHW.shape[-1] * self.pixels


@dataclass(frozen=True)
class FastestHead:
    """One box per cell, without anchors: FastestDet.

    Source: github.com/dog-qiuqiu/FastestDet, README: score = objectness**0.6 * class**0.4 for the best class, centre
    by tanh, size by a sigmoid as a share of the image.

    Args:
        pixels: Pixels of the image per cell.
        num_classes: Number of classes.
    """

    pixels: int
    num_classes: int

    @property
    def anchors(self) -> Anchors:
        """One for all boxes."""
        return ((float(self.pixels), float(self.pixels)),)

    @property
    def softmax(self) -> bool:
        """A box has one class."""
        return True

    def split(self, map_NCHW: Tensor) -> Raw:
        """Takes a map (N, 1 + 4 + C, H, W) apart: objectness, box, classes."""
        return Raw(map_NCHW[:, None, 1:5], map_NCHW[:, :1], map_NCHW[:, None, 5:])

    def boxes(self, box_NA4HW: Tensor) -> Tensor:
        """Centre up to one cell away from its cell's corner."""
        x, y, width, height = box_NA4HW.unbind(2)
        return _corners(*_centres(x.tanh(), y.tanh()), width.sigmoid(), height.sigmoid())

    def scores(self, raw: Raw) -> Tensor:
        """Of the best class of each cell; the others have 0."""
        best, index = raw.classes_NACHW.softmax(2).max(2, keepdim=True)
        score = raw.objectness_NAHW.sigmoid().unsqueeze(2) ** 0.6 * best**0.4
        return torch.zeros_like(raw.classes_NACHW).scatter_(2, index, score).movedim(2, -1)

    def image_size(self, map_NCHW: Tensor) -> tuple[int, int]:
        """Rows and columns of the image that a map belongs to."""
        return map_NCHW.shape[-2] * self.pixels, map_NCHW.shape[-1] * self.pixels


def _centres(x_NAHW: Tensor, y_NAHW: Tensor) -> tuple[Tensor, Tensor]:
    """Centres as shares of the image, of offsets from each cell's corner."""
    rows, columns = x_NAHW.shape[-2:]
    column_W = torch.arange(columns, device=x_NAHW.device)
    row_H1 = torch.arange(rows, device=x_NAHW.device)[:, None]
    return (x_NAHW + column_W) / columns, (y_NAHW + row_H1) / rows


def _corners(x: Tensor, y: Tensor, width: Tensor, height: Tensor) -> Tensor:
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), -1)


@dataclass(frozen=True)
class Detections:
    """Boxes that were found in one image, the best first.

    Args:
        boxes_K4: In shares of the image.
        scores_K: In [0, 1].
        labels_K: int64 classes.
    """

    boxes_K4: Tensor
    scores_K: Tensor
    labels_K: Tensor


@dataclass(frozen=True)
class Suppression:
    """Which boxes remain.

    Args:
        score_threshold: Least score, in [0, 1].
        iou_threshold: A box goes if it overlaps a better one of its class by more than this share of their union.
        candidates: Best boxes of an image that are looked at; the others go.
        keep: Best boxes of an image that remain.
    """

    score_threshold: float = 0.01
    iou_threshold: float = 0.45
    candidates: int = 1000
    keep: int = 100


def as_maps(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The maps of a network that returns one or several."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@torch.no_grad()
def detect(heads: Sequence[Head], outputs: Tensor | Sequence[Tensor], rule: Suppression) -> list[Detections]:
    """Boxes of each image: decoded, and suppressed class by class; all images of a batch at once.

    Args:
        heads: Meaning of each map.
        outputs: The network's maps.
        rule: Which boxes remain.
    """
    boxes, scores = [], []
    for head, map_NCHW in zip(heads, as_maps(outputs), strict=True):
        raw = head.split(map_NCHW.float())
        boxes.append(head.boxes(raw.box_NA4HW).flatten(1, 3))
        scores.append(head.scores(raw).flatten(1, 3))
    return suppress(torch.cat(boxes, 1), torch.cat(scores, 1), rule)


def suppress(boxes_NK4: Tensor, scores_NKC: Tensor, rule: Suppression) -> list[Detections]:
    """The boxes of each image that remain, class by class; all images of a batch at once.

    Args:
        boxes_NK4: In shares of the image.
        scores_NKC: Of each class, in [0, 1].
        rule: Which boxes remain.
    """
    images, count, classes = scores_NKC.shape
    best, place = scores_NKC.flatten(1).topk(min(rule.candidates, count * classes), 1)
    image, rank = (best > rule.score_threshold).nonzero(as_tuple=True)
    chosen = place[image, rank]
    found, label = boxes_NK4[image, chosen.div(classes, rounding_mode="floor")], chosen % classes
    score = best[image, rank]
    return suppress_candidates(found, score, image, label, images, rule)


def suppress_candidates(
    boxes_K4: Tensor, scores_K: Tensor, image_K: Tensor, labels_K: Tensor, images: int, rule: Suppression
) -> list[Detections]:
    """The boxes of each image that remain of a batch's candidates, class by class.

    Args:
        boxes_K4: Of all images, in any unit.
        scores_K: In [0, 1], above the rule's threshold.
        image_K: Index of each box's image, int64.
        labels_K: Class of each box, int64.
        images: In the batch.
        rule: Which boxes remain.
    """
    groups = image_K * (int(labels_K.max()) + 1 if len(labels_K) else 1) + labels_K
    kept = batched_nms(boxes_K4, scores_K, groups, rule.iou_threshold)  # the best first
    image_K, boxes_K4, scores_K, labels_K = image_K[kept], boxes_K4[kept], scores_K[kept], labels_K[kept]
    result = []
    for number in range(images):
        own = (image_K == number).nonzero()[: rule.keep, 0]
        result.append(Detections(boxes_K4[own], scores_K[own], labels_K[own]))
    return result
