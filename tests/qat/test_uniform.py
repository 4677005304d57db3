"""Uniform precisions from the settings of a run."""

from __future__ import annotations

import pytest

import hwmodel
from qat.compose import compose_config
from qat.errors import ConfigError
from qat.patterns import matching
from qat.uniform import uniform_of
from tests.qat.search.problems import chain

NETWORK = chain(5)


def test_activations_of_single_layers_as_the_settings_give_them() -> None:
    rules = "{pattern: 'conv*', act_bit_width: 6}, {pattern: conv2, act_bit_width: 2}, {pattern: fc, act_bit_width: 16}"
    quant = compose_config(["quant.act_bit_width=4", f"quant.layers=[{rules}]"]).quant
    found = uniform_of(quant, NETWORK, 3)
    assert [layer.act_bit_width for _, layer in found.layers] == [6, 6, 2, 6, 16]
    assert [layer.weight_bit_width for _, layer in found.layers] == [8, 3, 3, 3, 8]
    quant.layers = []
    assert uniform_of(quant, NETWORK, 3) == hwmodel.uniform(NETWORK, 3, 4, end_bit_width=8)


def test_all_calls_of_a_layer_read_the_same_bits() -> None:
    network = hwmodel.load_network("retinanet_r50")
    shared = next(layer for layer in network.weighted if layer.weights_of)
    quant = compose_config([f"quant.layers=[{{pattern: {shared.name}, act_bit_width: 2}}]"]).quant
    found = uniform_of(quant, network, 4)
    calls = {layer.name for layer in network.weighted if (layer.weights_of or layer.name) == shared.weights_of}
    assert len(calls) > 1 and {name for name, layer in found.layers if layer.act_bit_width == 2} == calls


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    quant = compose_config(["quant.layers=[{pattern: 'dense*', act_bit_width: 2}]"]).quant
    message = r"quant\.layers: pattern 'dense\*' matches no layer; layers with weights are \['conv0', 'conv1'"
    with pytest.raises(ConfigError, match=message):
        uniform_of(quant, NETWORK, 3)


def test_matching_keeps_the_order_of_the_names() -> None:
    assert matching("b[12]", ["b2", "a1", "b1", "b3"], "here") == ["b2", "b1"]
