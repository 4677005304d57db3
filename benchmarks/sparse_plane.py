"""Does the sparse plane of `binary_plus_sparse` earn its bits?  Equal stored size, equal training, several seeds.

    python benchmarks/sparse_plane.py --seeds 0 1 2
    python benchmarks/sparse_plane.py --experiment cifar10 --data-root ../shared/data --workers 9 --compile

A residual network on handwritten digits, narrow enough that one bit costs accuracy, or ResNet-20 on CIFAR-10.  At each
of two sizes, that of a plane with `--density` and that of 2 bits everywhere, four networks are compared:

- `plane`: signs everywhere, and the densest sparse plane of 8-bit weights that fits the size;
- `dense`: 1 or 2 bits per layer, 2 bits from the smallest layer on as far as the size reaches;
- `wider`: signs everywhere, with more channels in its stages as far as the size reaches;
- `signs`: signs alone, smaller than the size; what all the others have to beat.

At the smaller size also planes of kernels and of channel vectors, planes chosen by gradients, planes that thin out
gradually, and planes that settle early.  First and last layer have 8 bits and count too.  Stored bits are everything:
values, index, multipliers, biases.  Each network has a float network of its own as start and teacher, trained alike.

Each training leaves a file below --folder and is not done again; the table is made of all files there.  Beside each
plane stands which share of the weights' squared error the significant weights still have: it bounds what a residual
with a step of its own could gain over the code that replaces the sign.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from workers import spread

import qat
from hwmodel import Granularity, LayerConfig, NetworkConfig, NetworkSpec, WeightFormat, uniform, weight_storage
from qat.compose import compose_config
from qat.data import ImageDataModule, build_data
from qat.files import write_text
from qat.masks import MaskSchedule, Saliency
from qat.models.resnet_cifar import ResNetCifar
from qat.quantizers import WeightQuantizer
from qat.tasks import Classification, Recipe, TrainingTask, evaluate, fit
from qat.tasks.fit import Machine, read_checkpoint, write_checkpoint
from qat.tasks.quantize import quantize

Widths = tuple[int, int, int]
ACT_BIT_WIDTH = 4
OBJECTIVE = Classification()
FLOAT_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Problem:
    """What is trained on.

    Args:
        settings: Of the images, for `qat.compose`.
        widths: Channels of the network's stages.
        blocks: Residual blocks per stage.
        float_epochs: Of each float network.
        epochs: Of each quantized network.
        precision: Lightning's.
        recipe: Of the quantized networks.
    """

    settings: str
    widths: Widths
    blocks: int
    float_epochs: int
    epochs: int
    precision: str
    recipe: Recipe


PROBLEMS = {
    "digits": Problem("digits_demo", (6, 12, 24), 1, 30, 12, "32-true", Recipe()),
    "cifar10": Problem(
        "cifar10_resnet20", (16, 32, 64), 3, 40, 10, "bf16-mixed", Recipe(distillation_weight=1.0, temperature=4.0)
    ),
}


def network(widths: Widths, blocks: int, in_channels: int) -> nn.Module:
    """The float network."""
    return ResNetCifar(blocks, widths, in_channels)


def stored_bits(spec: NetworkSpec, config: NetworkConfig) -> int:
    """Everything that is stored of all layers with weights."""
    return sum(weight_storage(layer, config[layer.name]).total_bits for layer in spec.weighted)


def with_body(spec: NetworkSpec, layer_of: Callable[[str], LayerConfig]) -> NetworkConfig:
    """First and last layer at 8 bits, the others as given by name."""
    base = uniform(spec, 1, ACT_BIT_WIDTH, end_bit_width=8)
    body = {layer.name for layer in spec.weighted[1:-1]}
    return replace(base, layers=tuple((name, layer_of(name) if name in body else one) for name, one in base.layers))


def signs(spec: NetworkSpec) -> NetworkConfig:
    """One bit everywhere."""
    return with_body(spec, lambda name: LayerConfig(1, ACT_BIT_WIDTH))


def plane(spec: NetworkSpec, density: float, granularity: Granularity = Granularity.ELEMENT) -> NetworkConfig:
    """Signs and a sparse plane."""
    layer = LayerConfig(1, ACT_BIT_WIDTH, 1 - density, WeightFormat.BINARY_PLUS_SPARSE, granularity)
    return with_body(spec, lambda name: layer)


def densest_plane(spec: NetworkSpec, size: int, granularity: Granularity = Granularity.ELEMENT) -> NetworkConfig:
    """The densest sparse plane that fits."""
    low, high = 0.0, 0.5
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if stored_bits(spec, plane(spec, middle, granularity)) <= size else (low, middle)
    return plane(spec, low, granularity)


def dense_mix(spec: NetworkSpec, size: int) -> NetworkConfig:
    """2 bits from the smallest layer on, as far as the size reaches; 1 bit in the others."""
    chosen: set[str] = set()

    def mix() -> NetworkConfig:
        return with_body(spec, lambda name: LayerConfig(2 if name in chosen else 1, ACT_BIT_WIDTH))

    for layer in sorted(spec.weighted[1:-1], key=lambda layer: layer.weights):
        chosen.add(layer.name)
        if stored_bits(spec, mix()) > size:
            chosen.remove(layer.name)
    return mix()


def widest(problem: Problem, shape: tuple[int, int, int], size: int) -> Widths:
    """Channels of the stages at which signs alone fit.

    2 more at a time, as shortcuts need even differences, for the stage that has grown least of those where it fits.
    """
    widths = list(problem.widths)
    while True:
        for stage in sorted(range(3), key=lambda stage: widths[stage] / problem.widths[stage]):
            first, second, third = (width + 2 * (place == stage) for place, width in enumerate(widths))
            if not first <= second <= third:
                continue
            spec = traced(problem, (first, second, third), shape)
            if stored_bits(spec, signs(spec)) <= size:
                widths = [first, second, third]
                break
        else:
            first, second, third = widths
            return first, second, third


def traced(problem: Problem, widths: Widths, shape: tuple[int, int, int]) -> NetworkSpec:
    """The graph of a network."""
    return qat.trace(network(widths, problem.blocks, shape[0]).eval(), shape)


@dataclass(frozen=True)
class Entry:
    """One network to train.

    Args:
        name: In the table.
        widths: Channels of its stages.
        config: Precision.
        recipe: Training.
    """

    name: str
    widths: Widths
    config: NetworkConfig
    recipe: Recipe


def entries(problem: Problem, shape: tuple[int, int, int], density: float) -> list[Entry]:
    """All networks."""
    spec = traced(problem, problem.widths, shape)
    own, recipe = problem.widths, problem.recipe
    two = with_body(spec, lambda name: LayerConfig(2, ACT_BIT_WIDTH))
    small, large = stored_bits(spec, plane(spec, density)), stored_bits(spec, two)
    found = [Entry("signs", own, signs(spec), recipe)]
    for size in (small, large):
        wide = widest(problem, shape, size)
        found.append(Entry(f"plane {size}", own, densest_plane(spec, size), recipe))
        found.append(Entry(f"dense {size}", own, dense_mix(spec, size), recipe))
        found.append(Entry(f"wider {size}", wide, signs(traced(problem, wide, shape)), recipe))
    for granularity in (Granularity.KERNEL, Granularity.CHANNEL_VECTOR):
        found.append(Entry(f"plane {small} {granularity}", own, densest_plane(spec, small, granularity), recipe))
    for name, other in (
        ("taylor", replace(recipe, mask_saliency=Saliency.TAYLOR)),
        ("gradual", replace(recipe, mask_schedule=MaskSchedule.GRADUAL)),
        ("settled early", replace(recipe, mask_update_share=0.1)),
    ):
        found.append(Entry(f"plane {small} {name}", own, densest_plane(spec, small), other))
    return found


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        entry: The quantized network, or a float network of these channels.
        seed: Of start and images.
        problem: Name of the problem.
        data_root: Of its images.
        folder: Of all files.
        compiled: Whether it is trained as compiled graphs.
    """

    entry: Entry | Widths
    seed: int
    problem: str
    data_root: str
    folder: Path
    compiled: bool

    @property
    def path(self) -> Path:
        """What comes out."""
        if isinstance(self.entry, Entry):
            return self.folder / self.entry.name.replace(" ", "_") / f"seed{self.seed}.json"
        return self.folder / "float" / f"{'_'.join(str(width) for width in self.entry)}-seed{self.seed}.ckpt"

    @property
    def teacher(self) -> Job:
        """The float network that a quantized one starts from."""
        return replace(self, entry=self.entry.widths if isinstance(self.entry, Entry) else self.entry)


