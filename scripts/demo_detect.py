"""Shows the whole job of detection in minutes: float detector, search, training, export, integer check, pictures."""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder

PICTURES = 4
"""Test images that are drawn."""


def stage(config: Config, run: RunFolder) -> int:
    import torch  # here, so that --help and wrong settings do not wait for torch

    from qat.export import load_packed
    from qat.pipeline import demo, results, train
    from qat.tasks.detection import Detection
    from qat.tasks.detection_pictures import draw_detections

    differing = demo(config, run)
    setup = train(config, run)
    objective = Detection.of(setup.float_model)
    images, targets = next(iter(setup.data.test_dataloader(limit=PICTURES)))
    best = max(results(run), key=lambda result: (result.kind == "mix", result.compression))
    packed = load_packed(run.path / "networks" / best.name / "packed")
    with torch.no_grad():
        maps = setup.float_model(setup.normalization(images))
    codes = torch.from_numpy(packed.run(images.numpy())).float()
    answers = {
        "float": objective.detections(maps),
        f"integer, {best.compression:.1f}x smaller": objective.detections(codes * packed.output_scales[0]),
    }
    draw_detections(images, targets, answers, setup.data.class_names, run.path / "detections.png")
    print(f"pictures:     {run.path / 'detections.png'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, root="demo_detect", trains=True))
