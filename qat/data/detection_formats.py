"""Readers of annotations: Pascal VOC, COCO, YOLO.  All check every box and report what they leave out."""

from __future__ import annotations

import json
import math
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image
from torchvision.datasets import VOCDetection

from qat.data.boxes import CROWD, IGNORED, Boxes, BoxReader, BoxReport
from qat.data.detection_files import Files, read_image
from qat.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class AnnotatedFiles:
    """Images in files, with boxes.

    Args:
        files: Where the images lie.
        names: Their names.
        boxes: In the same order.
        class_names: Names of the classes.
        reports: What was found while reading each of them.
        mode: How images are decoded: "RGB" or "L".
        sizes: Width and height of each image, as annotated; empty where annotations have none.
    """

    files: Files
    names: tuple[str, ...]
    boxes: tuple[Boxes, ...]
    class_names: tuple[str, ...]
    reports: tuple[BoxReport, ...]
    mode: str = "RGB"
    sizes: tuple[tuple[float, float], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def report(self) -> BoxReport:
        """What was found while reading."""
        total = BoxReport()
        for report in self.reports:
            total.add(report)
        return total

    def image(self, index: int) -> Image.Image:
        """A decoded image, as it is stored: the orientation of its EXIF data does not count.

        Raises:
            DataError: It is missing, damaged, or of another size than its annotation says.
        """
        image = read_image(self.files, self.names[index], self.mode)
        if self.sizes and image.size != self.sizes[index]:
            width, height = self.sizes[index]
            raise DataError(
                f"image {self.names[index]!r} in {self.files.where} has {image.width} x {image.height} pixels, its "
                f"annotation says {width:g} x {height:g}; annotate images as they are stored, without EXIF orientation"
            )
        return image


def read_voc(
    files: Files, splits: Sequence[str], class_names: Sequence[str] | None = None, mode: str = "RGB"
) -> dict[str, AnnotatedFiles]:
    """Images of `ImageSets/Main/<split>.txt`, with `Annotations/<id>.xml` and `JPEGImages/<id>.*`.

    Args:
        files: The data set; everything may lie in one folder below.
        splits: Which lists to read: "train", or "VOC2007/train" where several folders have one.
        class_names: Known classes; None takes every class that occurs, sorted.
        mode: How images are decoded.

    Raises:
        DataError: A list, an annotation or an image is missing or damaged.

    Source: Everingham et al., "The PASCAL VOC Challenge 2012 Development Kit", section 8.
    """
    names = files.names()
    known = set(names)
    images = {}
    for name in names:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and "JPEGImages" in name.split("/"):
            images[stem] = name
    parsed: dict[str, list[tuple[str, tuple[float, float], list[tuple[str, list[float], int]]]]] = {}
    for split in splits:
        prefix, short = _prefix(files, names, split), posixpath.basename(split)
        listed = files.read(f"{prefix}ImageSets/Main/{short}.txt").decode("utf-8", "replace").split("\n")
        entries = []
        for entry in (line.split()[0] for line in listed if line.strip()):
            annotation, image = f"{prefix}Annotations/{entry}.xml", images.get(f"{prefix}JPEGImages/{entry}")
            if annotation not in known or image is None:
                missing = annotation if annotation not in known else f"{prefix}JPEGImages/{entry}.*"
                raise DataError(f"{files.where} has no {missing}, which ImageSets/Main/{split}.txt names")
            entries.append((image, *_parse_voc(files, annotation)))
        parsed[split] = entries
    if class_names is None:
        class_names = sorted({name for entries in parsed.values() for *_, raw in entries for name, *_ in raw})
    result = {}
    for split, entries in parsed.items():
        reader = BoxReader(class_names)
        boxes = tuple(reader.read(image, size, raw) for image, size, raw in entries)
        images_of_split = tuple(image for image, *_ in entries)
        sizes = tuple(size for _, size, _ in entries)
        reports = tuple(reader.reports)
        result[split] = AnnotatedFiles(files, images_of_split, boxes, tuple(class_names), reports, mode, sizes)
    return result


def download_voc(root: Path, splits: Sequence[str]) -> None:
    """Lets torchvision download the years of Pascal VOC that are not there.

    Args:
        root: The folder `VOCdevkit`, which need not exist.
        splits: What is needed, each as "VOC2007/trainval".

    Raises:
        DataError: There is no such year or list, `root` has another name, or the download failed.
    """
    for split in splits:
        if (root / posixpath.dirname(split) / "ImageSets" / "Main" / f"{posixpath.basename(split)}.txt").is_file():
            continue
        if root.name != "VOCdevkit":
            raise DataError(f"data.root={str(root)!r}, expected a folder VOCdevkit for data.download=true")
        year, _, name = split.removeprefix("VOC").partition("/")
        try:
            VOCDetection(str(root.parent), year, name, download=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"Pascal VOC, {split}: {error}; expected parts such as VOC2007/trainval, and the network"
            ) from error


def _prefix(files: Files, names: Sequence[str], split: str) -> str:
    """The folder, with a slash, that holds `ImageSets`."""
    folder, short = posixpath.split(split)
    tail = f"ImageSets/Main/{short}.txt"
    found = [name.removesuffix(tail) for name in names if f"/{name}".endswith(f"/{tail}")]
    found = [prefix for prefix in found if not folder or f"/{prefix}".endswith(f"/{folder}/")]
    if len(found) != 1:
        raise DataError(f"{files.where} has {len(found)} files {posixpath.join(folder, tail)}, expected one")
    return found[0]


def _parse_voc(files: Files, name: str) -> tuple[tuple[float, float], list[tuple[str, list[float], int]]]:
    data = files.read(name)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(f"annotation {name!r} in {files.where} declares a document type, which VOC files do not")
    try:
        root = ElementTree.fromstring(data)
        size = (float(_text(root, "size/width")), float(_text(root, "size/height")))
        raw = []
        for item in root.iter("object"):
            box = [float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            is_difficult = item.findtext("difficult", "0").strip() == "1"
            raw.append((_text(item, "name"), box, IGNORED if is_difficult else 0))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"annotation {name!r} in {files.where} is damaged: {error}") from error
    return size, raw


def _text(node: ElementTree.Element, path: str) -> str:
    text = node.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"<{path}> is missing in <{node.tag}>")
    return text.strip()


