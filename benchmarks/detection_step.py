"""Time of a training step of Tiny YOLOv2 at 416x416, float and quantized, and of decoding images beside it.

    python benchmarks/detection_step.py

Float and quantized steps alternate; the figure is the median of their ratios, with quartiles.  A step is forward,
detection loss, backward; the quantized network is W4A4 with 8 bits at both ends.  `--clock cpu` counts the time that
the process got on its core in place of the time that passed, for machines that others use (one thread).
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from hwmodel import uniform
from qat.convert import prepare
from qat.data.boxes import Boxes, BoxReport
from qat.data.detection import DetectionDataModule, DetectionSplits
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.detection_files import Folder
from qat.data.detection_formats import AnnotatedFiles
from qat.graph import trace
from qat.models import yolov2_tiny_voc
from qat.normalization import Normalization
from qat.tasks import Detection

SIZE = 416


class Photographs(AnnotatedFiles):
    """JPEG pictures of 500x375 in memory, decoded each time."""

    def image(self, index: int) -> Image.Image:
        """A decoded image."""
        noise = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((500, 375)).save(buffer, "JPEG", quality=90)
        with Image.open(buffer) as picture:
            return picture.convert("RGB")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def step_s(
    model: nn.Module, objective: Detection, x: torch.Tensor, targets: torch.Tensor, clock: Callable[[], float]
) -> float:
    """Seconds of one step."""
    start = clock()
    objective.loss(model(x), targets).backward()
    seconds = clock() - start
    model.zero_grad(set_to_none=True)
    return seconds


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    count = 4 * arguments.batch
    boxes = tuple(Boxes.from_lists([[0.1, 0.2, 0.4, 0.9], [0.5, 0.5, 0.8, 0.7]], [11, 14]) for _ in range(count))
    names = tuple(f"{number}.jpg" for number in range(count))
    images = Photographs(Folder(Path()), names, boxes, tuple(map(str, range(20))), BoxReport(images=count))
    augmentation = DetectionAugmentation(horizontal_flip=True, shift=0.2, zoom=1.5, color=0.4, mosaic=0.5)
    data = DetectionDataModule(
        DetectionSplits(images, images, images), Normalization.unit(3), augmentation, (SIZE, SIZE), arguments.batch, 0
    )
    model = yolov2_tiny_voc(20).train()
    objective = Detection.of(model)
    network = trace(model, (3, SIZE, SIZE))
    quantized = prepare(model, uniform(network, 4, 4, end_bit_width=8), (3, SIZE, SIZE)).train()
    pixels, targets = next(iter(data.train_dataloader()))
    x = data.normalization(pixels)
    quantized.calibrate([x])
    for warm_up in (model, quantized):
        step_s(warm_up, objective, x, targets, clock)
    pairs = [
        (step_s(model, objective, x, targets, clock), step_s(quantized, objective, x, targets, clock))
        for _ in range(arguments.rounds)
    ]
    low, middle, high = statistics.quantiles([ours / theirs for theirs, ours in pairs], n=4)
    start = clock()
    delivered = sum(len(batch) for batch, _ in data.train_dataloader())
    load_s = (clock() - start) / delivered * arguments.batch
    float_s, quantized_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    threads, rounds = torch.get_num_threads(), f"{arguments.rounds} rounds, {arguments.clock} time"
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}")
    print(f"batch {arguments.batch}, {rounds}")
    print(f"float step      {float_s:.3f} s")
    print(f"quantized step  {quantized_s:.3f} s, {middle:.2f} times float (quartiles {low:.2f} to {high:.2f})")
    print(f"loading a batch {load_s:.3f} s in one process: {load_s / float_s:.0%} of a float step, before any worker")


if __name__ == "__main__":
    main()
