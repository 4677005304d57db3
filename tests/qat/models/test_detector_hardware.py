"""Detectors as hardware sees them: traced tables equal hwmodel's, and integers answer as the quantized network does."""

from __future__ import annotations

import pytest
import torch

from hwmodel import NetworkSpec, load_network, uniform
from qat.convert import prepare
from qat.deployment import deploy
from qat.export.packed import pack
from qat.graph import trace
from qat.models import darknet_tables, fastestdet
from qat.models.darknet import Conv, Darknet, Detect, Reorg, Route, Table
from qat.models.darknet_tables import HEAD, body
from tests.qat.nets import NORMALIZATION

SIZES = {
    "darknet19": (224, 1000),
    "yolov2_tiny_voc": (416, 20),
    "yolov2_voc": (416, 20),
    "sim_yolo_v2_fpga": (416, 20),
    "yolov3_tiny": (416, 80),
    "yolov3": (416, 80),
}


def weighted(network: NetworkSpec) -> list[tuple[object, ...]]:
    return [
        (
            layer.name,
            layer.weight_shape,
            layer.stride,
            layer.padding,
            layer.out_height,
            layer.out_width,
            layer.activation,
        )
        for layer in network.weighted
    ]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_traced_tables_are_those_of_the_hardware_model(name: str) -> None:
    size, classes = SIZES[name]
    traced = trace(getattr(darknet_tables, name)(classes), (3, size, size))
    table = load_network(name)
    assert weighted(traced) == weighted(table)
    assert traced.total_weights == table.total_weights
    assert traced.total_macs == table.total_macs
    outputs = [[network.by_name[output] for output in network.outputs] for network in (traced, table)]
    shapes = [[(o.out_channels, o.out_height, o.out_width) for o in layers if o.has_weights] for layers in outputs]
    assert shapes[0] == shapes[1]


def test_fastestdet_is_traced_whole() -> None:
    """Weights are parameters less batch norm, two for each channel behind a convolution."""
    network = trace(fastestdet(), (3, 352, 352))
    channels = sum(layer.out_channels for layer in network.weighted)
    assert network.total_weights == 244_490 - 2 * channels
    last = network.by_name[network.outputs[0]]
    assert (last.out_channels, last.out_height, last.out_width) == (85, 22, 22)


def passthrough_network() -> Darknet:
    """Everything that the family does, small: leaky ReLU, reorg, route, upsampling, shortcut-free, two results."""
    rows = (
        *body((8, 3), "pool", (12, 3), "=fine", "pool", (16, 3), "=neck"),
        HEAD,
        Detect(((8.0, 8.0),), softmax=True),
        Route(("fine",)),
        Conv(4, 1),
        Reorg(label="passed"),
        Route(("passed", "neck")),
        Conv(8),
        HEAD,
        Detect(((4.0, 4.0),), softmax=True),
    )
    return Darknet(Table("small", rows), 2)


@torch.no_grad()
def test_several_results_in_integers() -> None:
    torch.manual_seed(0)
    model = passthrough_network().eval()
    for _, norm in model.convolutions():
        if norm is not None:
            norm.running_var.uniform_(0.5, 2.0)
    network = trace(model, (3, 32, 32))
    assert len(network.outputs) == 2
    quantized = prepare(model, uniform(network, 8, 8), (3, 32, 32))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    quantized.calibrate([NORMALIZATION(images)])
    quantized.eval()
    deployed = deploy(quantized, NORMALIZATION)
    codes = deployed.layer_codes(images)
    outputs = quantized(NORMALIZATION(images))
    floats = model(NORMALIZATION(images))
    assert [tuple(part.shape) for part in outputs] == [(4, 7, 8, 8), (4, 7, 8, 8)]
    for name, values, exact in zip(quantized.graph.outputs, outputs, floats, strict=True):
        scale = deployed.integers.layers[name].ofm_scale
        spread = float(exact.std())
        assert (codes[name] * scale - values).abs().mean() < 0.05 * spread
    packed = pack(deployed.integers)
    for name, ours, theirs in zip(network.outputs, deployed(images), packed.run(images.numpy()), strict=True):
        assert ours.tolist() == theirs.tolist() == codes[name].tolist()


def test_darknets_slope_is_no_shift() -> None:
    """With the published slope of 0.1 the float network runs; hardware takes 1/8."""
    model = darknet_tables.yolov2_tiny_voc(20, negative_slope=0.1)
    assert model.act0.negative_slope == 0.1
    assert darknet_tables.yolov2_tiny_voc(20).act0.negative_slope == 0.125
