"""Quantized model -> integers, and the torch model that computes exactly with them.

`lower` folds batch norm, scales and biases into the integers of `qat.integer`; `deploy` runs those integers in
torch.  The numpy runtime (`qat.export.runtime`) computes the same from the packed files, by other code.

With step s_w per output channel, s_x of the ifm, s_y of the ofm and batch norm y = g * z + h per channel:

    codes_y = round(acc * M + h / s_y),  acc = sum(q_w * q_x),  M = g * s_w * s_x / s_y

    multiplier = round(M * 2**shift),  bias = round(h / s_y * 2**(shift - bias_shift))

One shift serves all channels of a layer: the largest multiplier uses all 16 bits, and so does the largest bias.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from hwmodel.network import INPUT, NORMALIZING, RELAYING, LayerSpec, Op
from hwmodel.precision import WeightFormat
from qat.convert import QuantNetwork, as_results
from qat.errors import ExportError
from qat.graph import Node
from qat.integer import NORM_FRACTION_BITS, IntegerLayer, IntegerNetwork, Rescale, Table
from qat.integer_norm import normalize
from qat.layers import (
    QuantAdd,
    QuantAvgPool,
    QuantConcat,
    QuantLookup,
    QuantMul,
    QuantNorm,
    QuantScale,
    QuantWeighted,
    WeightedCall,
    pad_uneven,
    relay_function,
)
from qat.normalization import Normalization
from qat.quantizers import ActQuantizer

MAX_SHIFT = 46
ACC_LIMIT = 2**31 - 1


def lower(model: QuantNetwork, normalization: Normalization, class_names: tuple[str, ...] = ()) -> IntegerNetwork:
    """The integers of a calibrated or trained model.

    Args:
        model: Quantized network on any device; its present weights, steps and statistics are used.
        normalization: What turns 8-bit images into the model's input.
        class_names: Names of the classes, for the manifest.

    Raises:
        ExportError: The model is no quantized one or was not calibrated, `normalization` is of other channels, a scale
            is not finite, or an accumulator could leave 32 bits; the message names the layer.
    """
    _require_quantized(model)
    if model.input_quantizer.scale.device.type != "cpu":
        model = deepcopy(model).cpu()
    channels = model.network.input_channels
    if len(normalization.mean) != channels:
        raise ExportError(
            f"normalization has {len(normalization.mean)} channels, expected {channels}: a mean and a deviation for "
            f"each channel of {model.network.name}'s input"
        )
    if not model.calibrated:
        raise ExportError(
            f"{model.network.name} was not calibrated, its activations have no steps yet; call calibrate() or load a "
            "trained checkpoint"
        )
    with torch.no_grad():
        scales = {INPUT: float(model.input_quantizer.scale)}
        written = {INPUT: model.input_quantizer}  # quantizer whose codes a tensor holds
        layers: dict[str, IntegerLayer] = {}
        for node, spec in zip(model.graph.nodes, model.network.layers, strict=True):
            layer = model.layer(spec.name)
            source = written[spec.inputs[0]]
            if isinstance(layer, QuantLookup):
                lowered = _lower_lookup(layer, spec, source)
            else:
                lowered = _lower_layer(layer, node, spec, [scales[name] for name in spec.inputs])
            scales[spec.name] = lowered.ofm_scale
            written[spec.name] = getattr(layer, "ofm_quantizer", source)
            if isinstance(layer, WeightedCall):
                owner = None if spec.weights_of is None else layers[spec.weights_of]
                lowered = _with_weights(lowered, layer.weighted, owner)
                _check_accumulator(lowered, _largest_code(layer.input_quantizer or source))
            layers[spec.name] = lowered
        input_codes = _input_codes(model, normalization)
    return IntegerNetwork(model.network, model.config, layers, input_codes, tuple(class_names))


def _require_quantized(model: QuantNetwork) -> None:
    if not isinstance(model, QuantNetwork):
        raise ExportError(
            f"model is a {type(model).__name__}, expected what qat.prepare returns; a float model goes through "
            "qat.prepare first"
        )


def _largest_code(quantizer: ActQuantizer | Rescale | Table) -> int:
    return max(-quantizer.quant_min, quantizer.quant_max)


def _check_accumulator(layer: IntegerLayer, largest_code: int) -> None:
    assert layer.weight is not None
    sums = np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3)) * largest_code
    bound = int(sums.max())
    if bound > ACC_LIMIT:
        raise ExportError(
            f"layer {layer.name!r}: the accumulator can reach {bound}, more than 32 bits hold ({ACC_LIMIT}); use fewer "
            "weight or activation bits in this layer, or fewer products per output (groups, pruning)"
        )


def _input_codes(model: QuantNetwork, normalization: Normalization) -> NDArray[np.int16]:
    """Codes of the 256 levels of each channel: the very operations of training, on every possible value."""
    channels = model.network.input_channels
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, channels, 1, 1)
    quantizer = model.input_quantizer
    values = quantizer(normalization(levels))
    codes = (values / quantizer.scale).round().to(torch.int16)
    return np.ascontiguousarray(codes[:, :, 0, 0].numpy().T)


def _lower_layer(layer: nn.Module, node: Node, spec: LayerSpec, input_scales: list[float]) -> IntegerLayer:
    if isinstance(layer, WeightedCall):
        return _lower_weighted(layer, node, input_scales[0])
    if isinstance(layer, QuantScale):
        gain, offset = _batch_norm(layer.batch_norm, None)
        return _requantized(node, gain * input_scales[0], offset, layer.ofm_quantizer)
    if isinstance(layer, QuantNorm):
        weight, bias = (values.double().expand(spec.out_channels).numpy() for values in layer.affine)
        lowered = _requantized(node, weight * 2.0**-NORM_FRACTION_BITS, bias, layer.ofm_quantizer)
        return replace(lowered, epsilon=_epsilon(spec, layer.eps, input_scales[0]))
    if isinstance(layer, QuantAdd | QuantConcat | QuantAvgPool | QuantMul):
        quantizer = layer.ofm_quantizer
        scale = float(quantizer.scale)
        window = spec.kernel_size[0] * spec.kernel_size[1] if spec.op is Op.AVG_POOL else 1
        steps = np.array([math.prod(input_scales)] if spec.op is Op.MUL else input_scales)
        rescale = _rescale(spec.name, steps / (scale * window), quantizer, node)
        return IntegerLayer(spec.name, rescale=rescale, ofm_scale=scale)
    return IntegerLayer(spec.name, ofm_scale=input_scales[0])


def _epsilon(spec: LayerSpec, eps: float, input_scale: float) -> int:
    """What a norm adds to the variance, in the unit of the spread: n**2 squared steps."""
    if spec.op is not Op.GROUP_NORM:
        return 0
    epsilon = spec.normalized_values**2 * eps / input_scale**2
    if epsilon >= 2**62:
        raise ExportError(
            f"layer {spec.name!r}: eps={eps} is {eps / input_scale**2:.3g} squared steps of the ifm, too much for the "
            f"spread of {spec.normalized_values} values in 62 bits; use a smaller eps, or fewer bits for sums"
        )
    return round(epsilon)


def _lower_lookup(layer: QuantLookup, spec: LayerSpec, source: ActQuantizer) -> IntegerLayer:
    """The table of a function: the very operations of training, on every code that the producer can write."""
    quantizer = layer.ofm_quantizer
    codes = torch.arange(source.quant_min, source.quant_max + 1, dtype=torch.float32)
    results = (layer(codes * source.scale) / quantizer.scale).round().to(torch.int32).numpy()
    table = Table(results, source.quant_min, quantizer.quant_min, quantizer.quant_max)
    return IntegerLayer(spec.name, ofm_scale=float(quantizer.scale), table=table)


def _lower_weighted(layer: WeightedCall, node: Node, input_scale: float) -> IntegerLayer:
    weighted = layer.weighted
    input_rescale = None
    if layer.input_quantizer is not None:
        own_scale = float(layer.input_quantizer.scale)
        input_rescale = _rescale(node.name, np.array([input_scale / own_scale]), layer.input_quantizer)
        input_scale = own_scale
    channels = weighted.weight.shape[0]
    bias = np.zeros(channels) if weighted.bias is None else weighted.bias.double().numpy()
    norm = weighted.batch_norm
    gain, offset = (np.ones(channels), bias) if norm is None else _batch_norm(norm, bias)
    acc_scale = weighted.weight_quantizer.scale.flatten().double().numpy() * input_scale
    # Where all codes are 0, so is the sum.  Its gain, mostly large as such a sum has no variance, would leave the
    # others few bits of the multipliers.
    is_used = weighted.weight_quantizer.codes(weighted.weight_OIHW).flatten(1).any(1).numpy()
    lowered = _requantized(node, np.where(is_used, gain * acc_scale, 0.0), offset, layer.ofm_quantizer)
    return replace(lowered, input_rescale=input_rescale)


def _with_weights(lowered: IntegerLayer, weighted: QuantWeighted, owner: IntegerLayer | None) -> IntegerLayer:
    """A layer with its codes, or with those of the layer that it shares them with."""
    if owner is not None:
        return replace(lowered, weight=owner.weight, mask=owner.mask)
    quantizer = weighted.weight_quantizer
    mask = quantizer.mask.numpy().copy() if quantizer.mask is not None else None
    return replace(
        lowered,
        weight=quantizer.codes(weighted.weight_OIHW).numpy(),
        mask=mask if quantizer.config.weight_format is not WeightFormat.DENSE else None,
    )


def _requantized(
    node: Node, gain: NDArray[np.float64], offset: NDArray[np.float64], quantizer: ActQuantizer
) -> IntegerLayer:
    """The requantization of acc * gain + offset, per channel."""
    ofm_scale = float(quantizer.scale)
    rescale = _rescale(node.name, gain / ofm_scale, quantizer, node)
    bias = offset / ofm_scale * 2.0**rescale.shift
    if not np.isfinite(bias).all():
        raise ExportError(f"layer {node.name!r}: a bias is not finite; was the model trained with too large steps?")
    bias_shift = max(0, math.ceil(math.log2(max(np.abs(bias).max(), 1.0) / 32767)))
    bias_shift = min(bias_shift, MAX_SHIFT)  # a bias clipped by this is 2**15 steps of the ofm: it saturates any code
    return IntegerLayer(
        node.name,
        rescale=rescale,
        bias=np.clip(np.round(bias / 2.0**bias_shift), -32768, 32767).astype(np.int16),
        bias_shift=bias_shift,
        ofm_scale=ofm_scale,
    )


def _batch_norm(
    norm: nn.BatchNorm2d | FrozenBatchNorm2d, bias: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gain and offset per channel of y = gain * z + offset, the bias in front of the norm included."""
    assert norm.running_mean is not None and norm.running_var is not None
    channels = len(norm.running_mean)
    bias = np.zeros(channels) if bias is None else bias
    weight = torch.ones(channels) if norm.weight is None else norm.weight
    shift = torch.zeros(channels) if norm.bias is None else norm.bias
    gain = (weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).numpy()
    return gain, shift.double().numpy() + gain * (bias - norm.running_mean.double().numpy())


