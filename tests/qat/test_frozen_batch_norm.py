"""torchvision's frozen batch norm: folded like a batch norm in inference mode, constant in all that trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import hwmodel
from hwmodel import Op, uniform
from qat import export
from qat.convert import prepare
from qat.deployment import deploy
from qat.errors import TraceError
from qat.graph import trace
from qat.models.detectors import hardware_part
from qat.tasks import objective_of
from tests.qat.nets import NORMALIZATION, images

STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Frozen(nn.Module):
    """Norms behind convolutions with and without a bias, behind a depthwise one, and one behind an addition."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = norm(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_bn = norm(8, eps=1e-3)
        self.alone_bn = norm(8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = x + self.depthwise_bn(self.depthwise(x))
        return self.head(F.relu(self.alone_bn(x)))


class Halved(FrozenBatchNorm2d):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def with_random_statistics(model: nn.Module) -> nn.Module:
    """Statistics as training would have left them, of either kind of norm."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for name in STATISTICS:
                values = torch.rand(len(module.weight), generator=generator)
                low = 0.5 if name in ("weight", "running_var") else -0.2
                getattr(module, name).data.copy_(low + values)
    return model.eval()


def frozen(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All constants of a model's frozen norms."""
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    return [(f"{path}.{name}", getattr(module, name)) for path, module in norms for name in STATISTICS]


def test_it_is_a_batch_norm_in_inference_mode() -> None:
    torch.manual_seed(0)
    ours = with_random_statistics(Frozen(FrozenBatchNorm2d))
    theirs = with_random_statistics(Frozen(nn.BatchNorm2d))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    network = trace(ours, (3, 8, 8))
    assert network == trace(theirs, (3, 8, 8))
    assert [layer.name for layer in network.layers if layer.op is Op.SCALE] == ["alone_bn"]
    # Not calibrated, which would estimate the statistics of the second anew.
    first, second = (prepare(model, uniform(network, 4, 8), (3, 8, 8)).eval() for model in (ours, theirs))
    for prepared in (first, second):
        for name, parameter in prepared.named_parameters():
            if name.endswith("quantizer.log2_scale") and parameter.dim() == 0:
                parameter.data.fill_(-5.0)
        prepared.calibrated = True
    batch = NORMALIZATION(images(4, 8, 1))
    torch.testing.assert_close(first(batch), second(batch))
    expected = deploy(second, NORMALIZATION).integers.layers
    for name, layer in deploy(first, NORMALIZATION).integers.layers.items():
        if layer.rescale is not None:
            np.testing.assert_array_equal(layer.rescale.multiplier, expected[name].rescale.multiplier)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_integers_from_packed_files_are_equal_code_for_code(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_random_statistics(Frozen(FrozenBatchNorm2d))
    network = trace(model, (3, 8, 8))
    prepared = prepare(model, uniform(network, bits, 4), (3, 8, 8))
    prepared.calibrate([NORMALIZATION(images(16, 8))])
    schedule = hwmodel.schedule(network, prepared.config, hwmodel.load_board("zcu104"))
    export.export(prepared.eval(), tmp_path / "packed", schedule, NORMALIZATION)
    packed = export.load_packed(tmp_path / "packed")
    batch = images(4, 8, 1)
    theirs = packed.layer_codes(batch.numpy())
    for name, codes in deploy(prepared, NORMALIZATION).layer_codes(batch).items():
        assert (codes.numpy() == theirs[name]).all(), name
    values = torch.from_numpy(packed.run(batch.numpy())) * packed.output_scales[0]
    expected = prepared(NORMALIZATION(batch)).detach()
    assert (values - expected).abs().mean() < 0.05 * expected.std()


def test_statistics_are_constants() -> None:
    """Neither calibration nor training changes them; the weights around them are trained."""
    torch.manual_seed(0)
    model = with_random_statistics(Frozen(FrozenBatchNorm2d))
    before = [value.clone() for _, value in frozen(model)]
    prepared = prepare(model, uniform(trace(model, (3, 8, 8)), 4, 8), (3, 8, 8))
    batch = NORMALIZATION(images(16, 8))
    prepared.calibrate([batch, batch])
    weight = prepared.weighted_layers["stem"].weight
    start = weight.detach().clone()
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    prepared.train()(batch).square().mean().backward()
    optimizer.step()
    assert not torch.equal(weight, start)
    kept = frozen(prepared)
    assert [name for name, _ in kept[::4]] == [
        f"quantized.{name}.batch_norm.weight" for name in ("stem", "depthwise", "alone_bn")
    ]
    assert all(torch.equal(value, old) for (_, value), old in zip(kept, before, strict=True))
    assert not any("batch_norm" in name for name, _ in prepared.named_parameters())


def test_one_that_computes_something_else_is_refused() -> None:
    with pytest.raises(TraceError, match="operation 'mul' in module 'stem_bn'"):
        trace(Frozen(Halved), (3, 8, 8))


def retinanet(backbone: str) -> nn.Module:
    """As torchvision builds it for published weights: its default norm is the frozen one."""
    extractor = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    return RetinaNet(extractor, 4)


def test_published_weights_load_by_their_names() -> None:
    part = hardware_part(retinanet("resnet50"))
    theirs = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict()
    assert set(part.state_dict()) == {name for name in theirs if not name.endswith("num_batches_tracked")}
    part.load_state_dict(theirs, strict=True)
    assert len(frozen(part)) == 4 * 53  # one for each convolution of ResNet-50
    network = trace(part, (3, 128, 128))
    assert not [layer for layer in network.layers if layer.op is Op.SCALE]
    ordinary = hardware_part(detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4))
    assert trace(ordinary, (3, 128, 128)) == network


def test_a_detector_with_frozen_norms_is_trained_and_deployed() -> None:
    torch.manual_seed(0)
    model = with_random_statistics(hardware_part(retinanet("resnet18"))).requires_grad_(False)
    before = [value.clone() for _, value in frozen(model)]
    network = trace(model, (3, 128, 128))
    prepared = prepare(model, uniform(network, 4, 8, end_bit_width=8), (3, 128, 128))
    batch = images(2, 128)
    prepared.calibrate([NORMALIZATION(batch)])
    objective = objective_of(model)
    targets = torch.tensor([[[2, 0.1, 0.2, 0.5, 0.7, 0]], [[-1, 0, 0, 0, 0, 0]]])
    objective.loss(prepared.train()(NORMALIZATION(batch)), targets).backward()
    assert all(layer.weight.grad is not None for layer in prepared.weighted_layers.values())
    assert all(torch.equal(value, old) for (_, value), old in zip(frozen(prepared), before, strict=True))
    deployed = deploy(prepared.eval(), NORMALIZATION)
    with torch.no_grad():
        expected = prepared(NORMALIZATION(batch[:1]))
    scales = [deployed.integers.layers[name].ofm_scale for name in prepared.network.outputs]
    for codes, scale, values in zip(deployed(batch[:1]), scales, expected, strict=True):
        assert (codes * scale - values).abs().mean() < 0.1 * values.std() + scale  # a new head's logits hardly differ
