"""Lowering to integers: exact arithmetic, closeness to training's arithmetic, refusals."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwmodel import Granularity, LayerConfig, NetworkConfig, WeightFormat, uniform
from qat.convert import QuantNetwork, prepare
from qat.deployment import deploy, lower
from qat.errors import ExportError
from qat.export import export
from qat.export.packed import pack
from qat.graph import trace
from qat.normalization import Normalization
from tests.qat.nets import NORMALIZATION, EveryOp, Residual, images, settle

FORMATS = [
    LayerConfig(1, 4),
    LayerConfig(2, 3),
    LayerConfig(8, 8),
    LayerConfig(3, 5, 0.6, WeightFormat.SPARSE, Granularity.KERNEL),
    LayerConfig(1, 4, 0.5, WeightFormat.SPARSE),
    LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE, Granularity.CHANNEL_VECTOR),
]


def _quantized(model: nn.Module, layer: LayerConfig):  # type: ignore[no-untyped-def]
    network = trace(model, (3, 16, 16))
    config = NetworkConfig(tuple((spec.name, layer) for spec in network.weighted))
    quantized = prepare(model, config)
    quantized.calibrate([NORMALIZATION(images(64))])
    return quantized.eval()


@pytest.mark.parametrize("model_type", [Residual, EveryOp])
@pytest.mark.parametrize("layer", FORMATS, ids=str)
def test_integers_follow_training_layer_by_layer(model_type, layer: LayerConfig) -> None:  # type: ignore[no-untyped-def]
    """Fed with the integers' own inputs, a fake-quant layer gives the same codes but where a sum falls on an edge."""
    torch.manual_seed(1)
    quantized = _quantized(settle(model_type()), layer)
    deployed = deploy(quantized, NORMALIZATION)
    codes = deployed.layer_codes(images(8, seed=5))
    with torch.no_grad():
        scales = {"input": float(quantized.input_quantizer.scale)}
        values = {"input": quantized.input_quantizer(NORMALIZATION(images(8, seed=5)))}
        for spec in quantized.network.layers:
            scales[spec.name] = deployed.integers.layers[spec.name].ofm_scale
            operands = [values[name] for name in spec.inputs]
            expected = quantized.layer(spec.name)(*operands) / scales[spec.name]
            off = (codes[spec.name] - expected.round()).abs()
            steps = (
                2 if spec.name == quantized.network.layers[-1].name else 1
            )  # 16-bit results: finer than the multiplier
            assert off.max() <= steps, spec.name
            if steps == 1:
                assert (off > 0).double().mean() < 0.02, spec.name
            values[spec.name] = codes[spec.name] * scales[spec.name]


def test_rescale_uses_the_whole_multiplier_and_codes_fit_their_bits() -> None:
    quantized = _quantized(settle(Residual()), LayerConfig(4, 4))
    integers = lower(quantized, NORMALIZATION, ("a", "b", "c", "d"))
    for layer in integers.layers.values():
        if layer.rescale is not None:
            assert layer.rescale.multiplier.dtype == np.int16
            assert 2**14 <= np.abs(layer.rescale.multiplier.astype(int)).max() < 2**15
    assert integers.layers["stem"].rescale.quant_min == 0  # type: ignore[union-attr]
    assert integers.layers["conv1"].input_rescale is not None
    assert integers.class_names == ("a", "b", "c", "d")


def test_input_codes_are_those_of_training_for_all_levels() -> None:
    quantized = _quantized(settle(Residual()), LayerConfig(4, 4))
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 2, 2)
    with torch.no_grad():
        values = quantized.input_quantizer(NORMALIZATION(levels)) / quantized.input_quantizer.scale
    table = lower(quantized, NORMALIZATION).input_codes
    assert table.shape == (3, 256)
    assert np.array_equal(table.T, values[:, :, 0, 0].round().numpy())


def test_a_dead_channel_exports() -> None:
    model = settle(Residual())
    with torch.no_grad():
        model.bn1.weight[0] = 0.0  # type: ignore[index,operator,union-attr]
        model.bn1.bias[0] = 1.0  # type: ignore[index,operator,union-attr]
    quantized = _quantized(model, LayerConfig(2, 4))
    codes = deploy(quantized, NORMALIZATION).layer_codes(images(2))["conv1"][:, 0]
    expected = round(1.0 / float(quantized.weighted_layers["conv1"].ofm_quantizer.scale.detach()))
    assert set(codes.unique().tolist()) == {min(expected, 15)}


def test_a_layer_of_dead_channels_exports_its_biases() -> None:
    model = settle(Residual())
    with torch.no_grad():
        model.bn1.weight.zero_()  # type: ignore[operator,union-attr]
        model.bn1.bias.fill_(1.0)  # type: ignore[operator,union-attr]
    quantized = _quantized(model, LayerConfig(2, 4))
    deployed = deploy(quantized, NORMALIZATION)
    codes = deployed.layer_codes(images(2))["conv1"]
    expected = round(1.0 / float(quantized.weighted_layers["conv1"].ofm_quantizer.scale.detach()))
    assert set(codes.unique().tolist()) == {min(expected, 15)}
    assert pack(deployed.integers).layer_codes(images(2).numpy())["conv1"].tolist() == codes.tolist()