@cache
def images(problem: str, data_root: str, seed: int) -> ImageDataModule:
    """The images, in an order that the seed decides."""
    root = [f"data.root={data_root}"] if data_root else []
    return build_data(compose_config([f"experiment={PROBLEMS[problem].settings}", *root]).data, seed)


def work(job: Job) -> None:
    """Trains one network on one thread."""
    torch.set_num_threads(1)
    pl.seed_everything(job.seed, verbose=False)
    problem, data = PROBLEMS[job.problem], images(job.problem, job.data_root, job.seed)
    machine = Machine(precision=problem.precision, progress_bar=False, compiled=job.compiled)
    if isinstance(job.entry, Entry):
        _train_quantized(job, job.entry, problem, data, machine)
        return
    model = network(job.entry, problem.blocks, data.input_shape[0])
    recipe = replace(problem.recipe, learning_rate=FLOAT_LEARNING_RATE)
    fit(TrainingTask(model, data.normalization, recipe, OBJECTIVE), data, machine, epochs=problem.float_epochs)
    write_checkpoint({"state_dict": model.cpu().state_dict()}, job.path)


def _train_quantized(job: Job, entry: Entry, problem: Problem, data: ImageDataModule, machine: Machine) -> None:
    teacher = network(entry.widths, problem.blocks, data.input_shape[0])
    teacher.load_state_dict(read_checkpoint(job.teacher.path)["state_dict"])
    teacher.eval()
    model = quantize(teacher, entry.config, data, data.normalization)
    task = TrainingTask(model, data.normalization, entry.recipe, OBJECTIVE, copy.deepcopy(teacher))
    fit(task, data, machine, epochs=problem.epochs)
    model.cpu()
    found = {
        "test": evaluate(model, data.test_dataloader(), data.normalization, OBJECTIVE),
        "val": evaluate(model, data.val_dataloader(), data.normalization, OBJECTIVE),
        "float_test": evaluate(teacher, data.test_dataloader(), data.normalization, OBJECTIVE),
        "error_share": error_share(teacher, entry.config),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
    }
    write_text(job.path, json.dumps(found, indent=1) + "\n")


