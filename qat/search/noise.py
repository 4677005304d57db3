"""Quantization noise of a weight format for Gaussian weights: what is known of a choice before anything is measured."""

from __future__ import annotations

from math import pi, prod, sqrt

from scipy.special import chdtrc, chdtri

from hwmodel.network import LayerSpec
from hwmodel.precision import Granularity, LayerConfig, WeightFormat, group_shape

UNIFORM_NOISE = {
    1: 0.3634,
    2: 0.1188,
    3: 0.03744,
    4: 0.01154,
    5: 0.003495,
    6: 0.001040,
    7: 0.0003043,
    8: 0.00008769,
}
"""Mean squared error of the best uniform quantizer with 2**b levels for unit-variance Gaussian input.

Source: J. Max, Quantizing for minimum distortion, IRE Trans. Information Theory 6(1), 1960, table II (1..5 bits);
6..8 bits: the same minimisation, done numerically.
"""

COARSER = {
    Granularity.ELEMENT: (Granularity.KERNEL, Granularity.CHANNEL_VECTOR, Granularity.FILTER),
    Granularity.KERNEL: (Granularity.FILTER,),
    Granularity.CHANNEL_VECTOR: (Granularity.FILTER,),
    Granularity.FILTER: (),
}
"""Granularities whose groups are made of groups of another one: what they can keep it can keep too."""


def relative_noise(config: LayerConfig, group_weights: int = 1) -> float:
    """Noise energy over signal energy of Gaussian weights stored as `config` says, in (0, 1].

    The groups of the least energy are pruned; those of the most are the significant ones of `binary_plus_sparse`.

    Args:
        config: Precision of the layer.
        group_weights: Weights that are kept or dropped together (`group_weights_of`).

    >>> from hwmodel.precision import LayerConfig
    >>> relative_noise(LayerConfig(1, 4))
    0.3634

    Source:
        The energy of g weights is chi-square with g degrees of freedom; its moments above a threshold are tails with
        more degrees of freedom, as x f_g(x) = g f_{g+2}(x): Johnson, Kotz and Balakrishnan, Continuous Univariate
        Distributions 1, ch. 18.
    """
    kept = config.density
    if config.weight_format is WeightFormat.DENSE or (config.weight_format is WeightFormat.SPARSE and kept >= 1):
        return UNIFORM_NOISE[config.weight_bit_width]
    if kept <= 0:
        return 1.0 if config.weight_format is WeightFormat.SPARSE else UNIFORM_NOISE[1]
    threshold = chdtri(group_weights, kept)
    kept_energy = float(chdtrc(group_weights + 2, threshold))
    kept_magnitude = sqrt(2 / pi) * float(chdtrc(group_weights + 1, threshold))  # sum over kept weights, by all
    if config.weight_format is WeightFormat.SPARSE:
        # A kept weight is its sign and mean magnitude, and the other bits quantize what is left of it.
        left = kept_energy - kept_magnitude**2 / kept
        if config.weight_bit_width > 1:
            left *= UNIFORM_NOISE[config.weight_bit_width - 1]
        return 1 - kept_energy + left
    mean_magnitude = (sqrt(2 / pi) - kept_magnitude) / (1 - kept) if kept < 1 else 0.0
    rest = 1 - kept_energy - (1 - kept) * mean_magnitude**2
    return rest + kept_energy * UNIFORM_NOISE[8]


def group_weights_of(layer: LayerSpec, granularity: Granularity) -> int:
    """How many weights of a layer are kept or dropped together."""
    return prod(layer.weight_shape) // prod(group_shape(layer.weight_shape, granularity))


def activation_noise(bit_width: int) -> float:
    """Noise energy over signal energy of Gaussian codes of 1..8 or 16 bits; each bit beyond 8 takes three quarters."""
    return UNIFORM_NOISE[min(bit_width, 8)] / 4.0 ** max(0, bit_width - 8)


def at_least_as_precise(first: LayerConfig, second: LayerConfig) -> bool:
    """Whether `first` can represent weights and the codes it reads no worse than `second`: a partial order.

    Not comparable: one or two bits at different densities, since zero is a level more (three values against two),
    two or more bits against a few significant weights, and kernels against channel vectors.
    """
    if first.act_bit_width < second.act_bit_width:
        return False
    a, b = first.weight_format, second.weight_format
    both, dense = WeightFormat.BINARY_PLUS_SPARSE, WeightFormat.DENSE
    if dense not in (a, b) and second.granularity not in (first.granularity, *COARSER[first.granularity]):
        return False
    if a is both or b is both:
        if a is b:
            return first.density >= second.density
        other = second if a is both else first
        if other.weight_format is not dense:
            return False
        return other.weight_bit_width == (1 if a is both else 8)
    if first.weight_bit_width == second.weight_bit_width <= 2:
        return first.density == second.density
    return first.weight_bit_width >= second.weight_bit_width and first.density >= second.density
