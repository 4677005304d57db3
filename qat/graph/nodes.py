"""A model as hardware layers, without shapes; `Graph.spec(input_shape)` adds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias, cast

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from hwmodel.errors import SpecError
from hwmodel.network import INPUT, WEIGHTED, LayerSpec, NetworkSpec, Op
from qat.errors import TraceError

BatchNorm: TypeAlias = nn.BatchNorm2d | nn.BatchNorm1d | FrozenBatchNorm2d
"""Norms that join the layer before them; statistics and affine of a frozen one are constants."""

Pair = tuple[int, int]
Shape = tuple[int, int, int]


@dataclass
class Node:
    """One layer of the graph while it is being read; `LayerSpec` is the finished form.

    Args:
        name: Path of the module, or of the traced operation.
        op: What the layer does.
        inputs: Names of the producers, in operand order.
        kernel_size: Kernel rows and columns.
        stride: Row and column stride (for `upsample` and `reorg`: the factors).
        padding: Rows and columns of zeros above and at the left.
        padding_end: Rows and columns of zeros below and at the right, where they differ.
        ceil_mode: Whether a max pool has a last window that reaches over the border.
        dilation: Row and column dilation.
        groups: Convolution groups, parts of a `shuffle`, or groups of a `group_norm`.
        in_channels: Channels that the module expects; None if any.
        out_channels: Channels of the ofm; None if they follow from the ifm.
        extra_channels: Channels of zeros that a `subsample` adds.
        channels: First and last + 1 of the channels that a `slice` keeps; the last may be None (all).
        chunk: (index, parts) of a `slice` that `torch.chunk` made.
        output_size: Rows and columns of an adaptive average pool.
        activation: Name as in `hwmodel.network.ACTIVATIONS`.
        negative_slope: Slope of a leaky ReLU.
        module: Convolution, linear layer or group norm whose weights are used.
        batch_norm: Batch norm of the layer.
        gain: Multiplier per channel of an `l2_norm`; None for none.
        weights_of: Earlier layer of the same module, if this is not its first call.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    kernel_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    padding_end: Pair | None = None
    ceil_mode: bool = False
    dilation: Pair = (1, 1)
    groups: int = 1
    in_channels: int | None = None
    out_channels: int | None = None
    extra_channels: int = 0
    channels: tuple[int, int | None] | None = None
    chunk: Pair | None = None
    output_size: Pair | None = None
    activation: str = "none"
    negative_slope: float = 0.0
    module: nn.Module | None = None
    batch_norm: BatchNorm | None = None
    gain: Tensor | None = None
    weights_of: str | None = None


@dataclass(frozen=True)
class Graph:
    """A model as hardware layers, without shapes.

    Args:
        name: Class name of the model.
        nodes: Layers in execution order.
        outputs: Names of the layers whose ofm are the results, in the order in which the model returns them.
        left_out: Modules and operations that do nothing at inference (dropout and the like), by path.
    """

    name: str
    nodes: tuple[Node, ...] = field(repr=False)
    outputs: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def spec(self, input_shape: Shape) -> NetworkSpec:
        """The graph with shapes.

        Args:
            input_shape: Channels, rows and columns of the input.

        Raises:
            TraceError: A layer cannot work on the shape that reaches it.
        """
        if len(input_shape) != 3:
            raise TraceError(f"input_shape={tuple(input_shape)}, expected three numbers: channels, rows and columns")
        shapes = {INPUT: cast(Shape, tuple(input_shape))}
        layers = []
        for node in self.nodes:
            try:
                layer = _layer_spec(node, [shapes[name] for name in node.inputs])
            except SpecError as error:
                raise TraceError(f"{error}; the network's input was given as (C, H, W) = {input_shape}") from error
            layers.append(layer)
            shapes[node.name] = (layer.out_channels, layer.out_height, layer.out_width)
        try:
            return NetworkSpec(self.name, *input_shape, tuple(layers), tuple(dict.fromkeys(self.outputs)))
        except SpecError as error:
            raise TraceError(f"{error}; the network's input was given as (C, H, W) = {input_shape}") from error


