"""Which images are trained on, which select, which give the final number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qat.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    Args:
        images_NCHW: uint8 images.
        labels: int64 classes, shape (N,).

    Raises:
        DataError: Types or lengths do not fit.
    """

    images_NCHW: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images_NCHW, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise DataError(f"images are {images.dtype} of shape {tuple(images.shape)}, expected uint8 (N, C, H, W)")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 ({len(images)},)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """A batch: images and labels at `index`."""
        return self.images_NCHW[index], self.labels[index]

    @classmethod
    def from_numpy(cls, images_NHWC: NDArray[np.uint8], labels: NDArray[np.generic]) -> ImageSet:
        """From channels-last images, as files hold them."""
        images = torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))
        return cls(images, torch.from_numpy(labels.astype(np.int64)))


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set.

    Args:
        fit: Images that are trained on.
        val: Images that select: trials, winners.
        test: Images of the final number only.
        class_names: Names of the classes, in the order of the labels.
    """

    fit: ImageSet
    val: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]


def stratified_split(labels: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits off `count` images with the classes' shares kept to within one image.

    Args:
        labels: Class of each image, shape (N,).
        count: Images to split off, 1..N-1.
        seed: Decides which.

    Returns:
        Indices of the rest and of the images split off; together 0..N-1.  Those split off are in random order, so
        that any first part of them is a sample; the rest is ascending.

    Raises:
        DataError: `count` is out of range.
    """
    total = len(labels)
    if not 1 <= count < total:
        raise DataError(f"cannot hold out {count} of {total} images, expected 1..{total - 1}; check data.val_images")
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / total)
    taken = np.floor(exact).astype(np.int64)
    # Largest remainders get the images that rounding down left over.
    for position in np.argsort(-(exact - taken), kind="stable")[: count - int(taken.sum())]:
        taken[position] += 1
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels == label))[:number]
            for label, number in zip(classes, taken, strict=True)
        ]
    )
    rest = np.setdiff1d(np.arange(total), chosen, assume_unique=True)
    return rest, rng.permutation(chosen)
