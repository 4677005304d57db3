"""Tracing: what is recognised, how it is named, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from hwmodel import Op
from qat.errors import TraceError
from qat.graph import read_graph, trace
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


def _relu_in_place(x: Tensor) -> Tensor:
    y = F.relu(x, inplace=True)
    return x + y


class _Wrap(nn.Module):
    """A convolution, then whatever the test wants."""

    def __init__(self, then) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.GELU()
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda m, x: m.act(m.conv(x)), "module 'act': a module of type GELU cannot be mapped"),
        (lambda m, x: m.pool(m.conv(x)), "module 'pool': average pooling with ceil_mode=True"),
        (lambda m, x: torch.sin(m.conv(x)), "the operation 'sin' cannot be mapped"),
        (lambda m, x: m.norm(m.norm(m.conv(x))), "module 'norm': a batch norm that is used behind several layers"),
        (lambda m, x: torch.clamp(m.conv(x), -1, 1), "clamping to -1..1; only 0..6"),
        (lambda m, x: m.conv(x) * 0.5, "a multiplication of anything but a feature map and its gate"),
        (lambda m, x: F.conv2d(x, m.scale), "a functional call with other weights than those of a Conv2d"),
        (lambda m, x: _relu_in_place(m.conv(x)), "an operation in place on a tensor that others read too"),
        (lambda m, x: m.conv(x).transpose(2, 3), "a transposition of dimensions [2, 3] that is no channel shuffle"),
        (lambda m, x: m.conv(x).view(1, 2, 2, 6, 6), "a view to (1, 2, 2, 6, 6)"),
        (lambda m, x: m.conv(x)[:, ::2], "only x[:, a:b] and x[:, :, ::s, ::t] are"),
        (lambda m, x: m.conv(x) * m.scale, "the parameter or buffer 'scale'"),
        (lambda m, x: m.conv(x) + 1.0, "an addition of anything but two feature maps"),
        (lambda m, x: torch.add(m.conv(x), 1.0), "an addition of anything but two feature maps"),
        (lambda m, x: torch.add(x, other=x, alpha=2), "an addition of anything but two feature maps"),
        (lambda m, x: torch.cat([m.conv(x)] * 2, 2), "a concatenation along dimension 2"),
        (lambda m, x: (m.conv(x), None), "must return a tensor or a tuple of tensors"),
        (lambda m, x: (m.conv(x), x), "has no layer"),
        (lambda m, x: m.conv(x) if x.sum() > 0 else x, "cannot be traced"),
        (lambda m, x: F.pad(m.conv(x), (1, 0, 0, 0)), "that is negative or not followed by one convolution"),
    ],
)
def test_what_cannot_be_mapped_is_named(then, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TraceError) as error:
        trace(_Wrap(then), (3, 8, 8))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "add",
    [
        lambda x: x + x,
        lambda x: torch.add(x, x),
        lambda x: torch.add(x, other=x),
        lambda x: torch.add(input=x, other=x, alpha=1),
        lambda x: x.add(other=x),
    ],
)
def test_additions_are_read_however_they_are_written(add) -> None:  # type: ignore[no-untyped-def]
    assert trace(_Wrap(lambda m, x: add(m.conv(x))), (3, 8, 8)).by_name["add"].inputs == ("conv", "conv")


def test_a_wrong_input_shape_names_layer_and_shape() -> None:
    with pytest.raises(TraceError, match=r"layer 'linear'.*\(C, H, W\) = \(3, 24, 24\)"):
        trace(EveryOp(), (3, 24, 24))


def test_an_input_without_channels_is_refused() -> None:
    with pytest.raises(TraceError, match=r"input_shape=\(3, 16\), expected three numbers: channels, rows and columns"):
        trace(_Padded(), (3, 16))  # type: ignore[arg-type]


class _OddPadding(nn.Module):
    """Padding at the end only, an even kernel with "same", a derived convolution, a pool with ceil_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _SamePadding(3, 4, 3, stride=2)
        self.even = nn.Conv2d(4, 4, 4, padding="same")
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.leaky_relu(self.even(self.first(x)), 0.125))


class _SamePadding(nn.Conv2d):
    """A user's own convolution: pads below and at the right, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def test_padding_may_differ_at_the_end() -> None:
    network = trace(_OddPadding(), (3, 16, 14))
    first, even, pool = network.layers
    assert (first.padding, first.padding_end, first.stride, first.out_width) == ((0, 0), (1, 1), (2, 2), 7)
    assert (even.padding, even.padding_end, even.activation) == ((1, 1), (2, 2), "leaky_relu")
    assert (pool.padding, pool.padding_end, pool.out_height, pool.out_width) == ((0, 0), (1, 0), 4, 3)
    assert _OddPadding().pool(torch.zeros(1, 4, 8, 7)).shape[2:] == (4, 3)


class _Derived(nn.Conv2d):
    """A convolution by another name: computes what its base does."""


class _Squeeze(nn.Module):
    """Squeeze and excite with linear layers and views, a standalone batch norm, a shuffle, a slope that is no shift."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _Derived(3, 8, 3, padding=1)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.norm = nn.BatchNorm2d(8)
        self.shuffle = nn.ChannelShuffle(2)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.conv(x))
        n, c = x.size(0), x.size(1)
        gate = F.adaptive_avg_pool2d(x, 1).view(n, c)
        gate = torch.sigmoid(self.up(F.relu(self.down(gate)))).view(n, c, 1, 1)
        x = self.dropout(x * gate.expand_as(x))
        a, b = self.shuffle(F.relu(self.norm(x))).split([6, 2], 1)
        return self.unshuffle(torch.cat([F.leaky_relu(a, 0.1), b[:, 1:]], 1))


def test_gates_shuffles_and_norms_are_recognised() -> None:
    graph = read_graph(_Squeeze())
    ops = [(node.name, str(node.op), node.activation) for node in graph.nodes]
    assert ops == [
        ("conv", "conv", "relu6"),
        ("avg_pool", "avg_pool", "none"),
        ("flatten", "flatten", "none"),
        ("down", "linear", "relu"),
        ("up", "linear", "none"),
        ("sigmoid", "lookup", "sigmoid"),
        ("mul", "mul", "none"),
        ("norm", "scale", "relu"),
        ("shuffle", "shuffle", "none"),
        ("slice", "slice", "none"),
        ("slice_2", "slice", "none"),
        ("leaky_relu", "lookup", "leaky_relu"),
        ("slice_3", "slice", "none"),
        ("cat", "concat", "none"),
        ("unshuffle", "reorg", "none"),
    ]
    assert graph.left_out == ("dropout",)
    network = graph.spec((3, 8, 8))
    assert network.by_name["mul"].inputs == ("conv", "sigmoid")
    assert (network.by_name["slice_2"].first_channel, network.by_name["slice_2"].out_channels) == (6, 2)
    assert (network.layers[-1].out_channels, network.layers[-1].out_height) == (28, 4)


def test_two_maps_cannot_be_multiplied() -> None:
    with pytest.raises(TraceError, match="expected a map and a gate with one value per channel"):
        trace(_Wrap(lambda m, x: (lambda y: y * torch.sigmoid(y))(m.conv(x))), (3, 8, 8))
