"""Reads a torch module into a graph of hardware layers.

`read_graph` traces a model symbolically (torch.fx) and recognises what an accelerator executes: batch norm and ReLU
join the layer before them, explicit zero padding joins the convolution after it, dropout and identities vanish.
What cannot be mapped is an error that names the module.

Shapes are not needed for the graph; `Graph.spec(input_shape)` adds them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from hwmodel.errors import SpecError
from hwmodel.network import INPUT, LayerSpec, NetworkSpec, Op
from qat.errors import TraceError

Pair = tuple[int, int]


@dataclass
class Node:
    """One layer of the graph while it is being read; `LayerSpec` is the finished form."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    kernel_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    in_channels: int | None = None
    out_channels: int | None = None
    extra_channels: int = 0
    output_size: Pair | None = None
    activation: str = "none"
    module: nn.Module | None = None
    batch_norm: nn.BatchNorm2d | nn.BatchNorm1d | None = None


@dataclass(frozen=True)
class Graph:
    """A model as hardware layers, without shapes.

    Args:
        name: Class name of the model.
        nodes: Layers in execution order.
        output: Name of the layer whose ofm is the result.
    """

    name: str
    nodes: tuple[Node, ...] = field(repr=False)
    output: str

    def spec(self, input_shape: tuple[int, int, int]) -> NetworkSpec:
        """The graph with shapes.

        Args:
            input_shape: Channels, rows and columns of the input.

        Raises:
            TraceError: A layer cannot work on the shape that reaches it.
        """
        shapes = {INPUT: tuple(input_shape)}
        layers = []
        for node in self.nodes:
            try:
                layer = _layer_spec(node, [cast(tuple[int, int, int], shapes[name]) for name in node.inputs])
            except SpecError as error:
                raise TraceError(f"{error}; the network's input was given as (C, H, W) = {input_shape}") from error
            layers.append(layer)
            shapes[node.name] = (layer.out_channels, layer.out_height, layer.out_width)
        try:
            return NetworkSpec(self.name, *input_shape, layers=tuple(layers))
        except SpecError as error:
            raise TraceError(f"{error}; the network's input was given as (C, H, W) = {input_shape}") from error


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> NetworkSpec:
    """The inference graph of a float model as hardware sees it; names equal module paths.

    Args:
        model: A float model that torch.fx can trace symbolically.
        input_shape: Channels, rows and columns of the input.

    Raises:
        TraceError: A module or operation cannot be mapped; the message names it and what can be done.
    """
    return read_graph(model).spec(input_shape)


def read_graph(model: nn.Module) -> Graph:
    """Traces a model and maps it to hardware layers.

    Raises:
        TraceError: A module or operation cannot be mapped; the message names it and what can be done.
    """
    try:
        traced = fx.Tracer().trace(model)
    except Exception as error:  # torch.fx runs the user's forward: anything can come out of it
        raise TraceError(
            f"{type(model).__name__} cannot be traced: {error}. Its forward must not depend on values of tensors; "
            "move such code out of the network"
        ) from error
    return _Reader(model, traced).read()


