"""Is a network in integers consistent?  Asked before it is written, and again when it has been read."""

from __future__ import annotations

from math import isfinite

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import AFFINE, RELAYING, LayerSpec, Op
from hwmodel.precision import LayerConfig, WeightFormat, group_shape, kept_groups
from qat.errors import ExportError
from qat.export.bounds import accumulator_bounds, code_ranges
from qat.integer import BINARY_SHIFT, IntegerLayer, IntegerNetwork, Rescale

MAX_SHIFT = 46
"""Largest shift: a 16-bit multiplier or bias, shifted or times an int32 accumulator, stays within 62 bits."""

MAX_NEGATIVE_SHIFT = 7
"""Smallest slope of a leaky ReLU: 2**-7."""

CODE_LIMITS = (-(2**15), 2**16 - 1)
"""Codes of activations: 16 bits, signed or unsigned."""

MAX_TENSOR_ELEMENTS = 1 << 28
"""Largest feature map, padding included, per image; keeps a crafted description from exhausting the memory."""


def check_network(network: IntegerNetwork) -> None:
    """Raises unless packing loses nothing and inference is exact.

    Raises:
        ExportError: A layer's numbers do not fit its description, or an accumulator can overflow.
        hwmodel.SpecError: The configuration is not of this network.
    """
    network.config.check_matches(network.network)
    names = [spec.name for spec in network.network.layers]
    if not names:
        raise ExportError(f"network {network.network.name!r} has no layers")
    if sorted(network.layers) != sorted(names):
        raise ExportError(f"integers are given for layers {sorted(network.layers)}, the network has {names}")
    _check_input(network)
    for spec in network.network.layers:
        config = network.config[spec.name] if spec.has_weights else None
        try:
            _check_geometry(spec)
            _check_layer(spec, config, network.layers[spec.name])
            if spec.weights_of is not None:
                _check_shared(spec.weights_of, network.layers[spec.weights_of], network.layers[spec.name])
        except ValueError as error:
            raise ExportError(f"layer {spec.name!r}: {error}") from error
    _check_tables(network)
    accumulator_bounds(network)


def _check_input(network: IntegerNetwork) -> None:
    codes, spec = network.input_codes, network.network
    if codes.shape != (spec.input_channels, 256) or codes.dtype.kind not in "iu":
        raise ExportError(
            f"input_codes are {codes.dtype} of shape {codes.shape}, expected integers ({spec.input_channels}, 256)"
        )
    half = 1 << (network.config.input_bit_width - 1)
    if codes.min() < -half or codes.max() >= half:
        raise ExportError(f"input_codes reach {codes.min()}..{codes.max()}, expected {-half}..{half - 1}")


def _check_geometry(spec: LayerSpec) -> None:
    """What `LayerSpec` leaves open but integer inference needs."""
    padded_height = spec.in_height + spec.padding[0] + spec.end_padding[0]
    padded_width = spec.in_width + spec.padding[1] + spec.end_padding[1]
    largest = max(spec.in_channels * padded_height * padded_width, spec.out_channels * spec.out_height * spec.out_width)
    if largest > MAX_TENSOR_ELEMENTS:
        raise ValueError(f"a feature map has {largest} elements, at most {MAX_TENSOR_ELEMENTS} are supported")
    if spec.op is Op.MAX_POOL and not all(_windows_hold_pixels(spec, axis) for axis in (0, 1)):
        raise ValueError("a max pool window lies in the padding altogether; use less padding or dilation")