def read_coco(
    files: Files, annotations: str, images: str, mode: str = "RGB", class_names: Sequence[str] | None = None
) -> AnnotatedFiles:
    """Images of a COCO `instances_*.json`.

    Args:
        files: The data set.
        annotations: Name of the json file.
        images: Folder of the images, below `files`.
        mode: How images are decoded.
        class_names: Known classes; None takes the file's categories in the order of their numbers.

    Raises:
        DataError: A file is missing or damaged, a box belongs to no image, or two categories have one name.

    Source: cocodataset.org, "Data format", object detection.
    """
    try:
        document = json.loads(files.read(annotations))
        categories = {int(c["id"]): str(c["name"]) for c in document["categories"]}
        pictures = {int(i["id"]): (str(i["file_name"]), (float(i["width"]), float(i["height"])))
                    for i in document["images"]}  # fmt: skip
        raw: dict[int, list[tuple[str, list[float], int]]] = {number: [] for number in pictures}
        for item in document["annotations"]:
            left, top, width, height = (float(value) for value in item["bbox"])
            number, category = int(item["image_id"]), int(item["category_id"])
            if number not in raw:
                raise DataError(
                    f"{annotations!r} in {files.where}: a box belongs to image {number}, which is not listed"
                )
            name = categories.get(category, f"category {category}")
            raw[number].append((name, [left, top, left + width, top + height], CROWD if item.get("iscrowd", 0) else 0))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations!r} in {files.where} is damaged: {type(error).__name__} {error}") from error
    if class_names is None:
        class_names = [categories[number] for number in sorted(categories)]
    twice = sorted(name for name, count in Counter(categories.values()).items() if count > 1)
    if twice:
        raise DataError(f"{annotations!r} in {files.where} has several categories of the name {twice[0]!r}")
    reader = BoxReader(class_names)
    boxes = tuple(reader.read(name, size, raw[number]) for number, (name, size) in pictures.items())
    names = tuple(posixpath.join(images, name) for name, _ in pictures.values())
    _require_images(files, names, annotations)
    sizes = tuple(size for _, size in pictures.values())
    return AnnotatedFiles(files, names, boxes, tuple(class_names), tuple(reader.reports), mode, sizes)


def read_yolo(files: Files, images: str, labels: str, class_names: Sequence[str], mode: str = "RGB") -> AnnotatedFiles:
    """Images with one text file each: lines of class, centre x, centre y, width, height, as shares of the image.

    An image without a text file has no box.

    Args:
        files: The data set.
        images: Folder of the images.
        labels: Folder of the text files.
        class_names: Names of the classes; a line names one by its place.
        mode: How images are decoded.

    Raises:
        DataError: There is no image, or a text file is damaged.

    Source: github.com/AlexeyAB/Yolo_mark, README.
    """
    known = files.names()
    names = tuple(
        name
        for name in known
        if posixpath.dirname(name) == images.rstrip("/") and name.lower().endswith(IMAGE_SUFFIXES)
    )
    if not names:
        raise DataError(f"{files.where} has no image in {images!r}")
    reader, boxes, texts = BoxReader(class_names), [], set(known)
    for name in names:
        text = posixpath.join(labels, posixpath.splitext(posixpath.basename(name))[0] + ".txt")
        lines = files.read(text).decode("utf-8", "replace").splitlines() if text in texts else []
        boxes.append(
            reader.read(name, (1.0, 1.0), [_parse_yolo(line, text, class_names) for line in lines if line.strip()])
        )
    return AnnotatedFiles(files, names, tuple(boxes), tuple(class_names), tuple(reader.reports), mode)


def _parse_yolo(line: str, where: str, class_names: Sequence[str]) -> tuple[str, list[float], int]:
    try:
        number, x, y, width, height = (float(part) for part in line.split())
        if not math.isfinite(number):
            raise ValueError(f"class {number}")
    except ValueError as error:
        raise DataError(f"{where}: {line!r}, expected class, centre x, centre y, width, height") from error
    is_known = number == int(number) and 0 <= number < len(class_names)
    name = class_names[int(number)] if is_known else f"class {number:g}"
    return name, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0


def _require_images(files: Files, names: Sequence[str], annotations: str) -> None:
    missing = sorted(set(names) - set(files.names()))
    if missing:
        raise DataError(
            f"{files.where} lacks {len(missing)} of {len(names)} images of {annotations!r}: {missing[0]!r} is the first"
        )