def _layer_spec(node: Node, operands: list[Shape]) -> LayerSpec:
    inputs = node.inputs
    if node.op is Op.MUL:
        if operands[0][1:] == (1, 1):  # the gate comes second
            inputs, operands = inputs[::-1], operands[::-1]
        if operands[1] != (operands[0][0], 1, 1):
            raise SpecError(
                f"layer {node.name!r}: multiplies maps of shapes {operands[0]} and {operands[1]} (C, H, W), expected a "
                "map and a gate with one value per channel"
            )
    channels, rows, columns = operands[0]
    if node.op is Op.CONCAT:
        channels = sum(shape[0] for shape in operands)
    if node.in_channels is not None and node.in_channels != channels:
        raise SpecError(f"layer {node.name!r}: in_channels={channels}, expected {node.in_channels} as in the module")
    if node.op is Op.LINEAR and (rows, columns) != (1, 1):
        raise SpecError(f"layer {node.name!r}: a linear layer reads a {rows}x{columns} map, expected a flattened one")
    kernel_size, stride = node.kernel_size, node.stride
    if node.op is Op.AVG_POOL and node.output_size is not None:
        kernel_size = stride = _adaptive_kernel(node, (rows, columns))
    first_channel, out_channels = _kept_channels(node, channels)
    padding_end = node.padding_end
    if node.ceil_mode:
        padding_end = (_ceil_padding(node, rows, 0), _ceil_padding(node, columns, 1))
    end = node.padding if padding_end is None else padding_end

    def out_size(size: int, axis: int) -> int:
        if node.op in (Op.LINEAR, Op.FLATTEN):
            return 1
        if node.op is Op.UPSAMPLE:
            return size * stride[axis]
        if node.op is Op.REORG:
            return size // stride[axis]
        if node.op in (Op.ADD, Op.CONCAT, Op.MUL):
            return size
        reach = node.dilation[axis] * (kernel_size[axis] - 1) + 1
        return (size + node.padding[axis] + end[axis] - reach) // stride[axis] + 1

    return LayerSpec(
        name=node.name,
        op=node.op,
        inputs=inputs,
        in_channels=channels,
        in_height=rows,
        in_width=columns,
        out_channels=channels * rows * columns if node.op is Op.FLATTEN else out_channels,
        out_height=out_size(rows, 0),
        out_width=out_size(columns, 1),
        kernel_size=kernel_size,
        stride=stride,
        padding=node.padding,
        padding_end=padding_end,
        dilation=node.dilation,
        groups=node.groups,
        activation=node.activation,
        first_channel=first_channel,
        weights_of=node.weights_of if node.op in WEIGHTED else None,
    )


def _adaptive_kernel(node: Node, size: Pair) -> Pair:
    out_rows, out_columns = cast(Pair, node.output_size)
    if size[0] % out_rows or size[1] % out_columns:
        raise SpecError(f"layer {node.name!r}: a {size[0]}x{size[1]} map does not divide into {node.output_size} parts")
    return size[0] // out_rows, size[1] // out_columns


def _kept_channels(node: Node, channels: int) -> Pair:
    """First channel, and number of channels of the ofm."""
    if node.op is Op.REORG:
        return 0, channels * node.stride[0] * node.stride[1]
    if node.chunk is not None:
        index, parts = node.chunk
        size = -(-channels // parts)
        return index * size, min(size, channels - index * size)
    if node.channels is not None:
        first, end = node.channels
        return first, (channels if end is None else min(end, channels)) - first
    return 0, node.out_channels or channels + node.extra_channels


def _ceil_padding(node: Node, size: int, axis: int) -> int:
    """Padding at the end that gives a max pool with ceil_mode its last window; that window starts inside the map."""
    reach = node.dilation[axis] * (node.kernel_size[axis] - 1) + 1
    count = -(-(size + 2 * node.padding[axis] - reach) // node.stride[axis]) + 1
    if (count - 1) * node.stride[axis] >= size + node.padding[axis]:
        count -= 1
    needed = (count - 1) * node.stride[axis] + reach - size - node.padding[axis]
    return max(node.padding[axis], needed)
