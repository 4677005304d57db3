"""The Lightning data module of every detection data set: batches of (uint8 images, target tensors)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from qat.data.boxes import Boxes, BoxReport, pack
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.loader import FitBatches
from qat.data.module import ImageDataModule
from qat.errors import DataError
from qat.normalization import Normalization

logger = logging.getLogger(__name__)


class Annotated(Protocol):
    """Images with boxes."""

    @property
    def boxes(self) -> tuple[Boxes, ...]:
        """Boxes of each image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def report(self) -> BoxReport:
        """What was found while annotations were read."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, index: int) -> Image.Image:
        """An image in its own size."""


@dataclass(frozen=True)
class DetectionSplits:
    """The three parts of a detection data set.

    Args:
        fit: Images that are trained on.
        val: Images that select.
        test: Images of the final number only.
    """

    fit: Annotated
    val: Annotated
    test: Annotated

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, the same in all parts."""
        return self.fit.class_names


class _Images(Dataset[tuple[Tensor, Boxes]]):
    """Images of one size with their boxes, by (epoch, number)."""

    def __init__(
        self, source: Annotated, size: tuple[int, int], augmentation: DetectionAugmentation | None, seed: int
    ) -> None:
        self.source = source
        self.boxes = source.boxes
        self.size = size
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Boxes]:
        epoch, index = key
        if self.augmentation is None:
            image, boxes = self._picture(index, self.size)
            return functional.pil_to_tensor(image), boxes
        # One seed for each image of each epoch: the result does not depend on the number of worker processes.
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        return self.augmentation(self._picture, index, len(self), self.size, seed)

    def _picture(self, index: int, size: tuple[int, int]) -> tuple[Image.Image, Boxes]:
        """An image stretched to a size; shares of its sides stay what they are."""
        image = self.source.image(index)
        return image.resize((size[1], size[0]), Image.Resampling.BILINEAR), self.boxes[index]


@dataclass(frozen=True)
class _Collate:
    """Images and targets of a batch."""

    capacity: int
    is_bgr: bool

    def __call__(self, items: list[tuple[Tensor, Boxes]]) -> tuple[Tensor, Tensor]:
        images_NCHW = torch.stack([image for image, _ in items])
        return images_NCHW.flip(1) if self.is_bgr else images_NCHW, pack([boxes for _, boxes in items], self.capacity)


Loader = DataLoader[tuple[Tensor, Tensor]]


class DetectionDataModule(ImageDataModule):
    """Batches of (uint8 images NCHW, float32 targets N, B, 6); see `qat.data.boxes` for targets.

    Every image is stretched to `image_size`: shares of its sides, and overlaps, stay what they are.

    Args:
        splits: Images to fit, to select, to test.
        normalization: Of the images; whoever feeds a network applies it.
        augmentation: Of fit batches.
        image_size: Rows and columns of the images that are delivered.
        batch_size: Images per step, of all devices together.
        seed: Decides order and augmentation of fit batches.
        workers: Processes that decode and augment; 0 for none beside this one.
        is_bgr: Whether colours are delivered in the order blue, green, red.

    Raises:
        DataError: The parts have different classes, there are fewer fit images than a batch holds, or images and
            normalization differ in channels.
    """

    def __init__(
        self,
        splits: DetectionSplits,
        normalization: Normalization,
        augmentation: DetectionAugmentation,
        image_size: tuple[int, int],
        batch_size: int,
        seed: int,
        workers: int = 0,
        is_bgr: bool = False,
    ) -> None:
        parts = {"fit": splits.fit, "val": splits.val, "test": splits.test}
        for name, part in parts.items():
            if len(part) == 0:
                raise DataError(f"the {name} part has no image")
            if part.class_names != splits.fit.class_names:
                raise DataError(
                    f"the {name} part has classes {part.class_names}, the fit part {splits.fit.class_names}; "
                    "give the class names"
                )
            logger.log(logging.WARNING if part.report.left_out else logging.DEBUG, "%s: %s", name, part.report)
            for example in part.report.examples:
                logger.debug("%s: %s", name, example)
        super().__init__(splits, normalization, len(splits.fit.image(0).getbands()), batch_size, seed)
        self.splits = splits
        self.augmentation = augmentation
        self.image_size = image_size
        self.workers = workers
        self.is_bgr = is_bgr
        most = max(len(own) for part in parts.values() for own in part.boxes)
        self.capacity = max(1, most) * (4 if augmentation.mosaic else 1)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of an image."""
        return len(self.normalization.mean), *self.image_size

    @property
    def reports(self) -> dict[str, BoxReport]:
        """What was found while the annotations of each part were read."""
        return {"fit": self.splits.fit.report, "val": self.splits.val.report, "test": self.splits.test.report}

    def train_dataloader(self) -> Loader:
        """Fit batches: a new loader starts at the first epoch again, the same for the same seed."""
        images = _Images(self.splits.fit, self.image_size, self.augmentation, self.seed)
        return self._loader(images, FitBatches(self._epoch_order()))

    def val_dataloader(self, limit: int | None = None) -> Loader:
        """Validation batches in fixed order.

        Args:
            limit: First images to deliver; None for all.
        """
        return self._eval_loader(self.splits.val, limit)

    def test_dataloader(self, limit: int | None = None) -> Loader:
        """Test batches in fixed order; `limit` as in `val_dataloader`."""
        return self._eval_loader(self.splits.test, limit)

    def _eval_loader(self, source: Annotated, limit: int | None) -> Loader:
        count = len(source) if limit is None else min(limit, len(source))
        keys = [(0, number) for number in range(count)]
        batches = [keys[start : start + self.batch_size] for start in range(0, count, self.batch_size)]
        return self._loader(_Images(source, self.image_size, None, self.seed), batches)

    def _loader(self, images: _Images, batches: FitBatches | list[list[tuple[int, int]]]) -> Loader:
        return DataLoader(
            images,  # type: ignore[arg-type]  # items are collated to pairs of tensors
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_Collate(self.capacity, self.is_bgr),
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # its own: how often a loader starts is nothing that dropout may see
        )
