"""The cuts of a network into layers with engines of their own and layers on the shared engine, with all options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from hwmodel.compute import Multiplier
from hwmodel.cost import operation_bit_width, pipelined_operation_memories
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, HostInterface, LayerSchedule, Schedule, WeightPlace
from hwmodel.knapsack import NO_LIMIT, Choices
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
    shared_uses,
    undominated_blocks,
    weighted_options,
)
from hwmodel.precision import NetworkConfig, ofm_bit_widths
from hwmodel.resources import FRAME_ENGINE, SUMMED, Memory, SharedLayer, frame_buffer_shape, shared_layer
from hwmodel.storage import WeightStorage, weight_storage
from hwmodel.traffic import Placement, elements, place, tensor_bits

FIELDS = tuple(SharedLayer.__dataclass_fields__)
"""Needs of the shared engine, in the order of the rows of their arrays."""


@dataclass(frozen=True)
class Candidate:
    """A cut of the network: layers before it, then the rest on the shared engine.

    Args:
        pipelined: Layers before the cut that are pipelined.
        spilled: Layers before the cut that are spilled; one of the two is 0.
        map_bits: Feature maps that cross the chip's border per frame.
    """

    pipelined: int
    spilled: int
    map_bits: int


OptionCache = dict[Any, Any]
"""Options by layer geometry and precision: valid for one network, device family, set of places and space."""


class Segments:
    """Options of every part of a network, for one configuration and device family.

    Args:
        network: The network.
        config: Precision of each layer.
        family: Device family.
        has_uram: Whether weights may lie in UltraRAM.
        space: Which executions are tried.
        cache: Options that earlier configurations left; they are added to.
    """

    def __init__(
        self,
        network: NetworkSpec,
        config: NetworkConfig,
        family: str,
        has_uram: bool,
        space: Space,
        cache: OptionCache | None = None,
    ) -> None:
        self.network = network
        self.config = config
        self.family = family
        self.space = space
        self.places = (WeightPlace.BRAM, WeightPlace.URAM) if has_uram else (WeightPlace.BRAM,)
        self.widths = ofm_bit_widths(network, config)
        self._cache: OptionCache = {} if cache is None else cache
        self.storages = {layer.name: self._storage(layer) for layer in network.weighted}
        self._shared: dict[tuple[int, int, bool], Options] = {}
        self._windows: dict[tuple[int, int], Choices] = {}

    def _storage(self, layer: LayerSpec) -> WeightStorage:
        key = ("storage", layer.name, self.config[layer.name])
        if key not in self._cache:
            self._cache[key] = weight_storage(layer, self.config[layer.name])
        stored: WeightStorage = self._cache[key]
        return stored

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every cut, least traffic of feature maps first; of equal ones that with the longest pipeline."""
        key = ("candidates", *self.widths.values())
        if key not in self._cache:
            end = len(self.network.layers)
            cuts = (0, *(i for i, layer in enumerate(self.network.layers) if layer.has_weights and i), end)
            found = [self._candidate(cut, 0) for cut in cuts] + [self._candidate(0, cut) for cut in cuts[1:]]
            self._cache[key] = tuple(sorted(found, key=lambda one: (one.map_bits, -one.pipelined)))
        candidates: tuple[Candidate, ...] = self._cache[key]
        return candidates

    def _candidate(self, pipelined: int, spilled: int) -> Candidate:
        host = HostInterface()
        transfers = self._placement(pipelined, spilled).transfers
        bits = sum(tensor_bits(self.network, t.tensor, self.widths[t.tensor], host) for t in transfers)
        return Candidate(pipelined, spilled, bits)

    def _placement(self, pipelined: int, spilled: int) -> Placement:
        key = ("placement", pipelined, spilled)
        if key not in self._cache:
            self._cache[key] = place(self.network, self._flows(pipelined, spilled))
        found: Placement = self._cache[key]
        return found

    def least_cycles(self, candidate: Candidate) -> int:
        """Cycles per frame that no choice of options is faster than."""
        spilled = self._spilled_cycles[candidate.spilled] if candidate.spilled else 0
        shared = spilled + self._frame_cycles[candidate.pipelined + candidate.spilled]
        return max(int(self._own_cycles[candidate.pipelined]), int(shared.min()))

    @cached_property
    def _own_cycles(self) -> Array:
        """Shape (layers + 1,): least cycles of the slowest of the first layers with an engine of their own."""
        least = [int(self._pipelined(layer).cycles.min()) for layer in self.network.layers]
        return np.maximum.accumulate(np.array([0, *least]))

    @cached_property
    def _frame_cycles(self) -> Array:
        """Shape (layers + 1, engines): cycles of the layers from one on, on the shared engine."""
        return np.cumsum(self._shared_cycles(is_spilled=False)[::-1], axis=0)[::-1]

    @cached_property
    def _spilled_cycles(self) -> Array:
        """Shape (layers + 1, engines): cycles of the layers before one, on the shared engine, spilled."""
        return np.cumsum(np.roll(self._shared_cycles(is_spilled=True), 1, axis=0), axis=0)

    def _shared_cycles(self, *, is_spilled: bool) -> Array:
        """Shape (layers + 1, engines): cycles of each layer, and a row of zeros."""
        cycles = np.zeros((len(self.network.layers) + 1, len(self._engine_grid[0])), dtype=np.int64)
        for index, layer in enumerate(self.network.layers):
            if layer.has_weights:
                cycles[index] = self._needs(index, is_spilled, True)[1]
        return cycles

    def groups(self, candidate: Candidate, *, streams: bool) -> tuple[Options, ...]:
        """Options of each pipelined layer, then of the shared engine if there is one.

        Args:
            candidate: The cut.
            streams: Whether layers on the shared engine may read their weights from off chip.
        """
        groups = [self._pipelined(layer) for layer in self.network.layers[: candidate.pipelined]]
        if candidate.pipelined < len(self.network.layers):
            groups.append(self._shared_options(candidate.pipelined, candidate.spilled, streams))
        return tuple(groups)

    def choices(
        self,
        candidate: Candidate,
        *,
        streams: bool,
        streamed_bits: int = NO_LIMIT,
        shortest: int = NO_LIMIT - 1,
        longest: int = NO_LIMIT - 1,
    ) -> Choices | None:
        """The options of `groups`, one group after the other, with cycles as keys.

        Args:
            candidate: The cut.
            streams: Whether layers on the shared engine may read their weights from off chip.
            streamed_bits: Most off-chip bits of weights per frame.
            shortest: The least frame interval that is asked about.
            longest: The largest one: options that count for none in between are left out.

        Returns:
            The options; None if a group has none.
        """
        pipeline = self._pipeline_between(shortest, longest)
        own = slice(0, int(np.searchsorted(pipeline.group, candidate.pipelined)))
        if np.count_nonzero(np.diff(pipeline.group[own], prepend=-1)) < candidate.pipelined:
            return None
        if candidate.pipelined == len(self.network.layers):
            return pipeline
        shared = self._shared_options(candidate.pipelined, candidate.spilled, streams)
        kept = np.flatnonzero((shared.offchip_bits <= streamed_bits) & (shared.cycles <= longest))
        size = len(kept)
        if not size:
            return None
        return Choices(
            np.concatenate([pipeline.key[own], shared.cycles[kept]]),
            np.concatenate([pipeline.use[own], shared.use[kept]]),
            np.concatenate([pipeline.group[own], np.full(size, candidate.pipelined)]),
            np.concatenate([pipeline.until[own], np.full(size, NO_LIMIT)]),
            np.concatenate([pipeline.rows[own], self._pipeline[1][candidate.pipelined] + kept]),
            candidate.pipelined + 1,
        )

    def _pipeline_between(self, shortest: int, longest: int) -> Choices:
        key = (shortest, longest)
        if key not in self._windows:
            whole, _ = self._pipeline
            kept = np.flatnonzero((whole.key <= longest) & (shortest < whole.until))
            self._windows[key] = Choices(
                whole.key[kept], whole.use[kept], whole.group[kept], whole.until[kept], kept, whole.groups
            )
        return self._windows[key]

    def offchip_bits(self, candidate: Candidate, choices: Choices) -> Array:
        """Off-chip bits of weights per frame of each of the `choices`, with streams, of a cut."""
        bits = np.zeros(len(choices.rows), dtype=np.int64)
        if candidate.pipelined < len(self.network.layers):
            on_shared = choices.group == candidate.pipelined
            shared = self._shared_options(candidate.pipelined, candidate.spilled, True)
            bits[on_shared] = shared.offchip_bits[choices.rows[on_shared] - self._pipeline[1][candidate.pipelined]]
        return bits

    def picks(self, candidate: Candidate, rows: Sequence[int]) -> tuple[int, ...]:
        """The options of each of the `groups` that rows of `choices` stand for."""
        return tuple(int(row - start) for row, start in zip(rows, self._pipeline[1], strict=False))

    @cached_property
    def _pipeline(self) -> tuple[Choices, Array]:
        """Options of all layers as pipelined ones, and where those of each layer start and the last one's end."""
        options = [self._pipelined(layer) for layer in self.network.layers]
        choices = Choices.of([o.cycles for o in options], [o.use for o in options], [o.until for o in options])
        return choices, np.cumsum([0, *(len(o.cycles) for o in options)])

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

    def _pipelined(self, layer: LayerSpec) -> Options:
        if layer.has_weights:
            key: Any = ("pipelined", layer.name, self.config[layer.name])
        else:
            key = ("pipelined", layer.name, operation_bit_width(layer, self.config, self.widths))
        if key not in self._cache:
            self._cache[key] = self._pipelined_options(layer)
        options: Options = self._cache[key]
        return options

    def _pipelined_options(self, layer: LayerSpec) -> Options:
        if not layer.has_weights:
            bit_width = operation_bit_width(layer, self.config, self.widths)
            memories_of = partial(pipelined_operation_memories, self.network, layer, bit_width)
            return operation_options(layer, bit_width, memories_of, self.family, self.space)
        config, storage = self.config[layer.name], self.storages[layer.name]
        key = (geometry(layer), config)  # layers of equal geometry share their options
        if key not in self._cache:
            self._cache[key] = weighted_options(key[0], config, storage, True, self.family, self.places, self.space)
        options: Options = self._cache[key]
        return options

    # -- shared engine ----------------------------------------------------------------------------------------------

    def _residency(self, pipelined: int, spilled: int) -> list[int]:
        """Layers on the shared engine in the order in which their weights become resident.

        First those that would be read most often: a resident bit saves one off-chip bit per reading.
        """
        layers = self.network.layers
        indices = [i for i in range(pipelined, len(layers)) if layers[i].has_weights]
        # Layers that use the same weights follow each other: once the first has them, they cost the others nothing.
        owners = {i: self._owner(i, pipelined) for i in indices}
        return sorted(indices, key=lambda i: (-self._reads(owners[i], owners[i] < pipelined + spilled), owners[i], i))

    def _owner(self, index: int, pipelined: int) -> int:
        """The layer on the shared engine that has the weights of a layer: itself, unless an earlier one shares them."""
        name = self.network.layers[index].weights_of
        owner = index if name is None else self._index[name]
        return owner if owner >= pipelined else index

    @cached_property
    def _index(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.network.layers)}

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
            uses = shared_uses(need, pe, simd, self.space.multipliers, self.places, self.family)
            for (multiplier, where), use in uses.items():
                size = len(use)
                engine = (column(multiplier, size), column(where, size))
                plans = (column(DataFlow.FRAME, size), pe, simd, resident.ravel(), *engine)
                options = Options(np.tile(cycles, len(streamed)), use + buffers, streamed.ravel(), plans)
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
        needs = [self._needs(i, i < pipelined + spilled, self._owner(i, pipelined) == i) for i in order]
        engines = len(self._engine_grid[0])
        numbers = np.arange(len(order) + 1) if streams else np.array([len(order)])
        none = np.zeros((1, len(FIELDS), engines), dtype=np.int64)
        resident = np.concatenate([none, [need[0][0] for need in needs]]) if order else none
        streamed = np.concatenate([none, [need[0][1] for need in needs[::-1]]]) if order else none
        is_sum = np.array([name in SUMMED for name in FIELDS])
        if streams:
            values = np.where(
                is_sum[:, None],
                resident.cumsum(axis=0) + streamed.cumsum(axis=0)[::-1],
                np.maximum(np.maximum.accumulate(resident), np.maximum.accumulate(streamed)[::-1]),
            )
        else:
            values = np.where(is_sum[:, None], resident.sum(axis=0), resident.max(axis=0))[None]
        bits = [self._streamed_bits(i, i < pipelined + spilled) for i in order]
        offchip = np.concatenate([np.cumsum(bits[::-1])[::-1], [0]]).astype(np.int64)[numbers]
        cycles = sum((need[1] for need in needs), np.zeros(engines, dtype=np.int64))
        shape = (len(numbers), engines)
        offchip_bits, resident_layers = (np.broadcast_to(v[:, None], shape) for v in (offchip, numbers))
        return SharedLayer(*values.transpose(1, 0, 2)), cycles, offchip_bits, resident_layers

    def _streamed_bits(self, index: int, is_spilled: bool) -> int:
        return self.storages[self.network.layers[index].name].weight_bits * self._reads(index, is_spilled)

    @cached_property
    def _engine_grid(self) -> tuple[Array, Array]:
        pairs = [(pe, simd) for pe in self.space.shared_pe for simd in self.space.shared_simd]
        pe, simd = np.array(pairs, dtype=np.int64).T
        return pe, simd

    def _needs(self, index: int, is_spilled: bool, keeps_weights: bool) -> tuple[Array, Array]:
        """What a layer asks of each engine, shape (resident or streamed, fields, engines), and its cycles."""
        layer = self.network.layers[index]
        key = ("needs", layer.name, self.config[layer.name], is_spilled, keeps_weights)
        if key not in self._cache:
            config, storage = self.config[layer.name], self.storages[layer.name]
            flow = DataFlow.SPILLED if is_spilled else DataFlow.FRAME
            pe, simd = self._engine_grid
            grids = [
                Foldings(flow, pe, simd, np.ones_like(pe), Multiplier.LUT, where)
                for where in (WeightPlace.BRAM, WeightPlace.STREAMED)
            ]
            table = np.zeros((2, len(FIELDS), len(pe)), dtype=np.int64)
            for row, grid in zip(table, grids, strict=True):
                need = shared_layer(layer, config, storage, grid, keeps_weights=keeps_weights)
                for i, name in enumerate(FIELDS):
                    row[i] = getattr(need, name)
            self._cache[key] = table, layer_cycles(layer, grids[0])
        found: tuple[Array, Array] = self._cache[key]
        return found

    def _buffer_use(self, pipelined: int, spilled: int) -> Array:
        pe, simd = self._engine_grid
        sizes = tuple(
            max(elements(self.network, tensor) * self.widths[tensor] for tensor in buffer.tensors)
            for buffer in self._placement(pipelined, spilled).buffers
        )
        key = ("buffers", sizes)
        if key not in self._cache:
            memories = [Memory(FRAME_ENGINE, "frame_buffer", *frame_buffer_shape(bits, simd)) for bits in sizes]
            self._cache[key] = resource_use(memories, 0, 0, self.family, len(pe))
        use: Array = self._cache[key]
        return use