def _rescale(name: str, factors: NDArray[np.float64], quantizer: ActQuantizer, node: Node | None = None) -> Rescale:
    """Multipliers and shift for real factors; the largest multiplier uses 15 bits and sign.

    Args:
        name: Name of the layer, for messages.
        factors: What sums are multiplied by.
        quantizer: Of the result.
        node: The layer, if its activation is part of the requantization.
    """
    largest = float(np.abs(factors).max())
    if not math.isfinite(largest):
        raise ExportError(f"layer {name!r}: scale factor {largest} cannot become an integer; was the model calibrated?")
    # Where all factors are 0, biases alone count: as if one were 1.
    shift = math.floor(math.log2(32767 / (largest or 1.0)))
    if shift < 1:
        raise ExportError(
            f"layer {name!r}: the ofm's step is {largest:.3g} times smaller than the accumulator's; "
            "calibrate on more images or use more activation bits"
        )
    shift = min(shift, MAX_SHIFT)
    multiplier = np.clip(np.round(factors * 2.0**shift), -32768, 32767).astype(np.int16)
    quant_min, quant_max, negative_shift = quantizer.quant_min, quantizer.quant_max, 0
    activation = "none" if node is None else node.activation
    if activation in ("relu", "relu6"):
        quant_min = 0
    if activation == "relu6":
        quant_max = int((quantizer(torch.tensor(6.0)) / quantizer.scale).round())
    if activation == "leaky_relu" and node is not None:
        negative_shift = -round(math.log2(node.negative_slope))
    return Rescale(multiplier, shift, quant_min, quant_max, negative_shift)


