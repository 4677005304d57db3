"""Detection: the objective of networks that answer with maps of boxes, measured by COCO's average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from qat.data.boxes import Boxes, unpack
from qat.errors import ConfigError
from qat.models.heads import Detections, Head, Suppression, as_maps, detect
from qat.tasks.detection_loss import detection_loss, imitation_loss

RECALL_POINTS = np.linspace(0, 1, 101).tolist()
"""COCO's recalls in double precision.  The metric's own are of single precision: its 0.6 is above 3 of 5 boxes."""

LOWEST_OVERLAP = 0.499
"""A little less than the lowest overlap that is measured: a copy too many of an ignored box changes nothing."""

UNSCORED_AREA = 1e11
"""Beyond the largest area of any of COCO's ranges: boxes of it need not be found, nor is it a mistake to find them."""


@dataclass(frozen=True)
class Detection:
    """The objective of detectors.  Targets are as in `qat.data.boxes`.

    Args:
        heads: Meaning of each map.
        suppression: Which boxes remain where answers are measured.
        score: What selects: average precision at an overlap of one half.
    """

    heads: tuple[Head, ...]
    suppression: Suppression = field(default_factory=Suppression)
    score: str = "ap50"

    @classmethod
    def of(cls, model: nn.Module, suppression: Suppression | None = None) -> Detection:
        """The objective of a network that says what its maps mean in `heads`.

        Raises:
            ConfigError: The network has no heads.
        """
        heads = getattr(model, "heads", ())
        if not heads:
            raise ConfigError(
                f"{type(model).__name__} is no detector: it has no attribute `heads` that says what its maps mean"
            )
        return cls(tuple(heads), suppression or Suppression())

    def loss(self, outputs: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """Boxes, objectness and classes against true boxes."""
        return detection_loss(self.heads, outputs, targets)

    def distillation_loss(
        self, outputs: Tensor | Sequence[Tensor], teacher_outputs: Tensor | Sequence[Tensor], temperature: float
    ) -> Tensor:
        """Boxes, objectness and classes against a teacher's."""
        return imitation_loss(self.heads, outputs, teacher_outputs, temperature)

    def hits(self, outputs: Tensor | Sequence[Tensor], targets: Tensor) -> None:
        """None: an image with many boxes is not simply right or wrong."""

    def detections(self, outputs: Tensor | Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image."""
        return detect(self.heads, outputs, self.suppression)

    def image_size(self, outputs: Tensor | Sequence[Tensor]) -> tuple[int, int]:
        """Rows and columns of the images that maps belong to."""
        return self.heads[0].image_size(as_maps(outputs)[0])

    def meter(self) -> DetectionMeter:
        """Measures "ap50", "ap" and "loss"."""
        return DetectionMeter(self)


class FindsBoxes(Protocol):
    """What a meter asks of an objective of detection."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss of a batch against its targets, a scalar."""

    def detections(self, outputs: Any) -> list[Detections]:
        """Boxes of each image, in shares of the image."""

    def image_size(self, outputs: Any) -> tuple[int, int]:
        """Rows and columns of the images that maps belong to."""


class DetectionMeter:
    """COCO's average precision over all images: at an overlap of 0.5, and the mean over 0.5, 0.55, ..., 0.95.

    It holds the boxes that were found, not images or maps.

    Args:
        objective: Decodes and suppresses.
    """

    def __init__(self, objective: FindsBoxes) -> None:
        self._objective = objective
        self._metric = MeanAveragePrecision(rec_thresholds=RECALL_POINTS, backend="faster_coco_eval")
        self._metric.warn_on_many_detections = False
        self._loss = 0.0
        self._images = 0

    def update(self, outputs: Tensor | Sequence[Tensor], targets: Tensor) -> None:
        """Takes in the maps and the true boxes of a batch."""
        self._loss += float(self._objective.loss(outputs, targets)) * len(targets)
        self._images += len(targets)
        rows, columns = self._objective.image_size(outputs)
        pixels = torch.tensor([columns, rows, columns, rows], dtype=torch.float32)
        found = [
            {"boxes": one.boxes_K4.cpu() * pixels, "scores": one.scores_K.cpu(), "labels": one.labels_K.cpu()}
            for one in self._objective.detections(outputs)
        ]
        true = [_true_boxes(own, one, pixels) for own, one in zip(unpack(targets), found, strict=True)]
        self._metric.update(found, true)

    def compute(self) -> dict[str, float]:
        """Average precision in [0, 1] under "ap50" and "ap", and "loss"."""
        values = self._metric.compute()
        # The library says -1 where there is nothing to find.
        precision = {"ap50": max(0.0, float(values["map_50"])), "ap": max(0.0, float(values["map"]))}
        return precision | {"loss": self._loss / max(1, self._images)}


def _true_boxes(own: Boxes, found: Mapping[str, Tensor], pixels_4: Tensor) -> dict[str, Tensor]:
    """The true boxes of an image, as the COCO library takes them.

    What it calls a crowd is measured by the answer's area alone.  Other boxes to be ignored get an area that it does
    not score, and are there once for each answer that they overlap, as each of them excuses one answer.
    """
    boxes_B4, labels_B = torch.from_numpy(own.sides_B4) * pixels_4, torch.from_numpy(own.labels_B)
    overlap_BK = box_iou(boxes_B4, found["boxes"])
    may_find_BK = (overlap_BK >= LOWEST_OVERLAP) & (labels_B[:, None] == found["labels"])
    is_crowd_B = torch.from_numpy(own.crowd_B)
    is_ignored_B = torch.from_numpy(own.ignored_B) & ~is_crowd_B
    copies_B = torch.where(is_ignored_B, may_find_BK.sum(1), 1)
    return {
        "boxes": boxes_B4.repeat_interleave(copies_B, 0),
        "labels": labels_B.repeat_interleave(copies_B),
        "iscrowd": is_crowd_B.long().repeat_interleave(copies_B),
        "area": torch.where(is_ignored_B, UNSCORED_AREA, 0.0).repeat_interleave(copies_B),  # 0: the box's own
    }
