"""Images in a folder for each class, as of ImageNet: decoded and augmented by worker processes, never all in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from qat.data.detection_files import to_mode
from qat.data.loader import FitBatches
from qat.data.module import ImageDataModule
from qat.data.splits import stratified_split
from qat.errors import DataError
from qat.normalization import Normalization

SHORT_SIDE = 8 / 7
"""Shorter side that an image is brought to, by that of its centre that is cut out: 256 for 224.

Source: Krizhevsky et al., NIPS 2012, section 4.1, and torchvision's references/classification.
"""


class Folder(Dataset[tuple[Tensor, Tensor]]):
    """Images with one class each, by (epoch, number).

    Args:
        source: All images below a folder.
        numbers: Which of them.
    """

    def __init__(self, source: ImageFolder, numbers: NDArray[np.int64]) -> None:
        self.source = source
        self.numbers = numbers
        self.mode = "RGB"
        self.transform: v2.Transform = v2.Identity()
        self.seed = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = key
        path, label = self.source.samples[int(self.numbers[number])]
        try:
            with Image.open(path) as image:
                picture = to_mode(image, self.mode)
        except Exception as error:  # Pillow raises many kinds on damaged bytes
            raise DataError(f"image {path} cannot be read: {error}; copy the file again or remove it") from error
        # One seed for each image of each epoch: the result does not depend on the number of worker processes.
        seed = int(np.random.SeedSequence((self.seed, epoch, number)).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return v2.functional.pil_to_tensor(self.transform(picture)), torch.tensor(label)


class FolderSplits:
    """The three parts of a data set of folders.

    Args:
        fit_folder: Holds a folder for each class.
        test_folder: The same, of the final number.
        val_images: Images held out of the first for selection, each class's share of them.
        seed: Decides which.

    Raises:
        DataError: A folder is missing, holds no images, or both have different classes.
    """

    def __init__(self, fit_folder: Path, test_folder: Path, val_images: int, seed: int) -> None:
        fit, test = _read(fit_folder), _read(test_folder)
        if fit.classes != test.classes:
            differing = sorted(set(fit.classes) ^ set(test.classes))[:3]
            raise DataError(f"{fit_folder} and {test_folder} have different classes, such as {differing}")
        rest, held_out = stratified_split(np.array(fit.targets, np.int64), val_images, seed)
        self.class_names = tuple(fit.classes)
        self.fit, self.val = Folder(fit, rest), Folder(fit, held_out)
        # In random order, so that the first images are a sample of all classes.
        self.test = Folder(test, np.random.default_rng(seed).permutation(len(test)))


def _read(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{folder}: {error}; expected a folder for each class with its images, check data.root"
        ) from error


class FolderDataModule(ImageDataModule):
    """Batches of (uint8 images NCHW, int64 labels N) from files.

    Fit images are cut out at random, of any size, and perhaps mirrored; of the others the centre is cut out.

    Args:
        splits: Images to fit, to select, to test.
        normalization: Of the images; whoever feeds a network applies it.
        image_size: Rows and columns of the images that are delivered.
        horizontal_flip: Whether half of the fit images are mirrored.
        batch_size: Images per step, of all devices together.
        seed: Decides order and augmentation of fit batches.
        workers: Processes that decode and augment; 0 for none beside this one.

    Raises:
        DataError: There are fewer fit images than a batch holds.
    """

    def __init__(
        self,
        splits: FolderSplits,
        normalization: Normalization,
        image_size: tuple[int, int],
        horizontal_flip: bool,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__(splits, normalization, len(normalization.mean), batch_size, seed)
        self.splits = splits
        self.image_size = image_size
        self.workers = workers
        centre = v2.Compose([v2.Resize(round(SHORT_SIDE * max(image_size))), v2.CenterCrop(image_size)])
        crop = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(0.5 * horizontal_flip)])
        for part, transform in ((splits.fit, crop), (splits.val, centre), (splits.test, centre)):
            part.mode = "L" if len(normalization.mean) == 1 else "RGB"
            part.transform = transform
            part.seed = seed

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of an image."""
        return len(self.normalization.mean), *self.image_size

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Fit batches: a new loader starts at the first epoch again, the same for the same seed."""
        return self._loader(self.splits.fit, FitBatches(self._epoch_order()))

    def val_dataloader(self, limit: int | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """Validation batches in fixed order.

        Args:
            limit: First images to deliver, a random sample; None for all.
        """
        return self._eval_loader(self.splits.val, limit)

    def test_dataloader(self, limit: int | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """Test batches in fixed order; `limit` as in `val_dataloader`."""
        return self._eval_loader(self.splits.test, limit)

    def _eval_loader(self, part: Folder, limit: int | None) -> DataLoader[tuple[Tensor, Tensor]]:
        count = len(part) if limit is None else min(limit, len(part))
        starts = range(0, count, self.batch_size)
        return self._loader(part, [[(0, n) for n in range(s, min(s + self.batch_size, count))] for s in starts])

    def _loader(
        self, part: Folder, batches: FitBatches | list[list[tuple[int, int]]]
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            part,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # its own: how often a loader starts is nothing that dropout may see
        )
