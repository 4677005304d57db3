"""Images in a folder for each class: sizes, splits, the same batches for the same seed, refusals."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qat.compose import compose_config
from qat.config import Config
from qat.data import FolderDataModule, build_data
from qat.errors import ConfigError, DataError
from qat.tasks import Classification, Recipe, TrainingTask, evaluate, fit
from qat.tasks.fit import Machine

CLASSES = ("cat", "dog", "newt")


def write_folder(root: Path, fit_images: int = 8, test_images: int = 4, classes: tuple[str, ...] = CLASSES) -> None:
    """Images of 60x40, a brightness for each class."""
    for part, count in (("train", fit_images), ("val", test_images)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((40, 60, 3), 50 + 60 * label + number, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


def settings(root: Path, *overrides: str) -> Config:
    sizes = ["data.folder.image_size=[32,32]", "network.input_shape=[3,32,32]", "data.folder.workers=0"]
    counts = ["data.batch_size=6", "data.val_images=6", "network.num_classes=3"]
    return compose_config(["network=squeezenet1_1", "data=imagenet", f"data.root={root}", *sizes, *counts, *overrides])


def module(root: Path, *overrides: str) -> FolderDataModule:
    data = build_data(settings(root, *overrides).data, seed=0)
    assert isinstance(data, FolderDataModule)
    return data


def test_parts(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = module(tmp_path)
    assert (data.fit_images, data.val_images, data.test_images) == (18, 6, 12)
    assert data.input_shape == (3, 32, 32) and data.class_names == CLASSES
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal((images[:, 0, 16, 16].long() - 50) // 60, labels)
    val = torch.cat([labels for _, labels in data.val_dataloader()])
    assert torch.bincount(val).tolist() == [2, 2, 2]
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in data.test_dataloader()])
    assert sorted(seen.tolist()) == [50 + 60 * label + number for label in range(3) for number in range(4)]
    assert sum(len(labels) for _, labels in data.test_dataloader(limit=7)) == 7


def test_grey_images_where_the_network_takes_them(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = module(tmp_path, "network.input_shape=[1,32,32]", "data.mean=[0.5]", "data.std=[0.5]")
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape == (6, 1, 32, 32)


def test_batches_depend_on_seed_and_epoch_only(tmp_path: Path) -> None:
    write_folder(tmp_path)
    rng = np.random.default_rng(0)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)

    def epoch(workers: int, number: int) -> torch.Tensor:
        loader = module(tmp_path, f"data.folder.workers={workers}").train_dataloader()
        loader.batch_sampler.sampler.set_epoch(number)
        return torch.cat([images for images, _ in loader])

    alone = epoch(0, 1)
    torch.manual_seed(99)
    assert torch.equal(epoch(2, 1), alone)
    assert not torch.equal(epoch(0, 2), alone)


def test_a_loader_draws_nothing_that_a_network_would(tmp_path: Path) -> None:
    """How often loaders start differs between a fit in one go and one that was interrupted."""
    write_folder(tmp_path)
    data, before = module(tmp_path), torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_is_trained_on_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = module(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    task = TrainingTask(model, data.normalization, Recipe(epochs=20, learning_rate=0.03), Classification())
    fit(task, data, Machine(accelerator="cpu", progress_bar=False))
    assert evaluate(model, data.test_dataloader(), data.normalization, Classification())["accuracy"] > 0.9


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder for each class with its images, check data.root"):
        module(tmp_path)
    write_folder(tmp_path)
    with pytest.raises(DataError, match="data.batch_size=19, expected at most the 18 fit images"):
        module(tmp_path, "data.batch_size=19")
    (tmp_path / "val" / "newt").rename(tmp_path / "val" / "toad")
    with pytest.raises(DataError, match=r"have different classes, such as \['newt', 'toad'\]"):
        module(tmp_path)
    with pytest.raises(ConfigError, match=r"data.folder.image_size=\[32, 32\], expected \[64, 64\]"):
        settings(tmp_path, "network.input_shape=[3,64,64]")
    with pytest.raises(ConfigError, match=r"data.crop_padding=4, expected 0: a folder's images are cut at random"):
        settings(tmp_path, "data.crop_padding=4")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png cannot be read: .*; copy the file again or remove it"):
        list(module(tmp_path).test_dataloader())


def test_a_file_that_pillow_refuses_otherwise_is_named(tmp_path: Path) -> None:
    """Damage inside of a PNG raises SyntaxError, an image far too large DecompressionBombError."""
    write_folder(tmp_path)
    path = tmp_path / "val" / "cat" / "0.png"
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"0.png cannot be read: .* exceeds limit"):
        list(module(tmp_path).test_dataloader())


def test_grey_images_of_16_bits_do_not_become_white(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=("cat", "dog"))
    for path in (tmp_path / "val").rglob("*.png"):
        Image.fromarray(np.full((40, 60), 77 << 8, np.uint16)).save(path)
    data = module(tmp_path, "network.num_classes=2")
    assert {int(value) for images, _ in data.test_dataloader() for value in images.unique()} == {77}