def _windows_hold_pixels(spec: LayerSpec, axis: int) -> bool:
    """Whether every window of a pool has a tap on a real row (axis 0) or column (axis 1)."""
    count, size = ((spec.out_height, spec.in_height), (spec.out_width, spec.in_width))[axis]
    first_tap = np.arange(count) * spec.stride[axis] - spec.padding[axis]
    skipped = -(np.minimum(first_tap, 0) // spec.dilation[axis])  # taps before the map: ceil(-first / dilation)
    inside = first_tap + skipped * spec.dilation[axis]
    return bool(np.all((skipped < spec.kernel_size[axis]) & (inside < size)))


def _check_layer(spec: LayerSpec, config: LayerConfig | None, layer: IntegerLayer) -> None:
    if not (isfinite(layer.ofm_scale) and layer.ofm_scale > 0):
        raise ValueError(f"ofm_scale={layer.ofm_scale}, expected a finite number > 0")
    if (layer.table is not None) != (spec.op is Op.LOOKUP):
        raise ValueError(
            f"{spec.op} needs no table, only a lookup has one" if layer.table else "a lookup needs a table"
        )
    if type(layer.epsilon) is not int or layer.epsilon < 0 or (layer.epsilon and spec.op is not Op.GROUP_NORM):
        raise ValueError(f"epsilon={layer.epsilon!r}, expected an integer >= 0, and 0 but in a group norm")
    if spec.op in (*RELAYING, Op.LOOKUP):
        if layer.rescale is not None:
            raise ValueError(f"{spec.op} does no arithmetic; it cannot have a rescale")
    elif layer.rescale is None:
        raise ValueError(f"{spec.op} needs a rescale")
    else:
        _check_rescale("rescale", layer.rescale, _multipliers(spec))
    if config is not None:
        if layer.weight is None or layer.bias is None:
            raise ValueError("weight and bias are missing")
        _check_bias(layer, spec.out_channels)
        _check_weight(spec, config, layer.weight, layer.mask)
        if layer.input_rescale is not None:
            _check_rescale("input_rescale", layer.input_rescale, 1)
            if layer.input_rescale.negative_shift:
                raise ValueError(f"input_rescale.negative_shift={layer.input_rescale.negative_shift}, expected 0")
    elif any(value is not None for value in (layer.weight, layer.mask, layer.input_rescale)):
        raise ValueError(f"{spec.op} has no weights, mask or input_rescale")
    elif spec.op in AFFINE:
        if layer.bias is None:
            raise ValueError("bias is missing")
        _check_bias(layer, spec.out_channels)
    elif layer.bias is not None:
        raise ValueError(f"{spec.op} has no bias")


def _check_shared(name: str, owner: IntegerLayer, layer: IntegerLayer) -> None:
    """Weights that are stored once are the same."""
    for what, own, shared in (("weight", owner.weight, layer.weight), ("mask", owner.mask, layer.mask)):
        if own is not shared and not np.array_equal(own, shared):  # type: ignore[arg-type]
            raise ValueError(f"{what} is not that of {name!r}, which it uses")


def _multipliers(spec: LayerSpec) -> int:
    if spec.has_weights or spec.op in AFFINE:
        return spec.out_channels
    return 1 if spec.op is Op.MUL else len(spec.inputs)


def _check_tables(network: IntegerNetwork) -> None:
    """Every code that a producer can write has an entry."""
    ranges = code_ranges(network)
    for spec in network.network.layers:
        table = network.layers[spec.name].table
        if table is None:
            continue
        low, high = ranges[spec.inputs[0]]
        last = table.first_code + len(table.codes) - 1
        if table.codes.ndim != 1 or not table.first_code <= low <= high <= last:
            raise ExportError(
                f"layer {spec.name!r}: its table has entries for codes {table.first_code}..{last}, the ifm reaches "
                f"{low}..{high}"
            )
        if table.codes.min() < table.quant_min or table.codes.max() > table.quant_max:
            raise ExportError(
                f"layer {spec.name!r}: its table has codes {table.codes.min()}..{table.codes.max()}, expected within "
                f"{table.quant_min}..{table.quant_max}"
            )


def _check_rescale(name: str, rescale: Rescale, count: int) -> None:
    _check_int16(f"{name}.multiplier", rescale.multiplier, count)
    if not 1 <= rescale.shift <= MAX_SHIFT:
        raise ValueError(f"{name}.shift={rescale.shift}, expected 1..{MAX_SHIFT}")
    if not 0 <= rescale.negative_shift <= MAX_NEGATIVE_SHIFT:
        raise ValueError(f"{name}.negative_shift={rescale.negative_shift}, expected 0..{MAX_NEGATIVE_SHIFT}")
    low, high = CODE_LIMITS
    if not low <= rescale.quant_min <= rescale.quant_max <= high:
        raise ValueError(f"{name} clamps to {rescale.quant_min}..{rescale.quant_max}, expected within {low}..{high}")


def _check_bias(layer: IntegerLayer, count: int) -> None:
    assert layer.bias is not None
    _check_int16("bias", layer.bias, count)
    if not 0 <= layer.bias_shift <= MAX_SHIFT:
        raise ValueError(f"bias_shift={layer.bias_shift}, expected 0..{MAX_SHIFT}")


def _check_int16(name: str, values: NDArray[np.int16], count: int) -> None:
    if values.shape != (count,) or values.dtype != np.int16:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, expected int16 of shape ({count},)")


def _check_weight(
    spec: LayerSpec, config: LayerConfig, weight: NDArray[np.int8], mask: NDArray[np.bool_] | None
) -> None:
    if weight.shape != spec.weight_shape or weight.dtype != np.int8:
        raise ValueError(f"weight is {weight.dtype} of shape {weight.shape}, expected int8 {spec.weight_shape}")
    if config.weight_format is WeightFormat.DENSE:
        if mask is not None:
            raise ValueError("weight_format='dense' has no mask")
        _check_codes(weight, config.weight_bit_width)
        return
    grid = group_shape(spec.weight_shape, config.granularity)
    if mask is None or mask.shape != grid or mask.dtype != np.bool_:
        what = "missing" if mask is None else f"{mask.dtype} of shape {mask.shape}"
        raise ValueError(f"mask is {what}, expected bool of shape {grid}")
    kept = kept_groups(mask.size, config.sparsity)
    if np.count_nonzero(mask) != kept:
        raise ValueError(f"mask keeps {np.count_nonzero(mask)} groups, sparsity={config.sparsity} means {kept}")
    dropped = np.where(mask, np.int8(0), weight)
    if config.weight_format is WeightFormat.SPARSE:
        if np.any(dropped):
            raise ValueError("a weight outside the mask is not 0")
        _check_codes(np.where(mask, weight, np.int8(1)), config.weight_bit_width)
        return
    sign = 1 << BINARY_SHIFT
    if np.any((np.abs(dropped.astype(np.int16)) != sign) & ~np.broadcast_to(mask, weight.shape)):
        raise ValueError(f"a weight outside the sparse plane is not -{sign} or +{sign}")


def _check_codes(weight: NDArray[np.int8], bit_width: int) -> None:
    low, high = int(weight.min()), int(weight.max())
    if bit_width == 1:
        if np.any((weight != 1) & (weight != -1)):
            raise ValueError(f"weight codes reach {low}..{high}, a 1-bit weight is -1 or +1")
        return
    half = 1 << (bit_width - 1)
    if low < -half or high >= half:
        raise ValueError(f"weight codes reach {low}..{high}, {bit_width} bits hold {-half}..{half - 1}")
