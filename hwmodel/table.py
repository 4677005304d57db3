"""Costs of many configurations at once: per-layer tables, then gather, sum and maximum.

Equal to `hwmodel.cost.cost_of` for every configuration, which the tests check; that one is the readable reference.

Three kinds of terms:
- what depends on one layer's own choice: a row of a table, summed (or maximised, for the shared engine);
- what depends on the width of a tensor, which is the widest that any reader asks for: a row per width;
- memories and array of the shared engine: mapped after the sums and maxima are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodel.board import Board
from hwmodel.cost import (
    RESOURCES,
    dram_cycles,
    engine_cycles,
    latency,
    operation_stored_bits,
    pipelined_operation_memories,
    reference_energy_pj,
    shared_place,
    weight_reads,
)
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, Schedule
from hwmodel.energy import DRAM_PJ_PER_BIT, mac_energy_pj, on_chip_energy_pj
from hwmodel.errors import BudgetError, SpecError
from hwmodel.network import INPUT, LayerSpec, NetworkSpec
from hwmodel.precision import LayerConfig, NetworkConfig, operand_bit_width
from hwmodel.resources import (
    FRAME_ENGINE,
    SUMMED,
    Memory,
    SharedLayer,
    frame_buffer_shape,
    operation_array,
    pipelined_array,
    pipelined_memories,
    shared_array,
    shared_layer,
    shared_memories,
    weight_memories,
)
from hwmodel.scheduler import schedule as best_schedule
from hwmodel.storage import MULTIPLIER_BITS, SHIFT_BITS, weight_storage
from hwmodel.traffic import Placement, elements, place, tensor_bits

WIDTHS = range(17)
"""Bit widths that a tensor can have (0 is a place holder)."""

TERMS = (
    "stored_bits",
    "entropy_bound_bits",
    "bram18",
    "uram",
    "lut",
    "dsp",
    "offchip_weight_bits",
    "offchip_ifm_bits",
    "offchip_ofm_bits",
    "offchip_shortcut_bits",
    "baseline_offchip_bits",
)
"""Columns that add up over layers and tensors."""

MERGED_ROWS = 1024
"""Rows up to which tables of neighbouring layers are merged into one."""

CHUNK = 8192
"""Configurations that are scored at a time, so that intermediate results stay in the cache."""

SHARED_FIELDS = tuple(f.name for f in fields(SharedLayer))
MAXIMISED = tuple(name for name in SHARED_FIELDS if name not in SUMMED)

Array = NDArray[np.int64]


class CostTable:
    """Costs of configurations of one network on one board under one schedule.

    Args:
        network: The network.
        board: The board.
        choices: For every layer with weights, the configurations that it can have.
        schedule: How the network is executed; `None` takes the best schedule for the most expensive choices that
            fit the board.
        sum_bit_width: As in `NetworkConfig`.
        input_bit_width: As in `NetworkConfig`.
        output_bit_width: As in `NetworkConfig`.

    Attributes:
        layers: Names of the layers with weights: the order of the columns of `indices`.
        schedule: The schedule that the costs hold for.

    Raises:
        SpecError: Choices are missing, empty, or name unknown layers; the schedule does not match the network.
        BudgetError: No schedule was given, and not even the cheapest choices fit.
    """

    def __init__(
        self,
        network: NetworkSpec,
        board: Board,
        choices: Mapping[str, Sequence[LayerConfig]],
        schedule: Schedule | None = None,
        *,
        sum_bit_width: int = 8,
        input_bit_width: int = 8,
        output_bit_width: int = 16,
    ) -> None:
        names = tuple(layer.name for layer in network.weighted)
        missing = [name for name in names if not choices.get(name)]
        unknown = [name for name in choices if name not in names]
        if missing or unknown:
            raise SpecError(f"choices for network {network.name!r}: missing or empty {missing}, unknown {unknown}")
        self.network = network
        self.board = board
        self.layers = names
        self.choices = {name: tuple(choices[name]) for name in names}
        self._widths = {
            "sum_bit_width": sum_bit_width,
            "input_bit_width": input_bit_width,
            "output_bit_width": output_bit_width,
        }
        self.schedule = self._default_schedule() if schedule is None else schedule
        self.schedule.check_matches(network)
        self._sizes = np.array([len(self.choices[name]) for name in names])
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._build()

    def config(self, indices: Sequence[int] | Array) -> NetworkConfig:
        """The configuration that one row of indices means."""
        layers = tuple((name, self.choices[name][int(i)]) for name, i in zip(self.layers, indices, strict=True))
        return NetworkConfig(layers, **self._widths)

    def evaluate(self, indices: ArrayLike) -> dict[str, NDArray[np.generic]]:
        """Costs of configurations.

        Args:
            indices: Shape (n, layers), integers: which choice each layer takes.

        Returns:
            Arrays of shape (n,) by column: the totals of `CostReport` of the same names.  `fits` is boolean,
            `bits_per_weight`, `compression`, `fps`, `gops` and `energy_rel` are floats, the others integers.

        Raises:
            SpecError: `indices` has another shape or dtype, or names a choice that a layer does not have.
        """
        index = np.asarray(indices)
        if index.ndim != 2 or index.shape[1] != len(self.layers) or index.dtype.kind not in "iu":
            raise SpecError(
                f"indices of shape {index.shape} and dtype {index.dtype}, expected integers of shape "
                f"(n, {len(self.layers)})"
            )
        if len(index) and ((index.min(axis=0) < 0).any() or (index.max(axis=0) >= self._sizes).any()):
            row, column = np.argwhere((index < 0) | (index >= self._sizes))[0]
            raise SpecError(
                f"indices[{row}, {column}]={index[row, column]}: layer {self.layers[column]!r} has choices "
                f"0..{self._sizes[column] - 1}"
            )
        sums, energy = self._separable(index)
        if self._is_separable:
            return self._columns(sums, energy)
        rows = index + self._offsets
        widths = self._tensor_widths(rows)
        for tensor, table in self._width_terms.items():
            sums += table[widths[tensor]]
        for column, tensor in self._rescaled_inputs:
            wider = widths[tensor] > self._act_bits[rows[:, column]]
            sums[:, :2] += np.where(wider, MULTIPLIER_BITS + SHIFT_BITS, 0)[:, None]
        if self._shared_columns.size:
            self._add_shared(sums, rows, widths)
        return self._columns(sums, energy)

    # -- tables ---------------------------------------------------------------------------------------------------

    def _default_schedule(self) -> Schedule:
        ranked = {name: self._by_size(name) for name in self.layers}
        for share in (1.0, 0.75, 0.5, 0.25):
            picked = [ranked[name][round(share * (len(ranked[name]) - 1))] for name in self.layers]
            try:
                return best_schedule(self.network, self.config(picked), self.board)
            except BudgetError:
                continue
        return best_schedule(self.network, self.config([ranked[name][0] for name in self.layers]), self.board)

    def _by_size(self, name: str) -> list[int]:
        """Choices of a layer, fewest stored bits first."""
        layer = self.network.by_name[name]
        sizes = [weight_storage(layer, config).total_bits for config in self.choices[name]]
        return sorted(range(len(sizes)), key=sizes.__getitem__)

    def _build(self) -> None:
        terms: list[list[int]] = []
        shared: list[list[int]] = []
        energy: list[float] = []
        for name in self.layers:
            layer = self.network.by_name[name]
            for config in self.choices[name]:
                row, need, joules = self._layer_terms(layer, config)
                terms.append(row)
                shared.append([getattr(need, field) for field in SHARED_FIELDS])
                energy.append(joules)
        self._sum_terms = np.array(terms, dtype=np.int64)
        self._energy = np.array(energy)
        self._act_bits = np.array([c.act_bit_width for name in self.layers for c in self.choices[name]])
        is_shared = [not self.schedule[name].data_flow.is_pipelined for name in self.layers]
        self._shared_columns = np.flatnonzero(is_shared)
        table = np.array(shared, dtype=np.int64)
        self._shared_sums = table[:, [SHARED_FIELDS.index(name) for name in SUMMED]]
        self._shared_maxima = table[:, [SHARED_FIELDS.index(name) for name in MAXIMISED]]
        cycles = {layer.name: layer_cycles(layer, self.schedule[layer.name]) for layer in self.network.layers}
        self._engine_cycles = engine_cycles(self.schedule, cycles)
        input_bits = tensor_bits(self.network, INPUT, self._widths["input_bit_width"], self.schedule.host)
        self._latency_cycles = latency(self.network, self.schedule, cycles, dram_cycles(input_bits, self.board))
        self._reference_energy_pj = reference_energy_pj(self.network)
        self._build_tensors()

    def _layer_terms(self, layer: LayerSpec, config: LayerConfig) -> tuple[list[int], SharedLayer, float]:
        plan = self.schedule[layer.name]
        storage = weight_storage(layer, config)
        row = dict.fromkeys(TERMS, 0)
        row["stored_bits"] = storage.total_bits
        row["entropy_bound_bits"] = storage.entropy_bound_bits
        row["offchip_weight_bits"] = weight_reads(layer, plan) * storage.weight_bits
        row["baseline_offchip_bits"] = storage.weight_bits
        need = SharedLayer()
        if plan.data_flow.is_pipelined:
            host = self.schedule.host
            rescales = host.result_word_bits is None or layer.name not in self.network.outputs
            array = pipelined_array(layer, config, storage, plan, rescales, self.board.family)
            row["lut"], row["dsp"] = array.lut, array.dsp
            memories = (*weight_memories(layer, config, storage, plan), *pipelined_memories(layer, config, plan))
            self._add_memories(row, memories)
        else:
            need = shared_layer(layer, config, storage, plan)
        energy = mac_energy_pj(layer, config, storage) + on_chip_energy_pj(layer, config, storage, plan)
        return [row[name] for name in TERMS], need, energy

    def _add_memories(self, row: dict[str, int], memories: Sequence[Memory]) -> None:
        for memory in memories:
            use = memory.use(self.board.family)
            row["bram18"] += use.bram18
            row["uram"] += use.uram
            row["lut"] += use.lutram_luts

    def _build_tensors(self) -> None:
        """Terms of each tensor by its width; tensors whose width no choice changes become constants."""
        network, schedule = self.network, self.schedule
        self._readers, self._floor = _width_readers(network, self._widths)
        constant = np.zeros(len(TERMS), dtype=np.int64)
        self._width_terms: dict[str, Array] = {}
        for layer in network.layers:
            constant[:2] += operation_stored_bits(layer)
        placement = place(network, tuple(plan.data_flow for plan in schedule.layers))
        baseline = place(network, (DataFlow.SPILLED,) * len(network.layers))
        for tensor in (INPUT, *(layer.name for layer in network.layers)):
            table = np.array([self._tensor_terms(tensor, w, placement, baseline) for w in WIDTHS], dtype=np.int64)
            if self._is_static(tensor):
                constant += table[self._static_width(tensor)]
            elif table.any():
                self._width_terms[tensor] = table
        self._constant_terms = constant
        self._rescaled_inputs = []
        for column, name in enumerate(self.layers):
            producer = self.network.by_name[name].inputs[0]
            if self._is_static(producer):  # then its rescaling depends on the layer's own choice
                own = slice(self._offsets[column], self._offsets[column] + self._sizes[column])
                wider = self._static_width(producer) > self._act_bits[own]
                self._sum_terms[own, :2] += np.where(wider, MULTIPLIER_BITS + SHIFT_BITS, 0)[:, None]
            else:
                self._rescaled_inputs.append((column, producer))
        self._merge()
        self._buffers = [buffer.tensors for buffer in placement.buffers]

    def _tensor_terms(self, tensor: str, width: int, placement: Placement, baseline: Placement) -> list[int]:
        row = dict.fromkeys(TERMS, 0)
        if width:
            for transfer in placement.transfers:
                if transfer.tensor == tensor:
                    bits = tensor_bits(self.network, tensor, width, self.schedule.host)
                    row[f"offchip_{transfer.kind}_bits"] += bits
            for transfer in baseline.transfers:
                if transfer.tensor == tensor:
                    row["baseline_offchip_bits"] += tensor_bits(self.network, tensor, width, self.schedule.host)
            layer = self.network.by_name.get(tensor)
            if layer is not None and not layer.has_weights and self.schedule[tensor].data_flow.is_pipelined:
                bit_width = operand_bit_width(layer, self._widths["sum_bit_width"]) or width
                plan = self.schedule[tensor]
                array = operation_array(layer, bit_width, plan)
                row["lut"], row["dsp"] = array.lut, array.dsp
                self._add_memories(row, pipelined_operation_memories(self.network, layer, bit_width, plan))
        return [row[name] for name in TERMS]

    def _is_static(self, tensor: str) -> bool:
        return tensor == INPUT or not any(
            len({c.act_bit_width for c in self.choices[self.layers[column]]}) > 1 for column in self._readers[tensor]
        )

    def _static_width(self, tensor: str) -> int:
        if tensor == INPUT:
            return self._widths["input_bit_width"]
        widths = [self.choices[self.layers[column]][0].act_bit_width for column in self._readers[tensor]]
        return max([self._floor[tensor], *widths])

    def _merge(self) -> None:
        """Merges the tables of neighbouring layers as long as the product of their choices stays small."""
        start = 0
        self._merged: list[tuple[slice, Array, NDArray[np.float64]]] = []
        terms = np.column_stack([self._sum_terms.astype(np.float64), self._energy])
        self._used_terms = np.flatnonzero(terms.any(axis=0))
        while start < len(self.layers):
            stop = start + 1
            while stop < len(self.layers) and np.prod(self._sizes[start : stop + 1]) <= MERGED_ROWS:
                stop += 1
            table = np.zeros((1, len(self._used_terms)))
            for layer in range(start, stop):
                own = terms[self._offsets[layer] : self._offsets[layer] + self._sizes[layer]][:, self._used_terms]
                table = (table[:, None, :] + own[None, :, :]).reshape(-1, own.shape[1])
            strides = np.concatenate([np.cumprod(self._sizes[start + 1 : stop][::-1])[::-1], [1]]).astype(np.int64)
            self._merged.append((slice(start, stop), strides, table))
            start = stop

    @property
    def _is_separable(self) -> bool:
        """Whether a configuration's cost is the sum of its layers' costs."""
        return not (self._shared_columns.size or self._width_terms or self._rescaled_inputs)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def _separable(self, index: Array) -> tuple[Array, NDArray[np.float64]]:
        """Sums of the terms that depend on each layer's own choice, constants included, and energies in pJ."""
        sums = np.zeros((len(index), len(TERMS) + 1))
        for start in range(0, len(index), CHUNK):
            part = np.ascontiguousarray(index[start : start + CHUNK].T, dtype=np.int64)
            total = np.zeros((part.shape[1], len(self._used_terms)))
            for columns, strides, table in self._merged:
                total += table[strides @ part[columns]]
            sums[start : start + CHUNK, self._used_terms] = total
        return sums[:, :-1].astype(np.int64) + self._constant_terms, sums[:, -1]

    def _tensor_widths(self, rows: Array) -> dict[str, Array]:
        acts = self._act_bits[rows]
        widths: dict[str, Array] = {}
        for tensor, columns in self._readers.items():
            if self._is_static(tensor):
                widths[tensor] = np.full(len(rows), self._static_width(tensor))
            else:
                widths[tensor] = np.maximum(acts[:, columns].max(axis=1), self._floor[tensor])
        return widths

    def _add_shared(self, sums: Array, rows: Array, widths: Mapping[str, Array]) -> None:
        """Adds memories and array of the shared engine to `sums`, in place."""
        rows = rows[:, self._shared_columns]
        engine = self.schedule.shared[0]
        need = np.concatenate([self._shared_sums[rows].sum(axis=1), self._shared_maxima[rows].max(axis=1)], axis=1)
        names = (*SUMMED, *MAXIMISED)
        unique, inverse = np.unique(need, axis=0, return_inverse=True)
        costs = np.zeros((len(unique), len(TERMS)), dtype=np.int64)
        for i, values in enumerate(unique):
            one = SharedLayer(**dict(zip(names, map(int, values), strict=True)))
            row = dict.fromkeys(TERMS, 0)
            array = shared_array(one, engine.pe, engine.simd, engine.multiplier, self.board.family)
            row["lut"], row["dsp"] = array.lut, array.dsp
            self._add_memories(row, shared_memories(one, engine.pe, engine.simd, shared_place(self.schedule)))
            costs[i] = [row[name] for name in TERMS]
        sums += costs[inverse.reshape(-1)]
        for tensors in self._buffers:
            bits = np.max([elements(self.network, tensor) * widths[tensor] for tensor in tensors], axis=0)
            unique, inverse = np.unique(bits, return_inverse=True)
            costs = np.zeros((len(unique), len(TERMS)), dtype=np.int64)
            for i, value in enumerate(unique):
                row = dict.fromkeys(TERMS, 0)
                shape = frame_buffer_shape(int(value), engine.simd)
                self._add_memories(row, [Memory(FRAME_ENGINE, "frame_buffer", *shape)])
                costs[i] = [row[name] for name in TERMS]
            sums += costs[inverse.reshape(-1)]

    def _columns(self, sums: Array, energy: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
        columns: dict[str, NDArray[np.generic]] = {name: sums[:, i] for i, name in enumerate(TERMS)}
        offchip = sums[:, 6:10].sum(axis=1)
        network, board = self.network, self.board
        dram = -(-offchip * board.clock_hz // (8 * board.dram_bytes_per_s))
        interval = np.maximum(max(1, self._engine_cycles), dram)
        columns["offchip_bits"] = offchip
        columns["interval_cycles"] = interval
        columns["latency_cycles"] = np.maximum(self._latency_cycles, dram)
        columns["bits_per_weight"] = sums[:, 0] / network.total_weights
        columns["compression"] = 32 * network.total_weights / sums[:, 0]
        columns["fps"] = board.clock_hz / interval
        columns["gops"] = 2 * network.total_macs * (board.clock_hz / interval) / 1e9
        columns["fits"] = np.all([columns[name] <= getattr(board, name) for name in RESOURCES], axis=0)
        columns["energy_rel"] = (energy + DRAM_PJ_PER_BIT * offchip) / self._reference_energy_pj
        return columns


def _width_readers(network: NetworkSpec, widths: Mapping[str, int]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Who sets the width of each tensor: columns of the layers with weights that read it, and a lower bound.

    Mirrors `hwmodel.precision.ofm_bit_widths`: layers without weights pass on what they are asked for.
    """
    column = {layer.name: i for i, layer in enumerate(network.weighted)}
    readers: dict[str, set[int]] = {}
    floor: dict[str, int] = {}
    for name in (*(layer.name for layer in reversed(network.layers)), INPUT):
        readers[name], floor[name] = set(), 0
        if not network.consumers[name]:
            floor[name] = widths["output_bit_width"]
        for reader in network.consumers[name]:
            if reader.has_weights:
                readers[name].add(column[reader.name])
            elif (asked := operand_bit_width(reader, widths["sum_bit_width"])) is not None:
                floor[name] = max(floor[name], asked)
            else:
                readers[name] |= readers[reader.name]
                floor[name] = max(floor[name], floor[reader.name])
    return {name: sorted(columns) for name, columns in readers.items()}, floor
