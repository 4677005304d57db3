"""Average precision of detectors, from first principles: Pascal VOC's two rules and COCO's at one overlap.

It checks, and is checked against, the COCO library that `qat.tasks.detection` measures with.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.2 (11 points) and 2015,
section 3.2 (all points); Lin et al., "Microsoft COCO", and its evaluation code (101 points).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["voc_11_point", "voc_all_point", "coco_101_point"]

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Found:
    """What a detector answered for one image.

    Args:
        boxes_K4: left, top, right, bottom.
        scores_K: Larger is surer.
        labels_K: Classes.
    """

    boxes_K4: Floats
    scores_K: Floats
    labels_K: Ints


@dataclass(frozen=True)
class Truth:
    """What is in one image.

    Args:
        boxes_B4: left, top, right, bottom, same unit as the answers'.
        labels_B: Classes.
        ignored_B: Boxes that need not be found, and whose finding is no mistake (VOC's "difficult").
    """

    boxes_B4: Floats
    labels_B: Ints
    ignored_B: NDArray[np.bool_]


def mean_average_precision(
    found: Sequence[Found], truth: Sequence[Truth], rule: Rule, iou_threshold: float = 0.5
) -> float:
    """Mean over the classes that occur in `truth` of the average precision, in [0, 1]; 0 if none occurs.

    Args:
        found: Answers, one for each image.
        truth: In the same order.
        rule: How precision is averaged over recall.
        iou_threshold: Least overlap of an answer with a box it finds.
    """
    occurring = sorted({int(label) for image in truth for label in image.labels_B[~image.ignored_B]})
    values = [class_average_precision(found, truth, label, rule, iou_threshold) for label in occurring]
    return float(np.mean(values)) if values else 0.0


def class_average_precision(
    found: Sequence[Found], truth: Sequence[Truth], label: int, rule: Rule, iou_threshold: float = 0.5
) -> float:
    """Average precision of one class, in [0, 1]; arguments as in `mean_average_precision`."""
    scores, hits, total = [np.zeros(0)], [np.zeros(0, np.int8)], 0
    for answer, image in zip(found, truth, strict=True):
        own, real = answer.labels_K == label, image.labels_B == label
        order = np.argsort(-answer.scores_K[own], kind="stable")
        ignored = image.ignored_B[real]
        overlap_KB = iou(answer.boxes_K4[own][order], image.boxes_B4[real])
        # VOC looks at the box that overlaps most, taken or not; COCO at the best one that is still free.
        hits.append(_match(overlap_KB, ignored, iou_threshold, only_free=rule == "coco_101_point"))
        scores.append(answer.scores_K[own][order])
        total += int((~ignored).sum())
    if not total:
        return 0.0
    hit = np.concatenate(hits)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = hit[order]
    hit = hit[hit >= 0]
    true_positives = np.cumsum(hit)
    recall = true_positives / total
    precision = true_positives / np.arange(1, len(hit) + 1)
    return _average(recall, precision, rule)


def iou(boxes_K4: Floats, boxes_B4: Floats) -> Floats:
    """Intersection over union of every box with every box, shape (K, B)."""
    low = np.maximum(boxes_K4[:, None, :2], boxes_B4[None, :, :2])
    high = np.minimum(boxes_K4[:, None, 2:], boxes_B4[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas_K, areas_B = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes_K4, boxes_B4))
    union = areas_K[:, None] + areas_B[None] - shared
    overlap: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def _match(overlap_KB: Floats, ignored_B: NDArray[np.bool_], threshold: float, only_free: bool) -> NDArray[np.int8]:
    """1 for an answer that finds a box, 0 for a mistake, -1 for one that does not count; the surest answer first."""
    result = np.zeros(len(overlap_KB), np.int8)
    if not overlap_KB.shape[1]:
        return result
    taken = np.zeros(overlap_KB.shape[1], bool)
    for number, overlap_B in enumerate(overlap_KB):
        if only_free:
            open_B = np.where(taken & ~ignored_B, -1.0, overlap_B)
            counting = np.where(ignored_B, -1.0, open_B)
            best = int((counting if counting.max() >= threshold else open_B).argmax())
            reached = open_B[best]
        else:
            best = int(overlap_B.argmax())
            reached = overlap_B[best]
        if reached < threshold:
            continue
        if ignored_B[best]:
            result[number] = -1
        elif not taken[best]:
            taken[best] = True
            result[number] = 1
    return result


def _average(recall: Floats, precision: Floats, rule: Rule) -> float:
    """Precision averaged over recall, each precision replaced by the best one at that recall or beyond."""
    if not len(recall):
        return 0.0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "voc_all_point":
        return float((np.diff(recall, prepend=0.0) * best).sum())
    points = np.linspace(0, 1, 11 if rule == "voc_11_point" else 101)
    places = np.searchsorted(recall, points, side="left")
    return float(np.append(best, 0.0)[places].mean())
