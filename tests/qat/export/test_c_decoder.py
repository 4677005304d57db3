"""The C decoder, compiled, against the Python reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hwmodel.dataflow import DataFlow, LayerSchedule, Schedule, WeightPlace
from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import LayerConfig, NetworkConfig, WeightFormat
from qat.export import load_packed, save_packed
from qat.integer import IntegerNetwork
from tests.qat.export.nets import random_layer, random_network

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc, gcc, clang)")

MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "model.h"
int main(void) {
    for (int i = 0; i < QAT_LAYER_COUNT; i++) {
        const qat_layer *layer = &qat_layers[i];
        size_t count = (size_t)layer->filters * layer->kernel_rows * layer->kernel_columns * layer->channels;
        int8_t *weights = malloc(count);
        uint8_t *mask = malloc((size_t)layer->group_rows * layer->group_columns * layer->group_channels);
        if (!weights || !mask || qat_unpack(layer, qat_weights, sizeof qat_weights, weights, mask)) return 1;
        fwrite(weights, 1, count, stdout);
        for (uint32_t o = 0; o < layer->filters; o++) {
            int16_t pair[2] = {qat_int16(qat_weights, layer->multipliers, o), qat_int16(qat_weights, layer->biases, o)};
            fwrite(pair, sizeof pair, 1, stdout);
        }
        free(weights);
        free(mask);
    }
    return 0;
}
"""


def _compile(folder: Path, build: Path) -> Path:
    build.mkdir(exist_ok=True)
    (build / "main.c").write_text(MAIN)
    assert COMPILER is not None
    flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-I", str(folder / "c")]
    done = subprocess.run(
        [COMPILER, *flags, "main.c", "-o", "main"], cwd=build, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return build / "main"


@pytest.mark.parametrize("seed", range(12))
def test_the_c_decoder_gives_every_code(tmp_path: Path, seed: int) -> None:
    ops = ["conv", "grouped", "depthwise", "conv", "add", "conv", "again", "conv", "again", "conv"]
    integers = random_network(seed, ops)
    schedule = None
    if seed % 2:
        rng = np.random.default_rng(seed)
        places = {True: WeightPlace.BRAM, False: WeightPlace.NONE}
        layers = [
            LayerSchedule(
                spec.name,
                DataFlow.ROW_PIXEL,
                int(rng.integers(1, 6)),
                int(rng.integers(1, 9)),
                weight_place=places[spec.has_weights],
            )
            for spec in integers.network.layers
        ]
        schedule = Schedule(integers.network.name, tuple(layers))
    save_packed(integers, tmp_path / "model", schedule)
    program = _compile(tmp_path / "model", tmp_path / "build")
    output = subprocess.run([program], capture_output=True, check=True).stdout
    expected = b""
    for spec in integers.network.weighted:
        layer = load_packed(tmp_path / "model").integers.layers[spec.name]
        assert layer.weight is not None
        assert layer.rescale is not None
        expected += layer.weight.transpose(0, 2, 3, 1).tobytes()
        expected += np.stack([layer.rescale.multiplier, layer.bias], axis=1).tobytes()
    assert output == expected


def test_the_c_decoder_refuses_a_damaged_index(tmp_path: Path) -> None:
    """All bytes 0: no gap ever ends, no filter has a group."""
    spec = LayerSpec("fc", Op.LINEAR, ("input",), 256, 1, 1, 4, 1, 1)
    config = LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE)
    layer = random_layer(np.random.default_rng(0), spec, config)
    network, configs = NetworkSpec("net", 256, 1, 1, (spec,)), NetworkConfig((("fc", config),))
    save_packed(IntegerNetwork(network, configs, {"fc": layer}, np.zeros((256, 256), np.int16)), tmp_path / "model")
    program = _compile(tmp_path / "model", tmp_path / "sound")
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0
    header = tmp_path / "model" / "c" / "model.h"
    head, _, tail = header.read_text().partition("static const uint8_t")
    size = tail[tail.index("[") + 1 : tail.index("]")]
    header.write_text(f"{head}static const uint8_t qat_weights[{size}] = {{0}};\n#endif\n")
    program = _compile(tmp_path / "model", tmp_path / "broken")
    assert subprocess.run([program], capture_output=True, check=False).returncode == 1
