"""Exact integer arithmetic on floats: sums of products, pooling, requantization.

Feature maps are float32 arrays (N, H, W, C) that hold integer codes.  Floats are used because they are fast, and
they are exact: every partial sum is below 2**24 in float32, else float64 is used (below 2**53).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import LayerSpec, Op
from qat.integer import NORM_FRACTION_BITS, NORM_INVERSE_BITS, NORM_ROOT_BITS, Rescale, Table

Codes = NDArray[np.float32]
Sums = NDArray[np.floating[Any]]

FLOAT32_EXACT = 2**24
FLOAT64_EXACT = 2**53
CHUNK = 1 << 14
"""Values that are requantized at a time, so that temporaries stay in the cache."""


def exact_dtype(bound: int) -> type[np.float32] | type[np.float64]:
    """Float type that holds every integer of magnitude up to `bound`.

    Raises:
        ValueError: `bound` is 2**53 or more.
    """
    if bound >= FLOAT64_EXACT:
        raise ValueError(f"sums up to {bound} are not exact in float64")
    return np.float32 if bound < FLOAT32_EXACT else np.float64


class Requantizer:
    """clamp((sum * multiplier + offset) >> shift, quant_min, quant_max), one multiplier and offset per channel.

    Negative sum * multiplier + offset is shifted by `negative_shift` more.

    Args:
        rescale: Shift and range.
        multiplier: One per channel, or a single one for all.
        offset: What is added behind the multiplier, without the rounding half; shape of `multiplier`.
        bound: Largest magnitude of a sum.
    """

    def __init__(
        self, rescale: Rescale, multiplier: NDArray[np.integer], offset: NDArray[np.int64] | int, bound: int
    ) -> None:
        self._multiplier = multiplier.astype(np.int64)
        self._negative_shift = rescale.negative_shift
        # The half that rounds joins the offset, unless negative products need another half.
        self._half = 1 << (rescale.shift - 1)
        start = np.int64(offset) + (0 if self._negative_shift else self._half)
        self._offset = np.broadcast_to(start, self._multiplier.shape)
        self._shift = rescale.shift
        self._range = (rescale.quant_min, rescale.quant_max)
        reach = bound * int(np.abs(self._multiplier).max()) + int(np.abs(self._offset).max())
        if self._negative_shift:
            reach += self._half << self._negative_shift
        # Powers of two scale floats without loss, so the shift may come first and floor() last.
        self._in_float = reach < FLOAT64_EXACT
        repeats = max(1, CHUNK // self._multiplier.size)
        self._gains = np.tile(self._multiplier * 2.0**-rescale.shift, repeats)
        self._offsets = np.tile(self._offset * 2.0**-rescale.shift, repeats)

    def __call__(self, sums: Sums) -> Codes:
        """Codes of sums (..., channels)."""
        flat = np.ascontiguousarray(sums).reshape(-1)
        out = np.empty(flat.size, np.float32)
        step = self._gains.size
        buffer = np.empty(min(step, flat.size), np.float64)
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            target = out[start : start + step]
            if self._in_float:
                values = buffer[: part.size]
                values[:] = part
                values *= self._gains[: part.size]
                values += self._offsets[: part.size]
                if self._negative_shift:
                    np.multiply(values, 2.0**-self._negative_shift, out=values, where=values < 0)
                    values += 0.5
                np.floor(values, out=values)
                np.clip(values, *self._range, out=values)
                target[:] = values
            else:
                products = part.astype(np.int64).reshape(-1, self._multiplier.size) * self._multiplier
                products += self._offset
                codes = self._shifted(products) if self._negative_shift else products >> self._shift
                target[:] = np.clip(codes, *self._range).reshape(-1)
        return out.reshape(sums.shape)

    def _shifted(self, products: NDArray[np.int64]) -> NDArray[np.int64]:
        longer = self._shift + self._negative_shift
        below = (products + (self._half << self._negative_shift)) >> longer
        return np.where(products < 0, below, (products + self._half) >> self._shift)


def pad(x_NHWC: Codes, spec: LayerSpec, value: float) -> Codes:
    """The maps with the layer's padding of `value` around them."""
    begin, end = spec.padding, spec.end_padding
    if begin == end == (0, 0):
        return x_NHWC
    return np.pad(x_NHWC, ((0, 0), (begin[0], end[0]), (begin[1], end[1]), (0, 0)), constant_values=value)


