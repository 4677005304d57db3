"""What shared engines take of a board beside their memories of weights: arrays, buffers, sums and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from hwmodel.chains import Depths, accumulated
from hwmodel.compute import mac_array
from hwmodel.dataflow import WeightPlace
from hwmodel.exchanges import starts_of
from hwmodel.layers import LayerFacts
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.network import FRAME_ENGINE, NetworkSpec
from hwmodel.option_cache import OptionCache
from hwmodel.options import RESOURCES, Array, Space, resource_use
from hwmodel.resources import (
    FIXED,
    FOLDED,
    Memory,
    SharedLayer,
    beside_shared_array,
    frame_buffer_shape,
    shared_memories,
)
from hwmodel.traffic import Placement, elements


@dataclass(frozen=True)
class _Held:
    """What the frame buffers of all cuts of a network hold.

    Args:
        numbers: Number of each cut.
        cuts: Shape (buffers,), ascending: the number of the cut.
        starts: Shape (buffers,): where the tensors of each start.
        tensors: Shape (tensors,): their numbers, those of one buffer after those of another.
        values: Shape (tensors,): how many values they have.
    """

    numbers: dict[Depths, int]
    cuts: Array
    starts: Array
    tensors: Array
    values: Array


class EngineUses:
    """Resources of the engines of one network and configuration.

    Args:
        network: The network.
        facts: By index: the layers with weights.
        widths: Bit width of each tensor.
        family: Device family.
        has_uram: Whether weights may lie in UltraRAM.
        space: Which executions are tried.
        placement: The feature maps of a cut.
        cache: What earlier configurations left; it is added to.
    """

    def __init__(
        self,
        network: NetworkSpec,
        facts: Mapping[int, LayerFacts],
        widths: Mapping[str, int],
        family: str,
        has_uram: bool,
        space: Space,
        placement: Callable[[int, int], Placement],
        cache: OptionCache,
    ) -> None:
        self._network = network
        self._facts = facts
        self._widths = widths
        self._family = family
        self._has_uram = has_uram
        self._space = space
        self._placement = placement
        self._cache = cache

    @cached_property
    def weighted_before(self) -> Array:
        """By layer, and for the end of the network: layers with weights before it."""

        def make() -> Array:
            has_weights = [index in self._facts for index in range(len(self._network.layers))]
            return np.cumsum([0, *has_weights])

        return self._cache.get("weighted before", make)

    def fixed(self, cuts: Sequence[Depths]) -> Array:
        """What every engine takes beside memories of weights, shape (cuts, engines, multipliers, resources)."""
        pipelined, spilled = np.array(cuts, dtype=np.int64).reshape(-1, 2).T
        start, end = self.weighted_before[pipelined], self.weighted_before[pipelined + spilled]
        needs = self._frame_needs.take(end, axis=0)
        is_spilled = (spilled > 0).nonzero()[0]
        if len(is_spilled):
            needs[is_spilled] = np.maximum(needs[is_spilled], self._spilled_needs[end[is_spilled]])
        shape = (len(needs), len(self._space.shared_grid[0]), len(self._space.multipliers), len(RESOURCES))
        found = np.array([self._uses_of(row) for row in needs[:, : self._first_lane_words]], dtype=np.int64)
        found = found.reshape(shape)
        found += (self._parameter_uses.take(start, axis=0) + self.buffers(cuts))[:, :, None]
        return found

    def lanes(self, cuts: Sequence[Depths]) -> Array:
        """Part of `fixed` that is the same for all cuts before which nothing is pipelined: DSP slices of sparse lanes.

        Args:
            cuts: The cuts, of no account.

        Returns:
            Shape (1, engines, resources).
        """
        found = np.zeros((1, len(self._space.shared_grid[0]), len(RESOURCES)), dtype=np.int64)
        multipliers = self._frame_needs[0, len(FIXED) : self._first_lane_words]
        found[..., RESOURCES.index("dsp")] = self._space.shared_grid[0] * multipliers
        return found

    def lane_words(self, pipelined: Sequence[int] | Array) -> Array:
        """Words of significant weights that a lane reads per cycle behind so many layers, shape (cuts, engines)."""
        rows: Array = self._frame_needs[:, self._first_lane_words :]
        return rows.take(self.weighted_before[pipelined], axis=0)

    @cached_property
    def most_lane_words(self) -> Array:
        """Shape (engines,): `lane_words` where nothing is pipelined, the most of all cuts."""
        most: Array = self._frame_needs[0, self._first_lane_words :]
        return most

    @cached_property
    def _first_lane_words(self) -> int:
        """Where lane words start in `LayerFacts.fixed`, behind the needs that `fixed` depends on."""
        return len(FIXED) + FOLDED.index("lane_words") * len(self._space.shared_grid[0])

    def buffers(self, cuts: Sequence[Depths]) -> Array:
        """Resources of the frame buffers of each engine, shape (cuts, engines, resources)."""
        numbers = self._held.numbers
        return self._buffers.take([numbers[cut] for cut in cuts], axis=0)

    @cached_property
    def _buffers(self) -> Array:
        """`buffers` of all cuts."""
        return self._cache.get(("buffers", *self._widths.values()), self._frame_buffers)

    def _frame_buffers(self) -> Array:
        """`buffers` of all cuts, made anew."""
        # They are as wide as the products of an output channel: engines of one width share them.
        simd, of_engine = np.unique(self._space.shared_grid[1], return_inverse=True)
        held = self._held
        found = np.zeros((len(held.numbers), len(simd), 4), dtype=np.int64)
        if len(held.cuts):
            widths = self._tensor_widths[held.tensors]
            bits = np.maximum.reduceat(held.values * widths, held.starts)
            widest = np.maximum.reduceat(widths, held.starts)
            sizes, size = np.unique(np.stack([bits, widest]), axis=1, return_inverse=True)
            shape = frame_buffer_shape(sizes[0][:, None], sizes[1][:, None], simd)
            depth, width = (np.broadcast_to(one, (sizes.shape[1], len(simd))).ravel() for one in shape)
            memory = Memory(FRAME_ENGINE, "frame_buffer", depth, width)
            uses = resource_use([memory], 0, 0, self._family, len(depth)).reshape(*shape[0].shape, 4)
            first = starts_of(held.cuts)
            found[held.cuts[first]] = np.add.reduceat(uses[size], first)
        return found.take(of_engine, axis=1)

    @cached_property
    def _held(self) -> _Held:
        return self._cache.get("held", self._buffered)

    def _buffered(self) -> _Held:
        end = len(self._network.layers)
        before = [0, *(index for index in self._facts if index), end]
        cuts = dict.fromkeys([*((cut, 0) for cut in before), *((0, cut) for cut in before)])
        number = {tensor: place for place, tensor in enumerate(self._widths)}
        of_cut, tensors, values, starts = [], list[int](), list[int](), []
        for place, cut in enumerate(cuts):
            for buffer in self._placement(*cut).buffers:
                of_cut.append(place)
                starts.append(len(tensors))
                tensors += [number[tensor] for tensor in buffer.tensors]
                values += [elements(self._network, tensor) for tensor in buffer.tensors]
        numbers = {cut: place for place, cut in enumerate(cuts)}
        return _Held(numbers, *(np.array(column, dtype=np.int64) for column in (of_cut, starts, tensors, values)))

    def rooms(self, uses: Array, budgets: Array) -> Array:
        """What some uses leave for weights, shape (cuts, engines): bits; negative if another budget is missed.

        Args:
            uses: What engines take, shape (cuts, engines, multipliers, resources).
            budgets: Shape (resources,).
        """
        left = budgets - uses
        bits = left[..., 0] * RAMB18_BITS
        if self._has_uram:
            bits = np.maximum(bits, left[..., 1] * prod(URAM_SHAPE))
        room: Array = np.where((left >= 0).all(axis=3), bits, -1).max(axis=2)
        return room

    @cached_property
    def _frame_needs(self) -> Array:
        """Shape (layers with weights + 1, needs): maxima over the layers from one on, frame-based."""
        return accumulated(np.maximum, self._fixed(is_spilled=False)[::-1])[::-1]

    @cached_property
    def _spilled_needs(self) -> Array:
        """Shape (layers with weights + 1, needs): maxima over the layers before one, spilled."""
        return accumulated(np.maximum, self._fixed(is_spilled=True))

    def _uses_of(self, needs: Array) -> Array:
        """Resources of arrays, line buffers and sums: configurations have few different needs.

        Args:
            needs: Shape (needs,), as in `LayerFacts.fixed`, without lane words.

        Returns:
            Shape (engines, multipliers, resources).
        """

        def make() -> Array:
            pe, simd = self._space.shared_grid
            fields = dict(zip(FIXED, needs[: len(FIXED)].tolist(), strict=True))
            need = SharedLayer(**fields, lane_multipliers=needs[len(FIXED) :])
            uses = self._memories(need)[:, None] + self._arrays(fields["weight_bit_width"], fields["act_bit_width"])
            if fields["weight_bit_width"]:
                beside = beside_shared_array(need, pe, simd, self._family)
                uses[..., RESOURCES.index("lut")] += (beside.lut + pe * need.sum_bits)[:, None]
                uses[..., RESOURCES.index("dsp")] += np.asarray(beside.dsp)[:, None]
            return uses

        return self._cache.get(("uses", needs.tobytes()), make)

    def _memories(self, need: SharedLayer) -> Array:
        """Resources of each engine's line buffer and sums, shape (engines, resources)."""

        def make() -> Array:
            pe, simd = self._space.shared_grid
            return resource_use(shared_memories(need, pe, simd, WeightPlace.BRAM), 0, 0, self._family, len(pe))

        return self._cache.get(("line buffer and sums", need.line_bits, need.sum_words, need.sum_bits), make)

    def _arrays(self, weight_bits: int, act_bits: int) -> Array:
        """Resources of each engine's array without accumulators, shape (engines, multipliers, resources)."""

        def make() -> Array:
            pe, simd = self._space.shared_grid
            found = np.zeros((len(pe), len(self._space.multipliers), len(RESOURCES)), dtype=np.int64)
            for number, multiplier in enumerate(self._space.multipliers if weight_bits else ()):
                array = mac_array(pe, simd, weight_bits, act_bits, 0, multiplier, self._family)
                found[:, number, RESOURCES.index("lut")] = array.lut
                found[:, number, RESOURCES.index("dsp")] = array.dsp
            return found

        return self._cache.get(("arrays", weight_bits, act_bits), make)

    def _fixed(self, *, is_spilled: bool) -> Array:
        """Shape (layers with weights, needs), as in `LayerFacts.fixed`."""
        rows = [facts.fixed(is_spilled) for facts in self._facts.values()]
        return np.array(rows, dtype=np.int64).reshape(-1, len(FIXED) + len(FOLDED) * len(self._space.shared_grid[0]))

    @cached_property
    def _parameter_uses(self) -> Array:
        """Shape (layers with weights + 1, engines, resources): of the parameter memory for the layers from one on."""

        def make() -> Array:
            pe, simd = self._space.shared_grid
            channels = np.array([layer.out_channels for layer in self._network.weighted])
            words = accumulated(np.add, -(-channels[::-1, None] // pe))[::-1]
            need, rows = SharedLayer(parameter_words=words.ravel()), len(words)
            memories = shared_memories(need, np.tile(pe, rows), np.tile(simd, rows), WeightPlace.BRAM)
            return resource_use(memories, 0, 0, self._family, words.size).reshape(*words.shape, -1)

        return self._cache.get("parameters", make)

    @cached_property
    def _tensor_widths(self) -> Array:
        """Bit widths of all tensors, in the order of `widths`."""
        return np.array(list(self._widths.values()))
