"""Reader of image archives: `.npz` files that hold lossless WebP mosaics.

| entry           | holds                                                            |
|-----------------|------------------------------------------------------------------|
| `webp_00`, ...  | bytes of WebP pictures; each is a grid of images, row by row     |
| `shape`         | N, H, W, C of the images; the grid's last places may be unused   |
| `labels`        | class of each image                                              |
| `classes`       | names of the classes                                             |
| `sha256`        | of the decoded images (N, H, W, C), uint8                        |
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qat.errors import DataError

_REMEDY = "copy the file again, or set data.source=torchvision to download the data set"


@dataclass(frozen=True)
class ImageArchive:
    """Decoded images.

    Args:
        images_NHWC: uint8.
        labels: int64, shape (N,).
        class_names: Names of the classes.
    """

    images_NHWC: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_archive(path: Path) -> ImageArchive:
    """Reads and checks an archive (format in the module's docstring).

    Raises:
        DataError: The file is missing or damaged; the message names it and the remedy.
    """
    if not path.is_file():
        raise DataError(f"data archive {path} does not exist; check data.root, or {_REMEDY}")
    try:
        archive, expected = _decode(path)
    except Exception as error:  # zip, numpy and Pillow raise many kinds on damaged bytes
        raise DataError(f"data archive {path} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error
    found = hashlib.sha256(archive.images_NHWC.tobytes()).hexdigest()
    if found != expected:
        raise DataError(
            f"data archive {path} is damaged: SHA-256 of its images is {found[:12]}..., "
            f"expected {expected[:12]}...; {_REMEDY}"
        )
    labels, classes = archive.labels, len(archive.class_names)
    if len(labels) != len(archive.images_NHWC) or ((labels < 0) | (labels >= classes)).any():
        raise DataError(
            f"data archive {path} is damaged: expected a label of 0..{classes - 1} for each of its "
            f"{len(archive.images_NHWC)} images, found {len(labels)} labels up to {labels.max(initial=0)}; {_REMEDY}"
        )
    return archive


def _decode(path: Path) -> tuple[ImageArchive, str]:
    with open(path, "rb") as file, np.load(file) as stored:
        count, rows, columns, channels = (int(value) for value in stored["shape"])
        parts = []
        for key in sorted(name for name in stored.files if name.startswith("webp_")):
            with Image.open(io.BytesIO(stored[key].tobytes()), formats=("WEBP",)) as picture:
                mosaic = np.asarray(picture.convert("RGB"))
            grid = (mosaic.shape[0] // rows, rows, mosaic.shape[1] // columns, columns, channels)
            parts.append(mosaic.reshape(grid).swapaxes(1, 2).reshape(-1, rows, columns, channels))
        images = np.ascontiguousarray(np.concatenate(parts)[:count])
        labels = stored["labels"].astype(np.int64)
        return ImageArchive(images, labels, tuple(str(name) for name in stored["classes"])), str(stored["sha256"])
