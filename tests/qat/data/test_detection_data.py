"""Detection data: formats that the tests write, bad boxes, scenes, augmentation, batches."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qat.data.boxes import Boxes, BoxReader, pack, unpack
from qat.data.detection import DetectionDataModule, DetectionSplits
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.detection_files import Folder, Tar, open_files, read_image
from qat.data.detection_formats import AnnotatedFiles, read_coco, read_voc, read_yolo
from qat.data.scenes import Scenes, digit_scenes
from qat.errors import ConfigError, DataError
from qat.normalization import Normalization

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def picture(width: int = 40, height: int = 20, level: int = 200) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (level, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def voc_files(objects: str) -> dict[str, bytes]:
    xml = f"<annotation><size><width>40</width><height>20</height><depth>3</depth></size>{objects}</annotation>"
    return {
        "set/ImageSets/Main/train.txt": b"a\n",
        "set/JPEGImages/a.png": picture(),
        "set/Annotations/a.xml": xml.encode(),
    }


def write(root: Path, files: dict[str, bytes]) -> Folder:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return Folder(root)


def write_tar(path: Path, files: dict[str, bytes]) -> Tar:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return Tar(path)


class TestVoc:
    FILES = voc_files(OBJECT.format("cat", 0, 4, 5, 24, 15) + OBJECT.format("dog", 1, 0, 0, 40, 20))

    @pytest.mark.parametrize("kind", ["folder", "tar"])
    def test_boxes_are_shares_of_the_image(self, tmp_path: Path, kind: str) -> None:
        files = write(tmp_path, self.FILES) if kind == "folder" else write_tar(tmp_path / "a.tar", self.FILES)
        part = read_voc(files, ("train",))["train"]
        assert part.class_names == ("cat", "dog")
        (boxes,) = part.boxes
        np.testing.assert_allclose(boxes.sides_B4, [[0.1, 0.25, 0.6, 0.75], [0, 0, 1, 1]])
        assert boxes.labels_B.tolist() == [0, 1]
        assert boxes.ignored_B.tolist() == [False, True]
        assert not boxes.crowd_B.any()
        assert part.image(0).size == (40, 20)

    def test_bad_boxes_are_counted(self, tmp_path: Path) -> None:
        boxes = ((4, 4, 4, 15), (50, 5, 60, 10), (-5, 5, 20, 10), (4, 5, 24, 15))
        objects = "".join(OBJECT.format("cat", 0, *box) for box in boxes) + OBJECT.format("yeti", 0, 1, 1, 5, 5)
        part = read_voc(write(tmp_path, voc_files(objects)), ("train",), ("cat",))["train"]
        report = part.report
        assert (report.empty, report.outside, report.unknown, report.clipped, report.boxes) == (1, 1, 1, 1, 2)
        assert str(report) == (
            "1 images, 2 boxes; left out 1 (empty), 1 (outside), 1 (unknown); cut at the image's edge 1"
        )
        assert report.examples[0] == "empty: set/JPEGImages/a.png: cat [4.0, 4.0, 4.0, 15.0] in 40 x 20"
        np.testing.assert_allclose(part.boxes[0].sides_B4[0], [0, 0.25, 0.5, 0.5])

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("set/Annotations/a.xml", b"<annotation><size>", r"annotation 'set/Annotations/a.xml' .* is damaged"),
            ("set/Annotations/a.xml", b"<annotation/>", r"<size/width> is missing in <annotation>"),
            ("set/Annotations/a.xml", b"<!DOCTYPE x []><annotation/>", r"declares a document type"),
            ("set/ImageSets/Main/train.txt", b"a\nb\n", r"has no set/Annotations/b.xml, which .*train.txt names"),
            ("other/ImageSets/Main/train.txt", b"", r"has 2 files ImageSets/Main/train.txt, expected one"),
        ],
    )
    def test_damaged(self, tmp_path: Path, name: str, data: bytes, message: str) -> None:
        files = write(tmp_path, self.FILES | {name: data})
        with pytest.raises(DataError, match=message):
            read_voc(files, ("train",))

    def test_an_image_without_area_or_a_side_that_is_no_number(self) -> None:
        with pytest.raises(DataError, match=r"a.png: its size is given as 0 x 20"):
            BoxReader(("cat",)).read("a.png", (0, 20), [])
        with pytest.raises(DataError, match=r"a.png: box .* of class 'cat' holds a value that is no number"):
            BoxReader(("cat",)).read("a.png", (20, 20), [("cat", (1, 2, float("nan"), 3), False)])


class TestCoco:
    DOCUMENT: ClassVar[dict[str, object]] = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [4, 5, 20, 10], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"image_id": 7, "category_id": 9, "bbox": [0, 0, 40, 20]},
        ],
    }

    def _write(self, root: Path, document: object) -> Folder:
        return write(root, {"i.json": json.dumps(document).encode(), "images/a.png": picture()})

    def test_boxes(self, tmp_path: Path) -> None:
        part = read_coco(self._write(tmp_path, self.DOCUMENT), "i.json", "images")
        assert part.class_names == ("cat", "dog")
        assert part.boxes[0].labels_B.tolist() == [1, 0]
        assert part.boxes[0].ignored_B.tolist() == [False, True]
        assert part.boxes[0].crowd_B.tolist() == [False, True]
        np.testing.assert_allclose(part.boxes[0].sides_B4[0], [0.1, 0.25, 0.6, 0.75])
        assert part.report.unknown == 1
        assert part.image(0).getpixel((0, 0)) == (200, 10, 20)

    def test_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"'i.json' .* is damaged: KeyError 'images'"):
            read_coco(self._write(tmp_path, {"categories": []}), "i.json", "images")
        with pytest.raises(DataError, match=r"a box belongs to image 7, which is not listed"):
            read_coco(self._write(tmp_path, self.DOCUMENT | {"images": []}), "i.json", "images")
        with pytest.raises(DataError, match=r"lacks 1 of 1 images of 'i.json': 'photos/a.png' is the first"):
            read_coco(self._write(tmp_path, self.DOCUMENT), "i.json", "photos")

    def test_an_image_of_another_size_than_annotated(self, tmp_path: Path) -> None:
        part = read_coco(self._write(tmp_path, self.DOCUMENT), "i.json", "images")
        turned = io.BytesIO()
        orientation = Image.Exif()
        orientation[0x112] = 6
        Image.new("RGB", (20, 40)).save(turned, "PNG", exif=orientation)  # 40x20 as viewers show it
        write(tmp_path, {"images/a.png": turned.getvalue()})
        with pytest.raises(DataError, match=r"'images/a.png' in .* has 20 x 40 pixels, its annotation says 40 x 20"):
            part.image(0)


class TestYolo:
    def test_boxes_and_images_without_any(self, tmp_path: Path) -> None:
        lines = b"1 0.35 0.5 0.5 0.5\n7 0.5 0.5 0.1 0.1\n \n"
        files = write(tmp_path, {"images/a.png": picture(), "images/b.png": picture(), "labels/a.txt": lines})
        part = read_yolo(files, "images", "labels", ("cat", "dog"))
        assert [len(own) for own in part.boxes] == [1, 0]
        np.testing.assert_allclose(part.boxes[0].sides_B4[0], [0.1, 0.25, 0.6, 0.75], rtol=1e-6)
        assert part.report.unknown == 1
        assert "class 7" in part.report.examples[0]

    def test_damaged(self, tmp_path: Path) -> None:
        files = write(tmp_path, {"images/a.png": picture(), "labels/a.txt": b"1 0.35 0.5 x 0.5\n"})
        with pytest.raises(DataError, match=r"labels/a.txt: '1 0.35 0.5 x 0.5', expected class, centre x"):
            read_yolo(files, "images", "labels", ("cat", "dog"))
        for number in (b"nan", b"inf"):
            write(tmp_path, {"labels/a.txt": number + b" 0.5 0.5 0.1 0.1"})
            with pytest.raises(DataError, match=r"labels/a.txt: '(nan|inf) 0.5 .*', expected class, centre x"):
                read_yolo(files, "images", "labels", ("cat", "dog"))
        with pytest.raises(DataError, match=r"has no image in 'photos'"):
            read_yolo(files, "photos", "labels", ("cat",))


class TestFiles:
    def test_missing_compressed_truncated(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"neither a folder nor a .tar file; check data.root"):
            open_files(tmp_path / "no")
        path = tmp_path / "a.tar"
        write_tar(path, {"a.png": picture()})
        assert isinstance(open_files(path), Tar)
        path.write_bytes(path.read_bytes()[:600])
        with pytest.raises(DataError, match=r"a.tar (ends early|is missing, compressed or damaged)"):
            open_files(path)
        with tarfile.open(path, "w:gz"):
            pass
        with pytest.raises(DataError, match=r"a.tar is missing, compressed or damaged"):
            open_files(path)

    def test_an_image_that_is_none(self, tmp_path: Path) -> None:
        files = write(tmp_path, {"a.png": b"no picture"})
        with pytest.raises(DataError, match=r"image 'a.png' in .* is damaged"):
            read_image(files, "a.png", "RGB")
        with pytest.raises(DataError, match=r"lies outside of"):
            files.read("../b.png")
        with pytest.raises(DataError, match=r"c.png cannot be read"):
            files.read("c.png")

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_grey_images_of_16_bits_keep_their_upper_8(self, tmp_path: Path, mode: str) -> None:
        grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
        Image.fromarray(grey).save(tmp_path / "a.png")
        image = np.asarray(read_image(Folder(tmp_path), "a.png", mode))
        np.testing.assert_array_equal(image if mode == "L" else image[..., 1], grey >> 8)
        Image.fromarray(grey.astype(np.int32)).save(tmp_path / "b.tiff")
        with pytest.raises(DataError, match=r"'b.tiff' in .* 32-bit numbers of unknown range \(mode I\)"):
            read_image(Folder(tmp_path), "b.tiff", mode)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=4), st.integers(4, 6))
def test_targets_hold_the_boxes(counts: list[int], capacity: int) -> None:
    rng = np.random.default_rng(sum(counts))
    boxes = [Boxes.from_lists(rng.random((n, 4)), rng.integers(0, 9, n), rng.integers(0, 3, n)) for n in counts]
    for own, again in zip(boxes, unpack(pack(boxes, capacity)), strict=True):
        np.testing.assert_array_equal(own.sides_B4, again.sides_B4)
        np.testing.assert_array_equal(own.labels_B, again.labels_B)
        np.testing.assert_array_equal(own.kinds_B, again.kinds_B)


def test_more_boxes_than_a_target_holds() -> None:
    with pytest.raises(ValueError, match=r"image 0 has 3 boxes, the tensor holds 2"):
        pack([Boxes.from_lists([[0, 0, 1, 1]] * 3, [0, 0, 0])], 2)


class TestScenes:
    def test_boxes_are_exactly_around_the_ink(self) -> None:
        scenes = digit_scenes((20, 1, 1), (96, 96), 0)[0]
        assert isinstance(scenes, Scenes)
        for number in range(20):
            image, boxes = scenes.draw(number)
            assert image.shape == (96, 96)
            assert len(boxes) >= 1
            pixels = boxes.sides_B4 * 96
            np.testing.assert_allclose(pixels, pixels.round(), atol=1e-4)
            for left, top, right, bottom in pixels.round().astype(int):
                part = image[top:bottom, left:right].astype(int)
                # Ink reaches every side of its box; noise is far below.
                assert min(part[0].max(), part[-1].max(), part[:, 0].max(), part[:, -1].max()) > 15
                assert part.max() > 100

    def test_a_seed_is_a_scene(self) -> None:
        first, again = (digit_scenes((5, 3, 3), (96, 128), 4) for _ in range(2))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(np.asarray(a.image(2)), np.asarray(b.image(2)))
        assert first[0].image(0).size == (128, 96)
        assert not np.array_equal(np.asarray(first[0].image(0)), np.asarray(first[1].image(0)))

    def test_no_digit_is_in_two_parts(self) -> None:
        fit, val, test = digit_scenes((1, 1, 1), (96, 96), 0)
        keys = [{digit.tobytes() for digit in part.digits_D88} for part in (fit, val, test)]
        assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
        assert sum(len(part.digits_D88) for part in (fit, val, test)) == 1797


def squares(count: int = 12) -> AnnotatedFiles:
    """Red squares on black: an image tells where its box is."""
    scenes, boxes = [], []
    rng = np.random.default_rng(0)
    for _ in range(count):
        left, top = rng.integers(4, 20, 2)
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[top : top + 14, left : left + 14] = (255, 0, 0)
        scenes.append(Image.fromarray(pixels))
        boxes.append(Boxes.from_lists([[left / 40, top / 40, (left + 14) / 40, (top + 14) / 40]], [0]))

    class InMemory(AnnotatedFiles):
        def image(self, index: int) -> Image.Image:
            return scenes[index]

    reader = BoxReader(("square",))
    names = tuple(f"{number}.png" for number in range(count))
    return InMemory(Folder(Path()), names, tuple(boxes), ("square",), tuple(reader.reports))


def module(augmentation: DetectionAugmentation, workers: int = 0, seed: int = 0) -> DetectionDataModule:
    part = squares()
    splits = DetectionSplits(part, part, part)
    return DetectionDataModule(splits, Normalization.unit(3), augmentation, (40, 48), 4, seed, workers)


@pytest.mark.parametrize(
    "augmentation",
    [
        DetectionAugmentation(),
        DetectionAugmentation(horizontal_flip=True, vertical_flip=True),
        DetectionAugmentation(shift=0.2, zoom=1.4),
        DetectionAugmentation(mosaic=1.0),
        DetectionAugmentation(horizontal_flip=True, shift=0.3, zoom=1.2, mosaic=0.5),
    ],
    ids=["plain", "flips", "affine", "mosaic", "all"],
)
def test_boxes_move_with_what_they_hold(augmentation: DetectionAugmentation) -> None:
    seen = 0
    for images, targets in module(augmentation).train_dataloader():
        for image, boxes in zip(images, unpack(targets), strict=True):
            red = image[0].numpy() > 127
            inside = np.zeros_like(red)
            for left, top, right, bottom in boxes.sides_B4 * (48, 40, 48, 40):
                inside[int(top) : round(bottom) + 1, int(left) : round(right) + 1] = True
                box = red[round(top + 0.5) : int(bottom), round(left + 0.5) : int(right)]
                assert box.size == 0 or box.mean() > 0.85
                seen += 1
            assert not (red & ~inside).any()
    assert seen >= 12


def test_what_is_hardly_seen_need_not_be_found() -> None:
    boxes = Boxes.from_lists([[0.0, 0.0, 0.5, 0.5], [0.9, 0.9, 1.0, 1.0]], [0, 0])
    augmentation = DetectionAugmentation(shift=0.9)
    blank = Image.new("RGB", (40, 40))
    counts = np.zeros(3, int)
    for seed in range(40):
        _, moved = augmentation(lambda index, size: (blank, boxes), 0, 1, (40, 40), seed)
        assert (moved.sides_B4 >= 0).all() and (moved.sides_B4 <= 1).all()
        counts += (2 - len(moved), int(moved.ignored_B.sum()), int((~moved.ignored_B).sum()))
        for box, ignored in zip(moved.sides_B4, moved.ignored_B, strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            assert ignored or area >= 0.003 - 1e-6
    assert (counts > 5).all()


def test_batches_depend_on_seed_and_epoch_only() -> None:
    augmentation = DetectionAugmentation(horizontal_flip=True, shift=0.2, zoom=1.2, color=0.3, mosaic=0.3)

    def batches(workers: int, seed: int, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        loader = module(augmentation, workers, seed).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
        return list(loader)

    first, again, spread = batches(0, 1, 3), batches(0, 1, 3), batches(2, 1, 3)
    for a, b, c in zip(first, again, spread, strict=True):
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(a, b, c, strict=True))
    assert not torch.equal(first[0][0], batches(0, 1, 4)[0][0])
    assert not torch.equal(first[0][0], batches(0, 2, 3)[0][0])


def test_a_loader_draws_nothing_that_a_network_would() -> None:
    """How often loaders start differs between a fit in one go and one that was interrupted."""
    data, before = module(DetectionAugmentation(horizontal_flip=True)), torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


class TestModule:
    def test_shapes_and_order(self) -> None:
        data = module(DetectionAugmentation(mosaic=1.0))
        assert data.input_shape == (3, 40, 48)
        assert data.class_names == ("square",)
        assert (data.fit_images, data.val_images, data.test_images) == (12, 12, 12)
        images, targets = next(iter(data.train_dataloader()))
        assert images.shape == (4, 3, 40, 48) and images.dtype == torch.uint8
        assert targets.shape == (4, 4, 6)
        assert [len(images) for images, _ in data.test_dataloader(limit=6)] == [4, 2]
        first = next(iter(data.val_dataloader()))[0]
        assert torch.equal(first, next(iter(data.predict_dataloader()))[0])

    def test_blue_first(self) -> None:
        part = squares()
        data = DetectionDataModule(
            DetectionSplits(part, part, part),
            Normalization.unit(3),
            DetectionAugmentation(),
            (40, 40),
            4,
            0,
            is_bgr=True,
        )
        images, _ = next(iter(data.val_dataloader()))
        assert images[:, 2].max() == 255 and images[:, 0].max() == 0

    def test_refused(self) -> None:
        part = squares()
        empty = AnnotatedFiles(part.files, (), (), ("square",), ())
        other = AnnotatedFiles(part.files, part.names, part.boxes, ("circle",), part.reports)
        plain, unit = DetectionAugmentation(), Normalization.unit(3)
        with pytest.raises(DataError, match=r"the val part has no image"):
            DetectionDataModule(DetectionSplits(part, empty, part), unit, plain, (40, 40), 4, 0)
        with pytest.raises(DataError, match=r"the test part has classes \('circle',\), the fit part \('square',\)"):
            DetectionDataModule(DetectionSplits(part, part, other), unit, plain, (40, 40), 4, 0)
        with pytest.raises(DataError, match=r"data.batch_size=13, expected at most the 12 fit images"):
            DetectionDataModule(DetectionSplits(part, part, part), unit, plain, (40, 40), 13, 0)
        with pytest.raises(DataError, match=r"images have 3 channels, normalization has 1"):
            DetectionDataModule(DetectionSplits(part, part, part), Normalization.unit(1), plain, (40, 40), 4, 0)

    @pytest.mark.parametrize(("name", "value"), [("shift", 1.0), ("zoom", 0.9), ("color", -0.1), ("mosaic", 2.0)])
    def test_augmentation_out_of_range(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=rf"data.{name}={value}, expected a number"):
            DetectionAugmentation(**{name: value})


@pytest.mark.data
def test_published_counts(data_root: Path) -> None:
    """BCCD 205/87/72 images with two boxes of no area, DeepPCB 1000/500, COCO val128 898 boxes: their DATA.md."""
    bccd = read_voc(open_files(data_root / "bccd_voc.tar"), ("train", "val", "test"))
    assert [len(bccd[split]) for split in ("train", "val", "test")] == [205, 87, 72]
    assert sum(part.report.boxes for part in bccd.values()) == 4155 + 372 + 361 - 2
    assert sum(part.report.empty for part in bccd.values()) == 2
    coco = open_files(data_root / "coco_val128.tar")
    from_json = read_coco(coco, "coco128_val2017/instances.json", "coco128_val2017/images")
    from_text = read_yolo(coco, "coco128_val2017/images", "coco128_val2017/labels", from_json.class_names)
    assert from_json.report.boxes == from_text.report.boxes == 898
    for a, b in zip(from_json.boxes, from_text.boxes, strict=True):
        np.testing.assert_allclose(a.sides_B4, b.sides_B4, atol=1e-5)
