"""Group norm and division by length: traced, trained, and computed in integers exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qat
from hwmodel import INPUT, LayerSpec, NetworkSpec, Op, uniform
from qat.convert import QuantNetwork, prepare
from qat.errors import ExportError, TraceError
from qat.export import kernels, load_packed, save_packed
from qat.export.bounds import check_spread
from qat.export.check import check_network
from qat.graph import read_graph, trace
from qat.integer_norm import normalize
from tests.qat.export.nets import reference_norm

SHAPE = (3, 16, 12)


class Normalised(nn.Module):
    """A head with a group norm that serves two maps, and a map divided by its length with a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_norm = nn.InstanceNorm2d(8, affine=True)
        self.head = nn.Conv2d(8, 8, 3, padding=1)
        self.head_norm = nn.GroupNorm(2, 8, eps=1e-3)
        self.gain = nn.Parameter(torch.full((8,), 4.0))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.leaky_relu(self.stem_norm(self.stem(x)), 0.125)
        fine, coarse = (F.relu(self.head_norm(self.head(level))) for level in (x, F.max_pool2d(x, 2)))
        return self.last(self.gain.view(1, -1, 1, 1) * F.normalize(fine)), self.last(coarse), F.normalize(coarse)


def float_model() -> Normalised:
    """With gains and offsets as training would leave them."""
    torch.manual_seed(0)
    model = Normalised()
    with torch.no_grad():
        for norm in (model.stem_norm, model.head_norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        model.gain.uniform_(2, 6)
    return model.eval()


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)


def quantized(model: nn.Module, bit_width: int, sum_bit_width: int) -> QuantNetwork:
    network = trace(model, SHAPE)
    config = uniform(network, 8, bit_width, end_bit_width=None, sum_bit_width=sum_bit_width)
    found = prepare(model, config, SHAPE)
    found.calibrate([images().float() / 255])
    return found.eval()


def test_norms_are_layers() -> None:
    network = trace(float_model(), SHAPE)
    norms = {layer.name: layer for layer in network.layers if layer.op in (Op.GROUP_NORM, Op.L2_NORM)}
    assert {name: (str(norm.op), norm.groups, norm.activation) for name, norm in norms.items()} == {
        "stem_norm": ("group_norm", 8, "leaky_relu"),
        "head_norm": ("group_norm", 2, "relu"),
        "head_norm_2": ("group_norm", 2, "relu"),
        "l2_norm": ("l2_norm", 1, "none"),
        "l2_norm_2": ("l2_norm", 1, "none"),
    }
    assert norms["head_norm_2"].normalized_values == 4 * 8 * 6 and norms["l2_norm"].normalized_values == 8


def test_parameters_of_a_norm_that_is_called_twice_are_there_once() -> None:
    model = quantized(float_model(), 8, 8)
    names = [name for name in model.state_dict() if "norm" in name and name.endswith(("weight", "bias"))]
    assert sorted(names) == [
        *("head_norm.bias", "head_norm.weight"),
        *("l2_norm.bias", "l2_norm.weight", "l2_norm_2.bias", "l2_norm_2.weight"),
        *("stem_norm.bias", "stem_norm.weight"),
    ]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"quantized.l2_norm.weight", "quantized.head_norm.bias"} <= trained
    assert not trained & {"quantized.l2_norm.bias", "quantized.l2_norm_2.weight"}
    results = model.train()(images().float() / 255)
    sum(result.square().mean() for result in results).backward()
    norm = model.layer("head_norm")
    assert isinstance(norm, qat.layers.QuantNorm) and norm.weight.grad is not None and norm.weight.grad.any()


def test_integers_approach_the_float_network_with_more_bits() -> None:
    model = float_model()
    with torch.no_grad():
        expected = model(images().float() / 255)
        errors = []
        for bit_width, sum_bit_width in ((4, 4), (8, 8), (16, 16)):
            found = qat.deploy(quantized(model, bit_width, sum_bit_width))
            results = [c * s for c, s in zip(found(images()), found.output_scales, strict=True)]
            errors.append(max(float((a - b).norm() / b.norm()) for a, b in zip(results, expected, strict=True)))
    assert errors[0] > 2 * errors[1] and errors[1] < 0.03
    assert errors[2] < 0.01  # weights of 8 bits


