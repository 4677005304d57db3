"""What a user can set of images with boxes, and of images in folders: parts of `qat.config`."""

from __future__ import annotations

from dataclasses import dataclass

from qat.checks import require, require_number


@dataclass(kw_only=True)
class DetectionSettings:
    """What images with boxes need beside the settings of all images.

    Args:
        format: scenes (digits that ship with scikit-learn), or of files below `data.root`: voc, coco, yolo.
        image_size: Rows and columns that every image is stretched to.
        fit: Parts of the data set that are trained on.  For voc names of ImageSets lists ("train", "VOC2007/trainval"),
            for coco "annotations.json:images folder", for yolo "images folder:labels folder".
        val: Parts that select; empty holds `data.val_images` images out of `fit`.
        test: Parts of the final number.
        class_names: Names of the classes; null for what the files say (voc, coco).
        fit_images: Number of scenes that are trained on; null for files.
        workers: Processes that decode and augment; 0 for none beside the one that trains.
        is_bgr: Whether colours are delivered in the order blue, green, red.
        vertical_flip: Augmentation: turn half of the images upside down.
        shift: Augmentation: shift by up to this share of the image, in [0, 1).
        zoom: Augmentation: sizes change by a factor in [1 / zoom, zoom].
        color: Augmentation: brightness, contrast, saturation change by up to this share, in [0, 1].
        mosaic: Augmentation: share of images that are put together from four, in [0, 1].
    """

    format: str
    image_size: list[int]
    fit: list[str]
    val: list[str]
    test: list[str]
    class_names: list[str] | None = None
    fit_images: int | None = None
    workers: int = 0
    is_bgr: bool = False
    vertical_flip: bool = False
    shift: float = 0.0
    zoom: float = 1.0
    color: float = 0.0
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        formats = ("scenes", "voc", "coco", "yolo")
        require(self.format in formats, "data.detection.format", self.format, f"one of {list(formats)}")
        ok = len(self.image_size) == 2 and all(size >= 32 for size in self.image_size)
        require(ok, "data.detection.image_size", self.image_size, "[rows, columns], each >= 32")
        if self.format == "scenes":
            count = self.fit_images
            require(count is not None and count >= 1, "data.detection.fit_images", count, "an integer >= 1")
        else:
            require(self.fit_images is None, "data.detection.fit_images", self.fit_images, "null: it is for scenes")
            for name in ("fit", "test"):
                require(bool(getattr(self, name)), f"data.detection.{name}", getattr(self, name), "at least one part")
            for part in [*self.fit, *self.val, *self.test] if self.format != "voc" else []:
                require(part.count(":") == 1, "data.detection", part, f"two names and a colon, for {self.format}")
        known = self.format != "yolo" or bool(self.class_names)
        require(known, "data.detection.class_names", self.class_names, "the names of the classes, for yolo")
        require_number("data.detection.workers", self.workers, 0)
        require_number("data.detection.zoom", self.zoom, 1)
        for name in ("shift", "color", "mosaic"):
            require_number(f"data.detection.{name}", getattr(self, name), 0, 1)
        require(self.shift < 1, "data.detection.shift", self.shift, "a number >= 0 and < 1")


@dataclass(kw_only=True)
class FolderSettings:
    """Images in a folder for each class, in `train` and `val` below `data.root`; the latter give the final number.

    Args:
        image_size: Rows and columns that are cut out of every image.
        workers: Processes that decode and augment; 0 for none beside the one that trains.
    """

    image_size: list[int]
    workers: int = 0

    def __post_init__(self) -> None:
        require_number("data.folder.workers", self.workers, 0)
