"""What turns 8-bit images into the input of a network; the same in training and in export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.errors import ConfigError


@dataclass(frozen=True)
class Normalization:
    """(level / 255 - mean) / std, per channel.

    Args:
        mean: Mean of each channel, in units of the full 8-bit range.
        std: Standard deviation of each channel, > 0, same units.

    Raises:
        ConfigError: The lengths differ or a deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"normalization: mean={self.mean} and std={self.std} must have one value per channel")
        if any(not value > 0 for value in self.std):
            raise ConfigError(f"normalization: std={self.std}, expected values > 0")

    @classmethod
    def unit(cls, channels: int) -> Normalization:
        """Division by 255 and nothing else."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """float32 images of uint8 images (N, C, H, W), on their device."""
        mean = torch.tensor(self.mean, device=images_NCHW.device)[:, None, None]
        std = torch.tensor(self.std, device=images_NCHW.device)[:, None, None]
        return (images_NCHW.float() / 255 - mean) / std
