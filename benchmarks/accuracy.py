"""Accuracy of ResNet-20 on CIFAR-10 at given precisions, all trained with one recipe; beside Brevitas.

    python benchmarks/accuracy.py --data-root ../shared/data --seeds 0 1 2
    python benchmarks/accuracy.py --data-root ../shared/data --seeds 0 1 2 --rows brevitas_w4a4 brevitas_w2a4
    python benchmarks/accuracy.py --data-root ../shared/data --seeds 0 1 2 --workers 9 --threads 1 --compile   # GPU
    python benchmarks/accuracy.py --data-root ../shared/data --epochs 40 --rows w1a4 --mixes docs/precision/mix_*.json

Recipe, images and float weights are those of `experiment=cifar10_resnet20`; first and last layer have 8 bits (4-bit
weights in the rows with a sparse plane), sums 8.
Mixes are configurations in files, such as `networks/<name>/config.json` of a search; their row has the file's name.
Each trained network leaves a file below --folder and is not trained again; the table is printed from all files there.
Rows of Brevitas need an environment that has it beside this package (`pip install brevitas -e .`); their sums have 8
bits and their ends too, scales are learned, so that both sides quantize the same tensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from workers import spread

import hwmodel
from hwmodel import LayerConfig, NetworkConfig, NetworkSpec, WeightFormat
from qat.compose import compose_config
from qat.data import build_data
from qat.files import write_rows, write_text
from qat.normalization import Normalization
from qat.pipeline.setup import Setup, train
from qat.runs import RunFolder
from qat.tasks import TrainingTask, evaluate, fit
from qat.tasks.quantize import quantize

UNIFORM = {
    "w8a8": (8, 8),
    "w4a4": (4, 4),
    "w3a3": (3, 3),
    "w2a4": (2, 4),
    "w2a2": (2, 2),
    "w1a8": (1, 8),
    "w1a4": (1, 4),
}
"""Weight bits, activation bits."""

SPARSE = {"binary_plus_sparse_1.11": 1.11, "binary_plus_sparse_1.41": 1.41}
"""Stored bits per weight, everything counted, with 4-bit activations."""

BREVITAS = {"brevitas_w4a4": (4, 4), "brevitas_w2a4": (2, 4)}


def configuration(network: NetworkSpec, row: str, mix: Path | None) -> NetworkConfig:
    """Precision of every layer of one of our rows; of its file if it is a mix."""
    if mix is not None:
        return NetworkConfig.from_dict(json.loads(mix.read_text(encoding="utf-8")))
    if row in UNIFORM:
        return hwmodel.uniform(network, *UNIFORM[row], end_bit_width=8)
    return binary_plus_sparse(network, SPARSE[row])


def binary_plus_sparse(network: NetworkSpec, bits_per_weight: float) -> NetworkConfig:
    """Signs and the densest sparse plane, alike in all layers but the 4-bit ends, that stays within a size."""
    base = hwmodel.uniform(network, 1, 4, end_bit_width=8)
    body = {layer.name for layer in network.weighted[1:-1]}

    def at(density: float) -> NetworkConfig:
        significant = LayerConfig(1, 4, 1 - density, WeightFormat.BINARY_PLUS_SPARSE)
        layers = ((n, significant if n in body else replace(c, weight_bit_width=4)) for n, c in base.layers)
        return replace(base, layers=tuple(layers))

    low, high = 1e-4, 0.5
    for _ in range(20):
        middle = (low + high) / 2
        report = hwmodel.estimate(network, at(middle), hwmodel.load_board("zcu102"))
        low, high = (middle, high) if report.bits_per_weight <= bits_per_weight else (low, middle)
    return at(low)


def brevitas_network(float_model: Any, weight_bit_width: int, act_bit_width: int) -> nn.Module:
    """ResNet-20 of Brevitas' layers with the float model's weights: learned scales, per channel and per tensor."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    class LearnedWeight(Int8WeightPerChannelFloat):  # type: ignore[misc]
        scaling_impl_type = "parameter_from_stats"

    def convolution(source: nn.Conv2d, bits: int, input_quant: type | None, input_bits: int) -> Any:
        layer: Any = qnn.QuantConv2d(
            source.in_channels,
            source.out_channels,
            3,
            stride=source.stride,
            padding=1,
            bias=False,
            weight_quant=LearnedWeight,
            weight_bit_width=bits,
            input_quant=input_quant,
            **({} if input_quant is None else {"input_bit_width": input_bits}),
        )
        layer.weight.data.copy_(source.weight.data)
        return layer

    class Block(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.conv1 = convolution(block.conv1, weight_bit_width, Uint8ActPerTensorFloat, act_bit_width)
            self.conv2 = convolution(block.conv2, weight_bit_width, None, 8)
            self.bn1, self.bn2 = copy.deepcopy(block.bn1), copy.deepcopy(block.bn2)
            self.relu1 = qnn.QuantReLU(bit_width=act_bit_width)
            self.branch = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8)
            self.relu2 = qnn.QuantReLU(bit_width=8)
            self.stride, self.extra_channels = block.stride, block.extra_channels

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu1(self.bn1(self.conv1(x)))
            y = self.branch(self.bn2(self.conv2(y)))
            if self.stride != 1 or self.extra_channels:
                half = self.extra_channels // 2
                x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
            result: Tensor = self.relu2(y + x)
            return result

    class Network(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.conv1 = convolution(model.conv1, 8, Int8ActPerTensorFloat, 8)
            self.bn1 = copy.deepcopy(model.bn1)
            self.relu = qnn.QuantReLU(bit_width=8)
            stages = (model.layer1, model.layer2, model.layer3)
            self.blocks = nn.Sequential(*(Block(block) for stage in stages for block in stage))
            self.pooled = qnn.QuantIdentity(act_quant=Uint8ActPerTensorFloat, bit_width=8)
            self.linear = qnn.QuantLinear(64, 10, bias=True, weight_quant=LearnedWeight, weight_bit_width=8)
            self.linear.weight.data.copy_(model.linear.weight.data)
            self.linear.bias.data.copy_(model.linear.bias.data)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.relu(self.bn1(self.conv1(x))))
            x = self.pooled(nn.functional.adaptive_avg_pool2d(x, 1)).flatten(1)
            logits: Tensor = self.linear(x)
            return logits

    return Network(float_model)


