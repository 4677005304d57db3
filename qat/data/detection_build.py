"""From settings to a data module of images with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qat.config import DataSettings
from qat.data.boxes import BoxReport
from qat.data.detection import Annotated, DetectionDataModule, DetectionSplits
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.detection_files import Files, open_files
from qat.data.detection_formats import AnnotatedFiles, download_voc, read_coco, read_voc, read_yolo
from qat.data.scenes import digit_scenes
from qat.errors import DataError
from qat.image_settings import DetectionSettings
from qat.normalization import Normalization


def build_detection(settings: DataSettings, detection: DetectionSettings, seed: int) -> DetectionDataModule:
    """Reads annotations and delivers images with boxes in batches.

    Args:
        settings: Which images, and how.
        detection: What images with boxes need beside.
        seed: Decides order and augmentation of fit batches; the split has a seed of its own.

    Raises:
        DataError: Files are missing or damaged.
    """
    augmentation = DetectionAugmentation(
        settings.horizontal_flip,
        detection.vertical_flip,
        detection.shift,
        detection.zoom,
        detection.color,
        detection.mosaic,
    )
    rows, columns = detection.image_size
    return DetectionDataModule(
        _splits(settings, detection),
        Normalization(tuple(settings.mean), tuple(settings.std)),
        augmentation,
        (rows, columns),
        settings.batch_size,
        seed,
        detection.workers,
        detection.is_bgr,
    )


def _splits(settings: DataSettings, detection: DetectionSettings) -> DetectionSplits:
    fit: Annotated
    val: Annotated
    if detection.format == "scenes":
        counts = (detection.fit_images or 0, settings.val_images, settings.test_images or 0)
        rows, columns = detection.image_size
        return DetectionSplits(*digit_scenes(counts, (rows, columns), settings.split_seed))
    if settings.download:
        if detection.format != "voc":
            raise DataError(f"data.download=true, expected false: only voc can be downloaded, not {detection.format}")
        download_voc(Path(settings.root or "."), [*detection.fit, *detection.val, *detection.test])
    files = open_files(Path(settings.root or "."))
    mode = "L" if len(settings.mean) == 1 else "RGB"
    parts = _read(files, detection, mode)
    fit, test = _join([parts[name] for name in detection.fit]), _join([parts[name] for name in detection.test])
    if detection.val:
        val = _join([parts[name] for name in detection.val])
    else:
        fit, val = hold_out(fit, settings.val_images, settings.split_seed)
    return DetectionSplits(fit, val, test)


def _read(files: Files, detection: DetectionSettings, mode: str) -> dict[str, AnnotatedFiles]:
    names = list(dict.fromkeys([*detection.fit, *detection.val, *detection.test]))
    if detection.format == "voc":
        return read_voc(files, names, detection.class_names, mode)
    found = {}
    for name in names:
        first, _, second = name.partition(":")
        if detection.format == "coco":
            found[name] = read_coco(files, first, second, mode, detection.class_names)
        else:
            found[name] = read_yolo(files, first, second, detection.class_names or [], mode)
    return found


def _join(parts: Sequence[AnnotatedFiles]) -> AnnotatedFiles:
    """Several parts as one."""
    report = BoxReport()
    for part in parts:
        report.add(part.report)
    return replace(
        parts[0],
        names=tuple(name for part in parts for name in part.names),
        boxes=tuple(boxes for part in parts for boxes in part.boxes),
        report=report,
    )


def hold_out(part: AnnotatedFiles, count: int, seed: int) -> tuple[AnnotatedFiles, AnnotatedFiles]:
    """Splits off random images.

    Args:
        part: All images.
        count: Images to split off, 1..N-1.
        seed: Decides which.

    Returns:
        The rest, in order, and the images split off, in random order.

    Raises:
        DataError: `count` is out of range.
    """
    total = len(part)
    if not 1 <= count < total:
        raise DataError(f"cannot hold out {count} of {total} images, expected 1..{total - 1}; check data.val_images")
    order = np.random.default_rng(seed).permutation(total)
    return _pick(part, sorted(order[count:].tolist())), _pick(part, order[:count].tolist())


def _pick(part: AnnotatedFiles, numbers: Sequence[int]) -> AnnotatedFiles:
    boxes = tuple(part.boxes[number] for number in numbers)
    report = BoxReport(images=len(numbers), boxes=sum(map(len, boxes)))
    return replace(part, names=tuple(part.names[number] for number in numbers), boxes=boxes, report=report)
