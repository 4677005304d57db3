"""What one engine can be: every folding of a layer, or of the shared engine, with its cycles and resources.

The formulas are those of `hwmodel.cycles` and `hwmodel.resources`, applied to arrays of foldings at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.choices import outdone_from
from hwmodel.compute import Count, Multiplier
from hwmodel.cost import weight_reads
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, LayerSchedule, WeightPlace
from hwmodel.enumeration import least_of
from hwmodel.folding import divisors, ingest_channels, pipelined_foldings
from hwmodel.network import LayerSpec
from hwmodel.precision import LayerConfig
from hwmodel.resources import (
    Memory,
    operation_array,
    pipelined_array,
    pipelined_memories,
    sparse_lanes,
    weight_memories,
)
from hwmodel.storage import WeightStorage

Array = NDArray[np.int64]

RESOURCES = ("bram18", "uram", "lut", "dsp")
"""Columns of `use` arrays: the budgets of a board."""


@dataclass(frozen=True, eq=False)
class Rates:
    """Prices of a unit of each resource, several times.

    Args:
        values: Shape (resources, prices).
    """

    values: NDArray[np.float64]


FREE = Rates(np.zeros((len(RESOURCES), 1)))
"""Nothing costs anything."""


@dataclass(frozen=True)
class Space:
    """Which executions are tried.

    Args:
        data_flows: Data flows of pipelined layers.
        multipliers: What may multiply.
        pipelined_pe: Most output channels in parallel of a pipelined layer.
        pipelined_products: Most products per cycle of a pipelined layer.
        shared_pe: Output channels in parallel of the shared engine.
        shared_simd: Products per output channel of the shared engine.
    """

    data_flows: tuple[DataFlow, ...] = (DataFlow.ROW_PIXEL, DataFlow.ROW_PASS)
    multipliers: tuple[Multiplier, ...] = (Multiplier.LUT, Multiplier.DSP_PACKED)
    pipelined_pe: int = 512
    pipelined_products: int = 16384
    shared_pe: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    shared_simd: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)

    @cached_property
    def shared_grid(self) -> tuple[Array, Array]:
        """Output channels and products in parallel of each folding of the shared engine, shape (engines,) both."""
        pairs = [(pe, simd) for pe in self.shared_pe for simd in self.shared_simd]
        pe, simd = np.array(pairs, dtype=np.int64).T
        return pe, simd


@dataclass(frozen=True)
class Foldings:
    """A grid of executions of one layer; looks like a `LayerSchedule` with arrays."""

    data_flow: DataFlow
    pe: Count
    simd: Count
    ingest_channels: Count
    multiplier: Multiplier
    weight_place: WeightPlace


@dataclass(frozen=True)
class Options:
    """Executions to choose from.

    Args:
        cycles: Shape (options,): cycles per frame.
        use: Shape (options, 4): resources in the order of `RESOURCES`.
        offchip_bits: Shape (options,): weights read from off chip per frame.
        plans: Makes the schedule of an option: arrays of (data flow, pe, simd, ingest, multiplier, place).
    """

    cycles: Array
    use: Array
    offchip_bits: Array
    plans: tuple[Any, ...] = field(repr=False)

    def plan(self, name: str, option: int) -> LayerSchedule:
        """Execution of layer `name` by one option."""
        if (name, option) not in self._written:
            flow, pe, simd, ingest, multiplier, place = (column[option] for column in self.plans)
            written = LayerSchedule(name, flow, int(pe), int(simd), int(ingest), multiplier, place)
            self._written[name, option] = written
        return self._written[name, option]

    @cached_property
    def _written(self) -> dict[tuple[str, int], LayerSchedule]:
        """What `plan` has made so far: schedules have many plans of layers in common."""
        return {}

    @cached_property
    def until(self) -> Array:
        """Shape (options,): the interval from which on another option uses no more; see `hwmodel.choices.Choices`."""
        return outdone_from(self.cycles, self.use)

    def least_prices(self, rates: Rates) -> list[float]:
        """The least price of an option, whatever its cycles, where a unit of each resource costs as much."""
        if rates not in self._least_prices:
            self._least_prices[rates] = (self.use @ rates.values).min(axis=0).tolist()
        return self._least_prices[rates]

    @cached_property
    def _least_prices(self) -> dict[Rates, list[float]]:
        """What `least_prices` has found so far."""
        return {}

    def only(self, keep: Array) -> Options:
        """The options at these indices."""
        plans = tuple(column[keep] for column in self.plans)
        return Options(self.cycles[keep], self.use[keep], self.offchip_bits[keep], plans)


def weighted_options(
    layer: LayerSpec,
    config: LayerConfig,
    storage: WeightStorage,
    rescales: bool,
    family: str,
    places: Sequence[WeightPlace],
    space: Space,
) -> Options:
    """Executions of a pipelined layer with weights."""
    pe, simd, ingest = _pipelined_grid(layer, space.pipelined_pe, space.pipelined_products)
    lanes = sparse_lanes(layer, config, storage, pe, simd)
    multipliers = space.multipliers if config.weight_bit_width > 1 else space.multipliers[:1]

    def grid_of(flow: DataFlow, multiplier: Multiplier, place: WeightPlace) -> Foldings:
        return Foldings(flow, pe, simd, ingest[flow], multiplier, place)

    # What each choice takes adds up; data flow and place of the weights do not depend on each other.
    weights = []
    for place in places:
        grid = grid_of(space.data_flows[0], multipliers[0], place)
        weights.append(resource_use(weight_memories(layer, config, storage, lanes, grid), 0, 0, family, len(pe)))
    parts = []
    for flow in space.data_flows:
        grid = grid_of(flow, multipliers[0], places[0])
        buffers = resource_use(pipelined_memories(layer, config, grid), 0, 0, family, len(pe))
        cycles = layer_cycles(layer, grid)
        for multiplier in multipliers:
            array = pipelined_array(layer, config, lanes, grid_of(flow, multiplier, places[0]), rescales, family)
            beside = buffers + resource_use((), array.lut, array.dsp, family, len(pe))
            for place, taken in zip(places, weights, strict=True):
                grid = grid_of(flow, multiplier, place)
                streamed = storage.weight_bits * weight_reads(layer, grid)
                parts.append(_options(cycles, beside + taken, np.full(len(pe), streamed), grid))
    return undominated(join(parts))


@lru_cache(maxsize=1024)
def _pipelined_grid(layer: LayerSpec, most_pe: int, most_products: int) -> tuple[Array, Array, dict[DataFlow, Array]]:
    """Of each folding of a layer output channels, products of each, and by data flow ingested channels in parallel."""
    pairs = [(pe, simd) for pe, simd in pipelined_foldings(layer) if pe <= most_pe and pe * simd <= most_products]
    pe, simd = np.array(pairs, dtype=np.int64).T
    ingest = {
        flow: np.array([ingest_channels(layer, *pair, flow) for pair in pairs], dtype=np.int64)
        for flow in (DataFlow.ROW_PIXEL, DataFlow.ROW_PASS)
    }
    return pe, simd, ingest


def operation_options(layer: LayerSpec, bit_width: int, memories_of: Any, family: str, space: Space) -> Options:
    """Executions of a pipelined layer without weights.

    Args:
        layer: The layer.
        bit_width: Bits of its codes.
        memories_of: Its memories, from a grid of foldings.
        family: Device family.
        space: Which executions are tried.
    """
    lanes = np.array(divisors(layer.out_channels), dtype=np.int64)
    ones = np.ones_like(lanes)
    grid = Foldings(space.data_flows[0], ones, lanes, ones, Multiplier.LUT, WeightPlace.NONE)
    array = operation_array(layer, bit_width, grid)
    use = resource_use(memories_of(grid), array.lut, array.dsp, family, len(lanes))
    cycles = np.asarray(layer_cycles(layer, grid))
    return undominated(_options(cycles, use, np.zeros(len(lanes), dtype=np.int64), grid))


def resource_use(memories: Sequence[Memory], lut: Count, dsp: Count, family: str, size: int) -> Array:
    """Resources in the order of `RESOURCES`, shape (size, 4)."""
    use = np.zeros((size, 4), dtype=np.int64)
    use[:, 2] += lut
    use[:, 3] += dsp
    for place in {memory.place for memory in memories}:
        alike = [memory for memory in memories if memory.place is place]
        # All memories of one place at once, shape (memories, size).
        depth, width = (np.empty((len(alike), size), dtype=np.int64) for _ in range(2))
        for number, memory in enumerate(alike):
            depth[number], width[number] = memory.depth, memory.width
        taken = replace(alike[0], depth=depth, width=width).use(family)
        for column_, counts in enumerate((taken.bram18, taken.uram, taken.lutram_luts)):
            if isinstance(counts, np.ndarray):
                use[:, column_] += counts.sum(axis=0)
    return use


def undominated(options: Options) -> Options:
    """Options that no other one beats or equals in cycles, resources and off-chip bits; by ascending cycles."""
    rows = np.column_stack([options.cycles, options.use, options.offchip_bits])
    order = np.lexsort(rows.T[::-1])
    kept = np.sort(least_of(rows[order].astype(np.float64)))
    return options.only(order[kept])


def undominated_blocks(options: Options, size: int) -> Options:
    """Like `undominated`, but only inside consecutive blocks of `size` options: quick for many options."""
    rows = np.column_stack([options.cycles, options.use, options.offchip_bits]).reshape(-1, size, 6)
    no_worse = np.ones((len(rows), size, size), dtype=bool)  # [block, i, j]: i is nowhere worse than j
    for k in range(rows.shape[2]):
        no_worse &= rows[:, :, None, k] <= rows[:, None, :, k]
    # Of equal options the first stays.
    beats = no_worse & (~no_worse.transpose(0, 2, 1) | np.triu(np.ones((size, size), dtype=bool), 1))
    return options.only(np.flatnonzero(~beats.any(axis=1).ravel()))


def _options(cycles: Count, use: Array, offchip_bits: Array, grid: Foldings) -> Options:
    size = len(use)
    plans = (
        column(grid.data_flow, size),
        grid.pe,
        grid.simd,
        grid.ingest_channels,
        column(grid.multiplier, size),
        column(grid.weight_place, size),
    )
    return Options(np.asarray(cycles, dtype=np.int64), use, offchip_bits, plans)


def column(value: Any, size: int) -> NDArray[np.object_]:
    """An array that holds the same value everywhere."""
    values = np.empty(size, dtype=object)
    values[:] = value
    return values


def join(parts: Sequence[Options]) -> Options:
    """All options together."""
    return Options(
        np.concatenate([part.cycles for part in parts]),
        np.concatenate([part.use for part in parts]),
        np.concatenate([part.offchip_bits for part in parts]),
        tuple(np.concatenate(columns) for columns in zip(*(part.plans for part in parts), strict=True)),
    )


def geometry(layer: LayerSpec) -> LayerSpec:
    """The layer without its name and neighbours: layers of equal geometry have equal options."""
    return replace(layer, name="", inputs=("",) * len(layer.inputs), weights_of=None)