def network_of(setup: Setup, row: str, mix: Path | None) -> nn.Module:
    """The row's network, ready to train."""
    if row in BREVITAS:
        return brevitas_network(setup.float_model, *BREVITAS[row])
    return quantize(setup.float_model, configuration(setup.network, row, mix), setup.data, setup.normalization)


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        row: Of the table.
        seed: Order and augmentation of the images, and all that is random in a training.
        overrides: Settings of all rows.
        folder: Of all rows.
        mix: The row's configuration, if it is a mix.
    """

    row: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path
    mix: Path | None = None

    @property
    def path(self) -> Path:
        """What comes out."""
        return self.folder / self.row / f"seed{self.seed}.json"


@cache
def setup_of(overrides: tuple[str, ...]) -> Setup:
    """The float network with its images, from a run folder that is there."""
    config = compose_config(overrides)
    return train(config, RunFolder.open(config.run_dir))


def measure(job: Job) -> None:
    """Trains one row with one seed."""
    setup = setup_of(job.overrides)
    setup = replace(setup, data=build_data(compose_config(job.overrides).data, job.seed))
    row, seed, folder = job.row, job.seed, job.folder
    pl.seed_everything(seed, verbose=False)
    model = network_of(setup, row, job.mix)
    task = TrainingTask(model, setup.normalization, setup.recipe, setup.objective, copy.deepcopy(setup.float_model))
    machine = replace(setup.machine, compiled=setup.machine.compiled and row not in BREVITAS)
    fit(task, setup.data, machine, folder / row / f"seed{seed}")
    result: dict[str, Any] = {
        "row": row,
        "seed": seed,
        "epochs": setup.recipe.epochs,
        "bits_per_weight": None,
        "compression": None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "torch": torch.__version__,
    }
    if row not in BREVITAS:
        report = hwmodel.estimate(
            setup.network, configuration(setup.network, row, job.mix), hwmodel.load_board("zcu102")
        )
        result |= {"bits_per_weight": report.bits_per_weight, "compression": report.compression}
    result |= paired(setup, model.eval(), setup.normalization)
    result |= {f"val_{k}": v for k, v in validation(setup, model).items()}
    write_text(job.path, json.dumps(result, indent=1) + "\n")


def validation(setup: Setup, model: nn.Module) -> dict[str, float]:
    """Accuracy and loss on the 5,000 validation images (the float weights have seen them)."""
    return evaluate(model, setup.data.val_dataloader(), setup.normalization, setup.objective)


@torch.no_grad()
def paired(setup: Setup, model: nn.Module, normalization: Normalization) -> dict[str, int]:
    """Test accuracy beside float's on the same images, and the images that only one of them gets right."""
    counts = {"images": 0, "right": 0, "float_right": 0, "lost": 0, "won": 0}
    for images, labels in setup.data.test_dataloader():
        x = normalization(images)
        right, float_right = model(x).argmax(1) == labels, setup.float_model(x).argmax(1) == labels
        counts["images"] += len(labels)
        counts["right"] += int(right.sum())
        counts["float_right"] += int(float_right.sum())
        counts["lost"] += int((float_right & ~right).sum())
        counts["won"] += int((right & ~float_right).sum())
    return counts


