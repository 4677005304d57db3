"""What each choice of a layer, and each width of a tensor, adds to the cost of a network under one schedule.

Three kinds of terms:
- what depends on one layer's own choice: a row per choice, summed (or maximised, for the shared engine);
- what depends on the width of a tensor, which is the widest that any reader asks for: a row per width;
- memories and array of the shared engine: mapped after the sums and maxima are known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.arrays import Floats, Kind
from hwmodel.board import Board
from hwmodel.compute import Count
from hwmodel.cost import (
    RESOURCES,
    dram_cycles,
    engine_cycles,
    latency,
    loading_cycles,
    operation_stored_bits,
    pipelined_operation_memories,
    reference_energy_pj,
    shared_place,
    weight_reads,
)
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, Schedule
from hwmodel.energy import DRAM_PJ_PER_BIT, mac_energy_pj, on_chip_energy_pj
from hwmodel.network import FRAME_ENGINE, INPUT, LayerSpec, NetworkSpec
from hwmodel.precision import LayerConfig, WeightFormat, kept_groups, operand_bit_width
from hwmodel.resources import (
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
    shared_norms,
    sparse_lanes,
    weight_memories,
)
from hwmodel.storage import (
    MULTIPLIER_BITS,
    SHIFT_BITS,
    WeightBits,
    many_weight_bits,
    number_of_groups,
    stored,
    weight_storage,
)
from hwmodel.traffic import Placement, elements, place, tensor_bits

Array = NDArray[np.int64]

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
    "loading_cycles",
)
"""Columns that add up over layers and tensors."""

SHARED_FIELDS = tuple(f.name for f in fields(SharedLayer))
MAXIMISED = tuple(name for name in SHARED_FIELDS if name not in SUMMED)
NEEDS = (*SUMMED, *MAXIMISED)
"""Fields of `SharedLayer` in the order of their columns."""

MANY = 16
"""Densities from which the formulas are quicker on arrays than one by one."""

RESCALE_BITS = MULTIPLIER_BITS + SHIFT_BITS
"""Stored bits of the rescaling on the way into a layer that reads fewer bits than were written."""


@dataclass(frozen=True)
class LayerTerms:
    """What each of n configurations of one layer adds, a row for those that add the same.

    Args:
        rows: Shape (different, `TERMS`).
        needs: Shape (different, `NEEDS`): what it asks of the shared engine.
        energy_pj: Shape (different,): energy on chip.
        row_of: Shape (n,): row of each configuration.
    """

    rows: Array
    needs: Array
    energy_pj: Floats
    row_of: Array


class Terms:
    """Terms of one network on one board under one schedule.

    Args:
        network: The network.
        board: The board.
        schedule: How the network is executed.
        act_bits: Bits that each layer with weights can read, by name.
        bit_widths: `sum_bit_width`, `input_bit_width` and `output_bit_width` as in `NetworkConfig`.

    Attributes:
        constant: Shape (`TERMS`,): what no choice changes.
        width_rows: By tensor whose width depends on choices: shape (17, `TERMS`), what each width adds.
        rescaled_inputs: (column of a layer, tensor it reads) where the tensor's width depends on choices.
        shared_columns: Columns of the layers on the shared engine.
        buffers: Tensors of each frame buffer whose size depends on choices.
    """

    def __init__(
        self,
        network: NetworkSpec,
        board: Board,
        schedule: Schedule,
        act_bits: Mapping[str, Collection[int]],
        bit_widths: Mapping[str, int],
    ) -> None:
        network.require_weights()
        self.network = network
        self.board = board
        self.schedule = schedule
        self.bit_widths = bit_widths
        self._act_bits = act_bits
        self.shared_columns = np.flatnonzero(
            [not schedule[layer.name].data_flow.is_pipelined for layer in network.weighted]
        )
        self._norm_dsp = shared_norms(
            layer for layer in network.layers if not schedule[layer.name].data_flow.is_pipelined
        ).norm_dsp
        self._readers, self._floor = _width_readers(network, bit_widths)
        self._add_tensors()
        cycles = {layer.name: layer_cycles(layer, schedule[layer.name]) for layer in network.layers}
        self._engine_cycles = engine_cycles(schedule, cycles)
        self._shared_cycles = sum(cycles[plan.name] for plan in schedule.shared)
        input_bits = tensor_bits(network, INPUT, bit_widths["input_bit_width"], schedule.host)
        self._latency_cycles = latency(network, schedule, cycles, dram_cycles(input_bits, board))
        self._reference_energy_pj = reference_energy_pj(network)

    @property
    def depends_on_widths(self) -> bool:
        """Whether the width of any tensor that costs something depends on choices."""
        return bool(self.width_rows or self.rescaled_inputs or self.buffers)

    @property
    def has_shared_engine(self) -> bool:
        """Whether there is one, be it for operations without weights alone."""
        return bool(self.schedule.shared)

    def of_layer(self, layer: LayerSpec, kinds: Sequence[Kind]) -> LayerTerms:
        """What each configuration of a layer adds, the rescaling of its input included where that depends on no other.

        Of a kind only the number of kept groups matters.  Many of them are arrays for the formulas; few, and those that
        keep nothing or all, go through them one by one.
        """
        found = [self._of_kind(layer, kind) for kind in kinds]
        row_of = np.empty(sum(len(kind.members) for kind in kinds), dtype=np.int64)
        start = 0
        for kind, own in zip(kinds, found, strict=True):
            row_of[kind.members] = own.row_of + start
            start += len(own.rows)
        rows, needs, energy_pj = (
            np.concatenate(parts)
            for parts in zip(*((own.rows, own.needs, own.energy_pj) for own in found), strict=True)
        )
        return LayerTerms(rows, needs, energy_pj, row_of)

    def add_tensors(self, sums: Array, act_bits: Array) -> None:
        """Adds to sums of terms, in place, what depends on the widths of tensors.

        Args:
            sums: Shape (n, `TERMS`).
            act_bits: Shape (n, layers): bits that each layer reads.
        """
        for tensor, table in self.width_rows.items():
            sums += table[self._widths(tensor, act_bits)]
        for column, tensor in self.rescaled_inputs:
            wider = self._widths(tensor, act_bits) > act_bits[:, column]
            sums[:, :2] += np.where(wider, RESCALE_BITS, 0)[:, None]

    def add_shared_engine(self, sums: Array, needs: Array, act_bits: Array) -> None:
        """Adds to sums of terms, in place, memories and array of the shared engine.

        Args:
            sums: Shape (n, `TERMS`).
            needs: Shape (n, `NEEDS`): what its layers ask for together.
            act_bits: Shape (n, layers): bits that each layer reads.
        """
        if self.shared_columns.size:
            sums += self._of_shared_engine(needs)
        for tensors in self.buffers:
            bit_widths = np.array([self._widths(tensor, act_bits) for tensor in tensors])
            sizes = bit_widths * np.array([[elements(self.network, tensor)] for tensor in tensors])
            sums += self._of_frame_buffers(sizes.max(axis=0), bit_widths.max(axis=0))

    def columns(self, sums: Array, energy_pj: Floats) -> dict[str, NDArray[np.generic]]:
        """Totals of configurations by name.

        Args:
            sums: Shape (n, `TERMS`): all terms.
            energy_pj: Shape (n,): energy on chip.
        """
        columns: dict[str, NDArray[np.generic]] = {name: sums[:, i] for i, name in enumerate(TERMS)}
        offchip = sums[:, 6:10].sum(axis=1)
        network, board = self.network, self.board
        dram = dram_cycles(offchip, board)
        waits = columns["loading_cycles"]
        interval = np.maximum(np.maximum(max(1, self._engine_cycles), self._shared_cycles + waits), dram)
        columns["offchip_bits"] = offchip
        columns["interval_cycles"] = interval
        columns["latency_cycles"] = np.maximum(self._latency_cycles + waits, dram)
        columns["bits_per_weight"] = sums[:, 0] / network.total_weights
        columns["compression"] = 32 * network.total_weights / sums[:, 0]
        columns["fps"] = board.clock_hz / interval
        columns["gops"] = 2 * network.total_macs * (board.clock_hz / interval) / 1e9
        columns["fits"] = np.all([columns[name] <= getattr(board, name) for name in RESOURCES], axis=0)
        columns["energy_rel"] = (energy_pj + DRAM_PJ_PER_BIT * offchip) / self._reference_energy_pj
        return columns

    # -- terms ----------------------------------------------------------------------------------------------------

    def _fixed_width(self, tensor: str) -> int | None:
        """Width of a tensor that no choice changes; None for the others."""
        if tensor == INPUT:
            return self.bit_widths["input_bit_width"]
        names = [self.network.weighted[column].name for column in self._readers[tensor]]
        if any(len(self._act_bits[name]) > 1 for name in names):
            return None
        return max([self._floor[tensor], *(width for name in names for width in self._act_bits[name])])

    def _widths(self, tensor: str, act_bits: Array) -> Array:
        """Width of a tensor in each configuration; `act_bits` has shape (n, layers)."""
        fixed = self._fixed_width(tensor)
        if fixed is not None:
            return np.full(len(act_bits), fixed)
        widest: Array = act_bits[:, self._readers[tensor]].max(axis=1)
        return np.maximum(widest, self._floor[tensor])

    def _of_shared_engine(self, needs: Array) -> Array:
        """Terms of the shared engine's array and memories without frame buffers, from rows of needs."""
        terms = np.zeros((len(needs), len(TERMS)), dtype=np.int64)
        bits = needs[:, [NEEDS.index("weight_bit_width"), NEEDS.index("act_bit_width")]]
        kinds = bits @ (len(WIDTHS), 1)
        for kind in np.flatnonzero(np.bincount(kinds)):
            same = np.flatnonzero(kinds == kind)
            weight_bit_width, act_bit_width = divmod(int(kind), len(WIDTHS))
            values = dict(zip(NEEDS, needs[same].T, strict=True))
            values |= {"weight_bit_width": weight_bit_width, "act_bit_width": act_bit_width, "norm_dsp": self._norm_dsp}
            need = SharedLayer(**values)
            engine = self.schedule.shared[0]
            array = shared_array(need, engine.pe, engine.simd, engine.multiplier, self.board.family)
            memories = shared_memories(need, engine.pe, engine.simd, shared_place(self.schedule))
            terms[same] = self._many_terms(len(same), memories, lut=array.lut, dsp=array.dsp)
        return terms

    def _of_frame_buffers(self, bits: Array, widest: Array) -> Array:
        """Terms of frame buffers of the shared engine, by their bits and their widest codes."""
        shape = frame_buffer_shape(bits, widest, self.schedule.shared[0].simd)
        return self._many_terms(len(bits), [Memory(FRAME_ENGINE, "frame_buffer", *shape)])

    def _of_kind(self, layer: LayerSpec, kind: Kind) -> LayerTerms:
        """What each member of a kind adds."""
        groups = number_of_groups(layer, kind.example)
        if kind.example.weight_format is WeightFormat.DENSE:
            each, firsts, inverse = np.array([groups]), np.array([0]), np.zeros(len(kind.members), dtype=np.int64)
        else:
            each, firsts, inverse = _distinct(kept_groups(groups, kind.sparsity))
        rows = np.empty((len(each), len(TERMS)), dtype=np.int64)
        needs = np.empty((len(each), len(NEEDS)), dtype=np.int64)
        energy = np.empty(len(each))
        many = slice(*np.searchsorted(each, [1, groups]).tolist())
        if many.stop - many.start < MANY:
            many = slice(0, 0)
        else:
            storage = many_weight_bits(layer, kind.example, each[many])
            rows[many], needs[many], energy[many] = self._of_choice(layer, kind.example, storage)
        for i in (*range(many.start), *range(many.stop, len(each))):
            config = replace(kind.example, sparsity=float(kind.sparsity[firsts[i]]))
            rows[i], needs[i], energy[i] = self._of_choice(layer, config, weight_storage(layer, config))
        if (self._fixed_width(layer.inputs[0]) or 0) > kind.example.act_bit_width:
            rows[:, :2] += RESCALE_BITS
        return LayerTerms(rows, needs, energy, inverse)

    def _of_choice(self, layer: LayerSpec, config: LayerConfig, storage: WeightBits) -> tuple[Array, Array, Any]:
        """Shapes (`TERMS`,), (`NEEDS`,) and () of one density; with n of them in `storage`, (n, ...) each."""
        plan = self.schedule[layer.name]
        held = stored(layer, storage)
        row = {
            "stored_bits": held.total_bits,
            "entropy_bound_bits": held.entropy_bound_bits,
            "offchip_weight_bits": weight_reads(layer, plan) * storage.weight_bits,
            "baseline_offchip_bits": storage.weight_bits,
            "loading_cycles": loading_cycles(plan, storage.weight_bits, self.board),
        }
        need = SharedLayer()
        memories: Sequence[Memory] = ()
        if plan.data_flow.is_pipelined:
            host = self.schedule.host
            rescales = host.result_word_bits is None or layer.name not in self.network.outputs
            lanes = sparse_lanes(layer, config, storage, plan.pe, plan.simd)
            array = pipelined_array(layer, config, lanes, plan, rescales, self.board.family)
            row |= {"lut": array.lut, "dsp": array.dsp}
            memories = (*weight_memories(layer, config, storage, lanes, plan), *pipelined_memories(layer, config, plan))
        else:
            need = shared_layer(layer, config, storage, plan, keeps_weights=self.schedule.keeps_weights(layer))
        energy = mac_energy_pj(layer, config, storage) + on_chip_energy_pj(layer, config, storage, plan)
        needs = [getattr(need, name) for name in NEEDS]
        if isinstance(storage.kept_groups, np.ndarray):
            size = len(storage.kept_groups)
            many_needs = np.stack([np.broadcast_to(value, size) for value in needs], axis=1).astype(np.int64)
            return self._many_terms(size, memories, **row), many_needs, energy
        return self._terms(memories, **row), np.array(needs, dtype=np.int64), energy

    def _terms(self, memories: Sequence[Memory], **row: int) -> Array:
        """A row of terms, with what the memories take added."""
        for memory in memories:
            use = memory.use(self.board.family)
            for name, taken in (("bram18", use.bram18), ("uram", use.uram), ("lut", use.lutram_luts)):
                row[name] = row.get(name, 0) + taken
        return np.array([row.get(name, 0) for name in TERMS], dtype=np.int64)

    def _many_terms(self, size: int, memories: Sequence[Memory], **row: Count) -> Array:
        """`_terms` of many configurations at once."""
        terms = np.zeros((size, len(TERMS)), dtype=np.int64)
        for name, values in row.items():
            terms[:, TERMS.index(name)] += values
        for memory in memories:
            depth, width = np.broadcast_arrays(np.atleast_1d(memory.depth), memory.width)
            use = replace(memory, depth=depth, width=width).use(self.board.family)
            for name, taken in (("bram18", use.bram18), ("uram", use.uram), ("lut", use.lutram_luts)):
                terms[:, TERMS.index(name)] += taken
        return terms

    def _add_tensors(self) -> None:
        network = self.network
        placement = place(network, tuple(plan.data_flow for plan in self.schedule.layers))
        baseline = place(network, (DataFlow.SPILLED,) * len(network.layers))
        self.constant = np.zeros(len(TERMS), dtype=np.int64)
        self.buffers: list[tuple[str, ...]] = []
        for tensors in (buffer.tensors for buffer in placement.buffers):
            widths = [self._fixed_width(tensor) for tensor in tensors]
            fixed_bits = [elements(network, t) * w for t, w in zip(tensors, widths, strict=True) if w is not None]
            if len(fixed_bits) == len(tensors):
                widest = max(width for width in widths if width is not None)
                self.constant += self._of_frame_buffers(np.array([max(fixed_bits)]), np.array([widest]))[0]
            else:
                self.buffers.append(tensors)
        self.constant[:2] = sum(operation_stored_bits(layer) for layer in network.layers)
        if self._norm_dsp and not self.shared_columns.size:
            self.constant += self._of_shared_engine(np.zeros((1, len(NEEDS)), dtype=np.int64))[0]
        self.width_rows: dict[str, Array] = {}
        for tensor in (INPUT, *(layer.name for layer in network.layers)):
            fixed = self._fixed_width(tensor)
            if fixed is not None:
                self.constant += self._of_tensor(tensor, fixed, placement, baseline)
                continue
            table = np.array([self._of_tensor(tensor, width, placement, baseline) for width in WIDTHS])
            if table.any():
                self.width_rows[tensor] = table
        inputs = [(column, layer.inputs[0]) for column, layer in enumerate(network.weighted)]
        self.rescaled_inputs = [(column, tensor) for column, tensor in inputs if self._fixed_width(tensor) is None]

    def _of_tensor(self, tensor: str, width: int, placement: Placement, baseline: Placement) -> Array:
        if not width:
            return np.zeros(len(TERMS), dtype=np.int64)
        bits = tensor_bits(self.network, tensor, width, self.schedule.host)
        row = {"baseline_offchip_bits": bits * sum(transfer.tensor == tensor for transfer in baseline.transfers)}
        for transfer in placement.transfers:
            if transfer.tensor == tensor:
                row[f"offchip_{transfer.kind}_bits"] = row.get(f"offchip_{transfer.kind}_bits", 0) + bits
        layer = self.network.by_name.get(tensor)
        if layer is None or layer.has_weights or not self.schedule[tensor].data_flow.is_pipelined:
            return self._terms((), **row)
        bit_width = operand_bit_width(layer, self.bit_widths["sum_bit_width"]) or width
        plan = self.schedule[tensor]
        array = operation_array(layer, bit_width, plan)
        memories = pipelined_operation_memories(self.network, layer, bit_width, plan)
        return self._terms(memories, **row, lut=array.lut, dsp=array.dsp)


