"""A set of images that small networks learn in seconds, and one of these networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from qat.tasks import Classification
from qat.tasks.fit import Machine

OBJECTIVE = Classification()
CPU = Machine(accelerator="cpu", progress_bar=False)


class Batches:
    """An iterable of batches; Lightning would take a list for several loaders."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Stripes(pl.LightningDataModule):
    """Four classes that a small network learns in a few steps: the bright quarter of the image."""

    def __init__(self, count: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 4, (count,), generator=generator)
        self.images = torch.randint(0, 80, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        for index, label in enumerate(self.labels.tolist()):
            row, column = divmod(label, 2)
            self.images[index, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100

    def _batches(self) -> Batches:
        return Batches(list(zip(self.images.split(32), self.labels.split(32), strict=True)))

    def train_dataloader(self) -> Batches:
        return self._batches()

    def val_dataloader(self) -> Batches:
        return self._batches()


class Quarters(nn.Module):
    """Tells the quarters apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(torch.flatten(x, 1))
