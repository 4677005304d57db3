"""Convolutions computed in integers: the float ones without their rounding, with the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import qat
from hwmodel import LayerConfig, NetworkConfig, WeightFormat
from qat.convert import QuantNetwork
from qat.integer_forward import has_integer_convolutions, integer_conv2d
from qat.layers import float_convolution, use_integer_forward
from tests.qat.nets import NORMALIZATION, Residual, images, settle

needs_integers = pytest.mark.skipif(not has_integer_convolutions(), reason="needs AVX-512 and oneDNN")


def _prepared(layer: LayerConfig) -> tuple[QuantNetwork, torch.Tensor]:
    torch.manual_seed(0)
    model = settle(Residual())
    spec = qat.trace(model, (3, 16, 16))
    prepared = qat.prepare(model, NetworkConfig(tuple((s.name, layer) for s in spec.weighted)))
    x_NCHW = NORMALIZATION(images(8))
    prepared.calibrate([x_NCHW])
    return prepared.train(), x_NCHW


@needs_integers
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zero_point", [0, 8])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 4), (1, 2, 2, 1)])
def test_values_are_exact_and_gradients_those_of_float(
    bias: bool, zero_point: int, stride: int, padding: int, dilation: int, groups: int
) -> None:
    torch.manual_seed(0)
    x_scale, weight_scale_O111 = torch.tensor(0.137), torch.rand(8, 1, 1, 1) + 0.1
    x_codes = torch.randint(-zero_point, 16 - zero_point, (3, 16, 9, 7))
    weight_codes = torch.randint(-8, 8, (8, 16 // groups, 3, 3))
    x_NCHW, weight_OIHW = x_codes * x_scale, weight_codes * weight_scale_O111
    bias_O = torch.randn(8) if bias else None
    pairs = (stride, stride), (padding, padding), (dilation, dilation)
    operands = [None if a is None else a.clone().requires_grad_() for a in (x_NCHW, weight_OIHW, bias_O)]
    scales = x_scale, weight_scale_O111
    found = integer_conv2d(*operands, scales, zero_point, pairs, groups)  # type: ignore[arg-type]
    sums = F.conv2d(x_codes.double(), weight_codes.double(), None, *pairs, groups)
    exact = sums * x_scale * weight_scale_O111.reshape(-1, 1, 1) + (0.0 if bias_O is None else bias_O[:, None, None])
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    others = [None if a is None else a.clone().requires_grad_() for a in (x_NCHW, weight_OIHW, bias_O)]
    upstream = torch.randn_like(found)
    found.backward(upstream)
    F.conv2d(*others, *pairs, groups).backward(upstream)  # type: ignore[arg-type]
    for ours, expected in zip(operands, others, strict=True):
        if ours is not None and expected is not None:
            torch.testing.assert_close(ours.grad, expected.grad)


@needs_integers
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        LayerConfig(4, 4),
        LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE),
        LayerConfig(2, 4, 0.5, WeightFormat.SPARSE),
    ],
    ids=str,
)
def test_a_network_trains_as_in_float(layer: LayerConfig, compiled: bool) -> None:
    reference, x_NCHW = _prepared(layer)
    network = copy.deepcopy(reference)
    assert use_integer_forward(network)
    assert list(network.state_dict()) == list(reference.state_dict())
    step = torch.compile(network, fullgraph=True, backend="aot_eager") if compiled else network
    y, expected = step(x_NCHW), reference(x_NCHW)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), found in zip(reference.named_parameters(), network.parameters(), strict=True):
        assert ours.grad is not None and found.grad is not None, name
        tolerance = 1e-3 * float(ours.grad.abs().max()) + 1e-5
        torch.testing.assert_close(found.grad, ours.grad, rtol=0, atol=tolerance, msg=name)
    torch.compiler.reset()


@pytest.mark.parametrize(("layer", "autocast"), [(LayerConfig(8, 8), False), (LayerConfig(4, 4), True)])
def test_wide_codes_and_autocast_stay_in_float(layer: LayerConfig, autocast: bool) -> None:
    reference, x_NCHW = _prepared(layer)
    network = copy.deepcopy(reference)
    use_integer_forward(network)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(network(x_NCHW), reference(x_NCHW))


def test_a_processor_that_does_not_gain_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    network, _ = _prepared(LayerConfig(4, 4))
    assert not use_integer_forward(network)
    assert all(layer.convolve is float_convolution for layer in network.weighted_layers.values())