def test_integers_are_those_that_were_trained() -> None:
    """Fake-quant values differ from integer codes where a value lies between two, by one step."""
    model = quantized(float_model(), 8, 8)
    deployed = qat.deploy(model)
    with torch.no_grad():
        for codes, values, scale in zip(
            deployed(images()), model(images().float() / 255), deployed.output_scales, strict=True
        ):
            assert float((codes * scale - values).norm() / values.norm()) < 0.01


def test_packed_files_compute_the_same(tmp_path: Path) -> None:
    deployed = qat.deploy(quantized(float_model(), 4, 8))
    assert [deployed.integers.layers[name].epsilon > 0 for name in ("stem_norm", "head_norm_2", "l2_norm")] == [
        *(True, True),
        False,
    ]
    save_packed(deployed.integers, tmp_path / "packed")
    packed = load_packed(tmp_path / "packed")
    expected, found = deployed.layer_codes(images()), packed.layer_codes(images().numpy())
    assert all(np.array_equal(found[name], codes.numpy()) for name, codes in expected.items())
    for layer in packed.network.layers:
        assert packed.integers.layers[layer.name].epsilon == deployed.integers.layers[layer.name].epsilon


def spec_of(op: Op, channels: int, rows: int, columns: int, groups: int = 1) -> LayerSpec:
    return LayerSpec("norm", op, (INPUT,), channels, rows, columns, channels, rows, columns, groups=groups)


@settings(max_examples=150, deadline=None)
@given(
    op=st.sampled_from([Op.GROUP_NORM, Op.L2_NORM]),
    groups=st.integers(1, 3),
    size=st.integers(1, 9),
    largest=st.sampled_from([1, 2, 7, 127, 32767]),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
    epsilon=st.one_of(st.just(0), st.integers(0, 2**50)),
    seed=st.integers(0, 2**32 - 1),
)
def test_three_ways_to_normalise_agree(
    op: Op, groups: int, size: int, largest: int, spread: float, epsilon: int, seed: int
) -> None:
    """torch, numpy, and Python's integers by the book; and all are near the real quotient."""
    spec = spec_of(op, 2 * groups, size, size + 1, groups if op is Op.GROUP_NORM else 1)
    epsilon = epsilon if op is Op.GROUP_NORM else 0
    rng = np.random.default_rng(seed)
    centre = int(rng.integers(-largest, largest + 1))
    x = np.clip(
        centre + np.round(rng.normal(0, 1, (2, 2 * groups, size, size + 1)) * spread * largest), -largest, largest
    )
    x = x.astype(np.int64)
    expected = reference_norm(spec, x, epsilon)
    by_numpy = kernels.normalization(spec, epsilon)(x.transpose(0, 2, 3, 1).astype(np.float32))
    assert np.array_equal(by_numpy.transpose(0, 3, 1, 2), expected)
    assert np.array_equal(normalize(spec, epsilon, torch.from_numpy(x)).numpy(), expected)
    if op is Op.GROUP_NORM:
        grouped = x.reshape(2, groups, -1).astype(float)
        variance = grouped.var(2, keepdims=True) + epsilon / spec.normalized_values**2
        real = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(np.maximum(variance, 1e-30))
    else:
        real = x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), 1)
    error = np.abs(expected.reshape(real.shape) / 2**14 - real)
    assert (error <= np.abs(real) / 60_000 + 0.5 / 2**14 + 1e-9).all()


