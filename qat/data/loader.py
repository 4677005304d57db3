"""Order of batches; batches from images that lie in memory: indexed as a whole, without worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qat.data.augmentation import Augmentation
from qat.data.splits import ImageSet


class EpochOrder:
    """Random order of the images of an epoch, cut into batches; a pure function of seed and epoch.

    With several devices each takes its own part of every batch.

    Args:
        images: Number of images.
        batch_size: Images per step, of all devices together; at most `images`.  The last, shorter batch is left out.
        seed: Decides the order.
        rank: Which device this is, 0..world_size-1.
        world_size: Number of devices.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.images = images
        self.batch_size = min(batch_size, images) // world_size * world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; Lightning calls it, also when a fit goes on from a checkpoint."""
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        """Randomness of this epoch, apart for each device."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 1_009 + self.rank)

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        shared = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.images, generator=shared)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size][self.rank :: self.world_size]


class FitBatches:
    """Batches of (epoch, number) in random order, for loaders with worker processes.

    Args:
        sampler: Order of the images.  Lightning finds it by this name and tells it the epoch.
    """

    def __init__(self, sampler: EpochOrder) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index in self.sampler:
            yield [(self.sampler.epoch, number) for number in index.tolist()]


class FitLoader:
    """Augmented batches in random order.

    Args:
        images: What is trained on.
        sampler: Order of the images.  Lightning finds it by this name and tells it the epoch.
        augmentation: Applied to each batch.
    """

    def __init__(self, images: ImageSet, sampler: EpochOrder, augmentation: Augmentation) -> None:
        self.images = images
        self.sampler = sampler
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = self.sampler.generator()
        for index in self.sampler:
            images_NCHW, labels = self.images[index]
            yield self.augmentation(images_NCHW, generator), labels


class EvalLoader:
    """Batches in fixed order, as they are.

    Args:
        images: What is evaluated.
        batch_size: Images per batch; the last one may be shorter.
        limit: First images to deliver; None for all.
    """

    def __init__(self, images: ImageSet, batch_size: int, limit: int | None = None) -> None:
        self.images = images
        self.batch_size = batch_size
        self.count = len(images) if limit is None else min(limit, len(images))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.count, self.batch_size):
            yield self.images[slice(start, min(start + self.batch_size, self.count))]
