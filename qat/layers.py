"""Quantized layers: the fake-quant form of each `hwmodel.network.Op`.

Shapes: `x_NCHW` are values on the grid of the producer's quantizer; each layer returns values on the grid of its own
`ofm_quantizer`, or moves them unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from hwmodel.network import Op
from hwmodel.precision import LayerConfig
from qat.graph import BatchNorm, Node
from qat.integer_forward import MAX_BITS, MAX_PRODUCTS, has_integer_convolutions, integer_conv2d
from qat.quantizers import ActQuantizer, WeightQuantizer

FUSED = ("none", "relu", "leaky_relu")
"""Activations that the quantizer behind them does."""


class WeightedCall(nn.Module, ABC):
    """A convolution or linear layer as one part of the network calls it: with quantizers of its own around it.

    Batch norm is trained unfolded on the output of the quantized weights, a frozen one stays as it is there;
    `qat.deployment` folds both.

    Args:
        node: The layer in the traced graph.
        producer: Quantizer of what the ifm is computed by.

    Attributes:
        ofm_quantizer: Quantizer of the layer's result.
        input_quantizer: Quantizer of the ifm, where the producer writes wider codes than the layer reads.
        convolve: How the convolution is computed.
    """

    ofm_quantizer: ActQuantizer
    input_quantizer: ActQuantizer | None
    convolve: Convolve

    def __init__(self, node: Node, producer: ActQuantizer) -> None:
        super().__init__()
        self.convolve = float_convolution
        self._producer = (producer,)  # in a tuple: it is the producer's module, not this one's
        self.stride, self.padding, self.dilation, self.groups = node.stride, node.padding, node.dilation, node.groups
        self.padding_end = node.padding_end
        self.activation = None if node.activation in FUSED else activation_function(node)
        self.negative_slope = node.negative_slope if node.activation == "leaky_relu" else 1.0

    @property
    @abstractmethod
    def weighted(self) -> QuantWeighted:
        """The layer whose weights, bias and batch norm are used."""

    @property
    def ifm_quantizer(self) -> ActQuantizer:
        """On whose grid the convolution's operand is."""
        return self._producer[0] if self.input_quantizer is None else self.input_quantizer

    def set_input_bit_width(self, bit_width: int | None, source: ActQuantizer) -> None:
        """Bits that the layer reads; None where it reads the producer's codes as they are.

        Args:
            bit_width: 1..16, fewer than the producer writes, or None.
            source: Quantizer of the producer.
        """
        if bit_width is None:
            self.input_quantizer = None
        elif self.input_quantizer is not None:
            self.input_quantizer.set_bit_width(bit_width)
        else:
            quantizer = ActQuantizer(source.bit_width, source.signed, source.scale_rule).to(source.log2_scale.device)
            quantizer.load_state_dict(source.state_dict())
            quantizer.set_bit_width(bit_width)
            self.input_quantizer = quantizer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Values on the ofm's grid."""
        weighted = self.weighted
        if self.input_quantizer is not None:
            x_NCHW = self.input_quantizer(x_NCHW)
        weight_OIHW = weighted.weight_quantizer(weighted.weight_OIHW)
        padding = self.padding
        if self.padding_end is not None:
            x_NCHW = pad_uneven(x_NCHW, self.padding, self.padding_end)
            padding = (0, 0)
        y_NCHW = self.convolve(self, x_NCHW, weight_OIHW, padding)
        if weighted.batch_norm is not None:
            y_NCHW = weighted.batch_norm(y_NCHW)
        out: Tensor
        if self.activation is not None:
            out = self.ofm_quantizer(self.activation(y_NCHW))
        else:  # behind a ReLU codes are unsigned, and their quantizer clamps at zero: it costs nothing
            out = self.ofm_quantizer(y_NCHW, self.negative_slope, consume=True)
        return out


Convolve = Callable[[WeightedCall, Tensor, Tensor, tuple[int, int]], Tensor]
"""How a layer's convolution is computed: of the layer, values, quantized weights, and padding."""


def float_convolution(layer: WeightedCall, x_NCHW: Tensor, weight_OIHW: Tensor, padding: tuple[int, int]) -> Tensor:
    """The convolution in floating point."""
    return F.conv2d(x_NCHW, weight_OIHW, layer.weighted.bias, layer.stride, padding, layer.dilation, layer.groups)


