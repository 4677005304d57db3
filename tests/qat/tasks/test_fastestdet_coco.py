"""The published FastestDet finds what it is known to find on 128 images of COCO."""

from __future__ import annotations

from pathlib import Path

import pytest

from qat.data import DetectionDataModule
from qat.data.boxes import unpack
from qat.data.detection import DetectionSplits
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.detection_files import open_files
from qat.data.detection_formats import read_coco
from qat.models import fastestdet
from qat.normalization import Normalization
from qat.tasks import Detection
from qat.tasks.average_precision import Found, Truth, mean_average_precision
from qat.tasks.fit import read_checkpoint
from qat.tasks.quantize import load_state


@pytest.mark.data
@pytest.mark.slow
def test_average_precision_of_the_published_weights(data_root: Path) -> None:
    """AP50 0.336 and AP 0.181 by the all-point rule: the shared data's own reference for these files."""
    files = open_files(data_root / "coco_val128.tar")
    images = read_coco(files, "coco128_val2017/instances.json", "coco128_val2017/images")
    plain, unit = DetectionAugmentation(), Normalization.unit(3)
    splits = DetectionSplits(images, images, images)
    data = DetectionDataModule(splits, unit, plain, (352, 352), 32, 0, is_bgr=True)
    model = fastestdet().eval()
    weights = data_root / "weights" / "fastestdet_coco.pth"
    load_state(model, read_checkpoint(weights), weights)
    objective = Detection.of(model)
    meter = objective.meter()
    found, truth = [], []
    for batch, targets in data.test_dataloader():
        outputs = model(unit(batch)).detach()
        meter.update(outputs, targets)
        for one, own in zip(objective.detections(outputs), unpack(targets), strict=True):
            found.append(Found(one.boxes_K4.numpy(), one.scores_K.numpy(), one.labels_K.numpy()))
            truth.append(Truth(own.sides_B4, own.labels_B, own.ignored_B))
    figures = meter.compute()
    assert figures["ap50"] == pytest.approx(0.336, abs=0.003)
    assert figures["ap"] == pytest.approx(0.181, abs=0.003)
    assert mean_average_precision(found, truth, "voc_all_point") == pytest.approx(0.336, abs=0.001)
    assert mean_average_precision(found, truth, "coco_101_point") == pytest.approx(figures["ap50"], abs=1e-3)
