"""Small networks and images for the tests of `qat`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.normalization import Normalization

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class EveryOp(nn.Module):
    """Convolutions of every kind, add, concat, both poolings, upsampling, subsampling: each op once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.dilated_bn = nn.BatchNorm2d(8, eps=1e-3)
        self.down = nn.Conv2d(16, 12, (3, 1), (2, 2), (1, 0))
        self.up = nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(24, 16, 1)
        self.average = nn.AvgPool2d(2)
        self.linear = nn.Linear(16 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem_bn(self.stem(x))))
        y = F.relu(self.depthwise(x))
        z = self.dilated_bn(self.dilated(y)) + x
        x = torch.cat([F.relu(z), y], 1)
        a = F.relu(self.down(x))
        x = torch.cat([self.up(a), self.up(a)], 1)
        x = F.relu(self.head(x))
        return self.linear(torch.flatten(self.average(self.average(x)), 1))


class Residual(nn.Module):
    """A stem, one block with an option-A shortcut, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 10, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(10, 10, 3, padding=1)
        self.linear = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        y = self.conv2(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives batch norms statistics and gains of both signs, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            with torch.no_grad():
                module.weight.copy_(torch.randn(shape, generator=generator))
                module.bias.copy_(torch.randn(shape, generator=generator) * 0.3)
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.2)  # type: ignore[union-attr]
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.3)  # type: ignore[union-attr]
    return model.eval()


def images(count: int = 16, size: int = 16, seed: int = 0, channels: int = 3) -> Tensor:
    """uint8 images (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
