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

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hwmodel.network import INPUT, LayerSpec, Op
from hwmodel.precision import WeightFormat
from qat.convert import QuantNetwork
from qat.errors import ExportError
from qat.graph import Node
from qat.integer import IntegerLayer, IntegerNetwork, Rescale
from qat.layers import QuantAdd, QuantAvgPool, QuantConcat, QuantWeighted, relay_function
from qat.normalization import Normalization
from qat.quantizers import ActQuantizer

MAX_SHIFT = 46
ACC_LIMIT = 2**31 - 1


def lower(model: QuantNetwork, normalization: Normalization, class_names: tuple[str, ...] = ()) -> IntegerNetwork:
    """The integers of a calibrated or trained model.

    Args:
        model: Quantized network; its present weights, steps and statistics are used.
        normalization: What turns 8-bit images into the model's input.
        class_names: Names of the classes, for the manifest.

    Raises:
        ExportError: A scale is not finite, or an accumulator could leave 32 bits; the message names the layer.
    """
    with torch.no_grad():
        scales = {INPUT: float(model.input_quantizer.scale)}
        largest = {INPUT: _largest_code(model.input_quantizer)}
        layers = {}
        for spec in model.network.layers:
            layer = model.layer(spec.name)
            lowered = _lower_layer(layer, spec, [scales[name] for name in spec.inputs])
            quantizer = getattr(layer, "ofm_quantizer", None)
            scales[spec.name] = lowered.ofm_scale
            largest[spec.name] = _largest_code(quantizer) if quantizer is not None else largest[spec.inputs[0]]
            if isinstance(layer, QuantWeighted):
                read = layer.input_quantizer
                _check_accumulator(lowered, largest[spec.inputs[0]] if read is None else _largest_code(read))
            layers[spec.name] = lowered
        input_codes = _input_codes(model, normalization)
    return IntegerNetwork(model.network, model.config, layers, input_codes, tuple(class_names))


def _largest_code(quantizer: ActQuantizer) -> int:
    return max(-quantizer.quant_min, quantizer.quant_max)


def _check_accumulator(layer: IntegerLayer, largest_code: int) -> None:
    assert layer.weight is not None
    sums = np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3)) * largest_code
    bound = int(sums.max())
    if bound > ACC_LIMIT:
        raise ExportError(
            f"layer {layer.name!r}: the accumulator can reach {bound}, more than 32 bits hold ({ACC_LIMIT}); "
            "use fewer weight or activation bits in this layer"
        )


def _input_codes(model: QuantNetwork, normalization: Normalization) -> NDArray[np.int16]:
    """Codes of the 256 levels of each channel: the very operations of training, on every possible value."""
    channels = model.network.input_channels
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, channels, 1, 1)
    quantizer = model.input_quantizer
    values = quantizer(normalization(levels))
    codes = (values / quantizer.scale).round().to(torch.int16)
    return np.ascontiguousarray(codes[:, :, 0, 0].numpy().T)


def _lower_layer(layer: nn.Module, spec: LayerSpec, input_scales: list[float]) -> IntegerLayer:
    if isinstance(layer, QuantWeighted):
        return _lower_weighted(layer, spec, input_scales[0])
    if isinstance(layer, QuantAdd | QuantConcat | QuantAvgPool):
        quantizer = layer.ofm_quantizer
        scale = float(quantizer.scale)
        window = spec.kernel_size[0] * spec.kernel_size[1] if spec.op is Op.AVG_POOL else 1
        factors = np.array(input_scales) / (scale * window)
        return IntegerLayer(spec.name, rescale=_rescale(spec.name, factors, quantizer), ofm_scale=scale)
    return IntegerLayer(spec.name, ofm_scale=input_scales[0])


def _lower_weighted(layer: QuantWeighted, spec: LayerSpec, input_scale: float) -> IntegerLayer:
    name, quantizer = spec.name, layer.weight_quantizer
    input_rescale = None
    if layer.input_quantizer is not None:
        own_scale = float(layer.input_quantizer.scale)
        input_rescale = _rescale(name, np.array([input_scale / own_scale]), layer.input_quantizer)
        input_scale = own_scale
    ofm_scale = float(layer.ofm_quantizer.scale)
    gain, offset = _batch_norm(layer)
    acc_scale = quantizer.scale.flatten().double().numpy() * input_scale
    rescale = _rescale(name, gain * acc_scale / ofm_scale, layer.ofm_quantizer)
    bias = offset / ofm_scale * 2.0**rescale.shift
    bias_shift = max(0, math.ceil(math.log2(max(np.abs(bias).max(), 1.0) / 32767)))
    weight = quantizer.codes(layer.weight_OIHW).numpy()
    mask = quantizer.mask.numpy().copy() if quantizer.mask is not None else None
    return IntegerLayer(
        name,
        rescale=rescale,
        weight=weight,
        mask=mask if quantizer.config.weight_format is not WeightFormat.DENSE else None,
        bias=np.clip(np.round(bias / 2.0**bias_shift), -32768, 32767).astype(np.int16),
        bias_shift=bias_shift,
        input_rescale=input_rescale,
        ofm_scale=ofm_scale,
    )


def _batch_norm(layer: QuantWeighted) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gain and offset per channel of y = gain * z + offset, the layer's own bias included."""
    channels = layer.weight.shape[0]
    bias = np.zeros(channels) if layer.bias is None else layer.bias.double().numpy()
    norm = layer.batch_norm
    if norm is None:
        return np.ones(channels), bias
    assert norm.running_mean is not None and norm.running_var is not None
    weight = torch.ones(channels) if norm.weight is None else norm.weight
    shift = torch.zeros(channels) if norm.bias is None else norm.bias
    gain = (weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).numpy()
    return gain, shift.double().numpy() + gain * (bias - norm.running_mean.double().numpy())


