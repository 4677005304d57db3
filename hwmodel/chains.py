"""Cuts of a network, and what the layers of the shared engine ask of every folding of it, accumulated for all cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwmodel.options import Array
from hwmodel.resources import SUMMED, SharedLayer

FIELDS = tuple(SharedLayer.__dataclass_fields__)
"""Needs of the shared engine, in the order of the rows of their arrays."""

MAXIMISED = tuple(name for name in FIELDS if name not in SUMMED)


@dataclass(frozen=True)
class Candidate:
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


@dataclass(frozen=True)
class Split:
    """A cut, and how many layers on the shared engine have resident weights; the others load or stream theirs.

    Args:
        candidate: The cut.
        resident: Layers with resident weights.
        offchip_bits: Bits of feature maps and weights that cross the chip's border per frame.
    """

    candidate: Candidate
    resident: int
    offchip_bits: int


@dataclass(frozen=True)
class Chain:
    """What the layers of one order ask of each engine, accumulated where it is asked for.

    Args:
        engines: Number of engines.
        order: Layers in the order in which their weights become resident.
        needs: Shape (`FIELDS`, engines) for each layer.
        layer_cycles: Shape (engines,) for each layer.
        loading_cycles: Shape (layers + 1,): cycles that the engine waits if the layers from one on do not keep theirs.
        streamed_bits: Shape (layers + 1,): off-chip bits per frame if weights of the layers from one on do not stay.
    """

    engines: int
    order: tuple[int, ...]
    needs: tuple[Array, ...]
    layer_cycles: tuple[Array, ...]
    loading_cycles: Array
    streamed_bits: Array

    @cached_property
    def weight_words(self) -> Array:
        """Shape (layers + 1, engines): words of resident weights of the layers before one."""
        column = FIELDS.index("weight_words")
        return prefixes(np.cumsum(self._stacked([need[column] for need in self.needs]), axis=0))

    @cached_property
    def loaded_words(self) -> Array:
        """Shape (layers + 1, engines): words for loaded weights if the layers from one on do not keep theirs."""
        column = FIELDS.index("loaded_words")
        words = self._stacked([need[column] for need in self.needs[::-1]])
        return prefixes(np.maximum.accumulate(words, axis=0))[::-1]

    @cached_property
    def before(self) -> Array:
        """Shape (layers + 1, `SUMMED`, engines): sums over the layers before one."""
        return prefixes(np.cumsum(self._stacked(self.needs, len(FIELDS))[:, _SUMMED], axis=0))

    @cached_property
    def after(self) -> Array:
        """Shape (layers + 1, `MAXIMISED`, engines): maxima over the layers from one on."""
        return prefixes(np.maximum.accumulate(self._stacked(self.needs[::-1], len(FIELDS))[:, _MAXIMISED], axis=0))[
            ::-1
        ]

    @cached_property
    def cycles(self) -> Array:
        """Shape (layers + 1, engines): cycles of the layers from one on."""
        return prefixes(np.cumsum(self._stacked(self.layer_cycles[::-1]), axis=0))[::-1]

    def _stacked(self, rows: Sequence[Array], *inner: int) -> Array:
        """Rows of shape (*inner, engines) as one array, also if there are none."""
        return np.array(rows, dtype=np.int64).reshape(len(rows), *inner, self.engines)


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


def prefixes(accumulated: Array) -> Array:
    """Accumulated values with a row of zeros, for no layer, before them."""
    return np.concatenate([np.zeros_like(accumulated[:1], shape=(1, *accumulated.shape[1:])), accumulated])


_SUMMED = [FIELDS.index(name) for name in SUMMED]
_MAXIMISED = [FIELDS.index(name) for name in MAXIMISED]