def error_share(model: nn.Module, config: NetworkConfig) -> float:
    """Squared error of significant weights, over that of all weights of the layers with a plane; 0 without one."""
    significant, total = 0.0, 0.0
    for name, layer in config.layers:
        if layer.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
            weight = model.get_submodule(name).weight.detach()  # type: ignore[operator]
            quantizer = WeightQuantizer(weight, layer)
            assert quantizer.mask is not None
            error = (quantizer(weight).detach() - weight).square()
            significant += float((error * quantizer.mask).sum())
            total += float(error.sum())
    return significant / total if total else 0.0


def table(problem: Problem, shape: tuple[int, int, int], density: float, folder: Path) -> str:
    """One line per network, means and standard deviations over seeds, as Markdown."""
    lines = [
        "| network | weights | stored bits | per weight | seeds | validation | test | test loss | error share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries(problem, shape, density):
        files = sorted((folder / entry.name.replace(" ", "_")).glob("seed*.json"))
        if not files:
            continue
        found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        spec = traced(problem, entry.widths, shape)
        bits = stored_bits(spec, entry.config)

        def mean(part: str, figure: str, found: list[dict[str, dict[str, float]]] = found) -> str:
            values = [one[part][figure] * (100 if figure == "accuracy" else 1) for one in found]
            spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.2f}{spread}"

        share = statistics.mean(one["error_share"] for one in found)
        lines.append(
            f"| {entry.name} | {spec.total_weights} | {bits} | {bits / spec.total_weights:.3f} | {len(found)} "
            f"| {mean('val', 'accuracy')} | {mean('test', 'accuracy')} | {mean('test', 'loss')} | {share:.3%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=list(PROBLEMS), default="digits")
    parser.add_argument("--data-root", default="", help="folder of the images, for cifar10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--density", type=float, default=0.025)
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side, one thread each")
    parser.add_argument("--compile", action="store_true", help="train compiled graphs: quicker on a GPU")
    parser.add_argument("--folder", type=Path, default=Path("runs/sparse_plane"))
    arguments = parser.parse_args()
    problem, folder = PROBLEMS[arguments.experiment], arguments.folder / arguments.experiment
    data = images(arguments.experiment, arguments.data_root, 0)
    found = entries(problem, data.input_shape, arguments.density)
    jobs = [
        Job(entry, seed, arguments.experiment, arguments.data_root, folder, arguments.compile)
        for seed in arguments.seeds
        for entry in found
    ]
    teachers = sorted({job.teacher for job in jobs}, key=lambda job: (job.seed, job.entry), reverse=True)
    spread(teachers, work, lambda job: job.path, arguments.workers)
    spread(jobs, work, lambda job: job.path, arguments.workers)
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}")
    print(
        f"{data.val_images} validation and {data.test_images} test images, {problem.epochs} epochs after "
        f"{problem.float_epochs} in float\n"
    )
    print(table(problem, data.input_shape, arguments.density, folder))


if __name__ == "__main__":
    main()
