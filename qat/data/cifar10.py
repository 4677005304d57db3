"""CIFAR-10, from archive files or by torchvision.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from qat.data.archives import read_archive
from qat.data.splits import ImageSet, Splits, stratified_split
from qat.errors import DataError

TRAIN_ARCHIVE = "cifar10_train45k.npz"
TEST_ARCHIVE = "cifar10_test500.npz"


def has_archive(root: Path) -> bool:
    """Whether a folder holds one of the archive files at least."""
    return (root / TRAIN_ARCHIVE).is_file() or (root / TEST_ARCHIVE).is_file()


def from_archive(root: Path, val_images: int, split_seed: int) -> Splits:
    """Of the first 45,000 training images some are held out for selection; the first 500 test images are the test.

    Args:
        root: Folder of both archive files.
        val_images: Images that select.
        split_seed: Decides which.

    Raises:
        DataError: A file is missing or damaged.
    """
    train, test = read_archive(root / TRAIN_ARCHIVE), read_archive(root / TEST_ARCHIVE)
    test_set = ImageSet.from_numpy(test.images_NHWC, test.labels)
    fit_set, val_set = _hold_out(train.images_NHWC, train.labels, val_images, split_seed)
    return Splits(fit_set, val_set, test_set, train.class_names)


def from_torchvision(root: Path, val_images: int, split_seed: int, download: bool) -> Splits:
    """Of the 50,000 training images some are held out for selection; all 10,000 test images are the test.

    Args:
        root: Folder that holds, or receives, `cifar-10-batches-py`.
        val_images: Images that select.
        split_seed: Decides which.
        download: Whether what is missing may be downloaded.

    Raises:
        DataError: The files are missing or damaged, or could not be downloaded.
    """
    try:
        train, test = (CIFAR10(str(root), train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:  # torchvision's word for missing or damaged; network and disk errors
        remedy = " and the connection" if download else ", set data.download=true"
        raise DataError(
            f"CIFAR-10 below {root}: {error}; check data.root{remedy}, or remove a damaged file so that it is "
            "downloaded again"
        ) from error
    fit_set, val_set = _hold_out(train.data, np.asarray(train.targets, np.int64), val_images, split_seed)
    test_set = ImageSet.from_numpy(test.data, np.asarray(test.targets, np.int64))
    return Splits(fit_set, val_set, test_set, tuple(train.classes))


def _hold_out(
    images_NHWC: np.ndarray, labels: np.ndarray, val_images: int, split_seed: int
) -> tuple[ImageSet, ImageSet]:
    fit, val = stratified_split(labels, val_images, split_seed)
    return ImageSet.from_numpy(images_NHWC[fit], labels[fit]), ImageSet.from_numpy(images_NHWC[val], labels[val])
