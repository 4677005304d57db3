"""From settings to a data module."""

from __future__ import annotations

from pathlib import Path

from qat.config import DataSettings
from qat.data.augmentation import Augmentation
from qat.data.cifar10 import from_archive, from_torchvision, has_archive
from qat.data.detection_build import build_detection
from qat.data.digits import digits
from qat.data.folder import FolderDataModule, FolderSplits
from qat.data.module import ImageDataModule, LabelDataModule
from qat.data.splits import Splits
from qat.image_settings import FolderSettings
from qat.inputs import check_root
from qat.normalization import Normalization


def build_data(settings: DataSettings, seed: int) -> ImageDataModule:
    """Reads the images and delivers them in batches.

    Args:
        settings: Which images, and how.
        seed: Decides order and augmentation of fit batches; the split has a seed of its own.

    Raises:
        DataError: Images are missing or damaged, or too few.
    """
    check_root(settings)
    if settings.detection is not None:
        return build_detection(settings, settings.detection, seed)
    if settings.folder is not None:
        return _build_folder(settings, settings.folder, seed)
    normalization = Normalization(tuple(settings.mean), tuple(settings.std))
    augmentation = Augmentation(settings.crop_padding, settings.horizontal_flip)
    return LabelDataModule(_splits(settings), normalization, augmentation, settings.batch_size, seed)


def _build_folder(settings: DataSettings, folder: FolderSettings, seed: int) -> FolderDataModule:
    root = Path(settings.root or ".")
    rows, columns = folder.image_size
    return FolderDataModule(
        FolderSplits(root / "train", root / "val", settings.val_images, settings.split_seed),
        Normalization(tuple(settings.mean), tuple(settings.std)),
        (rows, columns),
        settings.horizontal_flip,
        settings.batch_size,
        seed,
        folder.workers,
    )


def _splits(settings: DataSettings) -> Splits:
    if settings.name == "digits":
        return digits(settings.val_images, settings.test_images or 0, settings.split_seed)
    root = Path(settings.root or ".")
    if settings.source == "archive" or (settings.source == "auto" and has_archive(root)):
        return from_archive(root, settings.val_images, settings.split_seed)
    return from_torchvision(root, settings.val_images, settings.split_seed, settings.download)
