"""SSD: the objective of networks whose maps are class logits and offsets of default boxes.

Axes: N images, K default boxes, C classes without the background, B true boxes.

Source: Liu et al., "SSD" (arXiv 1512.02325), section 2.2; the loss against true boxes is torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from qat.models.heads import Detections, Suppression, suppress
from qat.models.ssd import SsdFloatPart
from qat.tasks.detection import DetectionMeter


@dataclass(frozen=True)
class SsdDetection:
    """The objective of SSDs.  Targets are as in `qat.data.boxes`; boxes that need not be found are background.

    Args:
        part: Meaning of the maps.
        suppression: Which boxes remain where answers are measured.
        score: What selects: average precision at an overlap of one half.
    """

    part: SsdFloatPart
    suppression: Suppression = field(default_factory=Suppression)
    score: str = "ap50"

    def loss(self, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Smooth L1 of boxes and cross-entropy of classes with three hard negatives per match, by matched boxes."""
        logits_NKC, offsets_NK4 = self.part.rows(outputs)
        defaults_K4 = self.part.default_boxes(outputs)
        rows, columns = self.part.image_size
        pixels = targets.new_tensor([columns, rows, columns, rows])
        true, matched = [], []
        for own_B6 in targets:
            real_B6 = own_B6[(own_B6[:, 0] >= 0) & (own_B6[:, 5] == 0)]
            boxes_B4 = real_B6[:, 1:5] * pixels
            true.append({"boxes": boxes_B4, "labels": real_B6[:, 0].long() + 1})
            nothing = torch.full((len(defaults_K4),), -1, device=targets.device)
            overlap_BK = box_iou(boxes_B4, defaults_K4)
            matched.append(self.part.detector.proposal_matcher(overlap_BK) if len(boxes_B4) else nothing)
        maps = {"bbox_regression": offsets_NK4, "cls_logits": logits_NKC}
        parts = self.part.detector.compute_loss(true, maps, [defaults_K4] * len(targets), matched)
        return torch.stack(list(parts.values())).sum()

    def distillation_loss(
        self, outputs: Sequence[Tensor], teacher_outputs: Sequence[Tensor], temperature: float
    ) -> Tensor:
        """Divergence of classes everywhere, and of boxes as far as the teacher sees an object, by what it sees."""
        logits_NKC, offsets_NK4 = self.part.rows(outputs)
        teacher_NKC, teacher_NK4 = self.part.rows(teacher_outputs)
        object_NK = 1 - teacher_NKC.softmax(2)[:, :, 0]
        own, other = (logits_NKC / temperature).log_softmax(2), (teacher_NKC / temperature).log_softmax(2)
        classes = temperature**2 * F.kl_div(own, other, reduction="sum", log_target=True)
        boxes_NK = F.smooth_l1_loss(offsets_NK4, teacher_NK4, reduction="none").sum(2)
        return (classes + (boxes_NK * object_NK).sum()) / object_NK.sum().clamp_min(1.0)

    def hits(self, outputs: Sequence[Tensor], targets: Tensor) -> None:
        """None: an image with many boxes is not simply right or wrong."""

    @torch.no_grad()
    def detections(self, outputs: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image."""
        logits_NKC, offsets_NK4 = self.part.rows(outputs)
        boxes_NK4 = self.part.boxes(offsets_NK4, self.part.default_boxes(outputs))
        return suppress(boxes_NK4, logits_NKC.softmax(2)[:, :, 1:], self.suppression)

    def image_size(self, outputs: Sequence[Tensor]) -> tuple[int, int]:
        """Rows and columns of the images that maps belong to."""
        return self.part.image_size

    def meter(self) -> DetectionMeter:
        """Measures "ap50", "ap" and "loss"."""
        return DetectionMeter(self)
