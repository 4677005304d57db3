"""Reads what moves or pools feature maps: padding, pooling, upsampling, views, slices of channels, shuffles."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import fx, nn

from hwmodel.network import Op
from qat.graph.ledger import Ledger, pair
from qat.graph.nodes import Node

ALL = slice(None)


class GeometryReader(Ledger):
    """Readers of operations without weights that see shapes only."""

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        super().__init__(model, traced)
        self.parted: dict[fx.Node, int] = {}
        """Views (batch, groups, channels / groups, rows, columns), by the number of groups."""
        self.interleaved: dict[fx.Node, int] = {}
        """The same, transposed."""
        self.parts: dict[fx.Node, Any] = {}
        """Results of chunk and split, by their sizes."""

    def read_concat(self, node: fx.Node) -> None:
        """`torch.cat`."""
        (dim,) = self.call_args(node, ("dim", 0))
        if dim not in (1, -3):
            self.refuse(node, f"a concatenation along dimension {dim}; only channels (1) are")
        operands = cast(list[fx.Node], node.args[0] if node.args else node.kwargs["tensors"])
        if len(operands) == 1:
            self.alias[node] = self.source(operands[0], node)
            self.passed_on[node] = operands[0]
            return
        inputs = tuple(self.source(arg, node) for arg in operands)
        self.add(node, Node(self.call_name(node, "cat"), Op.CONCAT, inputs))

    def read_flatten(self, node: fx.Node, start_dim: int, end_dim: int) -> None:
        """`flatten`."""
        if start_dim != 1 or end_dim not in (-1, 3):
            self.refuse(node, f"flatten({start_dim}, {end_dim}); only flatten(1) is")
        self.add(node, Node(self.call_name(node, "flatten"), Op.FLATTEN, self.inputs(node)))

    def read_view(self, node: fx.Node) -> None:
        """`view` and `reshape`: a flattening, (batch, channels, 1, 1), or half of a channel shuffle."""
        shape: Any = node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        known = [size in self.shape_values if isinstance(size, fx.Node) else size == -1 for size in shape]
        source = self.argument(node)
        if len(shape) == 2 and (known[0] or shape[1] == -1):
            self.read_flatten(node, 1, -1)
        elif len(shape) == 4 and source in self.interleaved:
            groups = self.interleaved[source]
            name = self.call_name(node, "shuffle")
            self.add(node, Node(name, Op.SHUFFLE, (self.alias[source],), groups=groups))
        elif len(shape) == 4 and shape[2:] == (1, 1):
            flat = self.nodes.get(self.source(source, node))
            if flat is None or flat.op not in (Op.LINEAR, Op.FLATTEN, Op.LOOKUP):
                self.refuse(node, f"a view to {shape} of what is not flat")
            self.forward(node)
        elif len(shape) == 5 and isinstance(shape[1], int) and shape[1] > 0 and all([*known[:1], *known[2:]]):
            self.alias[node] = self.source(source, node)
            self.parted[node] = shape[1]
        else:
            self.refuse(node, f"a view to {shape}; only (batch, -1) and channel shuffles are")

    def read_transpose(self, node: fx.Node) -> None:
        """The transposition in the middle of a channel shuffle."""
        source = self.argument(node)
        dims = sorted(self.call_args(node, ("dim0", None), ("dim1", None)))
        if source not in self.parted or dims != [1, 2]:
            self.refuse(node, f"a transposition of dimensions {dims} that is no channel shuffle")
        self.alias[node] = self.alias[source]
        self.interleaved[node] = self.parted[source]

    def read_contiguous(self, node: fx.Node) -> None:
        """`contiguous`, also inside a channel shuffle."""
        source = self.argument(node)
        if source in self.interleaved:
            self.interleaved[node] = self.interleaved[source]
            self.alias[node] = self.alias[source]
            return
        self.forward(node)

    def read_shuffle(self, node: fx.Node, groups: int) -> None:
        """`nn.ChannelShuffle`."""
        self.add(node, Node(self.call_name(node, "shuffle"), Op.SHUFFLE, self.inputs(node), groups=int(groups)))

    def read_chunk(self, node: fx.Node) -> None:
        """`chunk` and `split` along channels; the parts are taken by `read_part`."""
        self.source(self.argument(node), node)
        sizes, dim = self.call_args(node, ("chunks" if "chunk" in str(node.target) else "split_size", None), ("dim", 0))
        if sizes is None:
            sizes = node.kwargs.get("split_size_or_sections")
        if dim not in (1, -3):
            self.refuse(node, f"a split along dimension {dim}; only channels (1) are")
        self.parts[node] = sizes

    def read_part(self, node: fx.Node) -> None:
        """One part of a chunk or split."""
        origin, index = cast(fx.Node, node.args[0]), cast(int, node.args[1])
        sizes = self.parts[origin]
        inputs = (self.source(self.argument(origin), origin),)
        layer = Node(self.call_name(node, "slice"), Op.SLICE, inputs)
        if "chunk" in str(origin.target):
            layer.chunk = (index % sizes, sizes)
        elif isinstance(sizes, int):
            if index < 0:
                self.refuse(node, "a part of a split counted from its end")
            layer.channels = (index * sizes, (index + 1) * sizes)
        else:
            bounds = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
            layer.channels = (bounds[index % len(sizes)], bounds[index % len(sizes) + 1])
        self.add(node, layer)

    def read_slice(self, node: fx.Node) -> None:
        """`x[:, a:b]`, or `x[:, :, ::s, ::t]`, the subsampling of a ResNet's option-A shortcut."""
        index = node.args[1]
        allowed = "only x[:, a:b] and x[:, :, ::s, ::t] are"
        if not (isinstance(index, tuple) and 2 <= len(index) <= 4 and all(isinstance(part, slice) for part in index)):
            self.refuse(node, f"the index {index}; {allowed}")
        batch, channels, *rest = cast(tuple[slice, ...], index)
        if batch != ALL:
            self.refuse(node, f"the index {index}; {allowed}")
        if channels != ALL:
            first, last = channels.start or 0, channels.stop
            plain = isinstance(first, int) and first >= 0 and (last is None or (isinstance(last, int) and last > first))
            if not plain or channels.step not in (None, 1) or any(part != ALL for part in rest):
                self.refuse(node, f"the index {index}; {allowed}")
            name = self.call_name(node, "slice")
            self.add(node, Node(name, Op.SLICE, self.inputs(node), channels=(first, last)))
            return
        strides = []
        for part in rest:
            if part.start not in (None, 0) or part.stop is not None:
                self.refuse(node, f"the index {index}; {allowed}")
            strides.append(int(part.step or 1))
        if len(strides) != 2:
            self.refuse(node, f"the index {index}; {allowed}")
        name = self.call_name(node, "subsample")
        self.add(node, Node(name, Op.SUBSAMPLE, self.inputs(node), stride=(strides[0], strides[1])))

    def read_pad(self, node: fx.Node) -> None:
        """`F.pad`: of pixels before a convolution, or of channels behind a subsampling."""
        padding, mode, value = self.call_args(node, ("pad", None), ("mode", "constant"), ("value", 0))
        if mode != "constant" or value not in (None, 0, 0.0):
            self.refuse(node, f"padding with mode={mode!r}, value={value!r}; only zeros are")
        if len(padding) == 6 and tuple(padding[:4]) == (0, 0, 0, 0) and padding[4] == padding[5]:
            before = self.only_reader_of(node)
            if before is None or before.op is not Op.SUBSAMPLE:
                self.refuse(node, "padding of channels that does not follow x[:, :, ::s, ::t]")
            before.extra_channels += 2 * padding[4]
            self.forward(node)
            return
        self.read_padding(node, tuple(padding))

    def read_padding(self, node: fx.Node, padding: tuple[int, ...]) -> None:
        """Zeros around a map: left, right, then top, bottom; they join the convolution behind."""
        left, right, top, bottom = (*padding, 0, 0)[:4]
        reader = next(iter(node.users), None)
        followed = reader is not None and len(node.users) == 1 and self._is_convolution(reader)
        plain = len(padding) in (2, 4) and all(isinstance(size, int) and size >= 0 for size in padding)
        if not plain or not followed:
            self.refuse(node, f"padding {padding} that is negative or not followed by one convolution only")
        self.forward(node)
        self.padding[node] = (top, left, bottom, right)

    def _is_convolution(self, node: fx.Node) -> bool:
        return node.target is F.conv2d or isinstance(self.modules.get(str(node.target)), nn.Conv2d)

    def read_max_pool(
        self, node: fx.Node, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> None:
        """`max_pool2d`."""
        self.add(
            node,
            Node(
                self.call_name(node, "max_pool"),
                Op.MAX_POOL,
                self.inputs(node),
                kernel_size=pair(kernel_size),
                stride=pair(kernel_size if stride in (None, []) else stride),
                padding=pair(padding),
                dilation=pair(dilation),
                ceil_mode=bool(ceil_mode),
            ),
        )

    def read_avg_pool(
        self,
        node: fx.Node,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        """`avg_pool2d`; padding counts as zeros."""
        padded = pair(padding) != (0, 0)
        if ceil_mode or (padded and not count_include_pad) or divisor_override is not None:
            self.refuse(node, "average pooling with ceil_mode=True, uncounted padding or divisor_override")
        size = pair(kernel_size)
        stride = size if stride in (None, []) else pair(stride)
        layer = Node(self.call_name(node, "avg_pool"), Op.AVG_POOL, self.inputs(node), size, stride, pair(padding))
        self.add(node, layer)

    def read_adaptive_pool(self, node: fx.Node, output_size: Any) -> None:
        """`adaptive_avg_pool2d`."""
        if not isinstance(output_size, int) and None in output_size:
            self.refuse(node, f"adaptive pooling to {output_size}; give both sizes")
        size = pair(output_size)
        self.add(node, Node(self.call_name(node, "avg_pool"), Op.AVG_POOL, self.inputs(node), output_size=size))

    def read_mean(self, node: fx.Node) -> None:
        """`mean` over rows and columns: global average pooling."""
        dims, keepdim = self.call_args(node, ("dim", None), ("keepdim", False))
        dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
        if sorted(dim % 4 for dim in dims) != [2, 3]:
            self.refuse(node, f"a mean over dimensions {dims}; only rows and columns (2, 3) are")
        pooled = Node(self.call_name(node, "avg_pool"), Op.AVG_POOL, self.inputs(node), output_size=(1, 1))
        self.add(node, pooled)
        if not keepdim:
            self.add(node, Node(f"{pooled.name}.flatten", Op.FLATTEN, (pooled.name,)))

    def read_upsample(self, node: fx.Node, scale_factor: Any, mode: str) -> None:
        """Nearest-neighbour upsampling by whole factors."""
        factors = (scale_factor,) * 2 if isinstance(scale_factor, int | float) else tuple(scale_factor or ())
        if mode != "nearest" or len(factors) != 2 or any(factor != int(factor) for factor in factors):
            self.refuse(node, f"upsampling with mode={mode!r}, scale_factor={scale_factor}")
        stride = (int(factors[0]), int(factors[1]))
        self.add(node, Node(self.call_name(node, "upsample"), Op.UPSAMPLE, self.inputs(node), stride=stride))

    def read_reorg(self, node: fx.Node, factor: int) -> None:
        """Space to depth (`pixel_unshuffle`)."""
        stride = (int(factor), int(factor))
        self.add(node, Node(self.call_name(node, "reorg"), Op.REORG, self.inputs(node), stride=stride))
