"""From settings to a data module of images with boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qat.config import DataSettings
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
        DataError: Files are missing or damaged, parts share images, or number their classes differently.
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
    joined = {
        use: _join([parts[name] for name in names])
        for use, names in (("fit", detection.fit), ("val", detection.val), ("test", detection.test))
        if names
    }
    _refuse_common_images({f"data.detection.{use}": part.names for use, part in joined.items()})
    fit, test = joined["fit"], joined["test"]
    if "val" in joined:
        val = joined["val"]
    else:
        fit, val = hold_out(fit, settings.val_images, settings.split_seed)
    return DetectionSplits(fit, val, test)


def _refuse_common_images(names: Mapping[str, Sequence[str]]) -> None:
    """Raises DataError for an image that two parts have, or one part twice: figures on it would mean nothing."""
    users: dict[str, str] = {}
    for setting, images in names.items():
        for image in images:
            user = users.setdefault(image, setting)
            if user != setting:
                common = len(set(names[user]) & set(images))
                raise DataError(f"{user} and {setting} share {common} images, {image!r} is the first; expected none")
        if len(set(images)) < len(images):
            first = next(image for image, count in Counter(images).items() if count > 1)
            raise DataError(f"{setting} has {len(images) - len(set(images))} images twice, {first!r} is the first")


def _read(files: Files, detection: DetectionSettings, mode: str) -> dict[str, AnnotatedFiles]:
    names = list(dict.fromkeys([*detection.fit, *detection.val, *detection.test]))
    if detection.format == "voc":
        return read_voc(files, names, detection.class_names, mode)
    found = {}
    for name in names:
        first, _, second = name.partition(":")
        if detection.format == "coco":
            found[name] = read_coco(files, first, second, mode, detection.class_names)
            own, known = found[name].class_names, found[names[0]].class_names
            if own != known and sorted(own) == sorted(known):  # each file has numbers of its own
                found[name] = read_coco(files, first, second, mode, known)
        else:
            found[name] = read_yolo(files, first, second, detection.class_names or [], mode)
    return found


def _join(parts: Sequence[AnnotatedFiles]) -> AnnotatedFiles:
    """Several parts as one.

    Raises:
        DataError: Their labels mean different classes.
    """
    for part in parts:
        if part.class_names != parts[0].class_names:
            raise DataError(
                f"parts to join have the classes {parts[0].class_names} and {part.class_names}, expected the same; "
                "give data.detection.class_names"
            )
    return replace(
        parts[0],
        names=tuple(name for part in parts for name in part.names),
        boxes=tuple(boxes for part in parts for boxes in part.boxes),
        reports=tuple(report for part in parts for report in part.reports),
        sizes=tuple(size for part in parts for size in part.sizes),
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
    return replace(
        part,
        names=tuple(part.names[number] for number in numbers),
        boxes=tuple(part.boxes[number] for number in numbers),
        reports=tuple(part.reports[number] for number in numbers),
        sizes=tuple(part.sizes[number] for number in numbers) if part.sizes else (),
    )