def integer_convolution(layer: WeightedCall, x_NCHW: Tensor, weight_OIHW: Tensor, padding: tuple[int, int]) -> Tensor:
    """The same, forward in 8-bit integers where that is exact and gains: see `qat.integer_forward`.

    In floating point elsewhere: on a GPU, under autocast, for wide codes, and depthwise, which computes little.
    """
    source, weights = layer.ifm_quantizer, layer.weighted.weight_quantizer
    fits = source.bit_width <= 8 and source.bit_width + weights.config.stored_bit_width <= MAX_BITS
    fits = fits and weight_OIHW.shape[1] > 1 and weight_OIHW[0].numel() < MAX_PRODUCTS
    fits = fits and x_NCHW.is_cpu and x_NCHW.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not fits:
        return float_convolution(layer, x_NCHW, weight_OIHW, padding)
    steps, zero_point = (source.scale, weights.scale), -source.quant_min
    geometry = (layer.stride, padding, layer.dilation)
    return integer_conv2d(x_NCHW, weight_OIHW, layer.weighted.bias, steps, zero_point, geometry, layer.groups)


def use_integer_forward(model: nn.Module) -> bool:
    """Lets all quantized layers of a model compute convolutions by `integer_convolution`, if this machine gains by it.

    Weights, checkpoints and gradients stay as they are.

    Returns:
        Whether the machine does.
    """
    gains = has_integer_convolutions()
    for layer in model.modules():
        if gains and isinstance(layer, WeightedCall):
            layer.convolve = integer_convolution
    return gains


class QuantWeighted(WeightedCall):
    """Convolution or linear layer with quantized weights, its batch norm and its ReLU.

    Args:
        node: The layer in the traced graph; its module's weights are copied.
        config: Precision of the layer.
        ofm_quantizer: Quantizer of the layer's result.
        input_quantizer: Quantizer of the ifm, or None.
        producer: As in `WeightedCall`.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        node: Node,
        config: LayerConfig,
        ofm_quantizer: ActQuantizer,
        input_quantizer: ActQuantizer | None,
        producer: ActQuantizer,
    ) -> None:
        super().__init__(node, producer)
        module = node.module
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise TypeError(f"layer {node.name!r} has module {type(module).__name__}, expected Conv2d or Linear")
        self.node_op = node.op
        self.weight = nn.Parameter(module.weight.detach().clone())
        self.bias = None if module.bias is None else nn.Parameter(module.bias.detach().clone())
        self.batch_norm = None if node.batch_norm is None else _copy_batch_norm(node.batch_norm)
        self.input_quantizer = input_quantizer
        self.weight_quantizer = WeightQuantizer(self.weight_OIHW, config, ofm_quantizer.scale_rule)
        self.ofm_quantizer = ofm_quantizer

    @property
    def weighted(self) -> QuantWeighted:
        """The layer itself."""
        return self

    @property
    def weight_OIHW(self) -> Tensor:
        """Float weights, shape (O, I/groups, Kh, Kw); linear weights with Kh = Kw = 1."""
        return self.weight if self.weight.dim() == 4 else self.weight[:, :, None, None]


class SharedWeighted(WeightedCall):
    """A later call of a layer, as of a detection head on another map: its weights, with other steps around them.

    Args:
        node: The call in the traced graph.
        owner: The layer of its first call.
        ofm_quantizer: Quantizer of the call's result.
        input_quantizer: Quantizer of the ifm, or None.
        producer: As in `WeightedCall`.
    """

    def __init__(
        self,
        node: Node,
        owner: QuantWeighted,
        ofm_quantizer: ActQuantizer,
        input_quantizer: ActQuantizer | None,
        producer: ActQuantizer,
    ) -> None:
        super().__init__(node, producer)
        self.input_quantizer = input_quantizer
        self.ofm_quantizer = ofm_quantizer
        self._owner = (owner,)  # in a tuple, so that its parameters are registered once, under its own name

    @property
    def weighted(self) -> QuantWeighted:
        """The layer of the first call."""
        return self._owner[0]


def _copy_batch_norm(batch_norm: BatchNorm) -> nn.BatchNorm2d | FrozenBatchNorm2d:
    if isinstance(batch_norm, FrozenBatchNorm2d):
        return deepcopy(batch_norm)
    copy = nn.BatchNorm2d(batch_norm.num_features, batch_norm.eps, batch_norm.momentum, batch_norm.affine)
    copy.load_state_dict(batch_norm.state_dict())
    return copy


def pad_uneven(x_NCHW: Tensor, begin: tuple[int, int], end: tuple[int, int]) -> Tensor:
    """Zeros around maps: (rows above, columns at the left), (rows below, columns at the right)."""
    return F.pad(x_NCHW, (begin[1], end[1], begin[0], end[0]))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""Activations by their name in `hwmodel.network.ACTIVATIONS`; leaky ReLU has a slope of its own."""


