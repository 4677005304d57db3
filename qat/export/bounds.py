"""Ranges that no input can leave: codes of every tensor, accumulators of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, prod

import numpy as np

from hwmodel.network import INPUT, NORMALIZING, LayerSpec, Op
from qat.errors import ExportError
from qat.integer import NORM_FRACTION_BITS, IntegerLayer, IntegerNetwork

ACCUMULATOR_LIMIT = 2**31 - 1
"""Largest magnitude of an accumulator: int32."""
SPREAD_LIMIT = 2**62
"""What the spread of a group stays below: its powers of 4 are counted in int64."""


def code_ranges(network: IntegerNetwork) -> Mapping[str, tuple[int, int]]:
    """Smallest and largest code that each tensor can hold, by producer name (`"input"` included)."""
    ranges = {INPUT: (int(network.input_codes.min()), int(network.input_codes.max()))}
    for spec in network.network.layers:
        layer = network.layers[spec.name]
        written = layer.rescale or layer.table
        if written is not None:
            ranges[spec.name] = (written.quant_min, written.quant_max)
        else:
            low, high = ranges[spec.inputs[0]]
            padded = spec.op is Op.SUBSAMPLE and spec.out_channels > spec.in_channels
            ranges[spec.name] = (min(low, 0), max(high, 0)) if padded else (low, high)
    return ranges


def accumulator_bound(spec: LayerSpec, layer: IntegerLayer, operand_ranges: list[tuple[int, int]]) -> int:
    """Largest magnitude that any partial sum of a layer can reach; 0 for layers that only move codes.

    Convolution and linear layers: largest sum of |weight| of an output channel, times the largest |code|.  Average
    pools: the window times the largest |code|.  Additions and concatenations: |multiplier| times |code|, summed over
    operands (they multiply first).  Gates: the product of both operands' largest |code|.  Normalisations: the root of
    the number of values, rounded up, which no value is further from the mean in deviations; a pixel's channels divided
    by their length stay far below it.
    """
    largest = [max(-low, high) for low, high in operand_ranges]
    if layer.weight is not None:
        if layer.input_rescale is not None:
            largest = [max(-layer.input_rescale.quant_min, layer.input_rescale.quant_max)]
        rows = layer.weight.reshape(layer.weight.shape[0], -1).astype(np.int32)
        return int(np.abs(rows).sum(1, dtype=np.int64).max()) * largest[0]
    if layer.rescale is None:
        return 0
    if spec.op is Op.AVG_POOL:
        return spec.kernel_size[0] * spec.kernel_size[1] * largest[0]
    if spec.op in (Op.MUL, Op.SCALE):
        return prod(largest)
    if spec.op in NORMALIZING:
        return (isqrt(spec.normalized_values) + 2) << NORM_FRACTION_BITS
    products = [abs(int(m)) * code for m, code in zip(layer.rescale.multiplier, largest, strict=True)]
    return sum(products) if spec.op is Op.ADD else max(products)


def check_spread(spec: LayerSpec, epsilon: int, largest_code: int) -> None:
    """Raises unless what a normalisation measures stays within its integers.

    Args:
        spec: The layer.
        epsilon: What is added to the spread of a group.
        largest_code: Largest magnitude of a code of the ifm.

    Raises:
        ExportError: It does not; the message names the cure.
    """
    reach = spec.normalized_values * largest_code
    if reach > ACCUMULATOR_LIMIT or reach**2 + epsilon >= SPREAD_LIMIT:
        raise ExportError(
            f"layer {spec.name!r}: the sum of a group can reach {reach}, int32 ends at {ACCUMULATOR_LIMIT}; its square "
            f"and epsilon={epsilon} must stay below 2**62; use fewer bits for sums, more groups or smaller maps"
        )


def accumulator_bounds(network: IntegerNetwork) -> Mapping[str, int]:
    """Largest magnitude of the accumulator of each layer, for any image.

    Raises:
        ExportError: A layer with weights, an average pool or a gate can leave int32, or the spread of a group int64;
            the message names it and the cure.
    """
    ranges = code_ranges(network)
    bounds = {}
    for spec in network.network.layers:
        bound = accumulator_bound(spec, network.layers[spec.name], [ranges[name] for name in spec.inputs])
        if spec.op in NORMALIZING:
            low, high = ranges[spec.inputs[0]]
            check_spread(spec, network.layers[spec.name].epsilon, max(-low, high))
        if bound > ACCUMULATOR_LIMIT and spec.op not in (Op.ADD, Op.CONCAT):  # those sum in 48 bits
            raise ExportError(
                f"layer {spec.name!r}: the accumulator can reach {bound}, int32 ends at {ACCUMULATOR_LIMIT}; "
                "use fewer weight or activation bits in this layer, or fewer products per output (groups, pruning)"
            )
        bounds[spec.name] = bound
    return bounds
