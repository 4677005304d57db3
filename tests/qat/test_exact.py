"""A network with the values of its integers: forward, backward, and on the way of a training."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import qat
from hwmodel import uniform
from qat.convert import QuantNetwork
from qat.deployment import deploy
from qat.errors import ExportError
from qat.exact import ExactNetwork
from tests.qat.nets import NORMALIZATION, EveryOp, Residual, images, settle


def _quantized(model: nn.Module, bits: int = 4, size: int = 16) -> QuantNetwork:
    network = qat.trace(model, (3, size, size))
    quantized = qat.prepare(model, uniform(network, bits, 4), (3, size, size))
    quantized.calibrate([NORMALIZATION(images(16, size))])
    return quantized


def _gradients(network: nn.Module, model: QuantNetwork, x_NCHW: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = network(x_NCHW)
    (outputs * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_values_are_those_of_the_integers_under_autocast_too() -> None:
    model = _quantized(settle(EveryOp()))
    expected = deploy(model.eval(), NORMALIZATION)(images(4)).float() * deploy(model, NORMALIZATION).output_scales[0]
    exact = ExactNetwork(model, NORMALIZATION).train()
    assert torch.equal(exact(NORMALIZATION(images(4))), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(NORMALIZATION(images(4))), expected)
        exact(NORMALIZATION(images(4))).sum().backward()


def test_values_follow_the_present_weights_and_steps() -> None:
    model = _quantized(settle(Residual()))
    exact = ExactNetwork(model, NORMALIZATION)
    before = exact(NORMALIZATION(images(4)))
    with torch.no_grad():
        model.weighted_layers["linear"].weight.neg_()
    after = exact(NORMALIZATION(images(4)))
    assert torch.equal(after, deploy(model, NORMALIZATION)(images(4)).float() * deploy(model).output_scales[0])
    assert not torch.equal(before, after)


def test_gradients_of_a_layer_are_those_of_its_fake_quantization() -> None:
    """One layer: the operands are the same codes, and a linear loss asks for nothing else."""
    model = _quantized(
        settle(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())), size=6
    ).eval()
    x_NCHW = NORMALIZATION(images(4, 6, 1))
    theirs = _gradients(model, model, x_NCHW)
    ours = _gradients(ExactNetwork(model, NORMALIZATION), model, x_NCHW)
    assert set(ours) == set(theirs) == {name for name, _ in model.named_parameters()}
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name


def test_gradients_reach_every_parameter_that_fake_quantization_trains() -> None:
    model = _quantized(settle(EveryOp())).eval()
    x_NCHW = NORMALIZATION(images(4))
    theirs = _gradients(model, model, x_NCHW)
    ours = _gradients(ExactNetwork(model, NORMALIZATION), model, x_NCHW)
    assert set(ours) == set(theirs)
    for name, gradient in ours.items():
        assert torch.isfinite(gradient).all(), name
        # Codes differ by one here and there, and what is behind them too.
        assert (gradient - theirs[name]).norm() < 0.3 * theirs[name].norm() + 1e-3, name


def test_statistics_stay_as_they_are_in_training() -> None:
    model = _quantized(settle(EveryOp()))
    before = deepcopy(dict(model.named_buffers()))
    ExactNetwork(model, NORMALIZATION).train()(NORMALIZATION(images(4, seed=9))).sum().backward()
    for name, values in model.named_buffers():
        assert torch.equal(values, before[name]), name


def test_a_network_is_in_the_mode_of_the_one_that_it_is_of() -> None:
    model = _quantized(settle(Residual()))
    assert ExactNetwork(model.train(), NORMALIZATION).training
    assert not ExactNetwork(model.eval(), NORMALIZATION).training


def test_a_network_without_integers_is_refused() -> None:
    model = qat.prepare(settle(Residual()), uniform(qat.trace(Residual(), (3, 16, 16)), 4, 4), (3, 16, 16))
    with pytest.raises(ExportError, match="was not calibrated"):
        ExactNetwork(model, NORMALIZATION)(NORMALIZATION(images(4)))


@pytest.mark.gpu
def test_values_on_a_gpu_are_those_of_the_integers_on_the_cpu() -> None:
    model = _quantized(settle(EveryOp()))
    deployed = deploy(model.eval(), NORMALIZATION)
    expected = deployed(images(64)).float() * deployed.output_scales[0]
    x_NCHW = NORMALIZATION(images(64).cuda())
    exact = ExactNetwork(model.cuda(), NORMALIZATION).train()
    assert torch.equal(exact(x_NCHW).cpu(), expected)
    with torch.autocast("cuda", torch.bfloat16):
        values = exact(x_NCHW)
    assert torch.equal(values.cpu(), expected)
    values.sum().backward()