def table(folder: Path, order: Callable[[str], int]) -> list[dict[str, object]]:
    """One line per row: means over seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(folder.glob("*/seed*.json")):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    lines = []
    for row in sorted(found, key=order):
        seeds = found[row]
        top1 = [100 * one["right"] / one["images"] for one in seeds]
        lost = [100 * (one["lost"] - one["won"]) / one["images"] for one in seeds]
        lines.append(
            {
                "row": row,
                "seeds": len(seeds),
                "epochs": seeds[0]["epochs"],
                "compression": seeds[0]["compression"] and f"{seeds[0]['compression']:.2f}x",
                "test top-1": f"{statistics.mean(top1):.2f} %",
                "from": f"{min(top1):.1f}",
                "to": f"{max(top1):.1f}",
                "points lost": f"{statistics.mean(lost):+.2f}",
                "validation": f"{100 * statistics.mean(one['val_accuracy'] for one in seeds):.2f} %",
            }
        )
    return lines


def main() -> None:
    """Command line."""
    rows = [*UNIFORM, *SPARSE, *BREVITAS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder of the CIFAR-10 archives and weights (DATA.md)")
    parser.add_argument("--rows", nargs="*", choices=rows, default=[*UNIFORM, *SPARSE], help="default: all of ours")
    parser.add_argument("--mixes", nargs="+", type=Path, default=[], help="files of configurations, one row each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="train our rows as compiled graphs: quicker on a GPU")
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side")
    parser.add_argument("--folder", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.epochs}_epochs"
    overrides = (
        "experiment=cifar10_resnet20",
        f"data.root={arguments.data_root}",
        f"trainer.epochs={arguments.epochs}",
        f"trainer.num_threads={arguments.threads}",
        f"trainer.compile={'true' if arguments.compile else 'false'}",
        f"trainer.progress_bar={'true' if arguments.workers == 1 else 'false'}",
        f"run_dir={folder / 'float'}",
    )
    config = compose_config(overrides)
    train(config, RunFolder.create(config))
    mixes = {path.stem: path for path in arguments.mixes}
    wanted = [*mixes, *arguments.rows]
    jobs = [Job(row, seed, overrides, folder, mixes.get(row)) for seed in arguments.seeds for row in wanted]
    spread(jobs, measure, lambda job: job.path, arguments.workers)
    lines = table(folder, lambda row: rows.index(row) if row in rows else len(rows))
    write_rows(folder / "table", lines)
    print("\n".join("  ".join(f"{value!s:>12}" for value in line) for line in (lines[0], *(d.values() for d in lines))))


if __name__ == "__main__":
    main()
