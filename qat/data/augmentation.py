"""Random shifts and mirror images of whole batches.

Axes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop of the padded image, then a mirror image of every second one.

    Args:
        crop_padding: Black pixels that are added on each side before the crop, >= 0.
        horizontal_flip: Whether half of the images are mirrored.
    """

    crop_padding: int
    horizontal_flip: bool

    def __call__(self, images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copies of uint8 images.

        Args:
            images_NCHW: uint8 images; not changed.
            generator: Decides; the same state gives the same images.

        Returns:
            uint8 images of the same shape.
        """
        count, _, rows, columns = images_NCHW.shape
        span = 2 * self.crop_padding + 1
        row_NH = torch.arange(rows) + torch.randint(span, (count, 1), generator=generator)
        column_NW = torch.arange(columns) + torch.randint(span, (count, 1), generator=generator)
        if self.horizontal_flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            column_NW = torch.where(mirrored, column_NW.flip(1), column_NW)
        padded = F.pad(images_NCHW, (self.crop_padding,) * 4)
        # Indexing with (N,1,1), (N,H,1) and (N,1,W) around a slice puts the channels last.
        picked_NHWC = padded[torch.arange(count)[:, None, None], :, row_NH[:, :, None], column_NW[:, None, :]]
        return picked_NHWC.permute(0, 3, 1, 2).contiguous()
