"""Layers <-> streams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.network import LayerSpec, Op
from hwmodel.precision import Granularity, LayerConfig, WeightFormat
from hwmodel.storage import IndexCoding, index_bound_bits, weight_storage
from qat.export.bits import BitStream
from qat.export.packing import Folding, fold, pack_layer, stream_bits, unfold, unpack_weights
from qat.integer import IntegerLayer, Rescale
from tests.qat.export.nets import random_config, random_layer, random_weight


def _spec(out_channels: int, in_channels: int, rows: int = 3, columns: int = 3) -> LayerSpec:
    return LayerSpec(
        "conv", Op.CONV, ("input",), in_channels, rows, columns, out_channels, 1, 1, kernel_size=(rows, columns)
    )


@st.composite
def _cases(draw: st.DrawFn) -> tuple[LayerSpec, LayerConfig, IntegerLayer, Folding]:
    spec = _spec(*(draw(st.integers(1, high)) for high in (9, 9, 3, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    config = random_config(rng)
    folding = Folding(draw(st.integers(1, 12)), draw(st.integers(1, 90)))
    return spec, config, random_layer(rng, spec, config), folding


@settings(deadline=None)
@given(_cases())
def test_weights_come_back(case: tuple[LayerSpec, LayerConfig, IntegerLayer, Folding]) -> None:
    spec, config, layer, folding = case
    packed = pack_layer(spec, config, layer, folding)
    weight, mask = unpack_weights(spec, config, packed)
    assert np.array_equal(weight, layer.weight)
    assert (mask is None) == (layer.mask is None)
    assert mask is None or np.array_equal(mask, layer.mask)


@settings(deadline=None)
@given(_cases())
def test_streams_have_the_announced_and_the_predicted_sizes(
    case: tuple[LayerSpec, LayerConfig, IntegerLayer, Folding],
) -> None:
    spec, config, layer, folding = case
    packed = pack_layer(spec, config, layer, folding)
    expected = stream_bits(spec, config, packed.index_coding, packed.index_parameter)
    for name, stream in packed.streams.items():
        assert expected[name] in (None, stream.bits), name
    bits = {name: stream.bits for name, stream in packed.streams.items()}
    predicted = weight_storage(spec, config)
    assert bits.get("weights", 0) + bits.get("values", 0) == predicted.value_bits
    assert bits["biases"] == predicted.bias_bits
    assert bits["multipliers"] + bits["shifts"] == predicted.scale_bits


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05])
def test_binary_plus_sparse_is_within_two_percent_of_the_bound(density: float) -> None:
    """Positions at their entropy, all else as it is: what is stored in total comes close."""
    spec = _spec(64, 64)
    config = LayerConfig(1, 4, 1 - density, WeightFormat.BINARY_PLUS_SPARSE)
    rng = np.random.default_rng(3)
    weight, mask = random_weight(rng, spec.weight_shape, config)
    layer = replace(random_layer(rng, spec, config), weight=weight, mask=mask)
    packed = pack_layer(spec, config, layer)
    stored = sum(
        packed.streams[name].bits for name in packed.streams if name.startswith(("index", "weights", "values"))
    )
    assert mask is not None
    kept = int(mask.sum())
    assert stored <= 1.02 * (spec.weights + 8 * kept + index_bound_bits(mask.size, kept))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))
def test_reading_order(filters: int, products: int, pe: int, simd: int) -> None:
    rows = np.arange(filters * products, dtype=np.int8).reshape(filters, products)
    expected = [
        rows[o, r]
        for filter_block in range(0, filters, pe)
        for product_block in range(0, products, simd)
        for o in range(filter_block, min(filter_block + pe, filters))
        for r in range(product_block, min(product_block + simd, products))
    ]
    folded = fold(rows, Folding(pe, simd))
    assert folded.tolist() == expected
    assert np.array_equal(unfold(folded, rows.shape, Folding(pe, simd)), rows)


def _example() -> tuple[LayerSpec, LayerConfig, IntegerLayer]:
    """The worked example of docs/packed-format.md."""
    spec = _spec(2, 2, 1, 3)
    config = LayerConfig(1, 4, 0.75, WeightFormat.BINARY_PLUS_SPARSE)
    #                  channel 0        channel 1
    weight = np.array([[[[16, -16, 16]], [[-16, 100, 16]]], [[[-16, -16, -5]], [[16, 16, -128]]]], np.int8)
    mask = np.zeros((2, 2, 1, 3), np.bool_)
    mask[0, 1, 0, 1] = mask[1, 0, 0, 2] = mask[1, 1, 0, 2] = True
    rescale = Rescale(np.array([24576, -3], np.int16), 20, 0, 15)
    return spec, config, IntegerLayer("conv", rescale, weight, mask, np.array([1, -2], np.int16), 6)


def test_worked_example() -> None:
    spec, config, layer = _example()
    packed = pack_layer(spec, config, layer, Folding(2, 4))
    stored = {name: (stream.bits, stream.data.tobytes().hex()) for name, stream in packed.streams.items()}
    assert (packed.index_coding, packed.index_parameter) == (IndexCoding.RICE, 1)
    assert stored == {
        "weights": (12, "560c"),
        "values": (24, "64fb80"),
        "index_quotients": (7, "62"),
        "index_remainders": (3, "01"),
        "multipliers": (32, "0060fdff"),
        "biases": (32, "0100feff"),
        "shifts": (16, "1406"),
    }


@pytest.mark.parametrize("granularity", list(Granularity))
def test_values_follow_the_order_of_products(granularity: Granularity) -> None:
    spec = _spec(3, 4, 2, 2)
    config = LayerConfig(8, 8, 0.5, WeightFormat.SPARSE, granularity)
    layer = random_layer(np.random.default_rng(5), spec, config)
    packed = pack_layer(spec, config, layer, Folding(2, 3))
    assert layer.weight is not None
    assert layer.mask is not None
    kept = np.broadcast_to(layer.mask, spec.weight_shape)
    expected = [
        layer.weight[o, i, h, w]
        for o in range(3)
        for h in range(2)
        for w in range(2)
        for i in range(4)
        if kept[o, i, h, w]
    ]
    assert packed.streams["values"].data.view(np.int8).tolist() == expected


def test_a_damaged_stream_is_refused() -> None:
    spec, config, layer = _example()
    packed = pack_layer(spec, config, layer)
    short = replace(packed, streams={**packed.streams, "values": BitStream(16, np.zeros(2, np.uint8))})
    with pytest.raises(ValueError, match="16 bits in 2 bytes, expected 24 in 3"):
        unpack_weights(spec, config, short)