@pytest.mark.parametrize("value", [1, 2, 3, 4, 2**23 - 1, 2**23, 2**30, 2**31 - 1])
def test_edges_of_the_root(value: int) -> None:
    """Lengths whose squares are powers of 4 and next to them, up to the largest that is allowed."""
    spec = spec_of(Op.L2_NORM, 2, 1, 1)
    for x in ([value, 0], [-value, 1], [value - 1, -1]):
        codes = np.array(x).reshape(1, 2, 1, 1)
        expected = reference_norm(spec, codes, 0)
        assert np.array_equal(normalize(spec, 0, torch.from_numpy(codes)).numpy(), expected)


def test_groups_that_are_too_large_are_refused() -> None:
    deployed = qat.deploy(quantized(float_model(), 8, 16))
    layer = deployed.integers.layers["head_norm"]
    wide = replace(deployed.integers, layers={**deployed.integers.layers, "head_norm": replace(layer, epsilon=2**62)})
    with pytest.raises(ExportError, match=r"layer 'head_norm': .* epsilon=4611686018427387904 must stay below 2\*\*62"):
        check_network(wide)
    norm = replace(spec_of(Op.GROUP_NORM, 8, 256, 256), inputs=("conv",))
    conv = LayerSpec("conv", Op.CONV, (INPUT,), 8, 256, 256, 8, 256, 256)
    with pytest.raises(ExportError, match=r"layer 'norm': the sum of a group can reach 17179344896, int32 ends at"):
        check_spread(NetworkSpec("large", 8, 256, 256, (conv, norm)).by_name["norm"], 0, 32767)


def test_an_eps_that_no_integer_holds_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8, eps=1e6))
    network = quantized(model, 8, 16)
    with pytest.raises(ExportError, match=r"layer '1': eps=1000000.0 is .* squared steps .* use a smaller eps"):
        qat.deploy(network)


class Chain(nn.Module):
    """A convolution, then some modules or functions, then a convolution."""

    def __init__(self, *steps: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.steps = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))
        self.functions = [step for step in steps if not isinstance(step, nn.Module)]
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for step in (*self.steps, *self.functions):
            x = step(x)
        return self.last(x)


def trained_batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "batch norm behind": lambda: Chain(nn.GroupNorm(2, 8), trained_batch_norm()),
    "no parameters": lambda: Chain(nn.GroupNorm(8, 8, affine=False), nn.InstanceNorm2d(8)),
    "relu6": lambda: Chain(nn.GroupNorm(1, 8), nn.ReLU6()),
    "table behind": lambda: Chain(nn.GroupNorm(4, 8), nn.Hardswish()),
    "two groups norms": lambda: Chain(nn.GroupNorm(4, 8), nn.GroupNorm(2, 8)),
    "other axis name": lambda: Chain(lambda x: F.normalize(x, dim=-3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHAINS)
def test_norms_among_other_layers(name: str) -> None:
    torch.manual_seed(3)
    model = CHAINS[name]().eval()
    network = trace(model, SHAPE)
    found = prepare(model, uniform(network, 8, 16, sum_bit_width=16), SHAPE)
    with batch_norm_kept(found):  # random images have other statistics
        found.calibrate([images().float() / 255])
    deployed = qat.deploy(found.eval())
    expected = model(images().float() / 255)
    assert (
        float((deployed(images()) * deployed.output_scales[0] - expected).norm() / expected.norm()) < 0.03
    )  # weights of 8 bits


@contextmanager
def batch_norm_kept(model: nn.Module) -> Iterator[None]:
    """Statistics of batch norms stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    yield
    for norm, (mean, variance) in zip(norms, kept, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


class Gains(nn.Module):
    """One gain of either sign, seen in several shapes, for two maps; and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0, 2.0]))
        self.other = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("fixed", torch.rand(1, 6, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.conv(x))
        y = F.max_pool2d(x, 2)
        return (
            F.normalize(x) * self.gain.view((1, -1, 1, 1)),
            self.gain[:, None, None] * F.normalize(y),
            torch.reshape(self.other, (1, 6, 1, 1)) * F.normalize(x),
            F.normalize(y) * self.fixed,
        )


def test_gains() -> None:
    """Of either sign; one that multiplies two maps is one parameter; copies are independent; buffers stay."""
    torch.manual_seed(2)
    float_network = Gains().eval()
    model = quantized(float_network, 8, 8)
    deployed = qat.deploy(model)
    with torch.no_grad():
        for codes, scale, expected in zip(
            deployed(images()), deployed.output_scales, float_network(images().float() / 255), strict=True
        ):
            assert float((codes * scale - expected).norm() / expected.norm()) < 0.05
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "norm" in name}
    trained = {name for name in trained if name.endswith(("weight", "bias"))}
    assert trained == {"quantized.l2_norm.weight", "quantized.l2_norm_3.weight"}
    copied = deepcopy(model)
    sum(result.square().sum() for result in copied.train()(images().float() / 255)).backward()
    assert copied.layer("l2_norm").weight.grad is not None and model.layer("l2_norm").weight.grad is None
    again = quantized(Gains(), 8, 8)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(again(images().float() / 255), model(images().float() / 255), strict=True):
            assert torch.equal(ours, theirs)


