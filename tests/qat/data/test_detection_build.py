"""From settings to images with boxes, and settings that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qat.compose import compose_config
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
