"""Quantization noise of a weight format for Gaussian weights: what is known of a choice before anything is measured."""

from __future__ import annotations

from math import erfc, exp, pi, sqrt
from statistics import NormalDist

from hwmodel.precision import LayerConfig, WeightFormat

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


def relative_noise(config: LayerConfig) -> float:
    """Noise energy over signal energy of Gaussian weights stored as `config` says, in (0, 1].

    Pruning drops the smallest weights; the significant weights of `binary_plus_sparse` are the largest.

    >>> from hwmodel.precision import LayerConfig
    >>> relative_noise(LayerConfig(1, 4))
    0.3634
    """
    kept = config.density
    if config.weight_format is WeightFormat.DENSE or (config.weight_format is WeightFormat.SPARSE and kept >= 1):
        return UNIFORM_NOISE[config.weight_bit_width]
    if kept <= 0:
        return 1.0 if config.weight_format is WeightFormat.SPARSE else UNIFORM_NOISE[1]
    threshold = NormalDist().inv_cdf(1 - kept / 2)
    peak = exp(-threshold * threshold / 2) / sqrt(2 * pi)
    kept_energy = 2 * threshold * peak + erfc(threshold / sqrt(2))
    if config.weight_format is WeightFormat.SPARSE:
        # A kept weight is its sign and mean magnitude, and the other bits quantize what is left of it.
        left = kept_energy - (2 * peak) ** 2 / kept
        if config.weight_bit_width > 1:
            left *= UNIFORM_NOISE[config.weight_bit_width - 1]
        return 1 - kept_energy + left
    mean_magnitude = 2 * (1 / sqrt(2 * pi) - peak) / (1 - kept) if kept < 1 else 0.0
    rest = 1 - kept_energy - (1 - kept) * mean_magnitude**2
    return rest + kept_energy * UNIFORM_NOISE[8]


def activation_noise(bit_width: int) -> float:
    """Noise energy over signal energy of Gaussian codes of 1..8 or 16 bits; each bit beyond 8 takes three quarters."""
    return UNIFORM_NOISE[min(bit_width, 8)] / 4.0 ** max(0, bit_width - 8)


def at_least_as_precise(first: LayerConfig, second: LayerConfig) -> bool:
    """Whether `first` can represent weights and the codes it reads no worse than `second`: a partial order.

    Not comparable: one or two bits at different densities, since zero is a level more (three values against two), and
    two or more bits against a few significant weights.
    """
    if first.act_bit_width < second.act_bit_width:
        return False
    a, b = first.weight_format, second.weight_format
    both = WeightFormat.BINARY_PLUS_SPARSE
    if a is both or b is both:
        if a is b:
            return first.density >= second.density
        dense = second if a is both else first
        if dense.weight_format is not WeightFormat.DENSE:
            return False
        return dense.weight_bit_width == (1 if a is both else 8)
    if first.weight_bit_width == second.weight_bit_width <= 2:
        return first.density == second.density
    return first.weight_bit_width >= second.weight_bit_width and first.density >= second.density
