"""torchvision's detectors: the objective of networks whose maps a part in float makes boxes of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qat.models.float_part import FloatPart
from qat.models.heads import Detections
from qat.tasks.detection import DetectionMeter


@dataclass(frozen=True)
class FloatPartDetection:
    """The objective of torchvision's detectors: their own losses.

    Targets are as in `qat.data.boxes`; boxes that need not be found are background.

    Args:
        part: Makes losses and boxes of maps.
        score: What selects: average precision at an overlap of one half.
    """

    part: FloatPart
    score: str = "ap50"

    def loss(self, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Sum of the detector's losses against true boxes."""
        rows, columns = self.part.image_size(outputs)
        pixels = targets.new_tensor([columns, rows, columns, rows])
        is_real_NB = (targets[:, :, 0] >= 0) & (targets[:, :, 5] == 0)
        # All images at once: on a GPU every count that is read back waits.
        boxes_by_image = torch.split(targets[is_real_NB], is_real_NB.sum(1).tolist())
        true = [
            {"boxes": own_B6[:, 1:5] * pixels, "labels": own_B6[:, 0].long() + self.part.first_label}
            for own_B6 in boxes_by_image
        ]
        return self.part.loss(outputs, true)

    def distillation_loss(
        self, outputs: Sequence[Tensor], teacher_outputs: Sequence[Tensor], temperature: float
    ) -> Tensor:
        """Difference of the maps, or of what they mean, from a teacher's."""
        return self.part.imitation(outputs, teacher_outputs, temperature)

    def hits(self, outputs: Sequence[Tensor], targets: Tensor) -> None:
        """None: an image with many boxes is not simply right or wrong."""

    def detections(self, outputs: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each image."""
        return self.part.detections(outputs)

    def image_size(self, outputs: Sequence[Tensor]) -> tuple[int, int]:
        """Rows and columns of the images that maps belong to."""
        return self.part.image_size(outputs)

    def meter(self) -> DetectionMeter:
        """Measures "ap50", "ap" and "loss"."""
        return DetectionMeter(self)
