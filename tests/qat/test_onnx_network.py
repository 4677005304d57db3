"""Layer tables from ONNX files equal those that tracing makes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from hwmodel import INPUT, NetworkSpec, Op
from qat import trace
from qat.errors import TraceError
from qat.onnx_network import load_onnx_network

onnx = pytest.importorskip("onnx", reason="ONNX files are optional")


def write(path: Path, nodes: list[object], initializers: dict[str, tuple[int, ...]], shape: tuple[object, ...]) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    tensors = [
        helper.make_tensor(name, kind, dims, bytes(4 * prod(dims)), raw=True) for name, dims in initializers.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), str(path))
    return path


def residual(path: Path, shape: tuple[object, ...] = (1, 3, 8, 8)) -> Path:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["a"], "stem", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "b0", "b0", "b0", "b0"], ["b"], "bn"),
        node("Relu", ["b"], ["c"], "relu"),
        node("Conv", ["c", "w1"], ["d"], "body", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2),
        node("Add", ["d", "c"], ["e"], "add"),
        node("MaxPool", ["e"], ["f"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["f"], ["g"], "mean"),
        node("Flatten", ["g"], ["h"], "flat"),
        node("Gemm", ["h", "w2"], ["y"], "fc", transB=1),
    ]
    weights = {"w0": (4, 3, 3, 3), "b0": (4,), "w1": (4, 2, 3, 3), "w2": (10, 4)}
    return write(path, nodes, weights, shape)


def test_residual_network(tmp_path: Path) -> None:
    network = load_onnx_network(residual(tmp_path / "net.onnx"))
    assert isinstance(network, NetworkSpec)
    assert [layer.name for layer in network.layers] == ["stem", "body", "add", "pool", "mean", "fc"]
    assert [str(layer.op) for layer in network.layers] == ["conv", "conv", "add", "max_pool", "avg_pool", "linear"]
    assert network.by_name["stem"].activation == "relu"
    assert network.by_name["body"].groups == 2
    assert network.by_name["add"].inputs == ("body", "stem")
    assert network.total_weights == 4 * 27 + 4 * 18 + 40


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.LeakyReLU(0.125))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([self.body(x) + x, x], 1)
        return self.fc(torch.flatten(self.pool(x), 1))


def test_exported_torch_network_is_the_traced_one(tmp_path: Path) -> None:
    model, path = Small().eval(), tmp_path / "small.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package is called legacy
        torch.onnx.export(model, torch.zeros(1, 3, 16, 16), str(path), dynamo=False, opset_version=13)
    network, traced = load_onnx_network(path), trace(model, (3, 16, 16))
    assert [layer.op for layer in network.layers if layer.has_weights] == [Op.CONV, Op.CONV, Op.LINEAR]
    for name in ("total_weights", "total_macs"):
        assert getattr(network, name) == getattr(traced, name)
    shapes = [(layer.weight_shape, layer.out_height, layer.activation) for layer in network.weighted]
    assert shapes == [(layer.weight_shape, layer.out_height, layer.activation) for layer in traced.weighted]


class Odd(nn.Module):
    """Batch norms and functions that no convolution can take over, a gate, a rounded-up pooling, weights used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.dense_norm = nn.BatchNorm2d(16)
        self.tower = nn.Conv2d(16, 16, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(self.norm(x))
        x = torch.cat([torch.relu(x), x], 1)  # the sum before the ReLU is read too
        x = torch.relu(self.dense_norm(x))
        x = nn.functional.silu(self.tower(x))
        x = nn.functional.hardswish(self.tower(x))
        x = self.gate(x) * x
        x = nn.functional.leaky_relu(nn.functional.max_pool2d(x, 3, 2, ceil_mode=True), 0.1)
        return torch.sigmoid(self.head(x))


@pytest.mark.parametrize("opset", [13, 17])
def test_functions_norms_gates_and_shared_weights_are_those_of_the_traced_network(tmp_path: Path, opset: int) -> None:
    model, path = Odd().eval(), tmp_path / "odd.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, torch.zeros(1, 3, 20, 20), str(path), dynamo=False, opset_version=opset)
    read, traced = load_onnx_network(path), trace(model, (3, 20, 20))

    def shown(network: NetworkSpec) -> list[tuple[object, ...]]:
        """The layers without their names; producers and owners by position."""
        position = {INPUT: -1, **{layer.name: number for number, layer in enumerate(network.layers)}}
        plain = [replace(layer, name="", inputs=layer.inputs, weights_of=None) for layer in network.layers]
        return [
            (
                replace(layer, inputs=("",) * len(layer.inputs)),
                [position[name] for name in own.inputs],
                own.weights_of and position[own.weights_of],
            )
            for layer, own in zip(plain, network.layers, strict=True)
        ]

    assert shown(read) == shown(traced)
    assert read.total_weights == traced.total_weights


@pytest.mark.parametrize(("padding", "begin", "end"), [("SAME_UPPER", (0, 0), (1, 1)), ("SAME_LOWER", (1, 1), (0, 0))])
def test_padding_that_a_file_leaves_open(
    tmp_path: Path, padding: str, begin: tuple[int, int], end: tuple[int, int]
) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv", strides=[2, 2], auto_pad=padding)
    path = tmp_path / "net.onnx"
    model = onnx.load(str(write(path, [node], {"w": (4, 3, 3, 3)}, (1, 3, 8, 8))))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("kernel_shape", [3, 3]))
    onnx.save(model, str(path))
    (layer,) = load_onnx_network(path).layers
    assert (layer.padding, layer.end_padding, layer.out_height) == (begin, end, 4)


