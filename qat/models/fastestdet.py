"""FastestDet: a detector of 244,490 parameters for COCO, 352x352, one box per cell of a 22x22 map.

Parameter names equal those of the published checkpoint.  It reads colour images in the order blue, green, red.

Source: github.com/dog-qiuqiu/FastestDet, README and the names and shapes in its checkpoint; the backbone is
ShuffleNetV2 (Ma et al., arXiv 1807.11164, figure 3 c and d).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.models.heads import FastestHead

STAGES = ((4, 48), (8, 96), (4, 192))
"""Blocks and channels of the stages."""

WIDTH = 96
"""Channels of neck and head."""


def _conv_norm(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class ShuffleBlock(nn.Module):
    """A block of ShuffleNetV2: half of the channels pass, the other half is convolved; or all are halved in size.

    Args:
        in_channels: Channels of the ifm.
        channels: Channels of the ofm; equal to `in_channels` with stride 1.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        convolved = in_channels if stride == 2 else in_channels // 2
        self.branch_main = nn.Sequential(
            *_conv_norm(convolved, half, 1),
            nn.ReLU(),
            *_conv_norm(half, half, 3, stride, groups=half),
            *_conv_norm(half, channels - convolved, 1),
            nn.ReLU(),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *_conv_norm(in_channels, in_channels, 3, 2, groups=in_channels),
                *_conv_norm(in_channels, in_channels, 1),
                nn.ReLU(),
            )
        else:
            # Groups of two channels: all even channels first, then all odd ones.
            self.shuffle = nn.ChannelShuffle(in_channels // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, channels, H/stride, W/stride)."""
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        passed, convolved = self.shuffle(x).chunk(2, 1)
        return torch.cat((passed, self.branch_main(convolved)), 1)


class Backbone(nn.Module):
    """ShuffleNetV2 with three results."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*_conv_norm(3, 24, 3, 2), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = (
            self._stage(before, channels, blocks)
            for before, (blocks, channels) in zip((24, STAGES[0][1], STAGES[1][1]), STAGES, strict=True)
        )

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
        rest = (ShuffleBlock(channels, channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(ShuffleBlock(in_channels, channels, 2), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at 1/8, 1/16 and 1/32 of the image's size."""
        fine = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


class _Conv1x1(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*_conv_norm(in_channels, channels, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv1x1(x)
        return result


class Pyramid(nn.Module):
    """Three chains of depthwise convolutions, of one, two and three, side by side, and a shortcut around them."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.Conv1x1 = _Conv1x1(in_channels, channels)
        self.S1, self.S2, self.S3 = (self._chain(channels, length) for length in (1, 2, 3))
        self.output = nn.Sequential(*_conv_norm(3 * channels, channels, 1))

    @staticmethod
    def _chain(channels: int, length: int) -> nn.Sequential:
        links = ([*_conv_norm(channels, channels, 5, groups=channels), nn.ReLU()] for _ in range(length))
        return nn.Sequential(*(module for link in links for module in link))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, channels, H, W)."""
        x = self.Conv1x1(x)
        joined = torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1)
        return F.relu(x + self.output(joined))


class _Branch(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        depthwise = [*_conv_norm(channels, channels, 5, groups=channels), nn.ReLU()]
        self.conv5x5 = nn.Sequential(*depthwise, *_conv_norm(channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv5x5(x)
        return result


class DetectHead(nn.Module):
    """Objectness, box and classes of each cell."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1x1 = _Conv1x1(channels, channels)
        self.obj_layers = _Branch(channels, 1)
        self.reg_layers = _Branch(channels, 4)
        self.cls_layers = _Branch(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1 + 4 + classes, H, W) without sigmoid and softmax, which are `FastestHead`'s."""
        x = self.conv1x1(x)
        return torch.cat((self.obj_layers(x), self.reg_layers(x), self.cls_layers(x)), 1)


class FastestDet(nn.Module):
    """FastestDet for images whose sides are multiples of 32.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.SPP = Pyramid(sum(channels for _, channels in STAGES), WIDTH)
        self.detect_head = DetectHead(WIDTH, num_classes)
        self.heads = (FastestHead(16, num_classes),)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1 + 4 + classes, H/16, W/16): objectness, box, classes.

        Args:
            x: Images (N, 3, H, W) in 0..1, channels blue, green, red.
        """
        fine, middle, coarse = self.backbone(x)
        joined = torch.cat((self.avg_pool(fine), middle, self.upsample(coarse)), 1)
        result: Tensor = self.detect_head(self.SPP(joined))
        return result


def fastestdet(num_classes: int = 80) -> FastestDet:
    """FastestDet: 244,490 parameters with 80 classes."""
    return FastestDet(num_classes)
