"""Handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from qat.data.splits import ImageSet, Splits, stratified_split

LEVEL = 15
"""A level of 0..16 is stored as `LEVEL * level`: 0..240."""


def digits(val_images: int, test_images: int, split_seed: int) -> Splits:
    """1797 grey images of 8x8 pixels in 10 classes.

    Args:
        val_images: Images that select.
        test_images: Images of the final number.
        split_seed: Decides which; the test images do not depend on `val_images`.

    Raises:
        DataError: There are not that many images.

    Source: UCI "Optical Recognition of Handwritten Digits", test part, as packed in scikit-learn.
    """
    bunch = load_digits()
    images = (bunch.images * LEVEL).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    rest, test = stratified_split(labels, test_images, split_seed)
    fit, val = stratified_split(labels[rest], val_images, split_seed)
    fit_set, val_set, test_set = (
        ImageSet.from_numpy(images[index], labels[index]) for index in (rest[fit], rest[val], test)
    )
    return Splits(fit_set, val_set, test_set, tuple(str(name) for name in bunch.target_names))