def activation_function(node: Node) -> Callable[[Tensor], Tensor]:
    """The activation of a layer."""
    if node.activation == "leaky_relu":
        slope = node.negative_slope
        return lambda x: F.leaky_relu(x, slope)
    return FUNCTIONS[node.activation]


class QuantAdd(nn.Module):
    """Addition of feature maps of different scales, activation, requantization.

    Args:
        node: The layer in the traced graph.
        ofm_quantizer: Quantizer of the layer's result.
    """

    def __init__(self, node: Node, ofm_quantizer: ActQuantizer) -> None:
        super().__init__()
        self.activation = None if node.activation in ("none", "relu") else activation_function(node)
        self.ofm_quantizer = ofm_quantizer

    def forward(self, *xs_NCHW: Tensor) -> Tensor:
        """Sum on the ofm's grid; an unsigned quantizer's clamp at zero is the ReLU."""
        total = xs_NCHW[0] + xs_NCHW[1]
        for x_NCHW in xs_NCHW[2:]:
            total = total + x_NCHW
        if self.activation is not None:
            total = self.activation(total)
        out: Tensor = self.ofm_quantizer(total)
        return out


class QuantConcat(nn.Module):
    """Concatenation of channels, all on one grid."""

    def __init__(self, ofm_quantizer: ActQuantizer) -> None:
        super().__init__()
        self.ofm_quantizer = ofm_quantizer

    def forward(self, *xs_NCHW: Tensor) -> Tensor:
        """Channels side by side on the ofm's grid."""
        out: Tensor = self.ofm_quantizer(torch.cat(xs_NCHW, 1))
        return out


class QuantMul(nn.Module):
    """Feature map times a gate of one value per channel, requantization."""

    def __init__(self, ofm_quantizer: ActQuantizer) -> None:
        super().__init__()
        self.ofm_quantizer = ofm_quantizer

    def forward(self, x_NCHW: Tensor, gate_NCHW: Tensor) -> Tensor:
        """Products on the ofm's grid; the operands may come in either order."""
        out: Tensor = self.ofm_quantizer(x_NCHW * gate_NCHW)
        return out


class QuantScale(nn.Module):
    """Batch norm that follows no convolution: a multiplier and a bias per channel, activation, requantization.

    Args:
        node: The layer in the traced graph; its batch norm is copied.
        ofm_quantizer: Quantizer of the layer's result.
    """

    def __init__(self, node: Node, ofm_quantizer: ActQuantizer) -> None:
        super().__init__()
        if node.batch_norm is None:
            raise TypeError(f"layer {node.name!r} has no batch norm")
        self.batch_norm = _copy_batch_norm(node.batch_norm)
        self.activation = None if node.activation in ("none", "relu") else activation_function(node)
        self.ofm_quantizer = ofm_quantizer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalised values on the ofm's grid; an unsigned quantizer's clamp at zero is the ReLU."""
        y_NCHW = self.batch_norm(x_NCHW)
        if self.activation is not None:
            y_NCHW = self.activation(y_NCHW)
        out: Tensor = self.ofm_quantizer(y_NCHW)
        return out


class QuantNorm(nn.Module):
    """Group norm, or division of each pixel by its length: then a gain per channel, activation, requantization.

    Args:
        node: The layer in the traced graph; its parameters are copied.
        ofm_quantizer: Quantizer of the layer's result.
        owner: The layer of the module's first call, if this is a later one: its parameters are used.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, node: Node, ofm_quantizer: ActQuantizer, owner: QuantNorm | None) -> None:
        super().__init__()
        self.op, self.groups, self.eps = node.op, node.groups, 0.0
        if isinstance(node.module, nn.GroupNorm | nn.InstanceNorm2d):
            self.eps = node.module.eps
        self._owner = (owner,)  # in a tuple, so that its parameters are registered once, under its own name
        if owner is None:
            weight = node.gain if node.module is None else node.module.weight
            self.weight = _parameter(weight, torch.ones(node.in_channels or 1))
            self.bias = _parameter(getattr(node.module, "bias", None), torch.zeros_like(self.weight))
        self.activation = None if node.activation in ("none", "relu") else activation_function(node)
        self.ofm_quantizer = ofm_quantizer

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Multiplier and bias per channel, or one of each for all."""
        layer = self._owner[0] or self
        return layer.weight, layer.bias

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalised values on the ofm's grid; an unsigned quantizer's clamp at zero is the ReLU."""
        weight, bias = self.affine
        if self.op is Op.GROUP_NORM:
            y_NCHW = F.group_norm(x_NCHW, self.groups, weight, bias, self.eps)
        else:
            y_NCHW = F.normalize(x_NCHW) * weight[:, None, None]
        if self.activation is not None:
            y_NCHW = self.activation(y_NCHW)
        out: Tensor = self.ofm_quantizer(y_NCHW)
        return out


