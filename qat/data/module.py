"""The Lightning data module of every image classification data set."""

from __future__ import annotations

import pytorch_lightning as pl

from qat.data.augmentation import Augmentation
from qat.data.loader import EpochOrder, EvalLoader, FitLoader
from qat.data.splits import Splits
from qat.errors import DataError
from qat.normalization import Normalization


class ImageDataModule(pl.LightningDataModule):
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
        super().__init__()
        channels = splits.fit.images_NCHW.shape[1]
        if channels != len(normalization.mean):
            raise DataError(f"images have {channels} channels, normalization has {len(normalization.mean)}")
        if batch_size > len(splits.fit):
            raise DataError(f"data.batch_size={batch_size}, expected at most the {len(splits.fit)} fit images")
        self.splits = splits
        self.normalization = normalization
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.seed = seed

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of an image."""
        channels, rows, columns = self.splits.fit.images_NCHW.shape[1:]
        return channels, rows, columns

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.splits.class_names

    @property
    def fit_images(self) -> int:
        """Number of images that are trained on."""
        return len(self.splits.fit)

    @property
    def val_images(self) -> int:
        """Number of images that select."""
        return len(self.splits.val)

    @property
    def test_images(self) -> int:
        """Number of images of the final number."""
        return len(self.splits.test)

    def train_dataloader(self) -> FitLoader:
        """Fit batches: a new loader starts at the first epoch again, the same for the same seed."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        order = EpochOrder(self.fit_images, self.batch_size, self.seed, rank, world_size)
        return FitLoader(self.splits.fit, order, self.augmentation)

    def val_dataloader(self, limit: int | None = None) -> EvalLoader:
        """Validation batches in fixed order.

        Args:
            limit: First images to deliver, a random sample of all classes; None for all.
        """
        return EvalLoader(self.splits.val, self.batch_size, limit)

    def test_dataloader(self, limit: int | None = None) -> EvalLoader:
        """Test batches in fixed order; `limit` as in `val_dataloader`."""
        return EvalLoader(self.splits.test, self.batch_size, limit)

    def predict_dataloader(self) -> EvalLoader:
        """The test batches, in the same order."""
        return self.test_dataloader()
