"""Cuts of a network, and what the layers of the shared engine ask of every folding of it, accumulated for all cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hwmodel.options import Array
from hwmodel.resources import BUFFERED, KEPT, WEIGHTS

Depths = tuple[int, int]
"""Pipelined and spilled layers before the frame-based ones; one of the two is 0."""


@dataclass(frozen=True)
class Cut:
    """A cut of the network: layers before it, then the rest on the shared engine.

    Args:
        pipelined: Layers before the cut that are pipelined.
        spilled: Layers before the cut that are spilled; one of the two is 0.
        map_bits: Feature maps that cross the chip's border per frame.
        loaded_bits: Spilled layers whose weights are no more bits than this load them whole if they are not resident.
    """

    pipelined: int
    spilled: int
    map_bits: int
    loaded_bits: int = 0

    @property
    def depths(self) -> Depths:
        """Where it is: cuts that differ in nothing but what is loaded have them in common."""
        return self.pipelined, self.spilled


@dataclass(frozen=True)
class Split:
    """A cut, and how many layers on the shared engine have resident weights; the others load or stream theirs.

    Args:
        cut: The cut.
        resident: Layers with resident weights.
        offchip_bits: Bits of feature maps and weights that cross the chip's border per frame.
    """

    cut: Cut
    resident: int
    offchip_bits: int


@dataclass(frozen=True)
class Chain:
    """What the layers of one order ask of each engine, accumulated where it is asked for.

    Args:
        engines: Number of engines.
        order: Layers in the order in which their weights become resident.
        words: Shape (`WEIGHTS`, engines) for each layer.
        layer_cycles: Shape (engines,) for each layer.
        loading_cycles: Shape (layers + 1,): cycles that the engine waits if the layers from one on do not keep theirs.
        streamed_bits: Shape (layers + 1,): off-chip bits per frame if weights of the layers from one on do not stay.
    """

    engines: int
    order: tuple[int, ...]
    words: tuple[Array, ...]
    layer_cycles: tuple[Array, ...]
    loading_cycles: Array
    streamed_bits: Array

    @cached_property
    def before(self) -> Array:
        """Shape (layers + 1, `KEPT`, engines): sums over the layers before one."""
        return accumulated(np.add, self._stacked(KEPT))

    @cached_property
    def after(self) -> Array:
        """Shape (layers + 1, `BUFFERED`, engines): maxima over the layers from one on."""
        return accumulated(np.maximum, self._stacked(BUFFERED)[::-1])[::-1]

    @cached_property
    def cycles(self) -> Array:
        """Shape (layers + 1, engines): cycles of the layers from one on."""
        rows = np.array(self.layer_cycles, dtype=np.int64).reshape(-1, self.engines)
        return accumulated(np.add, rows[::-1])[::-1]

    def buffered(self, stop: Array) -> Array:
        """`after` some layers, shape (layers asked about, `BUFFERED`, engines), without making it where none follow."""
        if (stop == len(self.order)).all():
            return np.zeros((len(stop), len(BUFFERED), self.engines), dtype=np.int64)
        return self.after[stop]

    def _stacked(self, names: Sequence[str]) -> Array:
        """Some of `words`, neighbours there: shape (layers, names, engines), also if there are no layers."""
        first = WEIGHTS.index(names[0])
        rows = [words[first : first + len(names)] for words in self.words]
        return np.array(rows, dtype=np.int64).reshape(-1, len(names), self.engines)


@dataclass(frozen=True)
class SharedRows:
    """Options of the shared engine, those of one split after those of another.

    Args:
        split: Shape (rows,), ascending: number of the split.
        cycles: Shape (rows,).
        use: Shape (rows, resources).
        engine: Shape (rows,): number of the folding in the grid of engines.
        kind: Shape (rows,): number of multiplier and place.
    """

    split: Array
    cycles: Array
    use: Array
    engine: Array
    kind: Array

    def of_split(self, number: int) -> slice:
        """Rows of one split."""
        low, high = np.searchsorted(self.split, [number, number + 1])
        return slice(int(low), int(high))

    def where(self, keep: NDArray[np.bool_]) -> SharedRows:
        """The options where `keep` is true."""
        kept = np.flatnonzero(keep)
        columns = (self.split, self.cycles, self.use, self.engine, self.kind)
        return SharedRows(*(column.take(kept, axis=0) for column in columns))


def accumulated(ufunc: np.ufunc, rows: Array) -> Array:
    """Sums or maxima, not negative, of no row, the first row, the first two, and so on."""
    found = np.zeros((len(rows) + 1, *rows.shape[1:]), dtype=np.int64)
    found[1:] = rows
    # Row by row: `ufunc.accumulate` goes along the first axis, with large steps, for each of the others.
    for before, after in pairwise(found):
        ufunc(before, after, out=after)
    return found
