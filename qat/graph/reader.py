"""Recognises hardware layers in a traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hwmodel.network import AFFINE, INPUT, WEIGHTED, Op
from qat.errors import TraceError
from qat.graph.geometry import GeometryReader
from qat.graph.ledger import pair
from qat.graph.nodes import BatchNorm, Graph, Node

FUSING = (Op.CONV, Op.LINEAR, Op.ADD, *AFFINE)
"""Operations whose requantization can be a ReLU, ReLU6 or leaky ReLU too."""

MODULE_FUNCTIONS: dict[type[nn.Module], str] = {
    nn.Hardswish: "hard_swish",
    nn.Hardsigmoid: "hard_sigmoid",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
CALLED_FUNCTIONS: dict[Any, str] = {
    F.hardswish: "hard_swish",
    F.hardsigmoid: "hard_sigmoid",
    F.silu: "silu",
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"), "tanh"),
}
"""Functions of a code that become tables."""

VIEWS = ("view", "reshape", torch.reshape, "unsqueeze", torch.unsqueeze, operator.getitem)
"""What shows a parameter in another shape."""

MAX_LENGTH_EPS = 1e-6
"""Lengths below this are not told from zero: a vector of codes that is not zero is longer than any step."""

RELU_CALLS = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
SHAPE_ARITHMETIC = (operator.floordiv, operator.mul, operator.add, operator.sub, operator.truediv, int)


class Reader(GeometryReader):
    """Walks the traced nodes once."""

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        super().__init__(model, traced)
        self.attributes: dict[fx.Node, str] = {}
        self.gains: dict[fx.Node, tuple[str, Tensor]] = {}
        """Parameters, and views of them, that multiply channels: their path and one value per channel."""
        self._multiplied: dict[str, str] = {}
        """First layer that each of them multiplies, by its path."""
        self._normalised: dict[int, str] = {}
        """Layer that each batch norm belongs to, by the norm's id."""

    def read(self) -> Graph:
        """The graph.

        Raises:
            TraceError: A module or operation cannot be mapped.
        """
        outputs: tuple[str, ...] = ()
        for node in self.traced.nodes:
            if node.op == "placeholder":
                self._read_placeholder(node)
            elif node.op == "output":
                outputs = self._read_outputs(node)
            elif node.op == "call_module":
                self._read_module(node, self.modules[str(node.target)])
            elif node.op in ("call_function", "call_method"):
                self._read_call(node)
            else:
                self.attributes[node] = str(node.target)
                self._note_gain(node, str(node.target), self._attribute(str(node.target)))
        if not outputs or INPUT in outputs:
            raise TraceError(f"{type(self.model).__name__} has no layer")
        needed = self._needed_for(outputs)
        _check_shared({node.name: node for node in needed})
        return Graph(type(self.model).__name__, needed, outputs, tuple(self.left_out))

    def _read_outputs(self, node: fx.Node) -> tuple[str, ...]:
        result = node.args[0]
        parts = tuple(result) if isinstance(result, tuple | list) else (result,)
        if not parts or not all(isinstance(part, fx.Node) for part in parts):
            raise TraceError(
                f"{type(self.model).__name__} must return a tensor or a tuple of tensors, it returns {result}"
            )
        names = tuple(self.source(part, node) for part in parts)
        if len(set(names)) < len(names):
            raise TraceError(f"{type(self.model).__name__} returns a feature map twice: {', '.join(names)}")
        return names

    def _needed_for(self, outputs: tuple[str, ...]) -> tuple[Node, ...]:
        needed, queue = set(), [*outputs]
        while queue:
            name = queue.pop()
            if name != INPUT and name not in needed:
                needed.add(name)
                queue += self.nodes[name].inputs
        self.left_out += [name for name in self.nodes if name not in needed]
        return tuple(node for name, node in self.nodes.items() if name in needed)

    def _read_placeholder(self, node: fx.Node) -> None:
        if INPUT not in self.alias.values():
            self.alias[node] = INPUT
        elif node.users:
            raise TraceError(f"{self.where(node)}: a network has one input tensor")

    def source(self, node: Any, reader: fx.Node) -> str:
        """Producer of a traced tensor."""
        attribute = self.attributes.get(node) or self.gains.get(node, (None,))[0]
        if attribute is not None:
            self.refuse(reader, f"the parameter or buffer {attribute!r} used outside a layer")
        return super().source(node, reader)

    # -- modules ------------------------------------------------------------------------------------------------

    def _read_module(self, node: fx.Node, module: nn.Module) -> None:
        path = str(node.target)
        if isinstance(module, nn.Conv2d):
            self._read_conv(node, path, module.padding, module.stride, module.dilation, module.groups)
        elif isinstance(module, nn.Linear):
            self._read_linear(node, path)
        elif isinstance(module, BatchNorm):
            self._read_batch_norm(node, module)
        elif isinstance(module, nn.GroupNorm):
            self._read_group_norm(node, module.num_groups, module.num_channels)
        elif isinstance(module, nn.InstanceNorm2d) and not module.track_running_stats:
            self._read_group_norm(node, module.num_features, module.num_features)
        elif isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
            self.left_out.append(path)
            self.forward(node)
        elif isinstance(module, nn.Flatten):
            self.read_flatten(node, module.start_dim, module.end_dim)
        elif isinstance(module, nn.ZeroPad2d | nn.ConstantPad2d) and module.value == 0:
            self.read_padding(node, tuple(module.padding))
        elif isinstance(module, nn.MaxPool2d) and not module.return_indices:
            self.read_max_pool(
                node, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            )
        elif isinstance(module, nn.AvgPool2d):
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            self.read_avg_pool(node, *(getattr(module, name) for name in names))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self.read_adaptive_pool(node, module.output_size)
        elif isinstance(module, nn.Upsample):
            self.read_upsample(node, module.scale_factor, module.mode)
        elif isinstance(module, nn.ChannelShuffle):
            self.read_shuffle(node, module.groups)
        elif isinstance(module, nn.PixelUnshuffle):
            self.read_reorg(node, module.downscale_factor)
        else:
            self._read_activation_module(node, module)

    def _read_activation_module(self, node: fx.Node, module: nn.Module) -> None:
        if getattr(module, "inplace", False):
            self.check_inplace(node)
        if isinstance(module, nn.ReLU):
            self._read_activation(node, "relu")
        elif isinstance(module, nn.Hardtanh):  # ReLU6 too
            self._read_clamp(node, module.min_val, module.max_val)
        elif isinstance(module, nn.LeakyReLU):
            self._read_activation(node, "leaky_relu", module.negative_slope)
        elif type(module) in MODULE_FUNCTIONS:
            self._read_activation(node, MODULE_FUNCTIONS[type(module)])
        else:
            self.refuse(node, f"a module of type {type(module).__name__}")

    def _read_conv(self, node: fx.Node, path: str, padding: Any, stride: Any, dilation: Any, groups: int) -> None:
        module = cast(nn.Conv2d, self.modules[path])
        if module.padding_mode != "zeros":
            self.refuse(node, f"padding_mode={module.padding_mode!r}")
        kernel_size, dilation = pair(module.kernel_size), pair(dilation)
        if isinstance(padding, str):
            total = [dilation[axis] * (kernel_size[axis] - 1) if padding == "same" else 0 for axis in range(2)]
            begin, end = (total[0] // 2, total[1] // 2), (-(-total[0] // 2), -(-total[1] // 2))
        else:
            begin = end = pair(padding)
        top, left, bottom, right = self.padding.pop(self.argument(node), (0, 0, 0, 0))
        name, owner = self.claim(node, path)
        before, after = (begin[0] + top, begin[1] + left), (end[0] + bottom, end[1] + right)
        self.add(
            node,
            Node(
                name,
                Op.CONV,
                self.inputs(node),
                kernel_size=kernel_size,
                stride=pair(stride),
                padding=before,
                padding_end=None if after == before else after,
                dilation=dilation,
                groups=groups,
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                module=module,
                weights_of=owner,
            ),
        )

    def _read_linear(self, node: fx.Node, path: str) -> None:
        module = cast(nn.Linear, self.modules[path])
        name, owner = self.claim(node, path)
        layer = Node(name, Op.LINEAR, self.inputs(node), module=module, weights_of=owner)
        layer.in_channels, layer.out_channels = module.in_features, module.out_features
        self.add(node, layer)

    def _read_batch_norm(self, node: fx.Node, module: BatchNorm) -> None:
        if module.running_mean is None:
            self.refuse(node, "a batch norm without running statistics")
        before = self.only_reader_of(node)
        bare = before is not None and before.batch_norm is None and before.activation == "none"
        if bare and before is not None and before.op in WEIGHTED:
            self._use_norm(node, module, before.weights_of or before.name)
            before.batch_norm = module
            self.forward(node)
            return
        channels, name = len(module.running_mean), str(node.target)
        self._use_norm(node, module, name)
        self.add(node, Node(name, Op.SCALE, self.inputs(node), in_channels=channels, batch_norm=module))

    def _use_norm(self, node: fx.Node, module: BatchNorm, layer: str) -> None:
        """A batch norm joins one layer, in all its calls, or stands by itself once."""
        known = self._normalised.setdefault(id(module), layer)
        if known != layer or (layer in self.nodes and self.nodes[layer].op is Op.SCALE):
            raise TraceError(f"{self.where(node)}: a batch norm that is used behind several layers; give each its own")

    def _read_group_norm(self, node: fx.Node, groups: int, channels: int) -> None:
        path = str(node.target)
        name, owner = self.claim(node, path)
        given = {"groups": groups, "in_channels": channels, "module": self.modules[path], "weights_of": owner}
        self.add(node, Node(name, Op.GROUP_NORM, self.inputs(node), **given))

    def _read_normalize(self, node: fx.Node) -> None:
        """`F.normalize` over channels."""
        power, dim, eps = self.call_args(node, ("p", 2.0), ("dim", 1), ("eps", 1e-12))
        if power != 2 or dim not in (1, -3):
            self.refuse(node, f"a norm with p={power} over dimension {dim}; only p=2 over channels (1) is")
        if eps > MAX_LENGTH_EPS:
            self.refuse(node, f"a norm with eps={eps}, which integers leave out; only up to {MAX_LENGTH_EPS} is")
        self.add(node, Node(self.call_name(node, "l2_norm"), Op.L2_NORM, self.inputs(node)))

    def _read_activation(self, node: fx.Node, activation: str, negative_slope: float = 0.0) -> None:
        before = self.only_reader_of(node)
        shifts = activation != "leaky_relu" or is_shift(negative_slope)
        if activation == "relu" and before is not None and before.activation in ("relu", "relu6"):
            self.forward(node)
        elif before is not None and before.op in FUSING and before.activation == "none" and shifts:
            if activation in ("relu", "relu6", "leaky_relu"):
                before.activation, before.negative_slope = activation, negative_slope
                self.forward(node)
            else:
                self._add_lookup(node, activation, negative_slope)
        else:
            self._add_lookup(node, activation, negative_slope)

    def _add_lookup(self, node: fx.Node, activation: str, negative_slope: float) -> None:
        name = self.call_name(node, activation)
        layer = Node(name, Op.LOOKUP, self.inputs(node), activation=activation, negative_slope=negative_slope)
        self.add(node, layer)

    def _read_clamp(self, node: fx.Node, low: float | None, high: float | None) -> None:
        if low == 0 and high in (None, float("inf")):
            self._read_activation(node, "relu")
        elif (low, high) == (0, 6):
            self._read_activation(node, "relu6")
        else:
            self.refuse(node, f"clamping to {low}..{high}; only 0..6 and 0..infinity are")

    # -- functions and methods ----------------------------------------------------------------------------------

    def _read_call(self, node: fx.Node) -> None:
        target = node.target
        if node.kwargs.get("inplace") or (isinstance(target, str) and target.endswith("_")):
            self.check_inplace(node)
        if self._is_shape_value(node):
            self.shape_values.add(node)
        elif target in VIEWS and node.args and node.args[0] in self.attributes:
            self._read_view_of_parameter(node)
        elif target is operator.getitem and node.args[0] in self.parts:
            self.read_part(node)
        elif target in CALLED_FUNCTIONS:
            self._read_activation(node, CALLED_FUNCTIONS[target])
        elif target in RELU_CALLS:
            self._read_activation(node, "relu")
        elif getattr(target, "__name__", "") == "stochastic_depth" or target in (F.dropout, F.dropout2d):
            self.left_out.append(self.where(node))
            self.forward(node)
        elif reader := _READERS.get(target):
            reader(self, node)
        elif target is not torch._assert:
            self.refuse(node, f"the operation {getattr(target, '__name__', target)!r}")

    def _is_shape_value(self, node: fx.Node) -> bool:
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            return True
        computed = node.target in (*SHAPE_ARITHMETIC, operator.getitem)
        return computed and bool(node.args) and node.args[0] in self.shape_values

    def _read_add(self, node: fx.Node) -> None:
        if node.target in (operator.iadd, "add_"):
            self.check_inplace(node)
        first = node.args[0] if node.args else node.kwargs.get("input")
        second, alpha = self.call_args(node, ("other", None), ("alpha", 1))
        if alpha != 1 or not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
            self.refuse(node, "an addition of anything but two feature maps")
        inputs = (self.source(first, node), self.source(second, node))
        self.add(node, Node(self.call_name(node, "add"), Op.ADD, inputs))

    def _read_mul(self, node: fx.Node) -> None:
        if node.target in (operator.imul, "mul_"):
            self.check_inplace(node)
        if len(node.args) != 2 or not all(isinstance(arg, fx.Node) for arg in node.args):
            self.refuse(node, "a multiplication of anything but a feature map and its gate")
        if any(arg in self.gains for arg in node.args):
            self._read_gain(node)
            return
        inputs = tuple(self.source(arg, node) for arg in node.args)
        self.add(node, Node(self.call_name(node, "mul"), Op.MUL, inputs))

    def _note_gain(self, node: fx.Node, path: str, value: Any) -> None:
        """Remembers a tensor of the model that multiplies channels."""
        if isinstance(value, Tensor) and value.dim() in (3, 4) and value.numel() == value.shape[-3]:
            values, is_trained = value.detach().flatten(), isinstance(self._attribute(path), nn.Parameter)
            self.gains[node] = (path, nn.Parameter(values) if is_trained else values)

    def _attribute(self, path: str) -> Any:
        return operator.attrgetter(path)(self.model)

    def _read_view_of_parameter(self, node: fx.Node) -> None:
        """Another shape of a parameter: it may multiply channels, and is no weight of a layer."""
        path = self.attributes[self.argument(node)]
        parameter = self._attribute(path)
        view = getattr(parameter, node.target) if isinstance(node.target, str) else partial(node.target, parameter)
        try:
            self._note_gain(node, path, view(*node.args[1:], **node.kwargs))
        except (TypeError, RuntimeError):
            self.refuse(node, f"a shape of the parameter {path!r} that depends on others")
        self.gains.setdefault(node, (path, parameter.detach()[:0]))

    def _read_gain(self, node: fx.Node) -> None:
        """A division by length times a parameter per channel: `weight.view(1, -1, 1, 1) * F.normalize(x)`."""
        first, second = cast(tuple[fx.Node, fx.Node], node.args)
        parameter, divided = (first, second) if first in self.gains else (second, first)
        layer = self.only_read(divided)
        bare = layer is not None and layer.op is Op.L2_NORM and layer.gain is None and layer.activation == "none"
        path, values = self.gains[parameter]
        if layer is None or not bare or not len(values):
            self.refuse(
                node, f"the parameter {path!r} times anything but the result of F.normalize, channel by channel"
            )
        layer.gain, layer.in_channels = values, len(values)
        owner = self._multiplied.setdefault(path, layer.name)
        layer.weights_of = None if owner == layer.name else owner
        self.alias[node] = layer.name

    def _read_functional_conv(self, node: fx.Node) -> None:
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        weight, bias, *rest = self.call_args(node, *zip(names, (None, None, 1, 0, 1, 1), strict=True))
        self._read_conv(node, self._owner(node, weight, bias, nn.Conv2d), rest[1], rest[0], rest[2], rest[3])

    def _read_functional_linear(self, node: fx.Node) -> None:
        weight, bias = self.call_args(node, ("weight", None), ("bias", None))
        self._read_linear(node, self._owner(node, weight, bias, nn.Linear))

    def _owner(self, node: fx.Node, weight: Any, bias: Any, kind: type[nn.Module]) -> str:
        """Path of the layer whose weight and bias a functional call uses as they are."""
        path, _, name = self.attributes.get(weight, "").rpartition(".")
        owner = self.modules.get(path)
        own_bias = getattr(owner, "bias", None)
        same = bias is None if own_bias is None else self.attributes.get(bias) == f"{path}.bias"
        if not isinstance(owner, kind) or name != "weight" or not same:
            self.refuse(node, f"a functional call with other weights than those of a {kind.__name__}")
        return path

    def _read_leaky(self, node: fx.Node) -> None:
        (slope,) = self.call_args(node, ("negative_slope", 0.01))
        self._read_activation(node, "leaky_relu", slope)

    def _read_limits(self, node: fx.Node) -> None:
        names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
        defaults = (-1.0, 1.0) if node.target is F.hardtanh else (None, None)
        self._read_clamp(node, *self.call_args(node, *zip(names, defaults, strict=True)))


def _check_shared(nodes: Mapping[str, Node]) -> None:
    """A module that is called several times has its batch norm in all calls or none, and its first one counts."""
    for node in nodes.values():
        if node.weights_of is None:
            continue
        owner = nodes.get(node.weights_of)
        if owner is None or node.batch_norm is not owner.batch_norm:
            wrong = "the result of its first call is not used" if owner is None else "with different batch norms behind"
            raise TraceError(f"module {node.weights_of!r} is called several times, and {wrong}; use a layer for each")


def is_shift(slope: float) -> bool:
    """Whether a slope is 2**-k with k in 1..7."""
    return slope in [2.0**-count for count in range(1, 8)]


def _pool_args(reader: Reader, node: fx.Node, *last: tuple[str, Any]) -> list[Any]:
    return reader.call_args(node, ("kernel_size", None), ("stride", None), ("padding", 0), *last)


_READERS: dict[Any, Callable[[Reader, fx.Node], None]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), Reader._read_add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), Reader._read_mul),
    **dict.fromkeys((torch.cat, torch.concat), Reader.read_concat),
    **dict.fromkeys((F.hardtanh, torch.clamp, "clamp", "clamp_"), Reader._read_limits),
    **dict.fromkeys(("view", "reshape", torch.reshape), Reader.read_view),
    **dict.fromkeys(("transpose", torch.transpose), Reader.read_transpose),
    **dict.fromkeys((torch.chunk, "chunk", torch.split, "split"), Reader.read_chunk),
    **dict.fromkeys(("mean", torch.mean), Reader.read_mean),
    F.normalize: Reader._read_normalize,
    F.relu6: lambda reader, node: reader._read_activation(node, "relu6"),
    F.leaky_relu: Reader._read_leaky,
    F.conv2d: Reader._read_functional_conv,
    torch.conv2d: Reader._read_functional_conv,
    F.linear: Reader._read_functional_linear,
    "contiguous": Reader.read_contiguous,
    "expand_as": Reader.forward,
    operator.getitem: Reader.read_slice,
    F.pad: Reader.read_pad,
    **dict.fromkeys(
        (torch.flatten, "flatten"),
        lambda reader, node: reader.read_flatten(node, *reader.call_args(node, ("start_dim", 0), ("end_dim", -1))),
    ),
    **dict.fromkeys(
        (F.max_pool2d, torch.max_pool2d),
        lambda reader, node: reader.read_max_pool(
            node, *_pool_args(reader, node, ("dilation", 1), ("ceil_mode", False))
        ),
    ),
    F.avg_pool2d: lambda reader, node: reader.read_avg_pool(
        node,
        *_pool_args(reader, node, ("ceil_mode", False), ("count_include_pad", True), ("divisor_override", None)),
    ),
    F.adaptive_avg_pool2d: lambda reader, node: reader.read_adaptive_pool(
        node, *reader.call_args(node, ("output_size", None))
    ),
    F.interpolate: lambda reader, node: reader.read_upsample(
        node, *reader.call_args(node, ("size", None), ("scale_factor", None), ("mode", "nearest"))[1:]
    ),
    F.pixel_unshuffle: lambda reader, node: reader.read_reorg(
        node, *reader.call_args(node, ("downscale_factor", None))
    ),
    torch.channel_shuffle: lambda reader, node: reader.read_shuffle(node, *reader.call_args(node, ("groups", None))),
}
