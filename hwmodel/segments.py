"""The cuts of a network into pipelined, spilled and frame-based layers, with the options of each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.compute import Multiplier
from hwmodel.cost import operation_bit_width, pipelined_operation_memories
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, HostInterface, LayerSchedule, Schedule, WeightPlace
from hwmodel.memory import RAMB18_BITS, URAM_BITS, VIVADO_LUTRAM_BITS
from hwmodel.network import LayerSpec, NetworkSpec
from hwmodel.options import (
    Array,
    Foldings,
    Options,
    Space,
    column,
    geometry,
    join,
    operation_options,
    resource_use,
    shared_use,
    undominated_blocks,
    weighted_options,
)
from hwmodel.precision import NetworkConfig, ofm_bit_widths
from hwmodel.resources import FRAME_ENGINE, SUMMED, Memory, SharedLayer, frame_buffer_shape, shared_layer
from hwmodel.storage import weight_storage
from hwmodel.traffic import elements, place, tensor_bits

FIELDS = tuple(SharedLayer.__dataclass_fields__)
"""Needs of the shared engine, in the order of the rows of their arrays."""


@dataclass(frozen=True)
class Candidate:
    """Two cuts.

    Args:
        pipelined: Layers before the first cut.
        spilled: Layers between the cuts.
        map_bits: Feature maps that cross the chip's border per frame.
    """

    pipelined: int
    spilled: int
    map_bits: int


class Segments:
    """Options of every part of a network, for one configuration and device family.

    Args:
        network: The network.
        config: Precision of each layer.
        family: Device family.
        has_uram: Whether weights may lie in UltraRAM.
        space: Which executions are tried.
    """

    def __init__(self, network: NetworkSpec, config: NetworkConfig, family: str, has_uram: bool, space: Space) -> None:
        self.network = network
        self.config = config
        self.family = family
        self.space = space
        self.places = (WeightPlace.BRAM, WeightPlace.URAM) if has_uram else (WeightPlace.BRAM,)
        self.widths = ofm_bit_widths(network, config)
        self.storages = {layer.name: weight_storage(layer, config[layer.name]) for layer in network.weighted}
        self._geometries = {layer.name: geometry(layer) for layer in network.weighted}
        self._cache: dict[Any, Options] = {}
        self._shared: dict[tuple[int, int, bool], Options] = {}
        self._needed: dict[tuple[int, bool], tuple[Array, Array]] = {}

    @cached_property
    def _cuts(self) -> tuple[int, ...]:
        weighted = [i for i, layer in enumerate(self.network.layers) if layer.has_weights]
        return (0, *(i for i in weighted if i > 0), len(self.network.layers))

    @cached_property
    def unspilled(self) -> tuple[Candidate, ...]:
        """Cuts without spilled layers: nothing crosses the chip's border but the input and the results."""
        return tuple(self._candidate(cut, cut) for cut in self._cuts)

    def spilled(self, least: Callable[[int, int], float], at_most: float) -> tuple[Candidate, ...]:
        """Cuts with spilled layers, least traffic of feature maps first.

        Args:
            least: Lower bound of the streamed weight bits, from the two cuts.
            at_most: Cuts that are known to need more traffic than this are left out.
        """
        base = self.unspilled[0].map_bits
        pairs = [(first, second) for first in self._cuts for second in self._cuts if second > first]
        bounds = {pair: least(*pair) for pair in pairs}
        found = [self._candidate(*pair) for pair in pairs if base + bounds[pair] <= at_most]
        found = [c for c in found if c.map_bits + bounds[c.pipelined, c.pipelined + c.spilled] <= at_most]
        return tuple(sorted(found, key=lambda candidate: candidate.map_bits))

    @cached_property
    def all_cuts(self) -> tuple[Candidate, ...]:
        """Every pair of cuts."""
        return (*self.unspilled, *self.spilled(lambda first, second: 0.0, float("inf")))

    @property
    def first_spilled(self) -> tuple[Candidate, ...]:
        """The only cut with spilled layers that can equal the least traffic: it spills the first layer alone."""
        return (self._candidate(0, self._cuts[1]),) if len(self._cuts) > 1 else ()

    def streamed_bound(self, prices: NDArray[np.float64], budgets: Array) -> Callable[[int, int], float]:
        """Lower bound of the streamed weight bits of any two cuts, from prices of the resources.

        A pipelined layer pays at least its cheapest priced option.  A layer on the shared engine streams its weights
        or holds them in memories that pay by the bit, but for what may lie in LUTs.
        """
        layers = self.network.layers
        bram18, uram = prices[0] / RAMB18_BITS, prices[1] / URAM_BITS
        per_bit = min(bram18, uram) if WeightPlace.URAM in self.places else bram18
        pipelined, shared = [0.0], [[0.0], [0.0]]
        for index, layer in enumerate(layers):
            options = self._pipelined(layer, True)
            pipelined.append(pipelined[-1] + float((options.offchip_bits + options.use @ prices).min()))
            for is_spilled in (False, True):
                bits = self.storages[layer.name].weight_bits if layer.has_weights else 0
                least = bits * min(float(self._reads(index, is_spilled)), per_bit)
                shared[is_spilled].append(shared[is_spilled][-1] + least)
        base = float(prices @ budgets) + 2 * VIVADO_LUTRAM_BITS * per_bit

        def bound(first: int, second: int) -> float:
            spilled = shared[1][second] - shared[1][first]
            frame = shared[0][len(layers)] - shared[0][second]
            return float(max(0.0, pipelined[first] + spilled + frame - base))

        return bound

    def _candidate(self, first: int, second: int) -> Candidate:
        transfers = place(self.network, self._flows(first, second - first)).transfers
        host = HostInterface()
        bits = sum(tensor_bits(self.network, t.tensor, self.widths[t.tensor], host) for t in transfers)
        return Candidate(first, second - first, bits)

    def groups(self, candidate: Candidate, *, streams: bool) -> tuple[Options, ...]:
        """Options of each pipelined layer, then of the shared engine if there is one."""
        groups = [self._pipelined(layer, streams) for layer in self.network.layers[: candidate.pipelined]]
        if candidate.pipelined < len(self.network.layers):
            groups.append(self._shared_options(candidate.pipelined, candidate.spilled, streams))
        return tuple(groups)

    def write(self, candidate: Candidate, groups: Sequence[Options], picks: Sequence[int]) -> Schedule:
        """The schedule that takes the picked option of each group."""
        layers = self.network.layers
        plans = [
            group.plan(layer.name, pick)
            for layer, group, pick in zip(layers[: candidate.pipelined], groups, picks, strict=False)
        ]
        if candidate.pipelined < len(layers):
            _, pe, simd, resident, multiplier, where = (values[picks[-1]] for values in groups[-1].plans)
            order = self._residency(candidate.pipelined, candidate.spilled)
            streamed = set(order[int(resident) :])
            flows = self._flows(candidate.pipelined, candidate.spilled)
            for index in range(candidate.pipelined, len(layers)):
                weights = WeightPlace.STREAMED if index in streamed else where
                if not layers[index].has_weights:
                    weights = WeightPlace.NONE
                plans.append(
                    LayerSchedule(layers[index].name, flows[index], int(pe), int(simd), 1, multiplier, weights)
                )
        return Schedule(self.network.name, tuple(plans))

    def _flows(self, pipelined: int, spilled: int) -> tuple[DataFlow, ...]:
        rest = len(self.network.layers) - pipelined - spilled
        return (DataFlow.ROW_PIXEL,) * pipelined + (DataFlow.SPILLED,) * spilled + (DataFlow.FRAME,) * rest

    def _pipelined(self, layer: LayerSpec, streams: bool) -> Options:
        if not layer.has_weights:
            bit_width = operation_bit_width(layer, self.config, self.widths)
            key: Any = (layer.name, bit_width)
            if key not in self._cache:
                memories_of = partial(pipelined_operation_memories, self.network, layer, bit_width)
                self._cache[key] = operation_options(layer, bit_width, memories_of, self.family, self.space)
            return self._cache[key]
        places = (*self.places, WeightPlace.STREAMED) if streams else self.places
        config = self.config[layer.name]
        key = (self._geometries[layer.name], config, streams)
        if key not in self._cache:
            self._cache[key] = weighted_options(
                key[0], config, self.storages[layer.name], True, self.family, places, self.space
            )
        return self._cache[key]

    # -- shared engine ----------------------------------------------------------------------------------------------

    def _residency(self, pipelined: int, spilled: int) -> list[int]:
        """Layers on the shared engine in the order in which their weights become resident.

        First those that would be read most often: a resident bit saves one off-chip bit per reading.
        """
        layers = self.network.layers
        indices = [i for i in range(pipelined, len(layers)) if layers[i].has_weights]
        return sorted(indices, key=lambda i: (-self._reads(i, i < pipelined + spilled), i))

    def _reads(self, index: int, is_spilled: bool) -> int:
        return self.network.layers[index].out_height if is_spilled else 1

    def _shared_options(self, pipelined: int, spilled: int, streams: bool) -> Options:
        key = (pipelined, spilled, streams)
        if key not in self._shared:
            need, cycles, streamed, resident = self._shared_needs(pipelined, spilled, streams)
            pe, simd = (np.broadcast_to(values, streamed.shape).ravel() for values in self._engine_grid)
            fields: dict[str, Any] = {name: np.ravel(getattr(need, name)) for name in FIELDS}
            for name in ("weight_bit_width", "act_bit_width", "sum_bits"):  # the same for every engine
                fields[name] = int(fields[name].max())
            need = SharedLayer(**fields)
            buffers = np.tile(self._buffer_use(pipelined, spilled), (len(streamed), 1))
            parts = []
            for multiplier in self.space.multipliers:
                for where in self.places:
                    use = buffers + shared_use(need, pe, simd, multiplier, where, self.family)
                    size = len(use)
                    engine = (column(multiplier, size), column(where, size))
                    plans = (column(DataFlow.FRAME, size), pe, simd, resident.ravel(), *engine)
                    options = Options(np.tile(cycles, len(streamed)), use, streamed.ravel(), plans)
                    parts.append(undominated_blocks(options, streamed.shape[1]))
            self._shared[key] = join(parts)
        return self._shared[key]

    def _shared_needs(self, pipelined: int, spilled: int, streams: bool) -> tuple[SharedLayer, Array, Array, Array]:
        """What all shared layers ask for, by number of resident layers and by engine.

        Returns:
            Needs of shape (numbers, engines), cycles of shape (engines,), off-chip bits of weights and numbers of
            resident layers of shape (numbers, engines).
        """
        order = self._residency(pipelined, spilled)
        needs = [self._needs(i, i < pipelined + spilled) for i in order]
        engines = len(self._engine_grid[0])
        numbers = np.arange(len(order) + 1) if streams else np.array([len(order)])
        stacked = np.array([need[0] for need in needs]).reshape(len(order), 2, len(FIELDS), engines)
        none = np.zeros((1, len(FIELDS), engines), dtype=np.int64)
        resident, streamed = stacked[:, 0], stacked[::-1, 1]
        sums = np.concatenate([none, resident.cumsum(axis=0)])[numbers]
        sums += np.concatenate([none, streamed.cumsum(axis=0)])[::-1][numbers]
        maxima = np.concatenate([none, np.maximum.accumulate(resident, axis=0)])[numbers]
        maxima = np.maximum(maxima, np.concatenate([none, np.maximum.accumulate(streamed, axis=0)])[::-1][numbers])
        fields = {name: (sums if name in SUMMED else maxima)[:, i] for i, name in enumerate(FIELDS)}
        bits = [self._streamed_bits(i, i < pipelined + spilled) for i in order]
        offchip = np.concatenate([np.cumsum(bits[::-1])[::-1], [0]]).astype(np.int64)[numbers]
        cycles = sum((need[1] for need in needs), np.zeros(engines, dtype=np.int64))
        shape = (len(numbers), engines)
        offchip_bits, resident_layers = (np.broadcast_to(v[:, None], shape) for v in (offchip, numbers))
        return SharedLayer(**fields), cycles, offchip_bits, resident_layers

    def _streamed_bits(self, index: int, is_spilled: bool) -> int:
        return self.storages[self.network.layers[index].name].weight_bits * self._reads(index, is_spilled)

    @cached_property
    def _engine_grid(self) -> tuple[Array, Array]:
        pairs = [(pe, simd) for pe in self.space.shared_pe for simd in self.space.shared_simd]
        pe, simd = np.array(pairs, dtype=np.int64).T
        return pe, simd

    def _needs(self, index: int, is_spilled: bool) -> tuple[Array, Array]:
        """What a layer asks of each engine, shape (resident or streamed, fields, engines), and its cycles."""
        key = (index, is_spilled)
        if key not in self._needed:
            layer = self.network.layers[index]
            config, storage = self.config[layer.name], self.storages[layer.name]
            flow = DataFlow.SPILLED if is_spilled else DataFlow.FRAME
            pe, simd = self._engine_grid
            grids = [
                Foldings(flow, pe, simd, np.ones_like(pe), Multiplier.LUT, where)
                for where in (WeightPlace.BRAM, WeightPlace.STREAMED)
            ]
            table = np.zeros((2, len(FIELDS), len(pe)), dtype=np.int64)
            for row, grid in zip(table, grids, strict=True):
                need = shared_layer(layer, config, storage, grid)
                for i, name in enumerate(FIELDS):
                    row[i] = getattr(need, name)
            self._needed[key] = table, layer_cycles(layer, grids[0])
        return self._needed[key]

    def _buffer_use(self, pipelined: int, spilled: int) -> Array:
        pe, simd = self._engine_grid
        memories = []
        for buffer in place(self.network, self._flows(pipelined, spilled)).buffers:
            bits = max(elements(self.network, tensor) * self.widths[tensor] for tensor in buffer.tensors)
            memories.append(Memory(FRAME_ENGINE, "frame_buffer", *frame_buffer_shape(bits, simd)))
        return resource_use(memories, 0, 0, self.family, len(pe))
