"""Reads the layer table of an ONNX file: shapes and edges only, no weights' values.

The same rules as for torch modules (`qat.graph.reader`): a batch norm and a ReLU belong to the convolution before them
where nothing else reads its output; elsewhere they, and all other functions, are layers of their own.  Quantizers
belong to the layer that they follow.  What hardware cannot map is refused with the node's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import frexp
from pathlib import Path
from typing import Any

from hwmodel import INPUT, LayerSpec, NetworkSpec, Op
from hwmodel.network import AFFINE, WEIGHTED
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

FUSED = ("relu", "relu6", "leaky_relu")
"""Activations that the requantization of a layer can be."""

FUSING = (*WEIGHTED, Op.ADD, *AFFINE)
"""Operations whose requantization can be one of `FUSED`."""

GATED = {"Sigmoid": "silu", "HardSigmoid": "hard_swish"}
"""Functions that are written as a tensor times this operator of itself."""

PASSED = ("Identity", "Dropout", "Cast", "Quant", "QuantizeLinear", "DequantizeLinear")
"""Operators that change no shape and are part of the layer before them."""

FLATTENING = ("Flatten", "Reshape", "Squeeze")

OPERATORS = {
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
    "BatchNormalization": Op.SCALE,
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), Op.GROUP_NORM),
    **dict.fromkeys(FLATTENING, Op.FLATTEN),
}
"""Operations by ONNX operator."""

Shape = tuple[int, int, int]


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
        self.readers = Counter(tensor for node in graph.node for tensor in set(node.input))
        self.readers.update(value.name for value in graph.output)
        self.producer: dict[str, str] = {}  # tensor of the file -> layer of the table
        self.branched: set[str] = set()  # tensors that are another one, which others read too
        self.gated: dict[str, tuple[str, str]] = {}  # tensor -> function that its product with another one is, that one
        self.origin: dict[str, str] = {}  # computed constant -> constant that it is made of
        self.owners: dict[tuple[str, Op], str] = {}  # weights and how they are used -> layer that has them
        self.normalized: set[str] = set()  # layers with a batch norm
        self.layers: dict[str, LayerSpec] = {}

    def read(self) -> NetworkSpec:
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise TraceError(f"network {self.name!r}: inputs are {inputs}, expected one image")
        self.producer[inputs[0]] = INPUT
        channels, rows, columns = self._shape(inputs[0], "the input")
        self._check_norms()
        for index, node in enumerate(self.graph.node):
            name = node.name or f"{node.op_type}_{index}"
            self._add(node, f"{name}_{index}" if name in self.layers else name)
        return NetworkSpec(self.name, channels, rows, columns, tuple(self.layers.values()))

    def _check_norms(self) -> None:
        """Refuses a group norm that is written in parts, before a part of it is found wrong."""
        for node in self.graph.node:
            if node.op_type == "InstanceNormalization" and len(self.shapes.get(node.input[0], ())) == 3:
                raise TraceError(
                    f"node {node.name!r} ({node.op_type}): a group norm in parts, as opsets below 21 write it; export "
                    "with torch.onnx.export(..., dynamo=True, opset_version=21)"
                )

    def _shape(self, tensor: str, where: str) -> Shape:
        """Channels, rows, columns; a vector is a map of one pixel."""
        shape = self.shapes.get(tensor, ())
        if len(shape) in (1, 3, 5, 6):
            raise TraceError(f"{where}: tensor {tensor!r} has shape {shape}, expected (N, C, H, W) or (N, C)")
        if len(shape) not in (2, 4) or not all(size > 0 for size in shape[1:]):
            raise TraceError(
                f"{where}: tensor {tensor!r} has shape {shape}, expected fixed sizes (N, C, H, W) or (N, C); "
                "export the network for one image size"
            )
        channels, rows, columns = (*shape[1:], 1, 1)[:3]
        return channels, rows, columns

    def _add(self, node: Any, name: str) -> None:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            self.constants[node.output[0]] = tuple(value.dims) if value is not None else ()
            if value is not None:
                self.values[node.output[0]] = value
            return
        operands = [tensor for tensor in node.input if tensor and tensor not in self.constants]
        if not operands:  # computed from constants: weights behind a quantizer, sizes
            first = node.input[0] if node.input else ""
            self.constants[node.output[0]] = self.constants.get(first, ())
            self.origin[node.output[0]] = self.origin.get(first, first)
            return
        where = f"node {name!r} ({node.op_type})"
        activation = self._activation(node)
        passed = node.op_type in PASSED or node.op_type == "Transpose"
        if not (passed or activation or node.op_type in OPERATORS):
            known = sorted((*OPERATORS, *PASSED, *ACTIVATIONS, "Clip", "Transpose"))
            raise TraceError(f"{where}: this operator cannot be mapped to hardware; known are {known}")
        unknown = [tensor for tensor in operands if tensor not in self.producer and tensor not in self.gated]
        if unknown:
            raise TraceError(f"{where}: reads {unknown}, which is no result of an operator before it")
        if self._joins(node, operands, where):
            return
        if node.op_type == "Mul" and any(tensor in self.gated for tensor in operands):
            gate = next(tensor for tensor in operands if tensor in self.gated)
            activation, tensor = self.gated[gate]
            operands = [tensor]
        ofm = self._shape(node.output[0], where)
        if activation:
            self._add_activation(name, node, operands[0], ofm, activation)
            return
        if node.op_type == "Transpose":
            raise TraceError(f"{where}: maps whose dimensions change places; only a map of one pixel can be transposed")
        self._append(name, node, self._ordered(node, operands, where), ofm, OPERATORS[node.op_type])

    def _joins(self, node: Any, operands: Sequence[str], where: str) -> bool:
        """Whether a node is no layer of its own, but part of the one before it or of the function after it."""
        source = operands[0]
        alone = self.readers[source] == 1 and source not in self.branched
        before = self.layers.get(self.producer.get(source, INPUT))
        joins = node.op_type in PASSED or (node.op_type == "Concat" and len(operands) == 1)
        if node.op_type == "BatchNormalization" and before is not None and before.op in WEIGHTED:
            joins = alone and before.activation == "none" and before.name not in self.normalized
            self.normalized.update({before.name} if joins else ())
        if node.op_type in FLATTENING or node.op_type == "Transpose":
            ofm = self._shape(node.output[0], where)
            joins = self._shape(source, where) == ofm and (node.op_type in FLATTENING or ofm[1:] == (1, 1))
        if joins:
            self.producer[node.output[0]] = self.producer[source]
            self.branched.update(() if alone else {node.output[0]})
            return True
        if node.op_type in GATED and self._multiplies(node.output[0], source):
            self.gated[node.output[0]] = (GATED[node.op_type], source)
            return True
        return False

    def _multiplies(self, gate: str, tensor: str) -> bool:
        """Whether a tensor is read once, in a product with another one."""
        readers = [node for node in self.graph.node if gate in node.input]
        alone = len(readers) == 1 and self.readers[gate] == 1
        return alone and readers[0].op_type == "Mul" and tensor in readers[0].input

    def _add_activation(self, name: str, node: Any, source: str, ofm: Shape, activation: str) -> None:
        """A function: part of the layer before it, where that layer can compute it and nothing else reads it."""
        before = self.layers.get(self.producer[source])
        alone = before is not None and self.readers[source] == 1 and source not in self.branched
        if before is not None and alone and activation == "relu" and before.activation in ("relu", "relu6"):
            self.producer[node.output[0]] = before.name
            return
        fused = activation in FUSED and (activation != "leaky_relu" or _is_shift(node))
        if before is not None and alone and fused and before.op in FUSING and before.activation == "none":
            self.layers[before.name] = replace(before, activation=activation)
            self.producer[node.output[0]] = before.name
            return
        self._append(name, node, [source], ofm, Op.LOOKUP, activation)

    def _ordered(self, node: Any, operands: list[str], where: str) -> list[str]:
        """Operands of a node: of a product first the map, then its gate."""
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(operands) > 1:
            raise TraceError(f"{where}: multiplies {operands} with one another; weights have to be constants")
        if node.op_type in ("Add", "Mul") and len(operands) == 1:
            raise TraceError(f"{where}: an operation with a constant; fold it into the layer before it")
        if node.op_type == "Mul" and self._shape(operands[0], where)[1:] == (1, 1):
            return operands[::-1]
        return operands

    def _append(self, name: str, node: Any, operands: list[str], ofm: Shape, op: Op, activation: str = "none") -> None:
        where = f"node {name!r} ({node.op_type})"
        channels, rows, columns = self._shape(operands[0], where)
        if op is Op.CONCAT:
            channels = sum(self._shape(tensor, where)[0] for tensor in operands)
        geometry: dict[str, Any] = {"activation": activation}
        given: dict[str, Any] = {
            attribute.name: list(attribute.ints) or attribute.s or attribute.i for attribute in node.attribute
        }
        if op in (Op.CONV, Op.MAX_POOL, Op.AVG_POOL):
            if op is Op.CONV:
                given.setdefault("kernel_shape", self.constants.get(node.input[1], ())[2:])
            geometry |= _window(given, (rows, columns), ofm[1:])
        elif op is Op.UPSAMPLE:
            if given.get("mode", b"nearest") != b"nearest":
                raise TraceError(f"{where}: mode={given['mode'].decode()!r}, expected 'nearest'")
            geometry["stride"] = (max(1, ofm[1] // rows), max(1, ofm[2] // columns))
        elif op is Op.REORG:
            geometry["stride"] = (given["blocksize"], given["blocksize"])
        elif op is Op.GROUP_NORM:
            geometry["groups"] = given.get("num_groups") or channels  # an instance norm has a group for each channel
        inputs = tuple(self.producer[tensor] for tensor in operands)
        layer = LayerSpec(name, op, inputs, channels, rows, columns, *ofm, **geometry)
        self.layers[name] = self._with_owner(layer, node) if op in WEIGHTED else layer
        self.producer[node.output[0]] = name

    def _with_owner(self, layer: LayerSpec, node: Any) -> LayerSpec:
        """The layer, with the name of the earlier one whose weights it uses."""
        weights = next((self.origin.get(tensor, tensor) for tensor in node.input if tensor in self.constants), "")
        owner = self.layers.get(self.owners.setdefault((weights, layer.op), layer.name))
        if not weights or owner is None or (owner.weight_shape, owner.groups) != (layer.weight_shape, layer.groups):
            return layer
        return replace(layer, weights_of=owner.name)

    def _activation(self, node: Any) -> str:
        if node.op_type != "Clip":
            return ACTIVATIONS.get(node.op_type, "")
        from onnx import numpy_helper

        given = [numpy_helper.to_array(self.values[t]) for t in node.input[1:] if t in self.values]
        limits = [float(limit.item()) for limit in given if limit.size == 1]
        limits += [attribute.f for attribute in node.attribute if attribute.name in ("min", "max")]
        return "relu6" if 6.0 in limits else "relu"


def _is_shift(node: Any) -> bool:
    """Whether the slope of a leaky ReLU is a power of two."""
    slope = next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), 0.01)
    return bool(frexp(slope)[0] == 0.5)


def _window(given: dict[str, Any], ifm: Sequence[int], ofm: Sequence[int]) -> dict[str, Any]:
    """Geometry of a convolution or pooling.

    Args:
        given: Attributes of the node.
        ifm: Rows and columns that it reads.
        ofm: Rows and columns that it writes.
    """
    kernel = given.get("kernel_shape") or list(ifm)
    stride = given.get("strides") or ([1, 1] if "kernel_shape" in given else kernel)
    dilation = given.get("dilations") or [1, 1]
    pads = given.get("pads") or [0, 0, 0, 0]
    begin, end = pads[:2], pads[2:]
    reach = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in range(2)]
    total = [max(0, (ofm[axis] - 1) * stride[axis] + reach[axis] - ifm[axis]) for axis in range(2)]
    if given.get("auto_pad") in (b"SAME_UPPER", b"SAME_LOWER"):
        begin, end = [size // 2 for size in total], [-(-size // 2) for size in total]
        if given["auto_pad"] == b"SAME_LOWER":
            begin, end = end, begin
    elif given.get("ceil_mode"):
        end = [max(end[axis], total[axis] - begin[axis]) for axis in range(2)]
    return {
        "kernel_size": tuple(kernel),
        "stride": tuple(stride),
        "dilation": tuple(dilation),
        "padding": tuple(begin),
        "padding_end": tuple(end),
        "groups": given.get("group") or 1,
    }
