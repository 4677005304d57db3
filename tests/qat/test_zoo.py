"""Published classifiers: traced, prepared, trained for one step, deployed, packed, with equal integers everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import hwmodel
import qat
from qat.convert import QuantNetwork
from qat.quantizers import ActQuantizer, WeightQuantizer
from tests.qat.nets import NORMALIZATION, images, settle

QUICK = [("squeezenet1_1", 48), ("mobilenet_v3_small", 32), ("shufflenet_v2_x0_5", 32)]
REST = [
    ("resnet18", 32),
    ("resnet50", 32),
    ("resnext50_32x4d", 32),
    ("mobilenet_v2", 32),
    ("mobilenet_v3_large", 32),
    ("densenet121", 32),
    ("efficientnet_b0", 32),
    ("mnasnet0_5", 32),
    ("regnet_y_400mf", 32),
    ("squeezenet1_0", 48),
    ("alexnet", 224),
]
LARGEST = [("vgg11_bn", 224)]  # 133 M weights: AlexNet stands for it where weights are trained and packed
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))
ZOO = [*QUICK, *(pytest.param(*item, marks=SLOW) for item in REST)]
TRACED = [*ZOO, *(pytest.param(*item, marks=SLOW) for item in LARGEST)]
CLASSES = 5


def _float_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    # Batch norm at its start would hide wrong statistics and gains.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.uniform_(-0.3, 0.3)
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.7, 1.3)  # type: ignore[union-attr]
    return model.eval()


def _without_quantizers(monkeypatch: pytest.MonkeyPatch, model: QuantNetwork) -> None:
    """The layers compute in float; an unsigned quantizer still is its ReLU."""

    def activate(quantizer: ActQuantizer, x: Tensor, negative_slope: float = 1.0, consume: bool = False) -> Tensor:
        return F.leaky_relu(x, negative_slope) if quantizer.signed else F.relu(x)

    monkeypatch.setattr(ActQuantizer, "forward", activate)
    monkeypatch.setattr(WeightQuantizer, "forward", lambda self, weight: weight)


@pytest.mark.parametrize(("name", "size"), TRACED)
def test_the_graph_computes_what_the_model_computes(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rounding the converted network gives the float model's logits: nothing was lost on the way."""
    model = _float_model(name)
    network = qat.trace(model, (3, size, size))
    config = hwmodel.uniform(network, 1, 8, end_bit_width=None)  # 1 bit: quick to prepare, and not looked at
    prepared = qat.prepare(model, config, (3, size, size)).eval()
    _without_quantizers(monkeypatch, prepared)
    x_NCHW = NORMALIZATION(images(2, size))
    with torch.no_grad():
        expected = model(x_NCHW)
        torch.testing.assert_close(prepared(x_NCHW), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "size"), ZOO)
def test_one_step_then_equal_integers(name: str, size: int, tmp_path: Path) -> None:
    model = _float_model(name)
    network = qat.trace(model, (3, size, size))
    prepared = qat.prepare(model, hwmodel.uniform(network, 4, 6), (3, size, size))
    batch = images(4, size)
    x_NCHW = NORMALIZATION(batch)
    prepared.calibrate([x_NCHW])
    optimizer = torch.optim.AdamW(prepared.parameters(), 1e-4)
    loss = F.cross_entropy(prepared.train()(x_NCHW), torch.arange(4) % CLASSES)
    loss.backward()
    assert all(layer.weight.grad is not None for layer in prepared.weighted_layers.values())
    optimizer.step()
    prepared.calibrate([x_NCHW])
    deployed = qat.deploy(prepared.eval(), NORMALIZATION)
    folder = tmp_path / "packed"
    qat.export.export(prepared, folder, normalization=NORMALIZATION)
    packed = qat.export.load_packed(folder)
    ours, theirs = deployed.layer_codes(batch[:2]), packed.layer_codes(batch[:2].numpy())
    assert list(ours) == [layer.name for layer in network.layers]
    differing = {key: int((codes.numpy() != theirs[key]).sum()) for key, codes in ours.items()}
    assert not any(differing.values()), differing
    silent = [key for key, codes in ours.items() if codes.unique().numel() == 1]
    assert len(silent) <= len(ours) // 10, silent  # the comparison is of codes that vary


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_the_cost_model_takes_them_and_predicts_the_size(name: str) -> None:
    model = _float_model(name)
    network = qat.trace(model, (3, 32, 32))
    config = hwmodel.uniform(network, 8, 8)
    board = hwmodel.load_board("u250")
    report = hwmodel.estimate(network, config, board, hwmodel.schedule(network, config, board))
    prepared = qat.prepare(model, config, (3, 32, 32))
    prepared.calibrate([NORMALIZATION(images(4, 32))])
    packed = qat.export.packed.pack(qat.deploy(prepared.eval(), NORMALIZATION).integers)
    stored = packed.stored_bits - packed.stored_bits_by_stream["input_codes"]
    assert abs(stored - report.stored_bits) <= 0.02 * report.stored_bits + 8 * 1024


def test_changed_statistics_are_seen() -> None:
    """The check of graphs can fail: another batch norm gives other logits."""
    model = _float_model("shufflenet_v2_x0_5")
    x_NCHW = NORMALIZATION(images(2, 32))
    with torch.no_grad():
        before = model(x_NCHW)
        assert before.isfinite().all()
        assert not torch.allclose(settle(model)(x_NCHW), before, rtol=1e-3)