def _rescale(name: str, factors: NDArray[np.float64], quantizer: ActQuantizer) -> Rescale:
    """Multipliers and shift for real factors; the largest multiplier uses 15 bits and sign."""
    largest = float(np.abs(factors).max())
    if not math.isfinite(largest) or largest == 0:
        raise ExportError(f"layer {name!r}: scale factor {largest} cannot become an integer; was the model calibrated?")
    shift = math.floor(math.log2(32767 / largest))
    if shift < 1:
        raise ExportError(
            f"layer {name!r}: the ofm's step is {largest:.3g} times smaller than the accumulator's; "
            "calibrate on more images or use more activation bits"
        )
    shift = min(shift, MAX_SHIFT)
    multiplier = np.clip(np.round(factors * 2.0**shift), -32768, 32767).astype(np.int16)
    return Rescale(multiplier, shift, quantizer.quant_min, quantizer.quant_max)


def deploy(model: QuantNetwork, normalization: Normalization | None = None) -> DeployedNetwork:
    """The integer form of a quantized model in torch: what the accelerator computes, code for code.

    Args:
        model: Calibrated or trained quantized network.
        normalization: What turns 8-bit images into the model's input; by default division by 255.

    Raises:
        ExportError: The model cannot be lowered to integers; the message names the layer.
    """
    if normalization is None:
        normalization = Normalization.unit(model.network.input_channels)
    return DeployedNetwork(lower(model, normalization), model.graph.nodes)


class DeployedNetwork(nn.Module):
    """Integer inference in torch.

    Sums of products are computed in float32 where every partial sum is below 2**24, else in float64 (below 2**53):
    both are exact.  Everything else is int64.

    Args:
        integers: What `lower` returns.
        nodes: Layers of the graph, for the operations that only move codes.
    """

    def __init__(self, integers: IntegerNetwork, nodes: tuple[Node, ...]) -> None:
        super().__init__()
        self.integers = integers
        self.moves = {node.name: relay_function(node) for node in nodes if integers.layers[node.name].rescale is None}
        self.register_buffer("input_codes", torch.from_numpy(integers.input_codes.astype(np.int64)))

    @property
    def output_scale(self) -> float:
        """Value of one step of the output codes."""
        return self.integers.layers[self.integers.network.layers[-1].name].ofm_scale

    @torch.no_grad()
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Output codes, int64 (N, classes) or (N, C, H, W), of uint8 images (N, C, H, W)."""
        result = self.layer_codes(images_NCHW)[self.integers.network.layers[-1].name]
        return result.flatten(1) if result.shape[2:] == (1, 1) else result

    @torch.no_grad()
    def layer_codes(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """Codes of every layer's ofm, int64 (N, C, H, W), by layer name.

        Args:
            images_NCHW: uint8 images.
        """
        if images_NCHW.dtype != torch.uint8:
            raise TypeError(f"images have dtype {images_NCHW.dtype}, expected torch.uint8")
        assert isinstance(self.input_codes, Tensor)
        channels = torch.arange(images_NCHW.shape[1])[None, :, None, None]
        codes = {INPUT: self.input_codes[channels, images_NCHW.long()]}
        for spec in self.integers.network.layers:
            operands = [codes[name] for name in spec.inputs]
            codes[spec.name] = self._layer(spec, self.integers.layers[spec.name], operands)
        del codes[INPUT]
        return codes

    def _layer(self, spec: LayerSpec, layer: IntegerLayer, operands: list[Tensor]) -> Tensor:
        if spec.has_weights:
            return self._weighted(spec, layer, operands[0])
        if layer.rescale is None:
            return self.moves[spec.name](operands[0].double()).long()
        multiplier = torch.from_numpy(layer.rescale.multiplier.astype(np.int64))
        if spec.op is Op.ADD:
            total = sum((x * m for x, m in zip(operands, multiplier, strict=True)), torch.zeros((), dtype=torch.int64))
            return _shift_clamp(total, layer.rescale)
        if spec.op is Op.CONCAT:
            parts = [_shift_clamp(x * m, layer.rescale) for x, m in zip(operands, multiplier, strict=True)]
            return torch.cat(parts, 1)
        window = F.avg_pool2d(operands[0].double(), spec.kernel_size, spec.stride, divisor_override=1)
        return _shift_clamp(window.long() * multiplier, layer.rescale)

    @staticmethod
    def _weighted(spec: LayerSpec, layer: IntegerLayer, codes: Tensor) -> Tensor:
        assert layer.weight is not None and layer.bias is not None and layer.rescale is not None
        if layer.input_rescale is not None:
            codes = _shift_clamp(codes * int(layer.input_rescale.multiplier[0]), layer.input_rescale)
        reach = int(np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3)).max()) * int(codes.abs().max())
        exact = torch.float32 if reach < 2**24 else torch.float64
        weight = torch.from_numpy(layer.weight).to(exact)
        acc = F.conv2d(codes.to(exact), weight, None, spec.stride, spec.padding, spec.dilation, spec.groups).long()
        multiplier = torch.from_numpy(layer.rescale.multiplier.astype(np.int64))[None, :, None, None]
        bias = torch.from_numpy(layer.bias.astype(np.int64) << layer.bias_shift)[None, :, None, None]
        return _shift_clamp(acc * multiplier + bias, layer.rescale)


def _shift_clamp(product: Tensor, rescale: Rescale) -> Tensor:
    shifted = (product + (1 << (rescale.shift - 1))) >> rescale.shift
    return shifted.clamp(rescale.quant_min, rescale.quant_max)
