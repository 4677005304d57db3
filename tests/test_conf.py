"""Every YAML file of conf/ composes, and says what it means to say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from hwmodel import load_board
from qat.compose import CONF_FOLDER, GROUPS, compose_config
from qat.config import TrainerSettings
from qat.tasks import Recipe
from qat.tasks.fit import Machine

CHOICES = sorted(
    (folder.name, path.stem) for folder in CONF_FOLDER.iterdir() if folder.is_dir() for path in folder.glob("*.yaml")
)
ROOTS = sorted(path.stem for path in CONF_FOLDER.glob("*.yaml"))


MADE_FOR = {
    "digits_yolo": "digit_scenes",
    "blood_yolo": "bccd",
    "board_yolo": "deeppcb",
    "sim_yolo_v2": "voc",
    "yolov3_tiny": "coco",
    "ssdlite320": "voc",
    "ssd300": "voc",
    "retinanet_r50": "voc",
    "blood_fcos": "bccd",
    "fcos_r50": "voc",
    "fcos_r50_bn": "voc",
    "faster_rcnn_r50": "voc",
    "squeezenet1_1": "imagenet",
}
"""Networks and the images that they are made for."""

IMAGE_SIZES = {
    "ssdlite320": "[320,320]",
    "ssd300": "[300,300]",
    "retinanet_r50": "[512,512]",
    "blood_fcos": "[256,256]",
    "fcos_r50": "[512,512]",
    "fcos_r50_bn": "[512,512]",
    "faster_rcnn_r50": "[512,512]",
}
"""Of networks for whose size the images are not set up by default."""


def test_there_is_something_to_compose() -> None:
    assert {"run", "demo"} <= set(ROOTS)
    assert ("experiment", "cifar10_resnet20") in CHOICES
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize("root", ROOTS)
def test_root_composes(root: str) -> None:
    config = compose_config(root=root)
    assert Path(config.run_dir) == Path("runs", config.name).resolve()


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_choice_composes(group: str, name: str) -> None:
    overrides = [f"{group}={name}"]
    if (group == "network" and name != "digits_resnet") or (group == "data" and name != "digits"):
        # Channels, and rows and columns of network and images agree.
        pairs = [pair for pair in MADE_FOR.items() if name in pair] or [("resnet20", "cifar10")]
        overrides = [f"network={pairs[0][0]}", f"data={pairs[0][1]}", *overrides]
        if name in IMAGE_SIZES:
            overrides.append(f"data.detection.image_size={IMAGE_SIZES[name]}")
    config = compose_config(overrides)
    if group == "experiment":
        assert config.name == name
    elif group in ("network", "data", "board"):
        assert getattr(config, group).name == name


def test_boards_are_those_of_the_hardware_model() -> None:
    assert compose_config(["board=vc707"]).board.to_board() == load_board("vc707")


def test_demo_is_the_demo_experiment() -> None:
    assert compose_config(root="demo") == compose_config(["experiment=digits_demo"])


def test_cifar10_uses_the_published_weights_of_the_data_folder() -> None:
    config = compose_config(["experiment=cifar10_resnet20", "data.root=/images"])
    assert config.network.weights == "/images/weights/resnet20-12fca82f.th"
    assert config.search.trials >= 24
    assert config.trainer.epochs >= 10
    assert 22.66 in config.search.min_compression


def test_trainer_settings_cover_recipe_and_machine() -> None:
    names = {field.name for field in fields(TrainerSettings)}
    assert {field.name for field in fields(Recipe)} <= names
    assert {field.name for field in fields(Machine)} - {"compiled"} <= names  # the setting is `compile`
