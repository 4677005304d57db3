"""Modules that are called several times, as a detection head on the maps of a pyramid: weights once, steps for each."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from hwmodel import LayerConfig, NetworkConfig, load_board, schedule, uniform
from hwmodel.storage import weight_storage
from qat.convert import QuantNetwork, apply
from qat.errors import TraceError
from qat.export import load_packed, save_packed
from qat.normalization import Normalization
from qat.search.space import LayerRule, SearchSpace, SpaceSettings

SHAPE = (3, 16, 16)


class TwoLevels(nn.Module):
    """Two maps of a backbone through one head; its norm, and the last convolution, are shared too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of both levels."""
        fine = self.stem(x).relu()
        levels = (fine, self.down(fine).relu())
        return tuple(self.last(self.head(level)) for level in levels)


@pytest.fixture
def model() -> TwoLevels:
    torch.manual_seed(0)
    return TwoLevels().eval()


def _config(network, layer: LayerConfig) -> NetworkConfig:  # type: ignore[no-untyped-def]
    config = uniform(network, 4, 4)
    layers = tuple((name, layer if name.startswith("head") else one) for name, one in config.layers)
    return NetworkConfig(layers, output_bit_width=8)


FORMATS = [
    LayerConfig(4, 4),
    LayerConfig(1, 2),
    LayerConfig(3, 4, 0.5, "sparse"),
    LayerConfig(1, 4, 0.9, "binary_plus_sparse"),
    LayerConfig(1, 4, 0.75, "sparse", "kernel"),
]


def _quantized(model: nn.Module, layer: LayerConfig = FORMATS[0]) -> QuantNetwork:
    quantized = qat.prepare(model, _config(qat.trace(model, SHAPE), layer), SHAPE)
    quantized.calibrate([torch.rand(4, *SHAPE) for _ in range(2)])
    return quantized.eval()


def test_a_second_call_is_a_layer_with_the_weights_of_the_first(model: TwoLevels) -> None:
    network = qat.trace(model, SHAPE)
    assert [layer.weights_of for layer in network.weighted] == [None, None, None, None, "head.0", "last"]
    assert [layer.name for layer in network.weighted][-2:] == ["head.0_2", "last_2"]
    assert network.total_weights == sum(p.numel() for n, p in model.named_parameters() if p.dim() == 4)


def test_weights_are_trained_once_and_steps_for_each_call(model: TwoLevels) -> None:
    quantized = _quantized(model).train()
    names = [name for name, _ in quantized.named_parameters()]
    assert sum(name.endswith("weight") and "head" in name and "norm" not in name for name in names) == 1
    sum(result.square().sum() for result in quantized(torch.rand(2, *SHAPE))).backward()
    both = quantized.weighted_layers["head.0"].weight.grad.clone()
    quantized.zero_grad()
    quantized(torch.rand(2, *SHAPE))[0].square().sum().backward()
    assert not torch.allclose(both, quantized.weighted_layers["head.0"].weight.grad)
    first, second = quantized.layer("head.0"), quantized.layer("head.0_2")
    assert first.ofm_quantizer is not second.ofm_quantizer


def test_a_state_dict_and_a_copy_keep_the_tie(model: TwoLevels) -> None:
    quantized = _quantized(model)
    copied = copy.deepcopy(quantized)
    with torch.no_grad():
        copied.weighted_layers["last"].weight.zero_()
    assert copied.layer("last_2").weighted is copied.layer("last")
    assert quantized.weighted_layers["last"].weight.any()
    other = _quantized(TwoLevels().eval())
    other.load_state_dict(quantized.state_dict())
    x_NCHW = torch.rand(2, *SHAPE)
    for one, two in zip(quantized(x_NCHW), other(x_NCHW), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("layer", FORMATS, ids=str)
@pytest.mark.parametrize("scheduled", [False, True])
def test_packed_files_hold_shared_weights_once_and_compute_the_same(
    model: TwoLevels, layer: LayerConfig, scheduled: bool, tmp_path: Path
) -> None:
    quantized = _quantized(model, layer)
    deployed = qat.deploy(quantized, Normalization.unit(3))
    plan = schedule(quantized.network, quantized.config, load_board("zcu104")) if scheduled else None
    packed = save_packed(deployed.integers, tmp_path / "packed", plan)
    for one in quantized.network.weighted:
        streams, storage = packed.packed_layers[one.name].streams, weight_storage(one, quantized.config[one.name])
        assert ("weights" in streams or "values" in streams) == one.owns_weights
        bits = sum(streams[name].bits for name in ("multipliers", "biases", "shifts"))
        assert bits == storage.scale_bits + storage.bias_bits
    loaded = load_packed(tmp_path / "packed")
    assert loaded.integers.layers["head.0_2"].weight is loaded.integers.layers["head.0"].weight
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    expected = deployed.layer_codes(torch.from_numpy(images))
    found = loaded.layer_codes(images)
    assert sorted(found) == sorted(expected)
    for name, codes in expected.items():
        np.testing.assert_array_equal(found[name], codes.numpy(), err_msg=name)
    # The deployed codes are the trained network's values, but for sums that lie at the middle between two codes.
    for result, name in zip(quantized(torch.from_numpy(images) / 255), quantized.network.outputs, strict=True):
        step = deployed.integers.layers[name].ofm_scale
        assert ((expected[name] - (result / step).round()).abs() <= 1).float().mean() > 0.98


def test_another_configuration_reaches_every_call(model: TwoLevels) -> None:
    quantized = _quantized(model)
    apply(quantized, _config(quantized.network, LayerConfig(2, 2)))
    fresh = qat.prepare(model, quantized.config, SHAPE)
    for name in ("head.0", "head.0_2"):
        found, expected = quantized.layer(name), fresh.layer(name)
        assert (found.input_quantizer is None) == (expected.input_quantizer is None)
        assert found.weighted.weight_quantizer.config == LayerConfig(2, 2)


def test_a_search_ties_the_calls(model: TwoLevels) -> None:
    network = qat.trace(model, SHAPE)
    space = SearchSpace.from_network(network, SpaceSettings(rule=LayerRule(weight_bit_widths=(1, 2, 4))))
    assert space.dimensions == ("stem", "down", "head.0", "last")
    config = space.config([0, 1, 2, 0])
    config.check_matches(network)
    assert space.point(config) == (0, 1, 2, 0)
    assert sum(bits[0] for bits in space.dimension_bits) == sum(
        weight_storage(one, space.choices_by_layer[one.name][0]).total_bits
        - (0 if one.owns_weights else one.weights * space.choices_by_layer[one.name][0].stored_bit_width)
        for one in network.weighted
    )


def test_what_is_said_of_a_later_call_is_said_of_the_layer(model: TwoLevels) -> None:
    network, rule = qat.trace(model, SHAPE), LayerRule(weight_bit_widths=(1, 2, 4))
    settings = SpaceSettings(rule=rule, layers=[("head.0_2", {"weight_bit_widths": (8,), "act_bit_widths": (2,)})])
    choices = SearchSpace.from_network(network, settings).choices_by_layer
    for name in ("head.0", "head.0_2"):
        assert {(one.weight_bit_width, one.act_bit_width) for one in choices[name] if not one.sparsity} == {(8, 2)}
    space = SearchSpace.from_network(network, SpaceSettings(rule=rule, groups=[["head.0_2", "down"]]))
    assert space.dimensions == ("stem", "down+head.0", "last")


def test_names_of_later_calls_are_those_of_no_module() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.pool_2 = nn.MaxPool2d(2), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.pool_2(self.pool(x)))

    network = qat.trace(Named(), SHAPE)
    assert [layer.name for layer in network.layers] == ["pool", "pool_2", "pool_3"]


class _Wrong(TwoLevels):
    def __init__(self, then) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.other = nn.BatchNorm2d(8)
        self.tied = nn.Conv2d(8, 8, 3, padding=1)
        self.tied.weight = self.head[0].weight
        self.input = nn.Conv2d(8, 8, 1)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.then(self, self.stem(x))


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda m, x: m.head(x) + m.head[0](x), "module 'head.0' is called several times, and with different batch"),
        (lambda m, x: m.head(x) + m.other(m.head[0](x)), "with different batch norms behind"),
        (lambda m, x: m.head[1](m.head[0](x)) + m.head[1](m.down(x)), "a batch norm that is used behind several"),
        (lambda m, x: (m.last(x), m.last(m.head(x)))[1], "the result of its first call is not used"),
        (
            lambda m, x: m.other(F.max_pool2d(x, 2)) + m.other(F.avg_pool2d(x, 2)),
            "module 'other': a batch norm that is",
        ),
        (lambda m, x: m.tied(m.head[0](x)), "module 'tied': its weights are those of module 'head.0'; call that one"),
        (lambda m, x: (m.last(x),) * 2, "returns a feature map twice: last, last"),
        (lambda m, x: m.input(x), "module 'input': 'input' is the network's input in files and reports; rename it"),
    ],
)
def test_what_cannot_be_shared_is_named(then, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TraceError, match=message):
        qat.trace(_Wrong(then), SHAPE)


def test_a_layer_may_feed_itself() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    network = qat.trace(Twice(), SHAPE)
    assert [layer.weights_of for layer in network.layers] == [None, "conv"]


def test_training_is_one_graph(model: TwoLevels) -> None:
    quantized = _quantized(model).train()
    eager = copy.deepcopy(quantized)
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    x_NCHW = torch.rand(4, *SHAPE)
    for network in (eager, compiled):
        sum(result.square().sum() for result in network(x_NCHW)).backward()
    for ours, theirs in zip(quantized.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.01, atol=1e-4 * float(theirs.grad.abs().max()))
