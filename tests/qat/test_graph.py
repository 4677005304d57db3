"""Tracing: what is recognised, how it is named, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from hwmodel import Op
from qat.errors import TraceError
from qat.graph import trace
from qat.models import digits_resnet, resnet20, resnet56
from tests.qat.nets import EveryOp, Residual


def test_resnet20_has_the_published_size_and_module_paths_as_names() -> None:
    network = trace(resnet20(), (3, 32, 32))
    # He et al. 2016, section 4.2, and DATA.md: 269,722 parameters, of them 1,376 batch norm and 10 bias.
    assert network.total_weights == 269_722 - 1_376 - 10
    assert network.total_macs == 40_551_040
    modules = dict(resnet20().named_modules())
    assert all(layer.name in modules for layer in network.weighted)
    assert network.by_name["layer2.0.subsample"].out_channels == 32
    assert network.by_name["layer2.0.add"].inputs == ("layer2.0.conv2", "layer2.0.subsample")
    assert network.by_name["layer2.0.add"].activation == "relu"
    assert trace(resnet56(), (3, 32, 32)).total_weights == 853_018 - 4_064 - 10
    assert trace(digits_resnet(), (1, 8, 8)).outputs == ("linear",)


# Published multiply-accumulates: torchvision's model pages give 1.81, 15.47 (15.50 with biases), 0.35 GMAC.
@pytest.mark.parametrize(
    ("build", "weights", "macs"),
    [
        (torchvision.models.resnet18, 11_678_912, 1_814_073_344),
        (torchvision.models.vgg16, 138_344_128, 15_470_264_320),
    ],
)
def test_torchvision_classifiers(build, weights: int, macs: int) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        model = build()
    network = trace(model, (3, 224, 224))
    assert (network.total_weights, network.total_macs) == (weights, macs)


def test_every_op_is_recognised() -> None:
    network = trace(EveryOp(), (3, 16, 16))
    pools = {Op.MAX_POOL, Op.AVG_POOL, Op.UPSAMPLE}
    assert {layer.op for layer in network.layers} == pools | {Op.CONV, Op.LINEAR, Op.ADD, Op.CONCAT, Op.FLATTEN}
    assert network.by_name["depthwise"].groups == 8
    assert network.by_name["down"].kernel_size == (3, 1)
    assert Op.SUBSAMPLE in {layer.op for layer in trace(Residual(), (3, 16, 16)).layers}


class _Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(1)
        self.conv = nn.Conv2d(3, 4, 3, padding="valid")
        self.same = nn.Conv2d(4, 4, 5, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.pad(x)))
        return self.same(F.pad(x, (2, 2, 1, 1))).mean((2, 3))


def test_explicit_padding_joins_its_convolution() -> None:
    network = trace(_Padded(), (3, 8, 8))
    assert network.by_name["conv"].padding == (1, 1)
    assert network.by_name["same"].padding == (3, 4)


class _Wrap(nn.Module):
    """A convolution, then whatever the test wants."""

    def __init__(self, then) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.Sigmoid()
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda m, x: m.act(m.conv(x)), "module 'act': a module of type Sigmoid cannot be mapped"),
        (lambda m, x: m.pool(m.conv(x)), "module 'pool': max pooling with ceil_mode=True"),
        (lambda m, x: torch.sin(m.conv(x)), "the operation 'sin' cannot be mapped"),
        (lambda m, x: m.conv(m.conv(x)), "module 'conv': a layer with weights that is used twice"),
        (lambda m, x: m.norm(torch.relu(m.conv(x))), "module 'norm': a batch norm that does not directly follow"),
        (lambda m, x: m.conv(x) * m.scale, "the parameter or buffer 'scale'"),
        (lambda m, x: m.conv(x) + 1.0, "an addition of anything but two feature maps"),
        (lambda m, x: torch.cat([m.conv(x)] * 2, 2), "a concatenation along dimension 2"),
        (lambda m, x: (m.conv(x), x), "must return one tensor"),
        (lambda m, x: m.conv(x) if x.sum() > 0 else x, "cannot be traced"),
        (lambda m, x: F.pad(m.conv(x), (1, 0, 0, 0)), "that is uneven or not followed by one convolution"),
    ],
)
def test_what_cannot_be_mapped_is_named(then, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TraceError) as error:
        trace(_Wrap(then), (3, 8, 8))
    assert message in str(error.value)


def test_a_wrong_input_shape_names_layer_and_shape() -> None:
    with pytest.raises(TraceError, match=r"layer 'linear'.*\(C, H, W\) = \(3, 24, 24\)"):
        trace(EveryOp(), (3, 24, 24))
