"""From settings to images with boxes, and settings that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qat.compose import compose_config
from qat.config import Config
from qat.data import DetectionDataModule, build_data, detection_formats
from qat.errors import ConfigError, DataError
from tests.qat.data.test_detection_data import OBJECT, picture, write

SCENES = ["network=digits_yolo", "data=digit_scenes", "data.val_images=3", "data.test_images=2"]


def test_scenes() -> None:
    config = compose_config([*SCENES, "data.detection.fit_images=40"])
    data = build_data(config.data, config.seed)
    assert isinstance(data, DetectionDataModule)
    assert (data.fit_images, data.val_images, data.test_images) == (40, 3, 2)
    assert data.input_shape == (1, 96, 96)
    assert data.class_names == tuple("0123456789")


def voc(root: Path, years: tuple[str, ...] = ("VOC2007", "VOC2012")) -> None:
    files = {}
    for year in years:
        for split, count in (("trainval", 4), ("test", 2)):
            names = [f"{split}{number}" for number in range(count)]
            files[f"{year}/ImageSets/Main/{split}.txt"] = "\n".join(names).encode()
            for name in names:
                objects = OBJECT.format("dog", 0, 4, 5, 24, 15) + OBJECT.format("dog", 0, 4, 5, 4, 15)
                xml = f"<annotation><size><width>40</width><height>20</height></size>{objects}</annotation>"
                files[f"{year}/Annotations/{name}.xml"] = xml.encode()
                files[f"{year}/JPEGImages/{name}.png"] = picture()
    write(root, files)


def test_two_years_of_voc_and_images_held_out(tmp_path: Path) -> None:
    voc(tmp_path)
    overrides = ["network=sim_yolo_v2", "data=voc", f"data.root={tmp_path}", "data.val_images=3", "data.batch_size=2"]
    config = compose_config([*overrides, "data.detection.workers=0"])
    data = build_data(config.data, config.seed)
    assert isinstance(data, DetectionDataModule)
    assert (data.fit_images, data.val_images, data.test_images) == (5, 3, 2)
    assert len(data.class_names) == 20
    assert data.reports["test"].empty == 2
    assert not set(data.splits.fit.names) & set(data.splits.val.names)  # type: ignore[attr-defined]
    again = build_data(config.data, config.seed + 1)
    assert isinstance(again, DetectionDataModule)
    assert again.splits.val.names == data.splits.val.names  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"data.detection.fit_images=3, expected null: it is for scenes"):
        compose_config(["network=sim_yolo_v2", "data=voc", "data.detection.fit_images=3"])
    config.data.val_images = 8
    with pytest.raises(DataError, match=r"cannot hold out 8 of 8 images, expected 1..7; check data.val_images"):
        build_data(config.data, config.seed)
    config.data.detection.fit = ["trainval"]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"has 2 files ImageSets/Main/trainval.txt, expected one"):
        build_data(config.data, config.seed)


def test_torchvision_downloads_the_years_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "VOCdevkit"
    asked = []

    def download(folder: str, year: str, image_set: str, download: bool) -> None:
        asked.append((Path(folder), year, image_set, download))
        voc(root)

    monkeypatch.setattr(detection_formats, "VOCDetection", download)
    overrides = [f"data.root={root}", "data.download=true", "data.val_images=3", "data.batch_size=2"]
    config = compose_config(["network=sim_yolo_v2", "data=voc", *overrides, "data.detection.workers=0"])
    for _ in range(2):  # what is there is not asked for again
        assert build_data(config.data, config.seed).fit_images == 5
    assert asked == [(tmp_path, "2007", "trainval", True)]


def test_downloads_refused(tmp_path: Path) -> None:
    config = compose_config(["network=sim_yolo_v2", "data=voc", f"data.root={tmp_path}", "data.download=true"])
    with pytest.raises(DataError, match=r"expected a folder VOCdevkit for data.download=true"):
        build_data(config.data, config.seed)
    config.data.root = str(tmp_path / "VOCdevkit")
    config.data.detection.fit = ["VOC1999/trainval"]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"VOC1999/trainval: Unknown value '1999' for argument year"):
        build_data(config.data, config.seed)
    config.data.detection.format = "coco"  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"data.download=true, expected false: only voc can be downloaded, not coco"):
        build_data(config.data, config.seed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.detection.format=csv", r"data.detection.format='csv', expected one of \['scenes', 'voc'"),
        ("data.detection.fit_images=null", r"data.detection.fit_images=None, expected an integer >= 1"),
        ("data.crop_padding=4", r"data.crop_padding=4, expected 0: data.detection.shift shifts"),
        ("data.detection.image_size=[96]", r"data.detection.image_size=\[96\], expected \[rows, columns\]"),
        ("data.detection.image_size=[96,128]", r"image_size=\[96, 128\], expected \[96, 96\], the rows and columns"),
        ("data.detection.zoom=0.5", r"data.detection.zoom=0.5, expected a number >= 1"),
        ("data.detection.mosaic=2", r"data.detection.mosaic=2.0, expected a number >= 0 and <= 1"),
        ("data.detection.shift=1", r"data.detection.shift=1.0, expected a number >= 0 and < 1"),
        ("data.source=files", r"data.source='files', expected one of \['bundled'\]"),
        ("data.detection.mosiac=1", r"mosiac"),
    ],
)
def test_scenes_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([*SCENES, override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.detection.fit=[]", r"data.detection.fit=\[\], expected at least one part"),
        ("data.detection.test=[val2017]", r"data.detection='val2017', expected two names and a colon, for coco"),
        ("data.detection.format=yolo", r"data.detection.class_names=None, expected the names of the classes, for yolo"),
        ("data.root=null", r"data.root=None, expected a folder for coco"),
    ],
)
def test_files_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["network=yolov3_tiny", "data=coco", override])


COCO = ["network=yolov3_tiny", "data=coco", "data.batch_size=1", "data.val_images=1", "data.detection.workers=0"]


def coco(root: Path, parts: dict[str, list[tuple[int, str]]]) -> None:
    """A file with categories of these numbers and names, and one image with a dog, for each part."""
    for part, categories in parts.items():
        dog = next(number for number, name in categories if name == "dog")
        document = {
            "images": [{"id": 1, "file_name": f"{part}.png", "width": 40, "height": 20}],
            "categories": [{"id": number, "name": name} for number, name in categories],
            "annotations": [{"image_id": 1, "category_id": dog, "bbox": [4, 5, 20, 10]}],
        }
        write(root, {f"{part}.json": json.dumps(document).encode(), f"images/{part}.png": picture()})


def coco_config(root: Path, **uses: list[str]) -> Config:
    lists = {use: ",".join(f"'{name}.json:images'" for name in names) for use, names in uses.items()}
    parts = [f"data.detection.{use}=[{names}]" for use, names in lists.items()]
    return compose_config([*COCO, f"data.root={root}", *parts])


def test_files_that_number_their_classes_differently(tmp_path: Path) -> None:
    first = [(1, "cat"), (2, "dog")]
    coco(tmp_path, {"a": first, "b": [(2, "cat"), (3, "dog")], "c": [(1, "dog"), (2, "cat")], "d": first})
    config = coco_config(tmp_path, fit=["a", "b", "c"], val=["d"], test=["d"])
    config.data.detection.test = ["e.json:images"]  # type: ignore[union-attr]
    coco(tmp_path, {"e": [(1, "dog"), (7, "cat")]})
    data = build_data(config.data, 0)
    assert isinstance(data, DetectionDataModule)
    assert data.class_names == ("cat", "dog")
    for part in (data.splits.fit, data.splits.val, data.splits.test):
        assert {int(label) for own in part.boxes for label in own.labels_B} == {1}


def test_files_with_other_classes_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, {"a": [(1, "cat"), (2, "dog")], "b": [(1, "dog")], "c": [(1, "cat"), (2, "dog")]})
    config = coco_config(tmp_path, fit=["a", "b"], test=["c"])
    with pytest.raises(DataError, match=r"classes \('cat', 'dog'\) and \('dog',\).* give data.detection.class_names"):
        build_data(config.data, 0)
    config.data.detection.class_names = ["dog"]  # type: ignore[union-attr]
    assert build_data(config.data, 0).class_names == ("dog",)
    coco(tmp_path, {"c": [(1, "dog"), (2, "dog")]})
    with pytest.raises(DataError, match=r"'c.json' in .* has several categories of the name 'dog'"):
        build_data(config.data, 0)


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (
            {"fit": ["a", "b"], "val": ["b"], "test": ["c"]},
            r"fit and data.detection.val share 1 images, 'images/b.png'",
        ),
        ({"fit": ["a", "b"], "test": ["a"]}, r"data.detection.fit and data.detection.test share 1 images"),
        ({"fit": ["a"], "val": ["b"], "test": ["b"]}, r"data.detection.val and data.detection.test share 1 images"),
        ({"fit": ["a", "a"], "test": ["b"]}, r"data.detection.fit has 1 images twice, 'images/a.png' is the first"),
    ],
)
def test_parts_that_share_images_are_refused(tmp_path: Path, uses: dict[str, list[str]], message: str) -> None:
    coco(tmp_path, {name: [(2, "dog")] for name in "abc"})
    with pytest.raises(DataError, match=message):
        build_data(coco_config(tmp_path, **uses).data, 0)


def test_boxes_left_out_are_told_where_val_is_held_out(tmp_path: Path) -> None:
    voc(tmp_path)
    overrides = ["network=sim_yolo_v2", "data=voc", f"data.root={tmp_path}", "data.val_images=3", "data.batch_size=2"]
    data = build_data(compose_config([*overrides, "data.detection.workers=0"]).data, 0)
    assert isinstance(data, DetectionDataModule)
    assert {use: (report.images, report.empty) for use, report in data.reports.items()} == {
        "fit": (5, 5), "val": (3, 3), "test": (2, 2)
    }  # fmt: skip
    assert len(data.reports["fit"].examples) == 5
