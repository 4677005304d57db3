"""Refusals of inconsistent integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import LayerConfig, NetworkConfig, WeightFormat
from qat.errors import ExportError
from qat.export.check import check_network
from qat.integer import IntegerLayer, IntegerNetwork, Rescale

RESCALE = Rescale(np.array([3, -4], np.int16), 10, 0, 15)
WEIGHT = np.array([1, -1, 1, 1, -1, -1], np.int8).reshape(2, 3, 1, 1)
SPARSE = LayerConfig(2, 4, 0.5, WeightFormat.SPARSE)
MASK = np.array([1, 0, 0, 1, 1, 0], np.bool_).reshape(2, 3, 1, 1)
BINARY = LayerConfig(1, 4, 0.5, WeightFormat.BINARY_PLUS_SPARSE)


def _network(config: LayerConfig = LayerConfig(1, 4), **changes: object) -> IntegerNetwork:  # noqa: B008
    layers = (
        LayerSpec("conv", Op.CONV, ("input",), 3, 2, 2, 2, 2, 2),
        LayerSpec("add", Op.ADD, ("conv", "conv"), 2, 2, 2, 2, 2, 2),
        LayerSpec("pool", Op.MAX_POOL, ("add",), 2, 2, 2, 2, 2, 2),
    )
    conv = IntegerLayer("conv", RESCALE, WEIGHT, None, np.zeros(2, np.int16))
    integers = {"conv": replace(conv, **changes), "add": IntegerLayer("add", RESCALE), "pool": IntegerLayer("pool")}
    return IntegerNetwork(
        NetworkSpec("net", 3, 2, 2, layers), NetworkConfig((("conv", config),)), integers, np.zeros((3, 256), np.int16)
    )


def _with_layer(name: str, layer: IntegerLayer) -> IntegerNetwork:
    network = _network()
    return replace(network, layers={**network.layers, name: layer})


def test_a_consistent_network_passes() -> None:
    check_network(_network())
    check_network(_network(SPARSE, weight=WEIGHT * MASK, mask=MASK))
    check_network(_network(BINARY, weight=np.where(MASK, np.int8(-128), WEIGHT * 16).astype(np.int8), mask=MASK))


CASES: dict[str, tuple[Callable[[], IntegerNetwork], str]] = {
    "no weight": (lambda: _network(weight=None), "layer 'conv': weight and bias are missing"),
    "zero as a sign": (lambda: _network(weight=WEIGHT * 0), "reach 0..0, a 1-bit weight is -1 or \\+1"),
    "too wide": (lambda: _network(LayerConfig(3, 4), weight=WEIGHT * 4), "reach -4..4, 3 bits hold -4..3"),
    "shape": (lambda: _network(weight=WEIGHT[:, :2]), r"shape \(2, 2, 1, 1\), expected int8 \(2, 3, 1, 1\)"),
    "mask of dense": (lambda: _network(mask=MASK), "'dense' has no mask"),
    "mask missing": (lambda: _network(SPARSE), "mask is missing, expected bool of shape"),
    "mask count": (
        lambda: _network(SPARSE, weight=WEIGHT * 0, mask=MASK * False),
        "mask keeps 0 groups, sparsity=0.5 means 3",
    ),
    "pruned but not zero": (lambda: _network(SPARSE, weight=WEIGHT, mask=MASK), "outside the mask is not 0"),
    "no sign": (lambda: _network(BINARY, weight=WEIGHT, mask=MASK), "outside the sparse plane is not -16 or"),
    "bias shift": (lambda: _network(bias_shift=47), "bias_shift=47, expected 0..46"),
    "bias type": (lambda: _network(bias=np.zeros(2)), r"bias is float64 of shape \(2,\), expected int16"),
    "shift": (lambda: _network(rescale=replace(RESCALE, shift=0)), "rescale.shift=0, expected 1..46"),
    "range": (lambda: _network(rescale=replace(RESCALE, quant_min=16)), "clamps to 16..15"),
    "scale": (lambda: _network(ofm_scale=float("nan")), "ofm_scale=nan"),
    "operands": (
        lambda: _with_layer("add", IntegerLayer("add", replace(RESCALE, multiplier=np.ones(3, np.int16)))),
        r"layer 'add': rescale.multiplier is int16 of shape \(3,\), expected int16 of shape \(2,\)",
    ),
    "no rescale": (lambda: _with_layer("add", IntegerLayer("add")), "layer 'add': add needs a rescale"),
    "moves": (lambda: _with_layer("pool", IntegerLayer("pool", RESCALE)), "max_pool does no arithmetic"),
    "weights of a pool": (
        lambda: _with_layer("pool", IntegerLayer("pool", weight=WEIGHT)),
        "max_pool has no weights",
    ),
    "epsilon of a pool": (
        lambda: _with_layer("pool", IntegerLayer("pool", epsilon=1)),
        "layer 'pool': epsilon=1, expected an integer >= 0, and 0 but in a group norm",
    ),
    "extra layer": (lambda: _with_layer("other", IntegerLayer("other")), "integers are given for layers"),
    "input codes": (
        lambda: replace(_network(), input_codes=np.full((3, 256), 128, np.int16)),
        "input_codes reach 128..128, expected -128..127",
    ),
    "input shape": (
        lambda: replace(_network(), input_codes=np.zeros((1, 256), np.int16)),
        r"shape \(1, 256\), expected integers \(3, 256\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals_name_layer_and_value(case: str) -> None:
    build, message = CASES[case]
    with pytest.raises(ExportError, match=message):
        check_network(build())


def _single(spec: LayerSpec) -> IntegerNetwork:
    network = NetworkSpec("net", spec.in_channels, spec.in_height, spec.in_width, (spec,))
    layer = IntegerLayer(spec.name, Rescale(np.ones(1, np.int16), 1, 0, 15) if spec.op is Op.AVG_POOL else None)
    codes = np.zeros((spec.in_channels, 256), np.int16)
    return IntegerNetwork(network, NetworkConfig(()), {spec.name: layer}, codes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LayerSpec("u", Op.UPSAMPLE, ("input",), 1, 1, 1, 1, 20000, 20000, stride=(20000, 20000)), "400000000 elem"),
        (LayerSpec("p", Op.MAX_POOL, ("input",), 1, 2, 2, 1, 4, 2, padding=(1, 0)), "in the padding altogether"),
        (
            LayerSpec("p", Op.MAX_POOL, ("input",), 1, 1, 1, 1, 1, 1, (2, 1), padding=(1, 0), dilation=(2, 1)),
            "in the padding altogether",
        ),
    ],
    ids=lambda case: case if isinstance(case, str) else str(case.op),
)
def test_geometry_that_cannot_run_is_refused(spec: LayerSpec, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_network(_single(spec))


def test_other_weights_in_a_layer_that_shares_them_are_refused() -> None:
    network = _network()
    twice = LayerSpec("twice", Op.CONV, ("input",), 3, 2, 2, 2, 2, 2, weights_of="conv")
    spec = replace(network.network, layers=(*network.network.layers, twice), outputs=("pool", "twice"))
    config = NetworkConfig((("conv", LayerConfig(1, 4)), ("twice", LayerConfig(1, 4))))
    owner = network.layers["conv"]
    shared = replace(network, network=spec, config=config, layers={**network.layers, "twice": replace(owner)})
    check_network(shared)
    assert owner.weight is not None
    layers = {**network.layers, "twice": replace(owner, weight=-owner.weight)}
    with pytest.raises(ExportError, match="layer 'twice': weight is not that of 'conv', which it uses"):
        check_network(replace(shared, layers=layers))
