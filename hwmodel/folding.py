"""Which foldings an engine can have."""

from __future__ import annotations

from functools import lru_cache

from hwmodel.compute import folds
from hwmodel.network import LayerSpec

MAX_PRODUCTS = 65536
"""Most products per cycle of one engine: beyond what any listed board can hold."""


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """Divisors, ascending.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [value for value in range(1, int(number**0.5) + 1) if number % value == 0]
    return tuple(sorted({*small, *(number // value for value in small)}))


@lru_cache(maxsize=4096)
def pipelined_foldings(layer: LayerSpec) -> tuple[tuple[int, int], ...]:
    """Foldings (pe, simd) of an engine for one layer, by ascending parallelism; nothing is left idle.

    `pe` divides the output channels.  `simd` takes a divisor of the input channels at one kernel position, or at
    all of them.
    """
    _, in_channels, rows, columns = layer.weight_shape
    simds = {part * taps for part in divisors(in_channels) for taps in {1, rows * columns}}
    pairs = [(pe, simd) for pe in divisors(layer.out_channels) for simd in simds if pe * simd <= MAX_PRODUCTS]
    return tuple(sorted(pairs, key=lambda pair: (pair[0] * pair[1], -pair[1])))


def ingest_channels(layer: LayerSpec, pe: int, simd: int) -> int:
    """Channels per cycle into the line buffer: as few as keep up with the array.

    >>> from hwmodel.network import Op
    >>> conv = LayerSpec("c", Op.CONV, ("input",), 64, 8, 8, 64, 8, 8, (3, 3), padding=(1, 1))
    >>> ingest_channels(conv, pe=8, simd=64)
    1
    """
    pixel_folds = folds(layer, pe, simd)
    for channels in divisors(layer.in_channels):
        if layer.in_channels // channels * layer.stride[1] <= pixel_folds:
            return channels
    return layer.in_channels
