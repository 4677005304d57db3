"""Reads the layer table of an ONNX file: shapes and edges only, no weights' values.

Batch norm, quantizers and activations belong to the layer that they follow.  What hardware cannot map is refused with
the node's name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hwmodel import INPUT, LayerSpec, NetworkSpec, Op
from qat.errors import TraceError

ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "HardSwish": "hard_swish",
    "HardSigmoid": "hard_sigmoid",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
"""Activation functions by ONNX operator; `Clip` to 0..6 is relu6, to 0 and more relu."""

PASSED = ("Identity", "Dropout", "BatchNormalization", "Cast", "Quant", "QuantizeLinear", "DequantizeLinear")
"""Operators that change no shape and are part of the layer before them."""

FLATTENING = ("Flatten", "Reshape", "Squeeze")


def load_onnx_network(path: Path) -> NetworkSpec:
    """The network of an ONNX file with a fixed input shape of one frame.

    Args:
        path: The file.

    Raises:
        TraceError: The file is missing or damaged, shapes are not fixed, or an operator cannot be mapped to hardware.
    """
    try:
        import onnx
    except ImportError as error:
        raise TraceError(f"network={path}: ONNX files need the package onnx: pip install onnx") from error
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    except Exception as error:  # the package has no error class of its own for damaged files
        raise TraceError(f"network={path}: cannot be read as ONNX: {error}") from error
    return _Reader(model.graph, path.stem).read()


class _Reader:
    def __init__(self, graph: Any, name: str) -> None:
        self.graph = graph
        self.name = name
        self.shapes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.values = {tensor.name: tensor for tensor in graph.initializer}
        self.producer: dict[str, str] = {}  # tensor of the file -> layer of the table
        self.layers: dict[str, LayerSpec] = {}

    def read(self) -> NetworkSpec:
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise TraceError(f"network {self.name!r}: inputs are {inputs}, expected one image")
        self.producer[inputs[0]] = INPUT
        channels, rows, columns = self._shape(inputs[0], "the input")
        self._check_norms()
        for index, node in enumerate(self.graph.node):
            self._add(node, node.name or f"{node.op_type}_{index}")
        return NetworkSpec(self.name, channels, rows, columns, tuple(self.layers.values()))

    def _check_norms(self) -> None:
        """Refuses a group norm that is written in parts, before a part of it is found wrong."""
        for node in self.graph.node:
            if node.op_type == "InstanceNormalization" and len(self.shapes.get(node.input[0], ())) == 3:
                raise TraceError(
                    f"node {node.name!r} ({node.op_type}): a group norm in parts, as opsets below 21 write it; export "
                    "with torch.onnx.export(..., dynamo=True, opset_version=21)"
                )

    def _shape(self, tensor: str, where: str) -> tuple[int, int, int]:
        """Channels, rows, columns; a vector is a map of one pixel."""
        shape = self.shapes.get(tensor, ())
        if len(shape) not in (2, 4) or not all(size > 0 for size in shape[1:]):
            raise TraceError(
                f"{where}: tensor {tensor!r} has shape {shape}, expected fixed sizes (N, C, H, W) or (N, C); "
                "export the network for one image size"
            )
        channels, rows, columns = (*shape[1:], 1, 1)[:3]
        return channels, rows, columns

    def _add(self, node: Any, name: str) -> None:
        if node.op_type == "Constant":
            value = next(a.t for a in node.attribute if a.name == "value")
            self.constants[node.output[0]], self.values[node.output[0]] = tuple(value.dims), value
            return
        operands = [tensor for tensor in node.input if tensor and tensor not in self.constants]
        if not operands:  # computed from constants: weights behind a quantizer, sizes
            self.constants[node.output[0]] = self.constants.get(node.input[0], ())
            return
        where = f"node {name!r} ({node.op_type})"
        source = self.producer[operands[0]]
        activation = self._activation(node)
        before = self.layers.get(source)
        if node.op_type in PASSED:
            self.producer[node.output[0]] = source
            return
        ofm = self._shape(node.output[0], where)
        flattens = node.op_type in FLATTENING or (node.op_type == "Transpose" and ofm[1:] == (1, 1))
        if flattens and self._shape(operands[0], where) == ofm:
            self.producer[node.output[0]] = source
            return
        if activation and before is not None and before.activation == "none" and before.op is not Op.LOOKUP:
            self.layers[source] = replace(before, activation=activation)
            self.producer[node.output[0]] = source
            return
        self._append(name, node, operands, ofm, Op.LOOKUP if activation else self._op(node, where), activation)

    def _op(self, node: Any, where: str) -> Op:
        known = {
            "Conv": Op.CONV,
            "Gemm": Op.LINEAR,
            "MatMul": Op.LINEAR,
            "MaxPool": Op.MAX_POOL,
            "AveragePool": Op.AVG_POOL,
            "GlobalAveragePool": Op.AVG_POOL,
            "ReduceMean": Op.AVG_POOL,
            "Add": Op.ADD,
            "Mul": Op.MUL,
            "Concat": Op.CONCAT,
            "Resize": Op.UPSAMPLE,
            "Upsample": Op.UPSAMPLE,
            "SpaceToDepth": Op.REORG,
            **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), Op.GROUP_NORM),
            **dict.fromkeys(FLATTENING, Op.FLATTEN),
        }
        if node.op_type not in known:
            raise TraceError(f"{where}: this operator cannot be mapped to hardware; known are {sorted(known)}")
        return known[node.op_type]

    def _append(
        self, name: str, node: Any, operands: list[str], ofm: tuple[int, int, int], op: Op, activation: str
    ) -> None:
        where = f"node {name!r} ({node.op_type})"
        channels, rows, columns = self._shape(operands[0], where)
        if op is Op.CONCAT:
            channels = sum(self._shape(tensor, where)[0] for tensor in operands)
        geometry: dict[str, Any] = {"activation": activation or "none"}
        given = {attribute.name: list(attribute.ints) or attribute.i for attribute in node.attribute}
        if op in (Op.CONV, Op.MAX_POOL, Op.AVG_POOL):
            kernel = given.get("kernel_shape") or [rows, columns]
            geometry["kernel_size"] = tuple(kernel)
            geometry["stride"] = tuple(given.get("strides") or ((1, 1) if "kernel_shape" in given else kernel))
            geometry["dilation"] = tuple(given.get("dilations") or (1, 1))
            pads = given.get("pads") or [0, 0, 0, 0]
            geometry["padding"], geometry["padding_end"] = tuple(pads[:2]), tuple(pads[2:])
            geometry["groups"] = given.get("group") or 1
        elif op is Op.UPSAMPLE:
            geometry["stride"] = (ofm[1] // rows, ofm[2] // columns)
        elif op is Op.REORG:
            geometry["stride"] = (given["blocksize"], given["blocksize"])
        elif op is Op.GROUP_NORM:
            geometry["groups"] = given.get("num_groups") or channels  # an instance norm has a group for each channel
        if op in (Op.ADD, Op.MUL) and len(operands) == 1:
            raise TraceError(f"{where}: an operation with a constant; fold it into the layer before it")
        inputs = tuple(self.producer[tensor] for tensor in operands)
        self.layers[name] = LayerSpec(name, op, inputs, channels, rows, columns, *ofm, **geometry)
        self.producer[node.output[0]] = name

    def _activation(self, node: Any) -> str:
        if node.op_type != "Clip":
            return ACTIVATIONS.get(node.op_type, "")
        from onnx import numpy_helper

        limits = [float(numpy_helper.to_array(self.values[t])) for t in node.input[1:] if t in self.values]
        limits += [attribute.f for attribute in node.attribute if attribute.name in ("min", "max")]
        return "relu6" if 6.0 in limits else "relu"
