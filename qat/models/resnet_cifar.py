"""ResNets for small images.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: 6n+2 layers, widths
16/32/64, option-A shortcuts (subsampling and zero-padded channels, no weights).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: Channels of the ifm.
        channels: Channels of the ofm, >= in_channels, even difference.
        stride: 1, or 2 to halve the map.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, channels, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.extra_channels:
            half = self.extra_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class ResNetCifar(nn.Module):
    """A residual network of three stages.

    Parameter names equal those of the published CIFAR-10 checkpoints (`conv1`, `layer1.0.conv1`, ..., `linear`).

    Args:
        blocks: Blocks per stage, n of 6n+2.
        widths: Channels of the three stages.
        in_channels: Channels of the image.
        num_classes: Number of logits.
    """

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, 1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, 2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, 2)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def resnet20(num_classes: int = 10) -> ResNetCifar:
    """ResNet-20 for 32x32 colour images: 269,722 parameters with 10 classes."""
    return ResNetCifar(3, num_classes=num_classes)


def resnet56(num_classes: int = 10) -> ResNetCifar:
    """ResNet-56 for 32x32 colour images: 853,018 parameters with 10 classes."""
    return ResNetCifar(9, num_classes=num_classes)


def digits_resnet(num_classes: int = 10) -> ResNetCifar:
    """A small residual network for 8x8 grey images, widths 16/32/64, one block per stage."""
    return ResNetCifar(1, in_channels=1, num_classes=num_classes)
