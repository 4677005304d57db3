"""Which foldings an engine can have."""

from __future__ import annotations

from functools import lru_cache

from hwmodel.compute import folds, sharing
from hwmodel.dataflow import DataFlow
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


def ingest_channels(layer: LayerSpec, pe: int, simd: int, flow: DataFlow = DataFlow.ROW_PIXEL) -> int:
    """Channels per cycle into the line buffer: as few as keep up with the array.

    Where the array reads the line buffer itself (`row_pass`), not a copy of the window, no fewer than it reads.

    >>> from hwmodel.network import Op
    >>> conv = LayerSpec("c", Op.CONV, ("input",), 64, 8, 8, 64, 8, 8, (3, 3), padding=(1, 1))
    >>> ingest_channels(conv, pe=8, simd=64), ingest_channels(conv, 8, 64, DataFlow.ROW_PASS)
    (1, 64)
    """
    pixel_folds = folds(layer, pe, simd)
    pixels = layer.stride[0] * layer.stride[1]  # that come in for each that goes out
    least = channels_read(layer, pe, simd) if flow is DataFlow.ROW_PASS else 1
    for channels in divisors(layer.in_channels):
        if channels >= least and layer.in_channels // channels * pixels <= pixel_folds:
            return channels
    return layer.in_channels


def channels_read(layer: LayerSpec, pe: int, simd: int) -> int:
    """Input channels that an array reads in a cycle: all taps of a few, or one tap of many."""
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    in_group = layer.in_channels // layer.groups
    together = simd // taps
    has_all_taps = simd % taps == 0 and in_group % together == 0
    sets = -(-pe // int(sharing(layer, pe)))
    return min(layer.in_channels, (together if has_all_taps else simd) * sets)
