"""Speed of packing, unpacking (numpy and C) and integer inference.

    python benchmarks/packing.py

Packing is measured on one 3 x 3 convolution with 512 x 512 channels (2.4 million weights), in MB of float32 weights
per second: the median of `--rounds`, with quartiles.  Inference is ResNet-20 on 32 x 32 images with random numbers.
Seconds are those that the process got on its cores, so that other programs do not count; with OMP_NUM_THREADS=1, as it
should be set, figures are those of one core.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from hwmodel.network import RELAYING, LayerSpec, NetworkSpec, Op
from hwmodel.networks import load_network
from hwmodel.precision import LayerConfig, NetworkConfig, WeightFormat, group_shape, kept_groups, uniform
from qat.export.packed import load_packed, pack, save_packed
from qat.export.packing import Folding, pack_layer, unpack_weights
from qat.integer import BINARY_SHIFT, IntegerLayer, IntegerNetwork, Rescale

LAYER = LayerSpec("conv", Op.CONV, ("input",), 512, 7, 7, 512, 7, 7, kernel_size=(3, 3), padding=(1, 1))
FOLDING = Folding(8, 16)
CONFIGS = {
    **{f"dense, {bits} bits": LayerConfig(bits, 4) for bits in range(1, 9)},
    "sparse, 4 bits, density 0.5": LayerConfig(4, 4, 0.5, WeightFormat.SPARSE),
    "sparse, 4 bits, density 0.1": LayerConfig(4, 4, 0.9, WeightFormat.SPARSE),
    "binary_plus_sparse, density 0.05": LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE),
    "binary_plus_sparse, density 0.02": LayerConfig(1, 4, 0.98, WeightFormat.BINARY_PLUS_SPARSE),
}

C_BENCHMARK = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "model.h"
int main(void) {
    const qat_layer *layer = &qat_layers[0];
    size_t count = (size_t)layer->filters * layer->kernel_rows * layer->kernel_columns * layer->channels;
    int8_t *weights = malloc(count);
    uint8_t *mask = malloc(count);
    for (int round = 0; round < ROUNDS; round++) {
        clock_t start = clock();
        if (qat_unpack(layer, qat_weights, sizeof qat_weights, weights, mask)) return 1;
        printf("%.9f\n", (double)(clock() - start) / CLOCKS_PER_SEC);
    }
    return weights[count / 2] == 99; /* the result is used */
}
"""


def random_layer(spec: LayerSpec, config: LayerConfig | None, seed: int = 0) -> IntegerLayer:
    """Random numbers of a layer."""
    rng = np.random.default_rng(seed)
    if config is None:
        operands = len(spec.inputs)
        rescale = None if spec.op in RELAYING else Rescale(np.full(operands, 16000, np.int16), 15, 0, 15)
        return IntegerLayer(spec.name, rescale)
    half = 1 << (config.stored_bit_width - 1)
    weight = rng.integers(-half, half, spec.weight_shape) if half > 1 else rng.choice([-1, 1], spec.weight_shape)
    mask = None
    if config.weight_format is not WeightFormat.DENSE:
        grid = group_shape(spec.weight_shape, config.granularity)
        flat = np.zeros(int(np.prod(grid)), np.bool_)
        flat[rng.permutation(flat.size)[: kept_groups(flat.size, config.sparsity)]] = True
        mask = flat.reshape(grid)
        binary = config.weight_format is WeightFormat.BINARY_PLUS_SPARSE
        others = rng.choice([-1, 1], spec.weight_shape) << BINARY_SHIFT if binary else np.zeros(spec.weight_shape)
        weight = np.where(mask, weight, others)
    multiplier = rng.integers(8000, 32000, spec.out_channels).astype(np.int16)
    bias = rng.integers(-1000, 1000, spec.out_channels).astype(np.int16)
    rescale = Rescale(multiplier, 20, 0, 15)
    return IntegerLayer(spec.name, rescale, weight.astype(np.int8), mask, bias, 8)


def random_network(network: NetworkSpec, config: NetworkConfig) -> IntegerNetwork:
    """Random numbers of a network."""
    layers = {s.name: random_layer(s, config[s.name] if s.has_weights else None) for s in network.layers}
    codes = np.tile(np.arange(-128, 128, dtype=np.int16), (network.input_channels, 1))
    return IntegerNetwork(network, config, layers, codes)


def seconds(function: Callable[[], object], rounds: int) -> list[float]:
    """Processor times of `rounds` calls, after one that does not count."""
    function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return times


def rate(amount: float, times: list[float]) -> str:
    """Amount per second: median and quartiles."""
    low, middle, high = statistics.quantiles([amount / t for t in times], n=4)
    return f"{middle:6.0f} ({low:.0f}-{high:.0f})"


def c_seconds(config: LayerConfig, rounds: int) -> list[float]:
    """Times of the C decoder, compiled with -O2."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return []
    network = NetworkSpec("one", LAYER.in_channels, LAYER.in_height, LAYER.in_width, (LAYER,))
    integers = random_network(network, NetworkConfig(((LAYER.name, config),)))
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "model"
        save_packed(integers, folder)
        (folder / "c" / "main.c").write_text(C_BENCHMARK)
        command = [compiler, "-std=c99", "-O2", f"-DROUNDS={rounds + 1}", "main.c", "-o", "main"]
        subprocess.run(command, cwd=folder / "c", check=True)
        output = subprocess.run([folder / "c" / "main"], capture_output=True, text=True, check=True).stdout
    return [float(line) for line in output.split()][1:]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each figure (default: 15)")
    parser.add_argument("--images", type=int, default=512, help="images per run of inference (default: 512)")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are")
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} CPUs, OMP_NUM_THREADS {threads}")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, load {os.getloadavg()[0]:.1f}\n")
    megabytes = LAYER.weights * 4 / 1e6
    print("MB of float32 weights per second, median (quartiles); folding 8 x 16, C: filter by filter")
    print(f"{'format':34} {'pack':>22} {'unpack':>22} {'unpack in C':>22}")
    for name, config in CONFIGS.items():
        layer = random_layer(LAYER, config)
        packed = pack_layer(LAYER, config, layer, FOLDING)
        columns = [
            seconds(lambda config=config, layer=layer: pack_layer(LAYER, config, layer, FOLDING), arguments.rounds),
            seconds(lambda config=config, packed=packed: unpack_weights(LAYER, config, packed), arguments.rounds),
            c_seconds(config, arguments.rounds),
        ]
        print(
            f"{name:34} " + " ".join(f"{rate(megabytes, times) if times else 'no compiler':>22}" for times in columns)
        )
    network = load_network("resnet20")
    images = np.random.default_rng(0).integers(0, 256, (arguments.images, 3, 32, 32), dtype=np.uint8)
    print("\nResNet-20, integer inference from a packed folder, images per second")
    for bits in (1, 4, 8):
        with tempfile.TemporaryDirectory() as directory:
            save_packed(random_network(network, uniform(network, bits, 4)), Path(directory) / "model")
            model = load_packed(Path(directory) / "model")
        print(f"{bits} weight bits {rate(arguments.images, seconds(lambda model=model: model.run(images), 5)):>22}")
    resnet18 = load_network("resnet18")
    integers = random_network(resnet18, uniform(resnet18, 4, 4))
    times = seconds(lambda: pack(integers), 3)
    print(f"\nResNet-18, checked and packed: {rate(resnet18.total_weights * 4 / 1e6, times)} MB/s")


if __name__ == "__main__":
    main()