def _parameter(given: Any, otherwise: Tensor) -> nn.Parameter:
    """A copy that is trained, or a constant where a buffer or nothing is given."""
    values: Tensor = otherwise if given is None else given
    return nn.Parameter(values.detach().clone(), requires_grad=isinstance(given, nn.Parameter))


class QuantLookup(nn.Module):
    """A function of each code: in hardware a table.

    Args:
        node: The layer in the traced graph.
        ofm_quantizer: Quantizer of the layer's result.
    """

    def __init__(self, node: Node, ofm_quantizer: ActQuantizer) -> None:
        super().__init__()
        self.kind = node.activation
        self.activation = activation_function(node)
        self.ofm_quantizer = ofm_quantizer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Values of the function on the ofm's grid."""
        out: Tensor = self.ofm_quantizer(self.activation(x_NCHW))
        return out

    def extra_repr(self) -> str:
        """Text for print(model)."""
        return self.kind


class QuantAvgPool(nn.Module):
    """Average pooling and requantization; padding counts as zeros."""

    def __init__(self, node: Node, ofm_quantizer: ActQuantizer) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.output_size = node.kernel_size, node.stride, node.output_size
        self.padding = node.padding
        self.ofm_quantizer = ofm_quantizer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Means on the ofm's grid."""
        if self.output_size is not None:
            y_NCHW = F.adaptive_avg_pool2d(x_NCHW, self.output_size)
        else:
            y_NCHW = F.avg_pool2d(x_NCHW, self.kernel_size, self.stride, self.padding)
        out: Tensor = self.ofm_quantizer(y_NCHW)
        return out


class Relay(nn.Module):
    """A layer that moves codes without changing them: largest of a window, subsampling, flattening, shuffles, ...

    Args:
        node: The layer in the traced graph.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.kind = str(node.op)
        self.move = relay_function(node)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The moved codes or values, same type."""
        return self.move(x_NCHW)

    def extra_repr(self) -> str:
        """Text for print(model)."""
        return self.kind


def relay_function(node: Node) -> Callable[[Tensor], Tensor]:
    """What a relaying layer does to a tensor of values or codes."""
    rows, columns = node.stride
    if node.op is Op.MAX_POOL:
        ceil = node.ceil_mode
        return lambda x: F.max_pool2d(x, node.kernel_size, node.stride, node.padding, node.dilation, ceil)
    if node.op is Op.SUBSAMPLE:
        half = node.extra_channels // 2
        return lambda x: F.pad(x[:, :, ::rows, ::columns], (0, 0, 0, 0, half, half))
    if node.op is Op.UPSAMPLE:
        return lambda x: x.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    if node.op is Op.FLATTEN:
        return lambda x: x.flatten(1)[:, :, None, None]
    if node.op is Op.SHUFFLE:
        return lambda x: x.reshape(len(x), node.groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    if node.op is Op.REORG:
        return lambda x: F.pixel_unshuffle(x, rows)
    if node.op is Op.SLICE and node.chunk is not None:
        index, parts = node.chunk
        return lambda x: x.chunk(parts, 1)[index]
    if node.op is Op.SLICE and node.channels is not None:
        first, last = node.channels
        return lambda x: x[:, first:last]
    raise ValueError(f"layer {node.name!r}: {node.op} does not relay")
