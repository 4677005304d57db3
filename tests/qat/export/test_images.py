"""Memory images against the streams and the cost model's shapes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.compute import folds
from hwmodel.network import LayerSpec, Op
from hwmodel.precision import LayerConfig, WeightFormat
from qat.export.images import MemoryImage, layer_images
from qat.export.packing import Folding, pack_layer
from qat.integer import IntegerLayer
from tests.qat.export.nets import random_config, random_layer

Case = tuple[LayerSpec, LayerConfig, IntegerLayer, Folding]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    filters, channels, rows, columns = (draw(st.integers(1, high)) for high in (9, 7, 3, 3))
    spec = LayerSpec("a b/c", Op.CONV, ("input",), channels, rows, columns, filters, 1, 1, kernel_size=(rows, columns))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    config = random_config(rng)
    return spec, config, random_layer(rng, spec, config), Folding(draw(st.integers(1, 12)), draw(st.integers(1, 70)))


def _images(case: Case, *, scheduled: bool) -> dict[str, MemoryImage]:
    spec, config, layer, folding = case
    packed = pack_layer(spec, config, layer, folding if scheduled else None)
    return {image.purpose: image for image in layer_images(7, spec, config, packed, scheduled=scheduled)}


def _words(image: MemoryImage) -> list[int]:
    """What a Verilog simulator reads."""
    lines = image.mem().decode("ascii").splitlines()
    assert lines[0].startswith("//")
    return [int(line, 16) for line in lines[1:]]


@settings(deadline=None)
@given(_cases())
def test_words_of_weights_are_folds(case: Case) -> None:
    spec, config, layer, folding = case
    images = _images(case, scheduled=True)
    if config.weight_format is WeightFormat.SPARSE:
        assert "weights" not in images
        return
    bits = 1 if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE else config.weight_bit_width
    words, image = _words(images["weights"]), images["weights"]
    assert (image.depth, image.width_bits) == (
        folds(spec, folding.pe, folding.simd),
        folding.pe * folding.simd * bits,
    )
    assert layer.weight is not None
    rows = layer.weight.transpose(0, 2, 3, 1).reshape(spec.out_channels, -1)
    per_block = -(-rows.shape[1] // folding.simd)
    for o, r in np.ndindex(rows.shape):
        word = words[o // folding.pe * per_block + r // folding.simd]
        field = word >> ((o % folding.pe * folding.simd + r % folding.simd) * bits) & ((1 << bits) - 1)
        code = int(rows[o, r])
        assert field == (int(code < 0) if bits == 1 else code & ((1 << bits) - 1))


@settings(deadline=None)
@given(_cases(), st.booleans())
def test_words_of_streams_are_their_bits(case: Case, scheduled: bool) -> None:
    spec, config, layer, folding = case
    packed = pack_layer(spec, config, layer, folding if scheduled else None)
    for purpose, image in _images(case, scheduled=scheduled).items():
        total = sum(word << (place * image.width_bits) for place, word in enumerate(_words(image)))
        if purpose == "parameters":
            pe = folding.pe if scheduled else 1
            assert image.width_bits == 32 * pe
            assert layer.rescale is not None
            assert layer.bias is not None
            fields = [total >> (16 * place) & 0xFFFF for place in range(2 * spec.out_channels)]
            assert fields[::2] == [int(m) & 0xFFFF for m in layer.rescale.multiplier]
            assert fields[1::2] == [int(b) & 0xFFFF for b in layer.bias]
        elif purpose != "weights" or not scheduled:
            stream = packed.streams[purpose]
            assert total == int.from_bytes(stream.data.tobytes(), "little")
            assert image.depth == -(-stream.bits // image.width_bits)


def test_the_text_of_the_files() -> None:
    words = np.array([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]], np.uint8)
    image = MemoryImage("conv\n1", "weights", "000_conv_1.weights", words)
    assert image.mem() == b"// 'conv\\n1' weights: 2 words of 6 bits\n17\n20\n"
    assert image.coe() == b"memory_initialization_radix=16;\nmemory_initialization_vector=\n17,\n20;\n"


@pytest.mark.parametrize("name", ["layer1.0.conv1", "a/../b", "ünï", "x" * 300])
def test_file_names_are_plain(name: str) -> None:
    spec = LayerSpec(name, Op.LINEAR, ("input",), 3, 1, 1, 2, 1, 1)
    config = LayerConfig(3, 4)
    layer = random_layer(np.random.default_rng(0), spec, config)
    for image in layer_images(2, spec, config, pack_layer(spec, config, layer), scheduled=False):
        assert re.fullmatch(r"002_[A-Za-z0-9_.-]{1,80}", image.file_stem)
        image.mem().decode("ascii")
