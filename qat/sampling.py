"""Samples of large tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_places(size: int, count: int) -> Tensor:
    """Places of a sample, one at random in each of equal parts of a tensor: the same for the same arguments.

    Places at equal distances would not do: where the distance is a multiple of a feature map's width, they are one
    column of it, mostly its padded border.

    Args:
        size: Elements to draw from, >= 1.
        count: Elements of the sample at least, >= 1, or all if there are fewer.

    Returns:
        Shape (n,), int64, ascending, on the CPU: less than twice `count`.
    """
    part = max(1, size // count)
    first = torch.arange(0, size - part + 1, part)
    return first + torch.randint(part, first.shape, generator=torch.Generator().manual_seed(0))
