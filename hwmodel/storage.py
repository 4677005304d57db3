"""Stored bits of one layer's weights: values, indices, scales, biases, and the bound that no code can beat.

Per output channel hardware stores a 16-bit multiplier and a 16-bit bias, per layer two 8-bit shifts (of the
multipliers and of the biases).  Indices say which groups are in the sparse plane; the cheapest of three codings
counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, lgamma, log, log2, prod
from typing import Any, Self, TypeVar

import numpy as np

from hwmodel.errors import SpecError
from hwmodel.names import Names
from hwmodel.network import LayerSpec
from hwmodel.precision import LayerConfig, WeightFormat, group_shape, kept_groups
from hwmodel.smooth import Array, Smooth, ceilings

MULTIPLIER_BITS = 16
"""Bits of the multiplier of an output channel."""
BIAS_BITS = 16
"""Bits of the bias of an output channel."""
SHIFT_BITS = 8
"""Bits of each of the two shifts of a layer."""
EPSILON_BITS = 64
"""Bits of what a group norm adds to the spread of a group."""


class IndexCoding(Names):
    """How the positions of the kept groups are stored."""

    NONE = "none"
    BITMAP = "bitmap"  # one bit per group
    RICE = "rice"  # gap to the next kept group: unary quotient, `r` bits of remainder
    LISTS = "lists"  # per filter: how many, then the position of each inside the filter


@dataclass(frozen=True)
class WeightBits:
    """Bits that one layer keeps; all counts are whole bits, integers or arrays of shape (n,) for n densities.

    Args:
        value_bits: Weight values (and the sign plane of `binary_plus_sparse`).
        index_bits: Positions of the kept groups, in the cheapest coding.
        scale_bits: Multipliers and the two shifts.
        bias_bits: Biases.
        entropy_bound_bits: What remains if the positions cost `index_bound_bits`, everything else as stored; never
            more than `total_bits`.
        kept_groups: Groups in the sparse plane.
        kept_weights: Weights in the sparse plane.
    """

    value_bits: Any
    index_bits: Any
    scale_bits: int
    bias_bits: int
    entropy_bound_bits: Any
    kept_groups: Any
    kept_weights: Any

    @property
    def total_bits(self) -> Any:
        """Everything that is stored for the layer."""
        return self.value_bits + self.index_bits + self.scale_bits + self.bias_bits

    def without_weights(self) -> Self:
        """What a layer stores that uses the weights of another one: its multipliers, shifts and biases."""
        own_bits = self.scale_bits + self.bias_bits
        return replace(self, value_bits=0, index_bits=0, entropy_bound_bits=own_bits)

    @property
    def weight_bits(self) -> Any:
        """Values and indices: what streams in when weights are not resident."""
        return self.value_bits + self.index_bits

    @property
    def keeps_any(self) -> bool:
        """Whether there is a group in the sparse plane; arrays have one for every density."""
        return isinstance(self.kept_groups, np.ndarray) or self.kept_groups > 0

    @property
    def weights_per_group(self) -> int:
        """Weights of a kept group; only if `keeps_any`."""
        if isinstance(self.kept_groups, np.ndarray):
            return int(self.kept_weights[0] // self.kept_groups[0])
        return int(self.kept_weights // self.kept_groups)


@dataclass(frozen=True)
class WeightStorage(WeightBits):
    """Bits that one layer keeps at one density, and how its index is coded.

    Args:
        index_coding: The cheapest coding.
        index_parameter: Remainder bits `r` of `rice`, bits of a position of `lists`, else 0.
    """

    index_coding: IndexCoding
    index_parameter: int


Bits = TypeVar("Bits", bound=WeightBits)


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
    groups = number_of_groups(layer, config)
    if config.weight_format is WeightFormat.DENSE:
        kept, coding, parameter, index_bits, index_bound = groups, IndexCoding.NONE, 0, 0, 0
    else:
        kept = kept_groups(groups, config.sparsity)
        coding, parameter, index_bits = cheapest_index(groups, kept, layer.out_channels)
        index_bound = index_bound_bits(groups, kept)
    counts = _counts(layer, config, groups, kept, index_bits, index_bound)
    return WeightStorage(**counts, index_coding=coding, index_parameter=parameter)


def many_weight_bits(layer: LayerSpec, config: LayerConfig, kept: Array) -> WeightBits:
    """`weight_storage` of many densities at once, equal to it.

    Args:
        layer: A convolution or fully connected layer.
        config: Its precision; not `dense`, and of any density.
        kept: Shape (n,): groups in the sparse plane, ascending, strictly between none and all.

    Returns:
        Arrays of shape (n,), where counts differ.
    """
    groups = number_of_groups(layer, config)
    index_bits = np.minimum(groups, many_rice_index_bits(groups, kept))
    index_bits = np.minimum(index_bits, _list_bits(groups, kept, layer.out_channels)[0])
    selections = _selections(groups).values(kept / groups) - ROUNDING
    bound = ceilings(selections, MARGIN, lambda index: index_bound_bits(groups, int(kept[index])))
    return WeightBits(**_counts(layer, config, groups, kept, index_bits, bound))


def number_of_groups(layer: LayerSpec, config: LayerConfig) -> int:
    """Groups that the weights of a layer fall into.

    Raises:
        SpecError: The layer has no weights.
    """
    if not layer.has_weights:
        raise SpecError(f"layer {layer.name!r}: op={str(layer.op)!r} has no weights to store")
    return prod(group_shape(layer.weight_shape, config.granularity))


def _counts(
    layer: LayerSpec, config: LayerConfig, groups: int, kept: Any, index_bits: Any, index_bound: Any
) -> dict[str, Any]:
    """Fields of `WeightBits`."""
    weights_per_group = layer.weights // groups
    scale_bits = MULTIPLIER_BITS * layer.out_channels + 2 * SHIFT_BITS
    bias_bits = BIAS_BITS * layer.out_channels
    value_bits = kept * weights_per_group * config.stored_bit_width
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        value_bits = value_bits + layer.weights
    return {
        "value_bits": value_bits,
        "index_bits": index_bits,
        "scale_bits": scale_bits,
        "bias_bits": bias_bits,
        "entropy_bound_bits": value_bits + scale_bits + bias_bits + index_bound,
        "kept_groups": kept,
        "kept_weights": kept * weights_per_group,
    }


def stored(layer: LayerSpec, storage: Bits) -> Bits:
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
    parameter, gap_bits = rice_index_bits(groups, kept)
    list_bits, position_bits = _list_bits(groups, kept, filters)
    candidates = (
        (groups, IndexCoding.BITMAP, 0),
        (gap_bits, IndexCoding.RICE, parameter),
        (list_bits, IndexCoding.LISTS, position_bits),
    )
    bits, coding, parameter = min(candidates, key=lambda candidate: candidate[0])
    return coding, parameter, bits


def _list_bits(groups: int, kept: Any, filters: int) -> tuple[Any, int]:
    """Bits of the lists of positions of each filter, and bits of a position."""
    per_filter = groups // filters
    position_bits = ceil(log2(per_filter)) if per_filter > 1 else 0
    count_bits = ceil(log2(per_filter + 1))
    return kept * position_bits + filters * count_bits, position_bits


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


MARGIN = 1e-4
"""Bits within which sums of a layer may be wrong where they are interpolated."""

SPARE_GROUPS = 64
"""Least numbers of groups kept and not kept for which bits are interpolated."""

LONGEST_GAP = 1024
"""Largest mean gap for which bits are interpolated; beyond it a sum is cheap only if the number kept is whole."""

DOUBTFUL = 0.15
"""Rice parameters this near to a switch from one to the next, in log2 of the mean gap, are both tried."""


def many_rice_index_bits(groups: int, kept: Array) -> Array:
    """Bits of `rice_index_bits` for many numbers of kept groups, equal to it.

    Args:
        groups: All groups.
        kept: Shape (n,), ascending, strictly between 0 and `groups`.

    Returns:
        Bits, shape (n,).

    Source:
        Where the best parameter changes: for a geometric distribution, Gallager and Van Voorhis, IEEE Trans. Inf.
        Theory 21(2), 1975, of which gaps without replacement differ by about 1 / kept.
    """
    first, last = np.searchsorted(kept, [max(SPARE_GROUPS, groups // LONGEST_GAP), groups - SPARE_GROUPS])
    densities = kept[first:last] / groups
    switch = 1 + np.log2(log((5**0.5 - 1) / 2) / np.log1p(-densities))
    low = np.maximum(0, np.floor(switch - DOUBTFUL)).astype(np.int64)
    high = np.maximum(0, np.floor(switch + DOUBTFUL)).astype(np.int64)
    interpolated = np.full(len(densities), np.inf)
    for parameter in range(low.min(initial=0), high.max(initial=-1) + 1):
        own = np.flatnonzero((low <= parameter) & (parameter <= high))
        values = _rice(groups, parameter).values(densities[own])
        interpolated[own] = np.minimum(interpolated[own], values)  # NaN stays NaN
    bits = np.full(len(kept), np.nan)
    bits[first:last] = interpolated
    return ceilings(bits, MARGIN, lambda index: rice_index_bits(groups, int(kept[index]))[1])


@lru_cache(maxsize=4096)
def _rice(groups: int, parameter: int) -> Smooth:
    return Smooth(lambda density: rice_bits(groups, groups * density, parameter), MARGIN)


ROUNDING = 1e-6
"""Bits taken off before rounding up, far more than `log2_selections` is wrong by: the bound must not be too high."""


def index_bound_bits(groups: int, kept: int) -> int:
    """Bits that the positions of the kept groups cost at least, in any code, on average over all positions.

    There are C(groups, kept) ways to place them; a code that tells them apart has words of log2 of that on average.

    Args:
        groups: All groups.
        kept: Groups in the sparse plane, 0..groups.

    Source:
        Shannon, Bell System Technical Journal 27, 1948, theorem 9.

    >>> index_bound_bits(4, 2), index_bound_bits(1000, 20)  # of 6 ways, and of 3.4e41
    (3, 138)
    """
    return ceil(log2_selections(groups, kept) - ROUNDING)


def log2_selections(groups: int, kept: float) -> float:
    """Log2 of C(groups, kept); a fraction interpolates."""
    return (lgamma(groups + 1) - lgamma(kept + 1) - lgamma(groups - kept + 1)) / log(2)


@lru_cache(maxsize=4096)
def _selections(groups: int) -> Smooth:
    return Smooth(lambda density: log2_selections(groups, groups * density), MARGIN)
