"""Layer tables from ONNX files equal those that tracing makes."""

from __future__ import annotations

import warnings
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from hwmodel import NetworkSpec, Op
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
