"""A network in integers: what is packed, loaded and run.  numpy only, nothing of the training side.

All codes are symmetric (zero_point 0).  One operation brings an accumulator to the codes of the next layer:

    y = clamp((acc * multiplier + 2**(shift - 1)) >> shift, quant_min, quant_max)

with a 16-bit signed `multiplier` and an arithmetic shift (rounds half up).  ReLU is `quant_min = 0`, ReLU6 a smaller
`quant_max`; leaky ReLU shifts negative products by `negative_shift` more before it rounds.  A bias joins
behind the multiplier, as in a DSP slice (A * B + C): there it has the resolution of the ofm, not of the accumulator,
and a channel with almost no gain needs no enormous bias.

Layer by layer (`x` are the codes of the producers, in int64 or wider than the accumulator bound):

| op                | codes of the ofm                                                          |
|-------------------|---------------------------------------------------------------------------|
| conv, linear      | x' = input_rescale(x) if there is one; acc = sum(weight * x');             |
|                   | acc * multiplier + (bias << bias_shift), then rounding, shift and clamp;  |
|                   | one multiplier and one bias per output channel                            |
| add               | acc = sum over operands of multiplier[i] * x[i]; then the shift and clamp |
| concat            | rescale of operand i with multiplier[i], then concatenation               |
| mul               | acc = x[0] * x[1], the second operand one code per channel; one multiplier |
| scale             | acc = x; as conv: one multiplier and one bias per channel                 |
| group_norm, l2_norm | acc = x normalised (below); as conv: one multiplier and one bias per channel |
| lookup            | table[x - first_code]                                                     |
| avg_pool          | acc = sum over the window; rescale(acc), one multiplier                   |
| max_pool, subsample, upsample, reorg, flatten, shuffle, slice | codes moved, not changed (padding of max_pool |
|                   | never wins)                                                               |

Padding of convolutions and the padded channels of `subsample` are code 0.

A group norm measures each group of an image, its n codes; an l2_norm each pixel, the codes of its channels:

    group_norm: sum = sum(x), d = n * x - sum, v = n * sum(x**2) - sum**2 + epsilon      (n**2 times the variance)
    l2_norm:    d = x, v = sum(x**2)

    e = floor(log4(max(v, 1))); w = floor(max(v, 1) * 4**(23 - e)), so that 2**46 <= w < 2**48
    inverse = min(2**40 // isqrt(w), 2**17 - 1)
    acc = (d * inverse + 2**(e + 2)) >> (e + 3)     d / sqrt(v), with `NORM_FRACTION_BITS` = 14 binary places

One root and one division per group or pixel, of 48 and 41 bits; the rest are products.  n * |x| < 2**31 and v < 2**62.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import NetworkSpec
from hwmodel.precision import NetworkConfig

BINARY_SHIFT = 4
"""`binary_plus_sparse` holds a sign as +-2**BINARY_SHIFT among its 8-bit codes: one scale for both planes."""


NORM_FRACTION_BITS = 14
"""Binary places of normalised values."""
NORM_ROOT_BITS = 24
"""Bits of the root that normalised values are divided by."""
NORM_INVERSE_BITS = 17
"""Bits of its inverse; with a sign it fits the smaller operand of a DSP48E1 slice."""


@dataclass(frozen=True)
class Rescale:
    """Integer requantization (formula in the module's docstring).

    Args:
        multiplier: int16 values, shape (n,): per output channel, per operand, or a single one.
        shift: 1..46, the same for all multipliers.
        quant_min: Smallest output code.
        quant_max: Largest output code.
        negative_shift: 0..7, by so many bits more are negative products shifted (leaky ReLU).
    """

    multiplier: NDArray[np.int16]
    shift: int
    quant_min: int
    quant_max: int
    negative_shift: int = 0


@dataclass(frozen=True)
class Table:
    """A function of codes.

    Args:
        codes: int32 values within `quant_min..quant_max`, shape (entries,): results of rising input codes.
        first_code: Input code of the first entry.
        quant_min: Smallest output code.
        quant_max: Largest output code.
    """

    codes: NDArray[np.int32]
    first_code: int
    quant_min: int
    quant_max: int


@dataclass(frozen=True)
class IntegerLayer:
    """The numbers of one layer; its geometry is the `LayerSpec` of the same name.

    Args:
        name: Name of the layer in the `NetworkSpec`.
        rescale: Requantization to the ofm's codes; None where codes are only moved or come from a table.
        weight: int8 weight codes of shape (O, I/groups, Kh, Kw); None without weights.  In `dense` and `sparse`
            1-bit layers codes are -1, +1 (and 0 where pruned); in `binary_plus_sparse` -16 and +16 for signs,
            -128..127 in significant groups.
        mask: bool, the group grid of `hwmodel.precision.group_shape`: True where a group is in the sparse plane;
            None for `dense` and without weights.
        bias: int16 per output channel; `bias << bias_shift` joins behind the multiplier.  None but in layers with
            weights, `scale` and normalisations.
        bias_shift: 0..46.
        input_rescale: Requantization of the ifm on the way in, where the producer writes wider codes; one multiplier.
        ofm_scale: Value of one step of the ofm's codes, for those who decode results; not used in inference.
        table: The function of a `lookup`.
        epsilon: 0..2**62 - 1, what a `group_norm` adds to the spread of a group; 0 in all others.
    """

    name: str
    rescale: Rescale | None = None
    weight: NDArray[np.int8] | None = None
    mask: NDArray[np.bool_] | None = None
    bias: NDArray[np.int16] | None = None
    bias_shift: int = 0
    input_rescale: Rescale | None = None
    ofm_scale: float = 1.0
    table: Table | None = None
    epsilon: int = 0


@dataclass(frozen=True)
class IntegerNetwork:
    """A whole network in integers.

    Args:
        network: Geometry and edges.
        config: Precision of each layer; says how weights are stored.
        layers: Integers of every layer of `network`, by name.
        input_codes: int16 of shape (input channels, 256): code of each level of an 8-bit image, per channel
            (normalisation and input quantizer in one table).
        class_names: Names of the classes, empty if unknown.
    """

    network: NetworkSpec
    config: NetworkConfig
    layers: Mapping[str, IntegerLayer]
    input_codes: NDArray[np.int16]
    class_names: tuple[str, ...] = ()

    @property
    def output_scales(self) -> tuple[float, ...]:
        """Value of one step of the codes of each result, in the order of `NetworkSpec.outputs`."""
        return tuple(self.layers[name].ofm_scale for name in self.network.outputs)