def test_a_batch_of_any_size_is_exported_as_a_program() -> None:
    deployed = qat.deploy(quantized(CHAINS["relu6"](), 8, 8))
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(deployed.eval(), (images(2),), dynamic_shapes=shapes).module()
    assert torch.equal(program(images(5)), deployed(images(5)))


def test_another_configuration() -> None:
    model = quantized(float_model(), 8, 8)
    network = model.network
    qat.convert.apply(model, uniform(network, 2, 4, sum_bit_width=4))
    model.calibrate([images().float() / 255])
    fresh = prepare(float_model(), uniform(network, 2, 4, sum_bit_width=4), SHAPE)
    fresh.calibrate([images().float() / 255])
    with torch.no_grad():
        for ours, theirs in zip(model.eval()(images() / 255), fresh.eval()(images() / 255), strict=True):
            torch.testing.assert_close(ours, theirs)


class Other(nn.Module):
    """A convolution, then something that cannot be mapped."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.conv = nn.Conv2d(3, 4, 1)
        self.gain = nn.Parameter(torch.ones(4))
        self.tracked = nn.InstanceNorm2d(4, track_running_stats=True)
        self.drop = nn.Dropout()
        self.tall = nn.Conv2d(4, 4, (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.what == "power":
            return F.normalize(x, p=1.0)
        if self.what == "axis":
            return F.normalize(x, dim=2)
        if self.what == "eps":
            return F.normalize(x, eps=0.5)
        if self.what == "hidden":
            unit = F.normalize(x)
            return self.gain.view(1, -1, 1, 1) * self.drop(unit) + unit
        if self.what == "weight":
            return F.conv2d(x, self.tall.weight.view(4, 4, 1, 3), self.tall.bias)
        if self.what == "tracked":
            return self.tracked(x)
        if self.what == "twice":
            return self.gain.view(1, -1, 1, 1) * (self.gain.view(1, -1, 1, 1) * F.normalize(x))
        if self.what == "read":
            unit = F.normalize(x)
            return self.gain.view(1, -1, 1, 1) * unit + unit
        return self.gain.view(1, -1, 1, 1) * x


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("power", r"a norm with p=1.0 over dimension 1; only p=2 over channels \(1\) is"),
        ("axis", r"a norm with p=2.0 over dimension 2; only p=2"),
        ("eps", r"a norm with eps=0.5, which integers leave out; only up to 1e-06 is"),
        ("hidden", r"the parameter 'gain' times anything but the result of F.normalize"),
        ("weight", r"a functional call with other weights than those of a Conv2d"),
        ("tracked", r"a module of type InstanceNorm2d"),
        ("twice", r"the parameter 'gain' times anything but the result of F.normalize"),
        ("read", r"the parameter 'gain' times anything but the result of F.normalize"),
        ("plain", r"the parameter 'gain' times anything but the result of F.normalize"),
    ],
)
def test_what_cannot_be_mapped(what: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_graph(Other(what))