def _distinct(counts: Array) -> tuple[Array, Array, Array]:
    """`numpy.unique` of counts with an index of each and the inverse, quicker: values are sorted, no indices."""
    size = len(counts)
    ordered, places = np.divmod(np.sort(counts * size + np.arange(size)), size)
    is_new = np.diff(ordered, prepend=-1) > 0
    inverse = np.empty(size, dtype=np.int64)
    inverse[places] = np.cumsum(is_new) - 1
    return ordered[is_new], places[is_new], inverse


def join_needs(together: Array, own: Array) -> None:
    """Adds what one more layer asks of the shared engine to what others ask, in place; shapes (..., `NEEDS`)."""
    together[..., : len(SUMMED)] += own[..., : len(SUMMED)]
    np.maximum(together[..., len(SUMMED) :], own[..., len(SUMMED) :], out=together[..., len(SUMMED) :])


def _width_readers(network: NetworkSpec, widths: Mapping[str, int]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Who sets the width of each tensor: columns of the layers with weights that read it, and a lower bound.

    Mirrors `hwmodel.precision.ofm_bit_widths`: layers without weights pass on what they are asked for.
    """
    column = {layer.name: i for i, layer in enumerate(network.weighted)}
    readers: dict[str, set[int]] = {}
    floor: dict[str, int] = {}
    for name in (*(layer.name for layer in reversed(network.layers)), INPUT):
        readers[name], floor[name] = set(), 0
        if name in network.outputs:
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