def deploy(model: QuantNetwork, normalization: Normalization | None = None) -> DeployedNetwork:
    """The integer form of a quantized model in torch: what the accelerator computes, code for code.

    Args:
        model: Calibrated or trained quantized network.
        normalization: What turns 8-bit images into the model's input; by default division by 255.

    Raises:
        ExportError: The model cannot be lowered to integers; the message names the layer.
    """
    _require_quantized(model)
    if normalization is None:
        normalization = Normalization.unit(model.network.input_channels)
    return DeployedNetwork(lower(model, normalization), model.graph.nodes)


class DeployedNetwork(nn.Module):
    """Integer inference in torch.

    Sums of products are computed in float32 where every partial sum is below 2**24, else in float64 (below 2**53):
    both are exact.  Everything else is int64.  `torch.export` takes it: no step depends on values.

    Args:
        integers: What `lower` returns.
        nodes: Layers of the graph, for the operations that only move codes.
    """

    def __init__(self, integers: IntegerNetwork, nodes: tuple[Node, ...]) -> None:
        super().__init__()
        self.integers = integers
        self.moves = {node.name: relay_function(node) for node in nodes if node.op in RELAYING}
        self.register_buffer("input_codes", torch.from_numpy(integers.input_codes.astype(np.int64)))
        self._place = {spec.name: place for place, spec in enumerate(integers.network.layers)}
        largest = {INPUT: int(np.abs(integers.input_codes.astype(np.int64)).max())}
        for spec in integers.network.layers:
            layer = integers.layers[spec.name]
            written = layer.rescale or layer.table
            largest[spec.name] = largest[spec.inputs[0]] if written is None else _largest_code(written)
            self._hold(spec, layer)
            if layer.weight is not None:
                self._hold_weight(spec, layer, largest[spec.inputs[0]])

    def _hold(self, spec: LayerSpec, layer: IntegerLayer) -> None:
        """Keeps a layer's multipliers, biases and table as tensors."""
        numbers: dict[str, NDArray[np.integer] | None] = {
            "multiplier": None if layer.rescale is None else layer.rescale.multiplier,
            "bias": None if layer.bias is None else layer.bias.astype(np.int64) << layer.bias_shift,
            "table": None if layer.table is None else layer.table.codes,
        }
        for name, values in numbers.items():
            if values is not None:
                tensor = torch.from_numpy(values.astype(np.int64))
                self.register_buffer(f"{name}_{self._place[spec.name]}", tensor, persistent=False)

    def _hold_weight(self, spec: LayerSpec, layer: IntegerLayer, largest_code: int) -> None:
        """Keeps a layer's weights; those of several calls once, wide enough for the largest sum of each."""
        assert layer.weight is not None
        name = f"weight_{self._place[spec.weights_of or spec.name]}"
        reads = largest_code if layer.input_rescale is None else _largest_code(layer.input_rescale)
        reach = int(np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3)).max()) * reads
        dtype = torch.float32 if reach < 2**24 else torch.float64
        if spec.weights_of is None or dtype is torch.float64:
            self.register_buffer(name, torch.from_numpy(layer.weight).to(dtype), persistent=False)

    def _number(self, name: str, spec: LayerSpec) -> Tensor:
        return self.get_buffer(f"{name}_{self._place[spec.name]}")

    @property
    def output_scales(self) -> tuple[float, ...]:
        """Value of one step of the codes of each result, in the order of `NetworkSpec.outputs`."""
        return self.integers.output_scales

    @torch.no_grad()
    def forward(self, images_NCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Output codes, int64 (N, classes) or (N, C, H, W), of uint8 images (N, C, H, W); several as a tuple."""
        codes = self.layer_codes(images_NCHW)
        return as_results([codes[name] for name in self.integers.network.outputs])

    @torch.no_grad()
    def layer_codes(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """Codes of every layer's ofm, int64 (N, C, H, W), by layer name.

        Args:
            images_NCHW: uint8 images of the network's input shape.

        Raises:
            TypeError: The images have another type.
            ValueError: The images have another shape.
        """
        network = self.integers.network
        if images_NCHW.dtype != torch.uint8:
            raise TypeError(f"images have dtype {images_NCHW.dtype}, expected torch.uint8")
        want = (network.input_channels, network.input_height, network.input_width)
        if images_NCHW.dim() != 4 or images_NCHW.shape[1:] != want:
            raise ValueError(
                f"images are uint8 of shape {tuple(images_NCHW.shape)}, expected uint8 of shape (N, "
                f"{', '.join(map(str, want))})"
            )
        assert isinstance(self.input_codes, Tensor)
        channels = torch.arange(images_NCHW.shape[1], device=images_NCHW.device)[None, :, None, None]
        codes = {INPUT: self.input_codes[channels, images_NCHW.long()]}
        for spec in self.integers.network.layers:
            codes[spec.name] = self.compute(spec.name, [codes[name] for name in spec.inputs])
        del codes[INPUT]
        return codes

    @torch.no_grad()
    def compute(self, name: str, operands: list[Tensor]) -> Tensor:
        """Codes of a layer's ofm, int64 (N, C, H, W), from those of its operands."""
        spec, layer = self.integers.network.layers[self._place[name]], self.integers.layers[name]
        if spec.has_weights:
            return self._weighted(spec, layer, operands[0])
        if layer.table is not None:
            return self._number("table", spec)[operands[0] - layer.table.first_code]
        if layer.rescale is None:
            return self.moves[spec.name](operands[0].double()).long()
        multiplier = self._number("multiplier", spec)
        if spec.op is Op.ADD:
            terms = [x * m for x, m in zip(operands, multiplier, strict=True)]
            return _shift_clamp(sum(terms[1:], terms[0]), layer.rescale)
        if spec.op is Op.CONCAT:
            parts = [_shift_clamp(x * m, layer.rescale) for x, m in zip(operands, multiplier, strict=True)]
            return torch.cat(parts, 1)
        if spec.op is Op.MUL:
            return _shift_clamp(operands[0] * operands[1] * multiplier, layer.rescale)
        if spec.op is Op.SCALE:
            return self._per_channel(spec, layer.rescale, operands[0])
        if spec.op in NORMALIZING:
            return self._per_channel(spec, layer.rescale, normalize(spec, layer.epsilon, operands[0]))
        maps = operands[0].double()
        window = F.avg_pool2d(maps, spec.kernel_size, spec.stride, spec.padding, divisor_override=1)
        return _shift_clamp(window.long() * multiplier, layer.rescale)

    def _weighted(self, spec: LayerSpec, layer: IntegerLayer, codes: Tensor) -> Tensor:
        assert layer.rescale is not None
        if layer.input_rescale is not None:
            codes = _shift_clamp(codes * int(layer.input_rescale.multiplier[0]), layer.input_rescale)
        weight = self.get_buffer(f"weight_{self._place[spec.weights_of or spec.name]}")
        if codes.is_cuda:  # cuDNN computes float32 as it likes, in TF32 or by Winograd: exact is float64 alone
            weight = weight.double()
        x = pad_uneven(codes, spec.padding, spec.end_padding).to(weight.dtype)
        acc = F.conv2d(x, weight, None, spec.stride, 0, spec.dilation, spec.groups).long()
        return self._per_channel(spec, layer.rescale, acc)

    def _per_channel(self, spec: LayerSpec, rescale: Rescale, acc: Tensor) -> Tensor:
        multiplier, bias = self._number("multiplier", spec), self._number("bias", spec)
        return _shift_clamp(acc * multiplier[None, :, None, None] + bias[None, :, None, None], rescale)


def _shift_clamp(product: Tensor, rescale: Rescale) -> Tensor:
    shifted = (product + (1 << (rescale.shift - 1))) >> rescale.shift
    if rescale.negative_shift:
        shift = rescale.shift + rescale.negative_shift
        shifted = torch.where(product < 0, (product + (1 << (shift - 1))) >> shift, shifted)
    return shifted.clamp(rescale.quant_min, rescale.quant_max)