@pytest.mark.parametrize("weight_bits", [1, 4])
def test_dropped_filters_leave_the_multipliers_to_the_others(weight_bits: int) -> None:
    """Their sums are 0 and have no variance, so the gain of their norm is large and means nothing."""
    layer = LayerConfig(weight_bits, 8, 0.5, WeightFormat.SPARSE, Granularity.FILTER)
    quantized = _quantized(settle(Residual()), layer)
    mask = quantized.weighted_layers["conv1"].weight_quantizer.mask
    assert mask is not None
    kept = mask.flatten().numpy()
    with torch.no_grad():
        quantized.weighted_layers["conv1"].batch_norm.running_var[~mask.flatten()] = 0.0  # type: ignore[index,union-attr]
    rescale = deploy(quantized, NORMALIZATION).integers.layers["conv1"].rescale
    assert rescale is not None and not kept.all()
    assert not rescale.multiplier[~kept].any()
    assert np.abs(rescale.multiplier[kept].astype(int)).max() >= 1 << 14


def test_a_bias_beyond_the_widest_codes_saturates() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    quantized = prepare(model, uniform(trace(model, (3, 16, 16)), 1, 1), (3, 16, 16))
    quantized.calibrate([NORMALIZATION(images(4))])
    layer = quantized.weighted_layers["1"]
    assert layer.bias is not None
    with torch.no_grad():
        layer.ofm_quantizer.log2_scale.fill_(-40.0)  # no product reaches the shift's limit, biases pass it
        layer.weight_quantizer.log2_scale.fill_(-80.0)
        layer.bias.copy_(torch.tensor([-(2.0**15), 2.0**15, 100.0]) * 2.0**-40)
    deployed = deploy(quantized, NORMALIZATION)
    codes = deployed.layer_codes(images(2))["1"]
    assert codes.flatten(1).tolist() == [[-32768, 32767, 100]] * 2
    assert pack(deployed.integers).layer_codes(images(2).numpy())["1"].tolist() == codes.tolist()


def test_an_accumulator_beyond_32_bits_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 300 * 300, 2))
    network = trace(model, (3, 300, 300))
    quantized = prepare(model, uniform(network, 8, 8), (3, 300, 300))
    quantized.calibrate([NORMALIZATION(images(2, 300))])
    with torch.no_grad():
        quantized.weighted_layers["2"].weight.fill_(1.0)
    with pytest.raises(ExportError, match=r"layer '2': the accumulator can reach \d+, more than 32 bits"):
        deploy(quantized, NORMALIZATION)


def test_images_must_be_8_bit() -> None:
    deployed = deploy(_quantized(settle(Residual()), LayerConfig(4, 4)))
    with pytest.raises(TypeError, match=r"expected torch\.uint8"):
        deployed(torch.zeros(1, 3, 16, 16))


def _prepared() -> QuantNetwork:
    model = settle(Residual())
    return prepare(model, uniform(trace(model, (3, 16, 16)), 4, 4), (3, 16, 16)).eval()


def test_a_network_without_steps_is_refused(tmp_path: Path) -> None:
    for model in (_prepared(), copy.deepcopy(_prepared())):
        with pytest.raises(ExportError, match=r"was not calibrated.*call calibrate\(\) or load a trained checkpoint"):
            deploy(model)
        with pytest.raises(ExportError, match="was not calibrated"):
            export(model, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_checkpoints_remember_calibration() -> None:
    calibrated, loaded = _prepared(), _prepared()
    loaded.load_state_dict(calibrated.state_dict())
    with pytest.raises(ExportError, match="was not calibrated"):
        deploy(loaded)
    calibrated.calibrate([NORMALIZATION(images(16))])
    loaded.load_state_dict(calibrated.state_dict())
    batch = images(2, seed=3)
    assert torch.equal(deploy(loaded)(batch), deploy(calibrated)(batch))


def test_checkpoints_without_the_mark_are_calibrated() -> None:
    calibrated, loaded = _prepared(), _prepared()
    calibrated.calibrate([NORMALIZATION(images(16))])
    state = calibrated.state_dict()
    assert set(state["_extra_state"]) == {"config", "input_shape"}
    loaded.load_state_dict(state)
    assert loaded.calibrated


def test_a_calibration_that_failed_does_not_count() -> None:
    model = _prepared()
    with pytest.raises(ValueError, match="at least one batch"):
        model.calibrate([])
    assert not model.calibrated


def test_images_must_have_the_shape_of_the_input() -> None:
    deployed = deploy(_quantized(settle(Residual()), LayerConfig(4, 4)))
    for shape in ((1, 1, 16, 16), (1, 4, 16, 16), (3, 16, 16), (1, 3, 32, 32)):
        message = re.escape(f"images are uint8 of shape {shape}, expected uint8 of shape (N, 3, 16, 16)")
        with pytest.raises(ValueError, match=message):
            deployed(torch.zeros(shape, dtype=torch.uint8))


def test_a_float_model_is_refused() -> None:
    for model in (Residual(), deploy(_quantized(settle(Residual()), LayerConfig(4, 4)))):
        with pytest.raises(ExportError, match=rf"model is a {type(model).__name__}, expected what qat.prepare returns"):
            deploy(model)  # type: ignore[arg-type]


def test_normalization_must_have_the_channels_of_the_input() -> None:
    quantized = _quantized(settle(Residual()), LayerConfig(4, 4))
    with pytest.raises(ExportError, match="normalization has 1 channels, expected 3: a mean and a deviation for each"):
        deploy(quantized, Normalization((0.5,), (0.5,)))


@pytest.mark.gpu
def test_a_network_on_a_gpu_has_the_integers_of_its_copy_on_the_cpu() -> None:
    model = _quantized(settle(EveryOp()), LayerConfig(4, 4))
    here = deploy(model, NORMALIZATION).layer_codes(images(4))
    there = deploy(model.cuda(), NORMALIZATION).layer_codes(images(4))
    assert next(model.parameters()).is_cuda
    for name, codes in here.items():
        assert torch.equal(codes, there[name]), name
