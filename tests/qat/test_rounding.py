"""Post-training quantization: rounding that keeps sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import qat
from hwmodel import Granularity, LayerConfig, NetworkConfig, WeightFormat, uniform
from qat.data.archives import read_archive
from qat.models import resnet20
from qat.normalization import Normalization
from qat.rounding import quantize_after_training
from tests.qat.nets import NORMALIZATION, EveryOp, Residual, images, settle

FORMATS = [
    LayerConfig(1, 8),
    LayerConfig(2, 8),
    LayerConfig(3, 8),
    LayerConfig(4, 8, 0.5, WeightFormat.SPARSE, Granularity.KERNEL),
    LayerConfig(1, 8, 0.9, WeightFormat.BINARY_PLUS_SPARSE),
]


class _One(nn.Module):
    """One convolution whose inputs are strongly correlated, as feature maps are."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def _smooth(count: int, seed: int) -> torch.Tensor:
    noise = torch.randn(count, 8, 16, 16, generator=torch.Generator().manual_seed(seed))
    mixed = noise + 2 * noise.mean(1, keepdim=True)
    return nn.functional.avg_pool2d(mixed, 3, 1, 1)


@pytest.mark.parametrize("layer", FORMATS, ids=str)
@pytest.mark.parametrize(("groups", "share"), [(1, 0.85), (8, 1.001)])
def test_sums_change_less_than_by_rounding_to_the_nearest(layer: LayerConfig, groups: int, share: float) -> None:
    """On images that were not used to round; a depthwise filter has few weights that could take an error over."""
    torch.manual_seed(0)
    model = _One(groups).eval()
    config = NetworkConfig((("conv", layer),))
    batch, unseen = _smooth(32, 1), _smooth(32, 2)
    errors = []
    for rounds in (False, True):
        prepared = qat.prepare(model, config, (8, 16, 16))
        if rounds:
            quantize_after_training(prepared, [batch])
        else:
            prepared.calibrate([batch])
        with torch.no_grad():
            errors.append(float((prepared.eval()(unseen) - model(unseen)).square().mean()))
    assert errors[1] < share * errors[0]


@pytest.mark.parametrize("layer", FORMATS, ids=str)
@pytest.mark.parametrize("model_type", [Residual, EveryOp])
def test_weights_are_on_their_grid_and_nothing_else_changes(model_type: type[nn.Module], layer: LayerConfig) -> None:
    torch.manual_seed(0)
    model = settle(model_type())
    network = qat.trace(model, (3, 16, 16))
    prepared = qat.prepare(model, NetworkConfig(tuple((spec.name, layer) for spec in network.weighted)))
    training = prepared.training
    quantize_after_training(prepared, [NORMALIZATION(images(16)), NORMALIZATION(images(16, seed=1))])
    assert prepared.training == training
    for name, quantized in prepared.weighted_layers.items():
        assert not quantized._forward_pre_hooks, name
        with torch.no_grad():
            torch.testing.assert_close(quantized.weight_quantizer(quantized.weight_OIHW), quantized.weight_OIHW)
    deployed = qat.deploy(prepared.eval(), NORMALIZATION)
    assert deployed(images(2)).isfinite().all()


def test_there_must_be_images() -> None:
    model = settle(Residual())
    with pytest.raises(ValueError, match="at least one batch"):
        quantize_after_training(qat.prepare(model, uniform(qat.trace(model, (3, 16, 16)), 4, 4)), [])


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_resnet20_without_training(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shared weights, 256 calibration images, 500 test images: rounding by layers beats rounding to the nearest."""
    state = torch.load(data_root / "weights" / "resnet20-12fca82f.th", "cpu", weights_only=True)["state_dict"]
    model = resnet20()
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    model.eval()
    normalization = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    train, test = (read_archive(data_root / f"cifar10_{name}.npz") for name in ("train45k", "test500"))
    calibration = torch.from_numpy(train.images_NHWC[:256]).permute(0, 3, 1, 2)
    batch, labels = torch.from_numpy(test.images_NHWC).permute(0, 3, 1, 2), torch.from_numpy(test.labels)
    network = qat.trace(model, (3, 32, 32))
    found = {}
    for bits in (4, 3, 2):
        for rounds in (False, True):
            prepared = qat.prepare(model, uniform(network, bits, 8))
            if rounds:
                quantize_after_training(prepared, [normalization(calibration)])
            else:
                prepared.calibrate([normalization(calibration)])
            with torch.no_grad():
                found[bits, rounds] = float((prepared.eval()(normalization(batch)).argmax(1) == labels).float().mean())
    with capsys.disabled():
        for bits in (4, 3, 2):
            print(  # noqa: T201
                f"\nResNet-20, {bits}-bit weights, 8-bit activations, no training: nearest "
                f"{100 * found[bits, False]:.1f} %, by layers {100 * found[bits, True]:.1f} % of 500"
            )
    assert found[3, True] > found[3, False]
    assert found[2, True] > found[2, False]