def _layer_spec(node: Node, operands: list[tuple[int, int, int]]) -> LayerSpec:
    channels, rows, columns = operands[0]
    if node.op is Op.CONCAT:
        channels = sum(shape[0] for shape in operands)
    if node.in_channels is not None and node.in_channels != channels:
        raise SpecError(f"layer {node.name!r}: in_channels={channels}, expected {node.in_channels} as in the module")
    if node.op is Op.LINEAR and (rows, columns) != (1, 1):
        raise SpecError(f"layer {node.name!r}: a linear layer reads a {rows}x{columns} map, expected a flattened one")
    kernel_size, stride = node.kernel_size, node.stride
    if node.op is Op.AVG_POOL and node.output_size is not None:
        out_rows, out_columns = node.output_size
        if rows % out_rows or columns % out_columns:
            raise SpecError(
                f"layer {node.name!r}: a {rows}x{columns} map does not divide into {node.output_size} parts"
            )
        kernel_size = stride = (rows // out_rows, columns // out_columns)
    out_channels = node.out_channels or channels + node.extra_channels
    if node.op is Op.FLATTEN:
        out_channels = channels * rows * columns

    def out_size(size: int, axis: int) -> int:
        if node.op in (Op.LINEAR, Op.FLATTEN):
            return 1
        if node.op is Op.UPSAMPLE:
            return size * stride[axis]
        if node.op in (Op.ADD, Op.CONCAT):
            return size
        reach = node.dilation[axis] * (kernel_size[axis] - 1) + 1
        return (size + 2 * node.padding[axis] - reach) // stride[axis] + 1

    return LayerSpec(
        name=node.name,
        op=node.op,
        inputs=node.inputs,
        in_channels=channels,
        in_height=rows,
        in_width=columns,
        out_channels=out_channels,
        out_height=out_size(rows, 0),
        out_width=out_size(columns, 1),
        kernel_size=kernel_size,
        stride=stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=node.groups,
        activation=node.activation,
    )


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


class _Reader:
    """Walks the traced nodes once; `alias` says which layer's ofm a traced node stands for."""

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        self.model = model
        self.traced = traced
        self.modules = dict(model.named_modules())
        self.nodes: dict[str, Node] = {}
        self.alias: dict[fx.Node, str] = {}
        self.padding: dict[fx.Node, Pair] = {}  # zero padding that waits for its convolution
        self.shape_values: set[fx.Node] = set()  # results of size() and the like: only for views
        self.used_modules: dict[int, str] = {}

    def read(self) -> Graph:
        output = None
        for node in self.traced.nodes:
            if node.op == "placeholder":
                if INPUT in self.alias.values():
                    raise TraceError(f"{self._where(node)}: a network has one input tensor")
                self.alias[node] = INPUT
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise TraceError(f"{type(self.model).__name__} must return one tensor, it returns {node.args[0]}")
                output = self._source(node.args[0], node)
            elif node.op == "call_module":
                self._read_module(node, self.modules[str(node.target)])
            elif node.op in ("call_function", "call_method"):
                self._read_call(node)
            else:
                raise self._unsupported(node, f"the parameter or buffer {node.target!r} used outside a layer")
        if output is None or output == INPUT:
            raise TraceError(f"{type(self.model).__name__} has no layer")
        return Graph(type(self.model).__name__, tuple(self.nodes.values()), output)

    # -- modules ------------------------------------------------------------------------------------------------

    def _read_module(self, node: fx.Node, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            self._read_conv(node, module)
        elif isinstance(module, nn.Linear):
            name = self._claim(node, module)
            self._add(
                node,
                Node(
                    name,
                    Op.LINEAR,
                    self._inputs(node),
                    in_channels=module.in_features,
                    out_channels=module.out_features,
                    module=module,
                ),
            )
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            self._read_batch_norm(node, module)
        elif isinstance(module, nn.ReLU):
            self._read_relu(node)
        elif isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
            self._forward(node)
        elif isinstance(module, nn.Flatten):
            self._read_flatten(node, module.start_dim, module.end_dim)
        elif isinstance(module, nn.ZeroPad2d):
            self._read_padding(node, tuple(module.padding))
        elif isinstance(module, nn.MaxPool2d):
            self._read_max_pool(
                node, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            )
        elif isinstance(module, nn.AvgPool2d):
            self._read_avg_pool(node, module.kernel_size, module.stride, module.padding, module.ceil_mode)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self._read_adaptive_pool(node, module.output_size)
        elif isinstance(module, nn.Upsample):
            self._read_upsample(node, module.scale_factor, module.mode)
        else:
            raise self._unsupported(node, f"a module of type {type(module).__name__}")

    def _read_conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros":
            raise self._unsupported(node, f"padding_mode={module.padding_mode!r}")
        kernel_size, dilation, stride = _pair(module.kernel_size), _pair(module.dilation), _pair(module.stride)
        if isinstance(module.padding, str):
            total = (
                [dilation[axis] * (kernel_size[axis] - 1) for axis in range(2)] if module.padding == "same" else [0, 0]
            )
            if any(value % 2 for value in total):
                raise self._unsupported(node, "padding='same' with an even kernel, which pads unevenly")
            padding = (total[0] // 2, total[1] // 2)
        else:
            padding = _pair(module.padding)
        before = self.padding.pop(cast(fx.Node, node.args[0]), (0, 0))
        self._add(
            node,
            Node(
                self._claim(node, module),
                Op.CONV,
                self._inputs(node),
                kernel_size=kernel_size,
                stride=stride,
                padding=(padding[0] + before[0], padding[1] + before[1]),
                dilation=dilation,
                groups=module.groups,
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                module=module,
            ),
        )

    def _read_batch_norm(self, node: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
        before = self._only_reader_of(node)
        if before is None or before.module is None or before.batch_norm is not None or before.activation != "none":
            raise self._unsupported(
                node, "a batch norm that does not directly follow its own convolution or linear layer"
            )
        if module.running_mean is None:
            raise self._unsupported(node, "a batch norm without running statistics")
        before.batch_norm = module
        self._forward(node)

    def _read_relu(self, node: fx.Node) -> None:
        before = self._only_reader_of(node)
        if before is not None and before.activation == "relu":
            self._forward(node)
            return
        if before is None or before.op not in (Op.CONV, Op.LINEAR, Op.ADD):
            raise self._unsupported(
                node, "a ReLU that does not directly follow a convolution, linear layer or addition"
            )
        before.activation = "relu"
        self._forward(node)

    # -- functions and methods ----------------------------------------------------------------------------------

    def _read_call(self, node: fx.Node) -> None:
        target = node.target
        if target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            self._read_add(node)
        elif target in (torch.cat, torch.concat):
            self._read_concat(node)
        elif target in (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"):
            self._read_relu(node)
        elif target in (F.dropout, F.dropout2d, "contiguous"):
            self._forward(node)
        elif target in (torch.flatten, "flatten"):
            self._read_flatten(node, *self._call_args(node, ("start_dim", 0), ("end_dim", -1)))
        elif target in ("view", "reshape", torch.reshape):
            self._read_view(node)
        elif (target in ("size", getattr) and (target == "size" or node.args[1] == "shape")) or (
            target is operator.getitem and node.args[0] in self.shape_values
        ):
            self.shape_values.add(node)
        elif target is operator.getitem:
            self._read_slice(node)
        elif target is F.pad:
            self._read_pad(node)
        elif target in (F.max_pool2d, torch.max_pool2d):
            defaults = (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False))
            self._read_max_pool(node, *self._call_args(node, *defaults))
        elif target is F.avg_pool2d:
            averages = (("kernel_size", None), ("stride", None), ("padding", 0), ("ceil_mode", False))
            self._read_avg_pool(node, *self._call_args(node, *averages))
        elif target is F.adaptive_avg_pool2d:
            self._read_adaptive_pool(node, *self._call_args(node, ("output_size", None)))
        elif target in ("mean", torch.mean):
            self._read_mean(node)
        elif target is F.interpolate:
            _, scale_factor, mode = self._call_args(node, ("size", None), ("scale_factor", None), ("mode", "nearest"))
            self._read_upsample(node, scale_factor, mode)
        else:
            raise self._unsupported(node, f"the operation {getattr(target, '__name__', target)!r}")

    def _call_args(self, node: fx.Node, *names: tuple[str, Any]) -> list[Any]:
        """Arguments after the tensor, by position or keyword, with defaults."""
        given = dict(zip((name for name, _ in names), node.args[1:], strict=False)) | node.kwargs
        return [given.get(name, default) for name, default in names]

    def _read_add(self, node: fx.Node) -> None:
        if node.kwargs.get("alpha", 1) != 1 or not all(isinstance(arg, fx.Node) for arg in node.args[:2]):
            raise self._unsupported(node, "an addition of anything but two feature maps")
        inputs = tuple(self._source(cast(fx.Node, arg), node) for arg in node.args[:2])
        self._add(node, Node(self._call_name(node, "add"), Op.ADD, inputs))

    def _read_concat(self, node: fx.Node) -> None:
        (dim,) = self._call_args(node, ("dim", 0))
        if dim not in (1, -3):
            raise self._unsupported(node, f"a concatenation along dimension {dim}; only channels (1) are")
        operands = cast(list[fx.Node], node.args[0] if node.args else node.kwargs["tensors"])
        inputs = tuple(self._source(arg, node) for arg in operands)
        self._add(node, Node(self._call_name(node, "cat"), Op.CONCAT, inputs))

    def _read_flatten(self, node: fx.Node, start_dim: int, end_dim: int) -> None:
        if start_dim != 1 or end_dim not in (-1, 3):
            raise self._unsupported(node, f"flatten({start_dim}, {end_dim}); only flatten(1) is")
        self._add(node, Node(self._call_name(node, "flatten"), Op.FLATTEN, self._inputs(node)))

    def _read_view(self, node: fx.Node) -> None:
        shape = node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        keeps_batch = len(shape) == 2 and (shape[0] in self.shape_values or shape[1] == -1)
        if not keeps_batch:
            raise self._unsupported(node, f"a view to {shape}; only (batch, -1) is")
        self._read_flatten(node, 1, -1)

    def _read_slice(self, node: fx.Node) -> None:
        """`x[:, :, ::s, ::t]`, the subsampling of a ResNet's option-A shortcut."""
        index = node.args[1]
        whole = slice(None)
        if not (isinstance(index, tuple) and len(index) == 4 and index[:2] == (whole, whole)):
            raise self._unsupported(node, f"the index {index}; only x[:, :, ::s, ::t] is")
        strides = []
        for part in index[2:]:
            if not (isinstance(part, slice) and part.start in (None, 0) and part.stop is None):
                raise self._unsupported(node, f"the index {index}; only x[:, :, ::s, ::t] is")
            strides.append(int(part.step or 1))
        name = self._call_name(node, "subsample")
        self._add(node, Node(name, Op.SUBSAMPLE, self._inputs(node), stride=(strides[0], strides[1])))

    def _read_pad(self, node: fx.Node) -> None:
        padding, mode, value = self._call_args(node, ("pad", None), ("mode", "constant"), ("value", 0))
        if mode != "constant" or value not in (None, 0, 0.0):
            raise self._unsupported(node, f"padding with mode={mode!r}, value={value!r}; only zeros are")
        if len(padding) == 6 and tuple(padding[:4]) == (0, 0, 0, 0) and padding[4] == padding[5]:
            before = self._only_reader_of(node)
            if before is None or before.op is not Op.SUBSAMPLE:
                raise self._unsupported(node, "padding of channels that does not follow x[:, :, ::s, ::t]")
            before.extra_channels += 2 * padding[4]
            self._forward(node)
            return
        self._read_padding(node, tuple(padding))

    def _read_padding(self, node: fx.Node, padding: tuple[int, ...]) -> None:
        left, right, *vertical = padding
        top, bottom = vertical or (0, 0)
        convolution = next(iter(node.users), None)
        followed = convolution is not None and isinstance(self.modules.get(str(convolution.target)), nn.Conv2d)
        if left != right or top != bottom or len(node.users) != 1 or not followed:
            raise self._unsupported(node, f"padding {padding} that is uneven or not followed by one convolution only")
        self._forward(node)
        self.padding[node] = (top, left)

    def _read_max_pool(
        self, node: fx.Node, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> None:
        if ceil_mode:
            raise self._unsupported(node, "max pooling with ceil_mode=True")
        self._add(
            node,
            Node(
                self._call_name(node, "max_pool"),
                Op.MAX_POOL,
                self._inputs(node),
                kernel_size=_pair(kernel_size),
                stride=_pair(kernel_size if stride in (None, []) else stride),
                padding=_pair(padding),
                dilation=_pair(dilation),
            ),
        )

    def _read_avg_pool(self, node: fx.Node, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> None:
        if ceil_mode or _pair(padding) != (0, 0):
            raise self._unsupported(node, "average pooling with padding or ceil_mode=True")
        size = _pair(kernel_size)
        stride = size if stride in (None, []) else _pair(stride)
        self._add(
            node,
            Node(self._call_name(node, "avg_pool"), Op.AVG_POOL, self._inputs(node), kernel_size=size, stride=stride),
        )

    def _read_adaptive_pool(self, node: fx.Node, output_size: Any) -> None:
        size = _pair(output_size)
        self._add(node, Node(self._call_name(node, "avg_pool"), Op.AVG_POOL, self._inputs(node), output_size=size))

    def _read_mean(self, node: fx.Node) -> None:
        dims, keepdim = self._call_args(node, ("dim", None), ("keepdim", False))
        dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
        if sorted(dim % 4 for dim in dims) != [2, 3]:
            raise self._unsupported(node, f"a mean over dimensions {dims}; only rows and columns (2, 3) are")
        pooled = Node(self._call_name(node, "avg_pool"), Op.AVG_POOL, self._inputs(node), output_size=(1, 1))
        self._add(node, pooled)
        if not keepdim:
            flat = Node(f"{pooled.name}.flatten", Op.FLATTEN, (pooled.name,))
            self._add(node, flat)

    def _read_upsample(self, node: fx.Node, scale_factor: Any, mode: str) -> None:
        factors = (scale_factor,) * 2 if isinstance(scale_factor, int | float) else tuple(scale_factor or ())
        if mode != "nearest" or len(factors) != 2 or any(factor != int(factor) for factor in factors):
            raise self._unsupported(node, f"upsampling with mode={mode!r}, scale_factor={scale_factor}")
        self._add(
            node,
            Node(
                self._call_name(node, "upsample"),
                Op.UPSAMPLE,
                self._inputs(node),
                stride=(int(factors[0]), int(factors[1])),
            ),
        )

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _add(self, node: fx.Node, layer: Node) -> None:
        self.nodes[layer.name] = layer
        self.alias[node] = layer.name

    def _forward(self, node: fx.Node) -> None:
        """`node` stands for the same tensor as its input."""
        source = cast(fx.Node, node.args[0] if node.args else node.kwargs["input"])
        if source in self.padding:
            raise self._unsupported(source, "padding that is not directly followed by its convolution")
        self.alias[node] = self._source(source, node)

    def _inputs(self, node: fx.Node) -> tuple[str, ...]:
        return (self._source(cast(fx.Node, node.args[0] if node.args else node.kwargs["input"]), node),)

    def _source(self, node: fx.Node, reader: fx.Node) -> str:
        if node not in self.alias:
            raise self._unsupported(reader, f"a use of {node.name!r}, which is not a feature map")
        return self.alias[node]

    def _only_reader_of(self, node: fx.Node) -> Node | None:
        """The layer before `node`, if nothing but `node` reads its output."""
        source = cast(fx.Node, node.args[0] if node.args else node.kwargs["input"])
        layer = self.nodes.get(self.alias.get(source, INPUT))
        return layer if layer is not None and len(source.users) == 1 else None

    def _claim(self, node: fx.Node, module: nn.Module) -> str:
        """Name of a layer with weights; each may be used once, since hardware holds its scale once."""
        if id(module) in self.used_modules:
            raise self._unsupported(node, "a layer with weights that is used twice; give each use its own layer")
        self.used_modules[id(module)] = str(node.target)
        return str(node.target)

    def _call_name(self, node: fx.Node, what: str) -> str:
        """A module's path, or for functions the path of the module that calls them plus what they do."""
        if node.op == "call_module":
            name = str(node.target)
        else:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0] if stack else ""
            name = f"{path}.{what}" if path else what
        unique, count = name, 1
        while unique in self.nodes or (unique in self.modules and node.op != "call_module"):
            count += 1
            unique = f"{name}_{count}"
        return unique

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"module {str(node.target)!r}"
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        inside = f" in module {stack[-1][0]!r}" if stack and stack[-1][0] else ""
        return f"operation {node.name!r}{inside}"

    def _unsupported(self, node: fx.Node, what: str) -> TraceError:
        return TraceError(
            f"{self._where(node)}: {what} cannot be mapped to hardware. Supported are Conv2d, Linear, BatchNorm and "
            "ReLU behind them, max and average pooling, nearest upsampling, add, channel concat, flatten, and "
            "x[:, :, ::s, ::s] with padded channels"
        )
