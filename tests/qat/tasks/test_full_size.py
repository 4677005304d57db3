"""The full-size experiments, for one training and one validation step on folders of their formats and image sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwmodel import uniform
from qat.compose import compose_config
from qat.data import build_data
from qat.graph import trace
from qat.models import build_network
from qat.tasks import Recipe, TrainingTask, evaluate, fit, objective_of
from qat.tasks.fit import Machine
from qat.tasks.quantize import quantize

VOC_OBJECT = (
    "<object><name>{}</name><difficult>0</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_picture(path: Path, width: int, height: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height)).save(path, quality=85)


def write_voc(root: Path) -> None:
    for year, split, count in (("VOC2007", "trainval", 2), ("VOC2012", "trainval", 2), ("VOC2007", "test", 1)):
        folder = root / year
        names = [f"{split}_{number}" for number in range(count)]
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        (folder / "Annotations").mkdir(exist_ok=True)
        for seed, name in enumerate(names):
            write_picture(folder / "JPEGImages" / f"{name}.jpg", 500, 375, seed)
            objects = VOC_OBJECT.format("dog", 48, 240, 195, 371) + VOC_OBJECT.format("person", 8, 12, 352, 300)
            size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def write_coco(root: Path) -> None:
    categories = [{"id": number + number // 11, "name": f"thing {number}"} for number in range(1, 81)]
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2017", 4), ("val2017", 1)):
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in range(count)]
        boxes = [
            {"image_id": n, "category_id": c, "bbox": [40.5 + 99 * k, 60, 90 + 20 * k, 200], "iscrowd": 0}
            for n in range(count)
            for k, c in enumerate((1, 18, 44))
        ]
        document = {"images": images, "annotations": boxes, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        for image in images:
            write_picture(root / split / str(image["file_name"]), 640, 480, int(str(image["id"])))


def one_step_each(name: str, root: Path, *overrides: str) -> None:
    """One training and one validation step of the experiment's network, quantized."""
    (write_voc if name.startswith("voc") else write_coco)(root)
    folder = [f"data.root={root}", "data.batch_size=1", "data.val_images=1", "data.detection.workers=0"]
    config = compose_config([f"experiment={name}", *folder, *overrides])
    data = build_data(config.data, config.seed)
    assert data.fit_images == 3 and len(data.class_names) == config.network.num_classes
    model = build_network(config.network, config.seed)
    network = trace(model, data.input_shape)
    one_bit = uniform(network, 1, config.quant.act_bit_width, end_bit_width=8)
    quantized = quantize(model.eval(), one_bit, data, data.normalization)
    objective = objective_of(model)
    layer = list(quantized.weighted_layers.values())[3]
    weight = layer.weight.detach().clone()
    task = TrainingTask(quantized, data.normalization, Recipe(learning_rate=1e-3), objective, model)
    fit(task, data, Machine(accelerator="cpu", progress_bar=False), steps=1)
    assert not torch.equal(layer.weight, weight)
    figures = evaluate(quantized, data.val_dataloader(), data.normalization, objective)
    assert 0 <= figures["ap"] <= figures["ap50"] <= 1
    assert np.isfinite(figures["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc_sim_yolo_v2", "coco_yolov3_tiny"])
def test_one_training_and_one_validation_step(name: str, tmp_path: Path) -> None:
    one_step_each(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("voc_ssdlite320", 320),
        ("voc_ssd300", 300),
        ("voc_retinanet_r50", 128),
        ("voc_fcos_r50", 128),
        ("voc_faster_rcnn_r50", 128),
    ],
)
def test_detectors_of_torchvision(name: str, size: int, tmp_path: Path) -> None:
    """Those with a feature pyramid on small images, which they take as well."""
    sizes = (f"data.detection.image_size=[{size},{size}]", f"network.input_shape=[3,{size},{size}]")
    one_step_each(name, tmp_path, *sizes, "data.batch_size=2")  # batch norm of one pixel needs two images
