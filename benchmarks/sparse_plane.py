"""Does the sparse plane of `binary_plus_sparse` earn its bits?  Equal stored size, equal training, several seeds.

    python benchmarks/sparse_plane.py --seeds 0 1 2

Handwritten digits and a small residual network, narrow enough that one bit costs accuracy.  At each of two sizes, that
of a plane with `--density` and that of 2 bits everywhere, four networks are compared:

- `plane`: signs everywhere, and the densest sparse plane of 8-bit weights that fits the size;
- `dense`: 1 or 2 bits per layer, 2 bits from the smallest layer on as far as the size reaches;
- `wider`: signs everywhere, with more channels in its stages as far as the size reaches;
- `signs`: signs alone, smaller than the size; what all the others have to beat.

First and last layer have 8 bits and count too.  Stored bits are everything: values, index, multipliers, biases.  Each
network has a float network of its own as start and teacher, trained alike.

Printed before: which share of the weights' squared error the significant weights still have.  It bounds what a
residual with a step of its own could gain over the code that replaces the sign.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date

import pytorch_lightning as pl
import torch
from torch import nn

import qat
from hwmodel import LayerConfig, NetworkConfig, NetworkSpec, WeightFormat, uniform, weight_storage
from qat.compose import compose_config
from qat.data import build_data
from qat.masks import MaskSchedule, Saliency
from qat.models.resnet_cifar import ResNetCifar
from qat.quantizers import WeightQuantizer
from qat.tasks import Classification, Recipe, TrainingTask, evaluate, fit
from qat.tasks.fit import Machine
from qat.tasks.quantize import quantize

Widths = tuple[int, int, int]
WIDTHS: Widths = (6, 12, 24)
ACT_BIT_WIDTH = 4
OBJECTIVE = Classification()
CPU = Machine(accelerator="cpu", progress_bar=False)


def network(widths: Widths) -> nn.Module:
    """The float network."""
    return ResNetCifar(1, widths, in_channels=1)


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


def plane(spec: NetworkSpec, density: float) -> NetworkConfig:
    """Signs and a sparse plane."""
    layer = LayerConfig(1, ACT_BIT_WIDTH, 1 - density, WeightFormat.BINARY_PLUS_SPARSE)
    return with_body(spec, lambda name: layer)


def densest_plane(spec: NetworkSpec, size: int) -> NetworkConfig:
    """The densest sparse plane that fits."""
    low, high = 0.0, 0.5
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if stored_bits(spec, plane(spec, middle)) <= size else (low, middle)
    return plane(spec, low)


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


def widest(shape: tuple[int, int, int], size: int) -> Widths:
    """Channels of the stages at which signs alone fit.

    2 more at a time, as shortcuts need even differences, for the stage that has grown least of those where it fits.
    """
    widths = list(WIDTHS)
    while True:
        for stage in sorted(range(3), key=lambda stage: widths[stage] / WIDTHS[stage]):
            first, second, third = (width + 2 * (place == stage) for place, width in enumerate(widths))
            if not first <= second <= third:
                continue
            spec = qat.trace(network((first, second, third)).eval(), shape)
            if stored_bits(spec, signs(spec)) <= size:
                widths = [first, second, third]
                break
        else:
            first, second, third = widths
            return first, second, third


@dataclass(frozen=True)
class Entry:
    """One network to train: its name, its channels and its precision."""

    name: str
    widths: Widths
    config: NetworkConfig
    spec: NetworkSpec


def entries(shape: tuple[int, int, int], density: float) -> list[Entry]:
    """All networks."""
    spec = qat.trace(network(WIDTHS).eval(), shape)
    two = with_body(spec, lambda name: LayerConfig(2, ACT_BIT_WIDTH))
    found = [Entry("signs", WIDTHS, signs(spec), spec)]
    for size in (stored_bits(spec, plane(spec, density)), stored_bits(spec, two)):
        widths = widest(shape, size)
        wide = qat.trace(network(widths).eval(), shape)
        found.append(Entry(f"plane, {size} bits", WIDTHS, densest_plane(spec, size), spec))
        found.append(Entry(f"dense, {size} bits", WIDTHS, dense_mix(spec, size), spec))
        found.append(Entry(f"wider, {size} bits", widths, signs(wide), wide))
    return found


def error_shares(model: nn.Module, config: NetworkConfig) -> str:
    """Squared error of significant weights, over that of all weights of the layers with a plane."""
    significant, total = 0.0, 0.0
    for name, layer in config.layers:
        if layer.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
            weight = model.get_submodule(name).weight.detach()  # type: ignore[operator]
            quantizer = WeightQuantizer(weight, layer)
            assert quantizer.mask is not None
            error = (quantizer(weight).detach() - weight).square()
            significant += float((error * quantizer.mask).sum())
            total += float(error.sum())
    return f"{100 * significant / total:.3f} %"


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--float-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--saliency", choices=[str(word) for word in Saliency], default="magnitude")
    parser.add_argument("--schedule", choices=[str(word) for word in MaskSchedule], default="immediate")
    arguments = parser.parse_args()
    data = build_data(compose_config(["experiment=digits_demo"]).data, seed=0)
    recipe = Recipe(mask_saliency=Saliency(arguments.saliency), mask_schedule=MaskSchedule(arguments.schedule))
    print(f"{date.today()}  {platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(
        f"{data.test_images} test images, {arguments.epochs} epochs after {arguments.float_epochs} in float, {recipe}\n"
    )
    chosen = entries(data.input_shape, arguments.density)
    results: dict[str, list[dict[str, float]]] = {entry.name: [] for entry in chosen}
    for seed in arguments.seeds:
        teachers: dict[Widths, nn.Module] = {}
        for entry in chosen:
            pl.seed_everything(seed, verbose=False)
            if entry.widths not in teachers:
                model = network(entry.widths)
                float_recipe = replace(recipe, learning_rate=5e-3)
                task = TrainingTask(model, data.normalization, float_recipe, OBJECTIVE)
                fit(task, data, CPU, epochs=arguments.float_epochs)
                teachers[entry.widths] = model.eval()
            teacher = teachers[entry.widths]
            if entry.name.startswith("plane"):
                print(f"seed {seed}, {entry.name}: error of significant weights {error_shares(teacher, entry.config)}")
            quantized = quantize(teacher, entry.config, data, data.normalization)
            fit(
                TrainingTask(quantized, data.normalization, recipe, OBJECTIVE, copy.deepcopy(teacher)),
                data,
                CPU,
                epochs=arguments.epochs,
            )
            results[entry.name].append(evaluate(quantized, data.test_dataloader(), data.normalization, OBJECTIVE))
    print(f"\n{'network':24} {'weights':>8} {'stored bits':>12} {'accuracy (each seed)':>32} {'test loss':>10}")
    for entry in chosen:
        found = results[entry.name]
        accuracy = [100 * one["accuracy"] for one in found]
        each = f"{statistics.mean(accuracy):.2f} % ({', '.join(f'{value:.1f}' for value in accuracy)})"
        loss = statistics.mean(one["loss"] for one in found)
        bits = stored_bits(entry.spec, entry.config)
        print(f"{entry.name:24} {entry.spec.total_weights:8} {bits:12} {each:>32} {loss:10.4f}")


if __name__ == "__main__":
    main()