def test_what_would_be_counted_wrong_is_refused(tmp_path: Path) -> None:
    node, path = onnx.helper.make_node, tmp_path / "net.onnx"
    maps = [node("Conv", ["x", "w"], ["a"], "conv"), node("Flatten", ["a"], ["b"], "flat")]
    product = [*maps, node("Gemm", ["b", "b"], ["y"], "product", transB=1)]
    with pytest.raises(TraceError, match=r"node 'product' \(Gemm\): multiplies \['b', 'b'\] .* have to be constants"):
        load_onnx_network(write(path, product, {"w": (4, 3, 1, 1)}, (1, 3, 8, 8)))
    smooth = [*maps[:1], node("Resize", ["a", "", "s"], ["y"], "up", mode="linear")]
    file = write(path, smooth, {"w": (4, 3, 1, 1), "s": (4,)}, (1, 3, 8, 8))
    model = onnx.load(str(file))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, (1, 4, 16, 16)))
    onnx.save(model, str(file))
    with pytest.raises(TraceError, match=r"node 'up' \(Resize\): mode='linear', expected 'nearest'"):
        load_onnx_network(file)
    moved = [*maps[:1], node("Transpose", ["a"], ["y"], "moved", perm=[0, 2, 3, 1])]
    with pytest.raises(TraceError, match=r"node 'moved' \(Transpose\): maps whose dimensions change places"):
        load_onnx_network(write(path, moved, {"w": (4, 3, 1, 1)}, (1, 3, 8, 8)))


def test_limits_of_another_shape_are_no_limits(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    nodes = [node("Conv", ["x", "w"], ["a"], "conv"), node("Clip", ["a", "s", "s"], ["y"], "clip")]
    file = write(tmp_path / "net.onnx", nodes, {"w": (4, 3, 1, 1), "s": (2,)}, (1, 3, 8, 8))
    assert load_onnx_network(file).by_name["conv"].activation == "relu"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read as ONNX"):
        load_onnx_network(tmp_path / "missing.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    with pytest.raises(TraceError, match="cannot be read as ONNX|inputs are"):
        load_onnx_network(tmp_path / "damaged.onnx")
    with pytest.raises(TraceError, match="the input: tensor 'x' has shape .* expected fixed sizes"):
        load_onnx_network(residual(tmp_path / "free.onnx", (1, 3, "rows", "columns")))
    unknown = [onnx.helper.make_node("Einsum", ["x"], ["y"], "odd", equation="abcd->abcd")]
    with pytest.raises(TraceError, match="node 'odd' \\(Einsum\\)"):
        load_onnx_network(write(tmp_path / "odd.onnx", unknown, {}, (1, 3, 8, 8)))


@pytest.mark.parametrize(("kind", "groups"), [("GroupNormalization", 2), ("InstanceNormalization", 4)])
def test_group_norms(tmp_path: Path, kind: str, groups: int) -> None:
    node = onnx.helper.make_node
    number = {"num_groups": 2} if kind == "GroupNormalization" else {}
    nodes = [
        node("Conv", ["x", "w"], ["a"], "conv", kernel_shape=[1, 1]),
        node(kind, ["a", "s", "s"], ["b"], "norm", **number),
        node("Relu", ["b"], ["y"], "relu"),
    ]
    path = tmp_path / "net.onnx"
    model = onnx.load(str(write(path, nodes, {"w": (4, 3, 1, 1), "s": (4,)}, (1, 3, 8, 8))))
    model.opset_import[0].version = 21
    # As torch.onnx writes it: onnx infers no shape behind a group norm.
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, (1, 4, 8, 8)))
    onnx.save(model, str(path))
    norm = load_onnx_network(path).by_name["norm"]
    assert (norm.op, norm.groups, norm.activation, norm.out_height) == (Op.GROUP_NORM, groups, "relu", 8)


def test_a_group_norm_in_parts_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.rand(1, 3, 8, 8),), str(tmp_path / "old.onnx"), dynamo=False, opset_version=17)
    with pytest.raises(TraceError, match=r"a group norm in parts, .* dynamo=True, opset_version=21"):
        load_onnx_network(tmp_path / "old.onnx")
