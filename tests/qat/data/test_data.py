from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from qat.compose import compose_config
from qat.config import DataSettings
from qat.data import Augmentation, ImageSet, LabelDataModule, Splits, build_data
from qat.data.archives import read_archive
from qat.data.cifar10 import TEST_ARCHIVE, TRAIN_ARCHIVE, from_archive, from_torchvision
from qat.data.loader import EpochOrder
from qat.data.splits import stratified_split
from qat.errors import DataError
from qat.normalization import Normalization

CLASSES = ("cat", "dog", "ship")


def write_archive(path: Path, count: int, seed: int = 0, columns: int = 7, **replaced: np.ndarray) -> np.ndarray:
    """An archive of random 4x4 images in two mosaics, the last one with unused places."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    entries: dict[str, np.ndarray] = {}
    first = 2 * columns
    for number, part in enumerate((images[:first], images[first:])):
        rows = -(-len(part) // columns)
        grid = np.zeros((rows * columns, 4, 4, 3), np.uint8)
        grid[: len(part)] = part
        mosaic = grid.reshape(rows, columns, 4, 4, 3).swapaxes(1, 2).reshape(rows * 4, columns * 4, 3)
        buffer = io.BytesIO()
        Image.fromarray(mosaic).save(buffer, "WEBP", lossless=True)
        entries[f"webp_{number:02d}"] = np.frombuffer(buffer.getvalue(), np.uint8)
    entries["shape"] = np.array(images.shape)
    entries["labels"] = (np.arange(count) % 3).astype(np.uint8)
    entries["classes"] = np.array(CLASSES)
    entries["sha256"] = np.array(hashlib.sha256(images.tobytes()).hexdigest())
    np.savez(path, **(entries | replaced))
    return images


def small_module(batch_size: int = 8, seed: int = 0) -> LabelDataModule:
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 4, 4).contiguous()
    labels = torch.arange(50) % 5
    parts = [ImageSet(images[a:b], labels[a:b]) for a, b in ((0, 30), (30, 42), (42, 50))]
    splits = Splits(parts[0], parts[1], parts[2], tuple("abcde"))
    return LabelDataModule(splits, Normalization.unit(1), Augmentation(0, False), batch_size, seed)


class TestArchive:
    def test_images_come_back_bit_exact(self, tmp_path: Path) -> None:
        images = write_archive(tmp_path / "a.npz", 23)
        archive = read_archive(tmp_path / "a.npz")
        np.testing.assert_array_equal(archive.images_NHWC, images)
        assert archive.labels.dtype == np.int64
        assert archive.labels.tolist() == [i % 3 for i in range(23)]
        assert archive.class_names == CLASSES

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data archive .*a.npz does not exist; check data.root, or .*torchvision"):
            read_archive(tmp_path / "a.npz")

    def test_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        write_archive(path, 23)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"a.npz is damaged \(BadZipFile: .*copy the file again"):
            read_archive(path)

    def test_one_flipped_byte(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        write_archive(path, 23)
        data = bytearray(path.read_bytes())
        data[300] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a.npz is damaged"):
            read_archive(path)

    def test_other_images_than_packed(self, tmp_path: Path) -> None:
        write_archive(tmp_path / "a.npz", 23, sha256=np.array("0" * 64))
        with pytest.raises(DataError, match=r"is damaged: SHA-256 of its images is .*expected 000000000000"):
            read_archive(tmp_path / "a.npz")

    @pytest.mark.parametrize("labels", [np.arange(22) % 3, np.full(23, 3), np.full(23, -1)])
    def test_labels_that_do_not_fit(self, tmp_path: Path, labels: np.ndarray) -> None:
        write_archive(tmp_path / "a.npz", 23, labels=labels)
        with pytest.raises(DataError, match=r"is damaged: expected a label of 0..2 for each of its 23 images"):
            read_archive(tmp_path / "a.npz")

    def test_pickled_content_is_not_loaded(self, tmp_path: Path) -> None:
        write_archive(tmp_path / "a.npz", 23, labels=np.array([{"a": 1}], dtype=object))
        with pytest.raises(DataError, match="allow_pickle"):
            read_archive(tmp_path / "a.npz")


class TestSplit:
    @given(
        st.lists(st.integers(0, 4), min_size=2, max_size=200),
        st.floats(0.01, 0.99),
        st.integers(0, 2**31),
    )
    def test_parts_are_a_partition_and_keep_the_shares(self, labels: list[int], share: float, seed: int) -> None:
        array = np.array(labels, np.int64)
        count = min(max(1, int(share * len(array))), len(array) - 1)
        rest, chosen = stratified_split(array, count, seed)
        assert len(chosen) == count
        assert sorted([*rest, *chosen]) == list(range(len(array)))
        for label in set(labels):
            exact = count * labels.count(label) / len(labels)
            assert abs(int((array[chosen] == label).sum()) - exact) < 1

    def test_seed_decides(self) -> None:
        labels = np.arange(100, dtype=np.int64) % 10
        np.testing.assert_array_equal(stratified_split(labels, 30, 1)[1], stratified_split(labels, 30, 1)[1])
        assert set(stratified_split(labels, 30, 1)[1]) != set(stratified_split(labels, 30, 2)[1])

    @pytest.mark.parametrize("count", [0, 10, 11])
    def test_too_few_or_too_many(self, count: int) -> None:
        with pytest.raises(DataError, match=rf"cannot hold out {count} of 10 images, expected 1..9"):
            stratified_split(np.zeros(10, np.int64), count, 0)


class TestImageSet:
    def test_types_and_lengths_are_checked(self) -> None:
        with pytest.raises(DataError, match=r"images are torch.float32 of shape \(2, 1, 4, 4\), expected uint8"):
            ImageSet(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(DataError, match=r"labels are torch.int64 of shape \(3,\), expected int64 \(2,\)"):
            ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


class TestAugmentation:
    @given(st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
    @settings(max_examples=30)
    def test_each_image_is_a_crop_of_the_padded_original(self, padding: int, flip: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (6, 2, 5, 7), dtype=torch.uint8, generator=generator)
        before = images.clone()
        out = Augmentation(padding, flip)(images, generator)
        assert out.dtype == torch.uint8
        assert torch.equal(images, before)
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        for index in range(6):
            crops = [
                padded[index, :, top : top + 5, left : left + 7]
                for top in range(2 * padding + 1)
                for left in range(2 * padding + 1)
            ]
            crops += [crop.flip(2) for crop in crops] if flip else []
            assert any(torch.equal(out[index], crop) for crop in crops)

    def test_every_shift_and_both_mirrors_occur(self) -> None:
        images = torch.zeros(400, 1, 3, 4, dtype=torch.uint8)
        images[:, 0, 1, 1] = 255
        out = Augmentation(1, True)(images, torch.Generator().manual_seed(0))
        assert len(torch.unique(out.flatten(1), dim=0)) == 3 * 4  # rows 0..2, columns 0..2 and, mirrored, 1..3

    def test_nothing_to_do(self) -> None:
        images = torch.arange(24, dtype=torch.uint8).reshape(2, 1, 3, 4)
        assert torch.equal(Augmentation(0, False)(images, torch.Generator()), images)


class TestLoaders:
    def test_an_epoch_is_a_function_of_seed_and_epoch(self) -> None:
        def epoch(seed: int, number: int) -> Tensor:
            loader = small_module(seed=seed).train_dataloader()
            loader.sampler.set_epoch(number)
            return torch.cat([images[:, 0, 0, 0] for images, _ in loader])

        assert torch.equal(epoch(0, 1), epoch(0, 1))
        assert not torch.equal(epoch(0, 0), epoch(0, 1))
        assert not torch.equal(epoch(0, 0), epoch(1, 0))

    def test_fit_batches_hold_each_image_once_at_most(self) -> None:
        loader = small_module().train_dataloader()
        batches = list(loader)
        seen = torch.cat([images[:, 0, 0, 0] for images, _ in batches]).tolist()
        assert len(batches) == len(loader) == 3
        assert len(seen) == len(set(seen)) == 24
        assert set(seen) <= set(range(30))
        assert all((images[:, 0, 0, 0] % 5 == labels).all() for images, labels in batches)

    @given(st.integers(1, 4), st.integers(4, 20), st.integers(20, 60))
    @settings(max_examples=30)
    def test_devices_share_an_epoch(self, world_size: int, batch_size: int, images: int) -> None:
        parts = [list(EpochOrder(images, batch_size, 5, rank, world_size)) for rank in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        assert all(len(batch) == batch_size // world_size for part in parts for batch in part)
        seen = [int(index) for part in parts for batch in part for index in batch]
        assert (
            len(seen)
            == len(set(seen))
            == images // (batch_size // world_size * world_size) * (batch_size // world_size * world_size)
        )

    def test_evaluation_order_is_fixed_and_complete(self) -> None:
        module = small_module()
        for loader, expected in (
            (module.val_dataloader(), range(30, 42)),
            (module.val_dataloader(limit=9), range(30, 39)),
            (module.val_dataloader(limit=99), range(30, 42)),
            (module.test_dataloader(), range(42, 50)),
            (module.test_dataloader(limit=3), range(42, 45)),
            (module.predict_dataloader(), range(42, 50)),
        ):
            batches = [images[:, 0, 0, 0] for images, _ in loader]
            assert torch.cat(batches).tolist() == list(expected)
            assert len(loader) == len(batches)

    def test_lightning_tells_the_epoch_and_feeds_the_batches(self) -> None:
        class Task(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(16, 5)
                self.firsts: list[Tensor] = []
                self.seen = 0

            def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
                images, labels = batch
                if batch_idx == 0:
                    self.firsts.append(images[:, 0, 0, 0].clone())
                return nn.functional.cross_entropy(self.layer(images.float().flatten(1)), labels)

            def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
                self.seen += len(batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), 1e-3)

        task, module = Task(), small_module()
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
        }
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(task, datamodule=module)
        loader = module.train_dataloader()
        for epoch, first in enumerate(task.firsts):
            loader.sampler.set_epoch(epoch)
            assert torch.equal(next(iter(loader))[0][:, 0, 0, 0], first)
        assert not torch.equal(task.firsts[0], task.firsts[1])
        assert task.seen == 2 * module.val_images

    def test_module_refuses_what_does_not_fit(self) -> None:
        with pytest.raises(DataError, match="data.batch_size=31, expected at most the 30 fit images"):
            small_module(batch_size=31)
        splits = small_module().splits
        with pytest.raises(DataError, match="images have 1 channels, normalization has 3"):
            LabelDataModule(splits, Normalization.unit(3), Augmentation(0, False), 4, 0)


def test_digits() -> None:
    module = build_data(compose_config(["data.val_images=200"]).data, 0)
    assert (module.fit_images, module.val_images, module.test_images) == (1797 - 200 - 360, 200, 360)
    assert module.input_shape == (1, 8, 8)
    assert module.class_names == tuple("0123456789")
    images = module.splits.fit.images_NCHW
    assert int(images.max()) == 240
    # conf/data/digits.yaml: mean and deviation of the whole data set.
    x_NCHW = module.normalization(images)
    assert abs(float(x_NCHW.mean())) < 0.01
    assert abs(float(x_NCHW.std()) - 1) < 0.01


def test_digits_keep_their_test_images() -> None:
    one, other = (build_data(compose_config([f"data.val_images={n}"]).data, seed) for n, seed in ((100, 0), (300, 1)))
    assert torch.equal(one.splits.test.images_NCHW, other.splits.test.images_NCHW)


class TestCifar10:
    def _settings(self, root: Path, **changed: object) -> DataSettings:
        data = compose_config(["network=resnet20", "data=cifar10"]).data
        for name, value in {"root": str(root), "batch_size": 4, "val_images": 5, "download": False, **changed}.items():
            setattr(data, name, value)
        return data

    def test_archive_is_found_and_split(self, tmp_path: Path) -> None:
        train = write_archive(tmp_path / TRAIN_ARCHIVE, 23)
        test = write_archive(tmp_path / TEST_ARCHIVE, 16, seed=1)
        module = build_data(self._settings(tmp_path), 0)
        assert (module.fit_images, module.val_images, module.test_images) == (18, 5, 16)
        assert module.class_names == CLASSES
        np.testing.assert_array_equal(module.splits.test.images_NCHW.permute(0, 2, 3, 1).numpy(), test)
        delivered = torch.cat([module.splits.fit.images_NCHW, module.splits.val.images_NCHW]).permute(0, 2, 3, 1)
        assert sorted(image.tobytes() for image in delivered.numpy()) == sorted(image.tobytes() for image in train)

    def test_half_an_archive_is_missing(self, tmp_path: Path) -> None:
        write_archive(tmp_path / TEST_ARCHIVE, 16)
        with pytest.raises(DataError, match=rf"{TRAIN_ARCHIVE} does not exist"):
            build_data(self._settings(tmp_path), 0)

    def test_without_archive_torchvision_is_asked(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"CIFAR-10 below .*not found or corrupted.*data.download=true"):
            build_data(self._settings(tmp_path), 0)

    def test_a_slip_in_the_folder_downloads_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def download(root: str, train: bool, download: bool) -> None:
            asked.append(root)
            raise OSError("no network")

        monkeypatch.setattr("qat.data.cifar10.CIFAR10", download)
        monkeypatch.chdir(tmp_path)
        slip = tmp_path / "nope"
        with pytest.raises(DataError, match=rf"data.root='{slip}' does not exist; check the name, or make the folder"):
            build_data(self._settings(slip, download=True), 0)
        with pytest.raises(DataError, match=r"data.root='.*nope' does not exist, .*cifar10, or set data.download=true"):
            build_data(self._settings(slip), 0)
        with pytest.raises(DataError, match=r"does not exist, expected the images of cifar10$"):
            build_data(self._settings(slip, source="archive", download=True), 0)
        assert not asked and not slip.exists()
        for folder in (tmp_path / "data", tmp_path):  # the default, which is made, and one that is there
            with pytest.raises(DataError, match=r"no network; check data.root and the connection, or remove"):
                build_data(self._settings(folder, download=True), 0)
        assert asked == [str(tmp_path / "data"), str(tmp_path)]

    def test_torchvision_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A small folder in the format of the official download; its checksums are put in place of the official."""
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        rng = np.random.default_rng(0)
        lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}

        def write(name: str, content: dict[str, object]) -> str:
            (folder / name).write_bytes(pickle.dumps(content))
            return hashlib.md5((folder / name).read_bytes()).hexdigest()

        for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
            content = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
            lists["test_list" if name == "test_batch" else "train_list"].append([name, write(name, content)])
        names = [f"class {n}" for n in range(10)]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
        for name, value in {**lists, "meta": meta}.items():
            monkeypatch.setattr(f"qat.data.cifar10.CIFAR10.{name}", value)
        module = build_data(self._settings(tmp_path, val_images=10), 0)
        assert (module.fit_images, module.val_images, module.test_images) == (40, 10, 10)
        assert torch.bincount(module.splits.val.labels).tolist() == [1] * 10
        assert module.class_names == tuple(names)
        (folder / "data_batch_3").write_bytes(b"damaged")
        with pytest.raises(DataError, match="remove a damaged file"):
            from_torchvision(tmp_path, 10, 0, download=False)

    @pytest.mark.data
    def test_real_archives(self, data_root: Path) -> None:
        """Golden: class counts and checksums of the archives' own description; mean and deviation of CIFAR-10."""
        splits = from_archive(data_root, 5000, 0)
        assert (len(splits.fit), len(splits.val), len(splits.test)) == (40000, 5000, 500)
        assert torch.bincount(splits.test.labels).tolist() == [57, 41, 51, 49, 40, 48, 54, 47, 57, 56]
        total = torch.bincount(torch.cat([splits.fit.labels, splits.val.labels])).tolist()
        assert total == [4507, 4512, 4521, 4481, 4525, 4471, 4512, 4515, 4468, 4488]
        mean = splits.fit.images_NCHW.float().mean((0, 2, 3)) / 255
        assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3)
