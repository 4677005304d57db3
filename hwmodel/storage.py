"""Stored bits of one layer's weights: values, indices, scales, biases, and the bound that no code can beat.

Per output channel hardware stores a 16-bit multiplier and a 16-bit bias, per layer two 8-bit shifts (of the
multipliers and of the biases).  Indices say which groups are in the sparse plane; the cheapest of three codings
counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from math import ceil, log, log2, prod

import numpy as np

from hwmodel.errors import SpecError
from hwmodel.network import LayerSpec
from hwmodel.precision import LayerConfig, WeightFormat, group_shape, kept_groups

MULTIPLIER_BITS = 16
"""Bits of the multiplier of an output channel."""
BIAS_BITS = 16
"""Bits of the bias of an output channel."""
SHIFT_BITS = 8
"""Bits of each of the two shifts of a layer."""


class IndexCoding(StrEnum):
    """How the positions of the kept groups are stored."""

    NONE = "none"
    BITMAP = "bitmap"  # one bit per group
    RICE = "rice"  # gap to the next kept group: unary quotient, `r` bits of remainder
    LISTS = "lists"  # per filter: how many, then the position of each inside the filter


@dataclass(frozen=True)
class WeightStorage:
    """Bits that one layer keeps; all counts are whole bits.

    Args:
        value_bits: Weight values (and the sign plane of `binary_plus_sparse`).
        index_bits: Positions of the kept groups, in `index_coding`.
        index_coding: The cheapest coding.
        index_parameter: Remainder bits `r` of `rice`, bits of a position of `lists`, else 0.
        scale_bits: Multipliers and the two shifts.
        bias_bits: Biases.
        entropy_bound_bits: What remains if the positions cost their entropy (groups * H(density)), everything
            else as stored.
        kept_groups: Groups in the sparse plane.
        kept_weights: Weights in the sparse plane.
    """

    value_bits: int
    index_bits: int
    index_coding: IndexCoding
    index_parameter: int
    scale_bits: int
    bias_bits: int
    entropy_bound_bits: int
    kept_groups: int
    kept_weights: int

    @property
    def total_bits(self) -> int:
        """Everything that is stored for the layer."""
        return self.value_bits + self.index_bits + self.scale_bits + self.bias_bits

    def without_weights(self) -> WeightStorage:
        """What a layer stores that uses the weights of another one: its multipliers, shifts and biases."""
        own_bits = self.scale_bits + self.bias_bits
        return replace(self, value_bits=0, index_bits=0, entropy_bound_bits=own_bits)

    @property
    def weight_bits(self) -> int:
        """Values and indices: what streams in when weights are not resident."""
        return self.value_bits + self.index_bits


def weight_storage(layer: LayerSpec, config: LayerConfig) -> WeightStorage:
    """Stored bits of a layer's weights.

    Args:
        layer: A convolution or fully connected layer.
        config: Its precision.

    Raises:
        SpecError: The layer has no weights.

    Source:
        Formats: `hwmodel.precision`.  Golomb-Rice codes: Rice and Plaunt, IEEE Trans. Comm. 19(6), 1971.
    """
    if not layer.has_weights:
        raise SpecError(f"layer {layer.name!r}: op={str(layer.op)!r} has no weights to store")
    groups = prod(group_shape(layer.weight_shape, config.granularity))
    weights_per_group = layer.weights // groups
    scale_bits = MULTIPLIER_BITS * layer.out_channels + 2 * SHIFT_BITS
    bias_bits = BIAS_BITS * layer.out_channels
    if config.weight_format is WeightFormat.DENSE:
        kept, coding, parameter, index_bits, index_bound = groups, IndexCoding.NONE, 0, 0, 0.0
    else:
        kept = kept_groups(groups, config.sparsity)
        coding, parameter, index_bits = cheapest_index(groups, kept, layer.out_channels)
        index_bound = groups * binary_entropy(kept / groups)
    value_bits = kept * weights_per_group * config.stored_bit_width
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        value_bits += layer.weights
    return WeightStorage(
        value_bits=value_bits,
        index_bits=index_bits,
        index_coding=coding,
        index_parameter=parameter,
        scale_bits=scale_bits,
        bias_bits=bias_bits,
        entropy_bound_bits=value_bits + scale_bits + bias_bits + ceil(index_bound),
        kept_groups=kept,
        kept_weights=kept * weights_per_group,
    )


def stored(layer: LayerSpec, storage: WeightStorage) -> WeightStorage:
    """What the files hold for a layer with this storage: shared weights are with the layer that owns them."""
    return storage if layer.weights_of is None else storage.without_weights()


def cheapest_index(groups: int, kept: int, filters: int) -> tuple[IndexCoding, int, int]:
    """The cheapest coding of which groups are kept.

    Args:
        groups: All groups of the layer, filter by filter.
        kept: Groups in the sparse plane, 0..groups.
        filters: Output channels; divides `groups`.

    Returns:
        Coding, its parameter (see `WeightStorage`), and its bits, for kept groups at uniformly random positions.

    >>> cheapest_index(1000, 500, 10)
    (<IndexCoding.BITMAP: 'bitmap'>, 0, 1000)
    """
    if kept in (0, groups):  # all or nothing is part of the configuration, it needs no index
        return IndexCoding.NONE, 0, 0
    parameter, rice_bits = rice_index_bits(groups, kept)
    per_filter = groups // filters
    position_bits = ceil(log2(per_filter)) if per_filter > 1 else 0
    count_bits = ceil(log2(per_filter + 1))
    candidates = (
        (groups, IndexCoding.BITMAP, 0),
        (rice_bits, IndexCoding.RICE, parameter),
        (kept * position_bits + filters * count_bits, IndexCoding.LISTS, position_bits),
    )
    bits, coding, parameter = min(candidates, key=lambda candidate: candidate[0])
    return coding, parameter, bits


@lru_cache(maxsize=65536)
def rice_index_bits(groups: int, kept: int) -> tuple[int, int]:
    """Expected bits of Rice-coded gaps between kept groups, with the best parameter.

    A gap is the number of groups skipped before the next kept one; it costs `r` bits of remainder, its quotient
    by 2**r in unary, and the stop bit.

    Args:
        groups: All groups.
        kept: Groups in the sparse plane, 1..groups.

    Returns:
        Parameter r, and the bits rounded up.
    """
    best: tuple[float, int] | None = None
    # Below a fourth of the mean gap the quotients are longer than the bits that they save.
    for parameter in range(max(0, int(log2(groups / kept)) - 2), groups.bit_length() + 1):
        bits = rice_bits(groups, kept, parameter)
        if best is not None and bits >= best[0]:
            break  # the cost is convex in r
        best = (bits, parameter)
    assert best is not None  # the loop runs at least once
    return best[1], ceil(best[0])


def rice_bits(groups: int, kept: float, parameter: int) -> float:
    """Expected bits of Rice-coded gaps with a given parameter.

    All gaps have the same distribution: P(gap >= t) = C(groups - t, kept) / C(groups, kept), which is the product of
    1 - kept / (groups - i) over i < t, and of 1 - t / (groups - i) over i < kept.  The mean quotient by 2**r is the
    sum of P(gap >= j * 2**r) over j >= 1.

    Args:
        groups: All groups.
        kept: Groups in the sparse plane, above 0 and up to `groups`; a fraction interpolates.
        parameter: Bits of remainder, r.
    """
    step = 1 << parameter
    longest = min(int(groups - kept), ceil(NEGLIGIBLE * groups / kept))
    if kept < step and kept == int(kept):  # fewer factors this way
        gaps = np.arange(step, longest + 1, step, dtype=np.float64)
        logs = sum((np.log1p(-gaps / (groups - i)) for i in range(int(kept))), np.zeros(len(gaps)))
    else:
        logs = np.cumsum(np.log1p(-kept / (groups - np.arange(longest, dtype=np.float64))))[step - 1 :: step]
    return kept * (parameter + 1 + float(np.exp(logs).sum()))


NEGLIGIBLE = 37
"""Mean gaps after which no gap is counted: P(gap >= t) < exp(-t * kept / groups), here 1e-16."""


def binary_entropy(density: float) -> float:
    """Bits per group that positions at this density cost at least; 0..1.

    >>> binary_entropy(0.5)
    1.0
    """
    if density in (0.0, 1.0):
        return 0.0
    return -(density * log(density) + (1 - density) * log(1 - density)) / log(2)
