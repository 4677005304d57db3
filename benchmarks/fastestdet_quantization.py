"""FastestDet on 128 images of COCO: float, and quantized without any training.

    python benchmarks/fastestdet_quantization.py <folder of coco_val128.tar and weights/> [--integers]

Two halves: what measures an image was calibrated on the other half's images, without their boxes.  Each precision is
measured twice: with batch-norm statistics as published, and with statistics estimated again behind the new weights.
`--integers` runs W8A8 from packed files in the numpy runtime too, and compares every code with the deployed network.
At the end hwmodel's estimate of W8A8 and W4A8 on two boards.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import hwmodel
from hwmodel import NetworkConfig, NetworkSpec
from qat.convert import QuantNetwork
from qat.data import DetectionDataModule
from qat.data.boxes import BoxReport
from qat.data.detection import DetectionSplits
from qat.data.detection_augmentation import DetectionAugmentation
from qat.data.detection_files import open_files
from qat.data.detection_formats import AnnotatedFiles, read_coco
from qat.deployment import deploy
from qat.export import export, load_packed
from qat.graph import trace
from qat.layers import QuantWeighted
from qat.models import FastestDet, fastestdet
from qat.normalization import Normalization
from qat.tasks import Detection
from qat.tasks.detection import DetectionMeter
from qat.tasks.fit import read_checkpoint
from qat.tasks.quantize import load_state, quantize

ROWS = ((8, 8, None), (4, 8, 8), (4, 8, None), (4, 4, 8))
"""Weight bits, activation bits, bits of both at the first and the last layer."""

BOARDS = ("zcu102", "kv260")
"""Of the estimates: one with room to spare, one small."""


def half(images: AnnotatedFiles, first: int) -> AnnotatedFiles:
    """Every second image."""
    boxes = images.boxes[first::2]
    return replace(images, names=images.names[first::2], boxes=boxes, report=BoxReport(images=len(boxes)))


def with_published_statistics(model: QuantNetwork) -> QuantNetwork:
    """The same network with the batch-norm statistics of the float model."""
    for node in model.graph.nodes:
        layer = model.layer(node.name)
        if isinstance(layer, QuantWeighted) and layer.batch_norm is not None and node.batch_norm is not None:
            layer.batch_norm.load_state_dict(node.batch_norm.state_dict())
    return model


def compare_integers(
    model: QuantNetwork, config: NetworkConfig, data: DetectionDataModule, objective: Detection, meter: DetectionMeter
) -> int:
    """Codes that differ between packed files and deployed network over a half's images; the meter takes the answers."""
    network = model.network
    with tempfile.TemporaryDirectory() as folder:
        schedule = hwmodel.schedule(network, config, hwmodel.load_board("zcu102"))
        export(model, Path(folder) / "packed", schedule, data.normalization, data.class_names)
        packed = load_packed(Path(folder) / "packed")
    deployed, differing = deploy(model, data.normalization), 0
    for batch, targets in data.test_dataloader():
        ours, theirs = deployed.layer_codes(batch), packed.layer_codes(batch.numpy())
        differing += sum(int((ours[name].numpy() != theirs[name]).sum()) for name in ours)
        codes = torch.from_numpy(theirs[network.outputs[0]]).float()
        meter.update(codes * packed.output_scales[0], targets)
    return differing


@torch.no_grad()
def answer(model: torch.nn.Module, data: DetectionDataModule, meter: DetectionMeter) -> None:
    """The meter takes a network's answers on a half's images."""
    model.eval()
    for batch, targets in data.test_dataloader():
        meter.update(model(data.normalization(batch)), targets)


def published(root: Path) -> FastestDet:
    """FastestDet with the published weights."""
    model = fastestdet().eval()
    weights = root / "weights" / "fastestdet_coco.pth"
    load_state(model, read_checkpoint(weights), weights)
    return model


def show(name: str, meter: DetectionMeter, note: str = "") -> None:
    """Prints a line."""
    figures = meter.compute()
    print(f"{name:44} AP50 {figures['ap50']:.4f}  AP {figures['ap']:.4f}{note}", flush=True)


def show_costs(network: NetworkSpec) -> None:
    """Prints what W8A8, and W4A8 with ends of 8 bits, cost on each board."""
    for weight_bits, act_bits, ends in ROWS[:2]:
        config = hwmodel.uniform(network, weight_bits, act_bits, end_bit_width=ends)
        for board in map(hwmodel.load_board, BOARDS):
            report = hwmodel.estimate(network, config, board)
            print(
                f"W{weight_bits}A{act_bits} on {board.name}: {report.compression:.2f}x, RAMB18 {report.bram18} of "
                f"{board.bram18}, off chip {report.offchip_bits / 8192:.0f} KiB, of weights "
                f"{report.offchip_weight_bits / 8192:.0f} (layer by layer {report.baseline_offchip_bits / 8192:.0f}), "
                f"{report.fps:.0f} frames/s"
            )


def main() -> None:
    """Prints one line per precision, then one per estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--integers", action="store_true", help="compare packed files with the deployed model too")
    arguments = parser.parse_args()
    files = open_files(arguments.root / "coco_val128.tar")
    images = read_coco(files, "coco128_val2017/instances.json", "coco128_val2017/images")
    parts = half(images, 0), half(images, 1)
    halves = [
        DetectionDataModule(
            DetectionSplits(calibrated, measured, measured),
            Normalization.unit(3),
            DetectionAugmentation(),
            (352, 352),
            16,
            0,
            is_bgr=True,
        )
        for calibrated, measured in (parts, parts[::-1])
    ]
    model = published(arguments.root)
    objective = Detection.of(model)
    network = trace(model, halves[0].input_shape)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {network.total_macs / 1e6:.1f} M MACs")
    meter = objective.meter()
    for data in halves:
        answer(model, data, meter)
    show("float", meter)
    for weight_bits, act_bits, ends in ROWS:
        config = hwmodel.uniform(network, weight_bits, act_bits, end_bit_width=ends)
        name = f"W{weight_bits}A{act_bits}" + (f", first and last {ends}" if ends else "")
        estimated, kept, integers = objective.meter(), objective.meter(), objective.meter()
        differing = 0
        for data in halves:
            quantized = quantize(model, config, data, data.normalization)
            answer(quantized, data, estimated)
            answer(with_published_statistics(quantized), data, kept)
            if arguments.integers and weight_bits == act_bits == 8:
                differing += compare_integers(quantized, config, data, objective, integers)
        show(f"{name}, statistics as published", kept)
        show(f"{name}, statistics estimated again", estimated)
        if arguments.integers and weight_bits == act_bits == 8:
            note = f"; {differing} codes differ in {len(network.layers)} layers over {len(images)} images"
            show(f"{name} in integers, statistics as published", integers, note)
    show_costs(network)


if __name__ == "__main__":
    main()