def taps(x_NHWC: Sums, spec: LayerSpec) -> list[Sums]:
    """Views of padded maps (N, H', W', C), one per kernel position, rows first."""
    views = []
    for row in range(spec.kernel_size[0]):
        for column in range(spec.kernel_size[1]):
            top, left = row * spec.dilation[0], column * spec.dilation[1]
            bottom = top + (spec.out_height - 1) * spec.stride[0] + 1
            right = left + (spec.out_width - 1) * spec.stride[1] + 1
            views.append(x_NHWC[:, top : bottom : spec.stride[0], left : right : spec.stride[1]])
    return views


def windows(x_NHWC: Codes, spec: LayerSpec) -> NDArray[np.float32]:
    """View of padded maps as (N, H', W', Kh, Kw, C)."""
    images, rows, columns, channels = x_NHWC.strides
    return np.lib.stride_tricks.as_strided(
        x_NHWC,
        (x_NHWC.shape[0], spec.out_height, spec.out_width, *spec.kernel_size, x_NHWC.shape[3]),
        (
            images,
            rows * spec.stride[0],
            columns * spec.stride[1],
            rows * spec.dilation[0],
            columns * spec.dilation[1],
            channels,
        ),
        writeable=False,
    )


def convolution(spec: LayerSpec, weight_OIHW: NDArray[np.int8], bound: int) -> Callable[[Codes], Sums]:
    """A function from codes to sums of products.

    Args:
        spec: A convolution or linear layer.
        weight_OIHW: Its weight codes.
        bound: Largest magnitude of a sum.
    """
    dtype: type[Any] = exact_dtype(bound)
    weight_OHWI: Sums = weight_OIHW.transpose(0, 2, 3, 1).astype(dtype)
    if spec.groups > 1 and weight_OIHW.shape[1] == 1:
        return _depthwise(spec, weight_OHWI)
    matrices = weight_OHWI.reshape(spec.groups, spec.out_channels // spec.groups, -1).transpose(0, 2, 1).copy()

    def grouped(x_NHWC: Codes) -> Sums:
        padded = pad(x_NHWC, spec, 0)
        width = spec.in_channels // spec.groups
        parts = [
            _matmul(padded[..., group * width : (group + 1) * width], spec, matrices[group])
            for group in range(spec.groups)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)

    return grouped


def _matmul(padded_NHWC: Codes, spec: LayerSpec, matrix: Sums) -> Sums:
    pixels = padded_NHWC.shape[0] * spec.out_height * spec.out_width
    columns: Sums = windows(padded_NHWC, spec).reshape(pixels, matrix.shape[0]).astype(matrix.dtype, copy=False)
    sums: Sums = columns @ matrix
    return sums.reshape(-1, spec.out_height, spec.out_width, matrix.shape[1])


def _depthwise(spec: LayerSpec, weight_OHWI: Sums) -> Callable[[Codes], Sums]:
    """One input channel per group: products per channel, no matrices."""
    kernels = weight_OHWI.reshape(spec.out_channels, -1).T.copy()
    repeats = spec.out_channels // spec.groups

    def depthwise(x_NHWC: Codes) -> Sums:
        padded: Sums = pad(x_NHWC, spec, 0).astype(kernels.dtype, copy=False)
        if repeats > 1:
            padded = np.repeat(padded, repeats, axis=3)
        views = taps(padded, spec)
        sums: Sums = views[0] * kernels[0]
        product = np.empty_like(sums)
        for view, kernel in zip(views[1:], kernels[1:], strict=True):
            np.multiply(view, kernel, out=product)
            sums += product
        return sums

    return depthwise


def normalization(spec: LayerSpec, epsilon: int) -> Callable[[Codes], Sums]:
    """Codes divided by the deviation of their group or by the length of their pixel; formulas in `qat.integer`.

    Args:
        spec: A `group_norm` or `l2_norm`.
        epsilon: What is added to the spread of a group.
    """
    if spec.op is Op.L2_NORM:
        return lambda x_NHWC: _divided(x_NHWC.astype(np.int64), _squares(x_NHWC, 3))
    count = spec.normalized_values

    def by_group(x_NHWC: Codes) -> Sums:
        # (N, pixels, groups, channels of a group)
        groups = x_NHWC.reshape(len(x_NHWC), -1, spec.groups, spec.in_channels // spec.groups).astype(np.int64)
        total = groups.sum((1, 3), keepdims=True)
        spread = count * _squares(groups, (1, 3)) - total**2 + epsilon
        return _divided(count * groups - total, spread).reshape(x_NHWC.shape)

    return by_group


def _squares(codes: NDArray[Any], axes: int | tuple[int, ...]) -> NDArray[np.int64]:
    wide = codes.astype(np.int64)
    squares: NDArray[np.int64] = (wide * wide).sum(axes, keepdims=True)
    return squares


_POWERS_OF_4 = 4 ** np.arange(1, 31, dtype=np.int64)


def inverse_root(spread: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Exponents and inverses of the roots of spreads, >= 0 and below 2**62: formulas in `qat.integer`."""
    spread = np.maximum(spread, 1)
    exponent = np.searchsorted(_POWERS_OF_4, spread.ravel(), side="right").reshape(spread.shape)
    places = 2 * (NORM_ROOT_BITS - 1 - exponent)
    normalised = (spread << np.maximum(places, 0)) >> np.maximum(-places, 0)
    # Below 2**48, so that the root's rounding in float64 cannot reach the next integer.
    root = np.sqrt(normalised.astype(np.float64)).astype(np.int64)
    inverse = np.minimum((1 << (NORM_ROOT_BITS - 1 + NORM_INVERSE_BITS)) // root, (1 << NORM_INVERSE_BITS) - 1)
    return exponent, inverse


def _divided(centred: NDArray[np.int64], spread: NDArray[np.int64]) -> Sums:
    exponent, inverse = inverse_root(spread)
    shift = exponent + NORM_INVERSE_BITS - NORM_FRACTION_BITS
    quotients = (centred * inverse + (np.int64(1) << (shift - 1))) >> shift
    return quotients.astype(np.float64)


def max_pool(spec: LayerSpec, lowest_code: int) -> Callable[[Codes], Codes]:
    """Largest code of each window; padding has the lowest code that the tensor can hold, so it never wins."""

    def largest(x_NHWC: Codes) -> Codes:
        views = taps(pad(x_NHWC, spec, lowest_code), spec)
        return reduce(np.maximum, views[1:], views[0].copy())

    return largest


def window_sum(spec: LayerSpec, bound: int) -> Callable[[Codes], Sums]:
    """Sum of each window."""
    dtype: type[Any] = exact_dtype(bound)

    def sums(x_NHWC: Codes) -> Sums:
        views = taps(pad(x_NHWC, spec, 0).astype(dtype, copy=False), spec)
        total = views[0].copy()
        for view in views[1:]:
            total += view
        return total

    return sums


def subsample(spec: LayerSpec) -> Callable[[Codes], Codes]:
    """Every stride-th pixel; missing channels are zeros, half of them (rounded down) before."""
    before = (spec.out_channels - spec.in_channels) // 2

    def kept(x_NHWC: Codes) -> Codes:
        out = np.zeros((x_NHWC.shape[0], spec.out_height, spec.out_width, spec.out_channels), np.float32)
        out[..., before : before + spec.in_channels] = x_NHWC[:, :: spec.stride[0], :: spec.stride[1]]
        return out

    return kept


def upsample(spec: LayerSpec) -> Callable[[Codes], Codes]:
    """Each pixel stride[0] x stride[1] times."""
    return lambda x_NHWC: x_NHWC.repeat(spec.stride[0], axis=1).repeat(spec.stride[1], axis=2)


def flatten(x_NHWC: Codes) -> Codes:
    """(N, 1, 1, C * H * W), channels slowest."""
    return np.ascontiguousarray(x_NHWC.transpose(0, 3, 1, 2)).reshape(x_NHWC.shape[0], 1, 1, -1)


def reorg(spec: LayerSpec) -> Callable[[Codes], Codes]:
    """Space to depth: channel c of a block's pixel (i, j) becomes channel (c * rows + i) * columns + j."""
    rows, columns = spec.stride

    def moved(x_NHWC: Codes) -> Codes:
        blocks = x_NHWC.reshape(-1, spec.out_height, rows, spec.out_width, columns, spec.in_channels)
        return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(-1, spec.out_height, spec.out_width, spec.out_channels)

    return moved


def shuffle(spec: LayerSpec) -> Callable[[Codes], Codes]:
    """Channels of equal parts interleaved."""

    def interleaved(x_NHWC: Codes) -> Codes:
        parts = x_NHWC.reshape(*x_NHWC.shape[:3], spec.groups, -1)
        return np.ascontiguousarray(parts.swapaxes(3, 4)).reshape(x_NHWC.shape)

    return interleaved


def channel_slice(spec: LayerSpec) -> Callable[[Codes], Codes]:
    """Channels from `first_channel` on."""
    kept = slice(spec.first_channel, spec.first_channel + spec.out_channels)
    return lambda x_NHWC: np.ascontiguousarray(x_NHWC[..., kept])


def lookup(table: Table) -> Callable[[Codes], Codes]:
    """A function of each code."""
    results, first_code = table.codes.astype(np.float32), table.first_code
    return lambda x_NHWC: results[x_NHWC.astype(np.int32) - first_code]
