"""Lightning data modules: what all have in common, and the one of image classification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from typing import Protocol

import pytorch_lightning as pl
from torch import Tensor

from qat.data.augmentation import Augmentation
from qat.data.loader import EpochOrder, EvalLoader, FitLoader
from qat.data.splits import Splits
from qat.errors import DataError
from qat.normalization import Normalization


class Parts(Protocol):
    """The three parts of a data set."""

    @property
    def fit(self) -> Sized:
        """Images that are trained on."""

    @property
    def val(self) -> Sized:
        """Images that select."""

    @property
    def test(self) -> Sized:
        """Images of the final number."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""


class Batches(Protocol):
    """Batches of (uint8 images NCHW, targets N...)."""

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches."""


class ImageDataModule(pl.LightningDataModule, ABC):
    """Batches of (uint8 images NCHW, targets N...).

    Args:
        splits: Images to fit, to select, to test.
        normalization: Of the images; whoever feeds a network applies it.
        channels: Channels of the images.
        batch_size: Images per step, of all devices together.
        seed: Decides order and augmentation of fit batches.

    Raises:
        DataError: The channels of images and normalization differ, or there are fewer fit images than a batch holds.
    """

    def __init__(self, splits: Parts, normalization: Normalization, channels: int, batch_size: int, seed: int) -> None:
        super().__init__()
        if channels != len(normalization.mean):
            raise DataError(f"images have {channels} channels, normalization has {len(normalization.mean)}")
        if batch_size > len(splits.fit):
            raise DataError(f"data.batch_size={batch_size}, expected at most the {len(splits.fit)} fit images")
        self._parts = splits
        self.normalization = normalization
        self.batch_size = batch_size
        self.seed = seed

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of an image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self._parts.class_names

    @property
    def fit_images(self) -> int:
        """Number of images that are trained on."""
        return len(self._parts.fit)

    @property
    def val_images(self) -> int:
        """Number of images that select."""
        return len(self._parts.val)

    @property
    def test_images(self) -> int:
        """Number of images of the final number."""
        return len(self._parts.test)

    @abstractmethod
    def train_dataloader(self) -> Batches:
        """Fit batches: a new loader starts at the first epoch again, the same for the same seed."""

    @abstractmethod
    def val_dataloader(self, limit: int | None = None) -> Batches:
        """Validation batches in fixed order.

        Args:
            limit: First images to deliver, a random sample; None for all.
        """

    @abstractmethod
    def test_dataloader(self, limit: int | None = None) -> Batches:
        """Test batches in fixed order; `limit` as in `val_dataloader`."""

    def predict_dataloader(self) -> Batches:
        """The test batches, in the same order."""
        return self.test_dataloader()

    def _epoch_order(self) -> EpochOrder:
        """Order of the fit images, this device's part of it."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochOrder(self.fit_images, self.batch_size, self.seed, rank, world_size)


class LabelDataModule(ImageDataModule):
    """Batches of (uint8 images NCHW, int64 labels N) from images in memory.

    Args:
        splits: Images to fit, to select, to test.
        normalization: Of the images; whoever feeds a network applies it.
        augmentation: Of fit batches.
        batch_size: Images per step, of all devices together.
        seed: Decides order and augmentation of fit batches.

    Raises:
        DataError: The channels of images and normalization differ, or there are fewer fit images than a batch holds.
    """

    def __init__(
        self, splits: Splits, normalization: Normalization, augmentation: Augmentation, batch_size: int, seed: int
    ) -> None:
        super().__init__(splits, normalization, splits.fit.images_NCHW.shape[1], batch_size, seed)
        self.splits = splits
        self.augmentation = augmentation

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of an image."""
        channels, rows, columns = self.splits.fit.images_NCHW.shape[1:]
        return channels, rows, columns

    def train_dataloader(self) -> FitLoader:
        """Fit batches: a new loader starts at the first epoch again, the same for the same seed."""
        return FitLoader(self.splits.fit, self._epoch_order(), self.augmentation)

    def val_dataloader(self, limit: int | None = None) -> EvalLoader:
        """Validation batches in fixed order.

        Args:
            limit: First images to deliver, a random sample of all classes; None for all.
        """
        return EvalLoader(self.splits.val, self.batch_size, limit)

    def test_dataloader(self, limit: int | None = None) -> EvalLoader:
        """Test batches in fixed order; `limit` as in `val_dataloader`."""
        return EvalLoader(self.splits.test, self.batch_size, limit)
