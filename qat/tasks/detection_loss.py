"""What a detector's maps cost: against true boxes, and against a teacher's maps.

Axes: N images, A anchors, C classes, H rows and W columns of a map, B true boxes of an image, M matched boxes.

Source: Redmon and Farhadi, "YOLOv3" (arXiv 1804.02767), sections 2.1 and 2.2: one anchor answers for each box, answers
that overlap a box well are neither right nor wrong; Zheng et al., "Distance-IoU Loss" (arXiv 1911.08287), section 3.4:
complete IoU as the loss of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from qat.models.heads import Head, Raw, as_maps

BOX_WEIGHT, OBJECTNESS_WEIGHT, CLASS_WEIGHT = 3.0, 1.0, 1.0

OVERLAP_IGNORED = 0.6
"""An unmatched answer that overlaps a true box by more is neither right nor wrong.  Source: yolov2-voc.cfg, thresh."""


@dataclass(frozen=True)
class _Match:
    """True boxes that one head answers for, each with its place."""

    image_M: Tensor
    anchor_M: Tensor
    row_M: Tensor
    column_M: Tensor
    sides_M4: Tensor
    label_M: Tensor

    @property
    def place(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.image_M, self.anchor_M, self.row_M, self.column_M


def detection_loss(heads: Sequence[Head], outputs: Tensor | Sequence[Tensor], targets_NB6: Tensor) -> Tensor:
    """Loss of a batch per true box, a scalar.

    Args:
        heads: Meaning of each map.
        outputs: The network's maps, float32.
        targets_NB6: True boxes, as in `qat.data.boxes`.
    """
    maps = as_maps(outputs)
    matches = _match(heads, maps, targets_NB6)
    total = maps[0].new_zeros(())
    for head, map_NCHW, match in zip(heads, maps, matches, strict=True):
        raw = head.split(map_NCHW)
        rows, columns = head.image_size(map_NCHW)
        boxes_NAHW4 = head.boxes(raw.box_NA4HW)
        total = total + OBJECTNESS_WEIGHT * _objectness_loss(raw, boxes_NAHW4.detach(), match, targets_NB6)
        if len(match.label_M):
            pixels = torch.tensor([columns, rows, columns, rows], device=map_NCHW.device)
            found_M4 = boxes_NAHW4[match.place] * pixels
            total = total + BOX_WEIGHT * complete_box_iou_loss(found_M4, match.sides_M4 * pixels, reduction="sum")
            total = total + CLASS_WEIGHT * _class_loss(
                head, raw.classes_NACHW.movedim(2, -1)[match.place], match.label_M
            )
    return total / max(1, sum(len(match.label_M) for match in matches))


@torch.no_grad()
def _match(heads: Sequence[Head], maps: Sequence[Tensor], targets_NB6: Tensor) -> list[_Match]:
    """For each true box the anchor of all heads that is most like it, in the cell of the box's centre."""
    is_real_NB = (targets_NB6[:, :, 0] >= 0) & (targets_NB6[:, :, 5] == 0)
    image_M = is_real_NB.nonzero()[:, 0]
    real_M6 = targets_NB6[is_real_NB]
    sides_M4, label_M = real_M6[:, 1:5], real_M6[:, 0].long()
    size_M2 = sides_M4[:, 2:] - sides_M4[:, :2]
    centre_M2 = (sides_M4[:, 2:] + sides_M4[:, :2]) / 2
    anchors: list[Tensor] = []
    owner: list[int] = []
    number: list[int] = []
    for index, (head, map_NCHW) in enumerate(zip(heads, maps, strict=True)):
        rows, columns = head.image_size(map_NCHW)
        anchors.append(torch.tensor(head.anchors, device=size_M2.device) / torch.tensor([columns, rows]).to(size_M2))
        owner += [index] * len(head.anchors)
        number += range(len(head.anchors))
    best_M = _shape_iou(size_M2, torch.cat(anchors)).argmax(1)
    owner_M = torch.tensor(owner, device=best_M.device)[best_M]
    anchor_M = torch.tensor(number, device=best_M.device)[best_M]
    matches = []
    for index, map_NCHW in enumerate(maps):
        own = owner_M == index
        rows, columns = map_NCHW.shape[-2:]
        column_M = (centre_M2[own, 0] * columns).long().clamp(0, columns - 1)
        row_M = (centre_M2[own, 1] * rows).long().clamp(0, rows - 1)
        matches.append(_Match(image_M[own], anchor_M[own], row_M, column_M, sides_M4[own], label_M[own]))
    return matches


