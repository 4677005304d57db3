"""What shared engines take of a board beside their memories of weights: arrays, buffers, sums and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from hwmodel.chains import Depths, accumulated
from hwmodel.dataflow import WeightPlace
from hwmodel.exchanges import starts_of
from hwmodel.layers import LayerFacts, OptionCache
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.network import NetworkSpec
from hwmodel.options import RESOURCES, Array, Space, resource_use, shared_array_uses
from hwmodel.resources import FIXED, FRAME_ENGINE, Memory, SharedLayer, frame_buffer_shape, shared_memories
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
        self._all: dict[Depths, Array] = {}

    @cached_property
    def weighted_before(self) -> Array:
        """By layer, and for the end of the network: layers with weights before it."""
        if "weighted before" not in self._cache:
            has_weights = [index in self._facts for index in range(len(self._network.layers))]
            self._cache["weighted before"] = np.cumsum([0, *has_weights])
        found: Array = self._cache["weighted before"]
        return found

    def fixed(self, cuts: Sequence[Depths], cut: Array, engine: Array) -> Array:
        """What engines take beside memories of weights.

        Args:
            cuts: Where the cuts are.
            cut: Shape (pairs,): numbers of cuts.
            engine: Shape (pairs,): numbers of engines.

        Returns:
            Shape (pairs, multipliers, resources).
        """
        if all(one in self._all for one in cuts):
            return self.fixed_of_all(cuts)[cut, engine]
        pipelined, spilled = np.array(cuts, dtype=np.int64).reshape(-1, 2).T
        start, end = self.weighted_before[pipelined], self.weighted_before[pipelined + spilled]
        needs = self._frame_needs[end[cut], :, engine]
        if spilled.any():
            is_spilled = (spilled > 0)[cut]
            here, engines = end[cut[is_spilled]], engine[is_spilled]
            needs[is_spilled] = np.maximum(needs[is_spilled], self._spilled_needs[here, :, engines])
        need = SharedLayer(
            **dict(zip(FIXED, needs.T.copy(), strict=True)), parameter_words=self._parameters[start[cut], engine]
        )
        pe, simd = (values[engine] for values in self._space.shared_grid)
        uses = shared_array_uses(need, pe, simd, self._space.multipliers, self._family)
        memories = shared_memories(need, pe, simd, WeightPlace.BRAM)
        uses += (self.buffers(cuts)[cut, engine] + resource_use(memories, 0, 0, self._family, len(engine)))[:, None]
        return uses

    def fixed_of_all(self, cuts: Sequence[Depths]) -> Array:
        """What every engine takes beside memories of weights, shape (cuts, engines, multipliers, resources)."""
        missing = [cut for cut in dict.fromkeys(cuts) if cut not in self._all]
        if missing:
            engines = len(self._space.shared_grid[0])
            cut, engine = np.repeat(np.arange(len(missing)), engines), np.tile(np.arange(engines), len(missing))
            uses = self.fixed(missing, cut, engine)
            self._all.update(zip(missing, uses.reshape(len(missing), engines, *uses.shape[1:]), strict=True))
        shape = (len(cuts), len(self._space.shared_grid[0]), len(self._space.multipliers), len(RESOURCES))
        return np.array([self._all[cut] for cut in cuts], dtype=np.int64).reshape(shape)

    def buffers(self, cuts: Sequence[Depths]) -> Array:
        """Resources of the frame buffers of each engine, shape (cuts, engines, resources)."""
        numbers = self._held.numbers
        return self._buffers[[numbers[cut] for cut in cuts]]

    @cached_property
    def _buffers(self) -> Array:
        """`buffers` of all cuts."""
        # They are as wide as the products of an output channel: engines of one width share them.
        simd, of_engine = np.unique(self._space.shared_grid[1], return_inverse=True)
        held = self._held
        found = np.zeros((len(held.numbers), len(simd), 4), dtype=np.int64)
        if len(held.cuts):
            bits = np.maximum.reduceat(held.values * self._tensor_widths[held.tensors], held.starts)
            sizes, size = np.unique(bits, return_inverse=True)
            shape = frame_buffer_shape(sizes[:, None], simd)
            depth, width = (np.broadcast_to(one, (len(sizes), len(simd))).ravel() for one in shape)
            memory = Memory(FRAME_ENGINE, "frame_buffer", depth, width)
            uses = resource_use([memory], 0, 0, self._family, len(depth)).reshape(*shape[0].shape, 4)
            first = starts_of(held.cuts)
            found[held.cuts[first]] = np.add.reduceat(uses[size], first)
        return found[:, of_engine]

    @cached_property
    def _held(self) -> _Held:
        if "held" not in self._cache:
            self._cache["held"] = self._buffered()
        held: _Held = self._cache["held"]
        return held

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
        """Shape (layers with weights + 1, `FIXED`, engines): maxima over the layers from one on, frame-based."""
        return accumulated(np.maximum, self._fixed(is_spilled=False)[::-1])[::-1]

    @cached_property
    def _spilled_needs(self) -> Array:
        """Shape (layers with weights + 1, `FIXED`, engines): maxima over the layers before one, spilled."""
        return accumulated(np.maximum, self._fixed(is_spilled=True))

    def _fixed(self, *, is_spilled: bool) -> Array:
        """Shape (layers with weights, `FIXED`, engines)."""
        rows = [facts.fixed(is_spilled) for facts in self._facts.values()]
        return np.array(rows, dtype=np.int64).reshape(-1, len(FIXED), len(self._space.shared_grid[0]))

    @cached_property
    def _parameters(self) -> Array:
        """Shape (layers with weights + 1, engines): parameter words of the layers from one on."""
        pe, _ = self._space.shared_grid
        channels = np.array([layer.out_channels for layer in self._network.weighted])
        return accumulated(np.add, -(-channels[::-1, None] // pe))[::-1]

    @cached_property
    def _tensor_widths(self) -> Array:
        """Bit widths of all tensors, in the order of `widths`."""
        return np.array(list(self._widths.values()))