def _shape_iou(size_M2: Tensor, size_A2: Tensor) -> Tensor:
    """Overlap of boxes with a common centre, shape (M, A)."""
    shared = torch.minimum(size_M2[:, None], size_A2[None]).prod(2)
    return shared / (size_M2.prod(1)[:, None] + size_A2.prod(1)[None] - shared).clamp_min(1e-12)


def _objectness_loss(raw: Raw, boxes_NAHW4: Tensor, match: _Match, targets_NB6: Tensor) -> Tensor:
    logits = raw.objectness_NAHW
    target = torch.zeros_like(logits)
    target[match.place] = 1.0
    counts = torch.ones_like(logits)
    counts[_largest_overlap(boxes_NAHW4, targets_NB6) > OVERLAP_IGNORED] = 0.0
    counts[match.place] = 1.0
    return F.binary_cross_entropy_with_logits(logits, target, counts, reduction="sum")


@torch.no_grad()
def _largest_overlap(boxes_NAHW4: Tensor, targets_NB6: Tensor) -> Tensor:
    """Overlap of each answer with the true box of its image that it overlaps most, shape (N, A, H, W)."""
    found_NK14 = boxes_NAHW4.flatten(1, 3).unsqueeze(2)
    true_N1B4 = targets_NB6[:, None, :, 1:5]
    low = torch.maximum(found_NK14[..., :2], true_N1B4[..., :2])
    high = torch.minimum(found_NK14[..., 2:], true_N1B4[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(sides[..., 2:] - sides[..., :2]).prod(-1) for sides in (found_NK14, true_N1B4)]
    overlap_NKB = shared / (areas[0] + areas[1] - shared).clamp_min(1e-12)
    overlap_NKB = overlap_NKB.masked_fill((targets_NB6[:, :, 0] < 0)[:, None], 0.0)
    return overlap_NKB.amax(2).view(boxes_NAHW4.shape[:-1])


def _class_loss(head: Head, logits_MC: Tensor, label_M: Tensor) -> Tensor:
    if head.softmax:
        return F.cross_entropy(logits_MC, label_M, reduction="sum")
    target = F.one_hot(label_M, logits_MC.shape[1]).to(logits_MC)
    return F.binary_cross_entropy_with_logits(logits_MC, target, reduction="sum")


def imitation_loss(
    heads: Sequence[Head], outputs: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], temperature: float
) -> Tensor:
    """Difference from a teacher's maps per object that the teacher sees, a scalar.

    Boxes and classes count as far as the teacher sees an object in their place; elsewhere they mean nothing.

    Source: Mehta and Ozturk, "Object detection at 200 frames per second" (arXiv 1805.06361), section 3.2.

    Args:
        heads: Meaning of each map.
        outputs: The network's maps, float32.
        teacher: The teacher's, of the same shapes.
        temperature: Softens the classes of both.
    """
    total = as_maps(outputs)[0].new_zeros(())
    seen = as_maps(outputs)[0].new_zeros(())
    for head, map_NCHW, teacher_NCHW in zip(heads, as_maps(outputs), as_maps(teacher), strict=True):
        own, other = head.split(map_NCHW), head.split(teacher_NCHW)
        object_NAHW = other.objectness_NAHW.sigmoid()
        seen = seen + object_NAHW.sum()
        # Less the teacher's own entropy, so that a perfect copy costs nothing.
        objectness = F.binary_cross_entropy_with_logits(own.objectness_NAHW, object_NAHW, reduction="sum")
        floor = F.binary_cross_entropy_with_logits(other.objectness_NAHW, object_NAHW, reduction="sum")
        boxes_NAHW = F.smooth_l1_loss(own.box_NA4HW, other.box_NA4HW, reduction="none").sum(2)
        classes_NAHW = _class_difference(head, own.classes_NACHW / temperature, other.classes_NACHW / temperature)
        total = total + OBJECTNESS_WEIGHT * (objectness - floor) + BOX_WEIGHT * (boxes_NAHW * object_NAHW).sum()
        total = total + CLASS_WEIGHT * temperature**2 * (classes_NAHW * object_NAHW).sum()
    return total / seen.clamp_min(1.0)


def _class_difference(head: Head, own_NACHW: Tensor, other_NACHW: Tensor) -> Tensor:
    """Divergence of the classes at each place, shape (N, A, H, W)."""
    if head.softmax:
        student, teacher = own_NACHW.log_softmax(2), other_NACHW.log_softmax(2)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(2)
    target = other_NACHW.sigmoid()
    cost = F.binary_cross_entropy_with_logits(own_NACHW, target, reduction="none")
    floor = F.binary_cross_entropy_with_logits(other_NACHW, target, reduction="none")
    return (cost - floor).sum(2)
