"""What each choice of a layer, and each width of a tensor, adds to the cost of a network under one schedule.

Three kinds of terms:
- what depends on one layer's own choice: a row per choice, summed (or maximised, for the shared engine);
- what depends on the width of a tensor, which is the widest that any reader asks for: a row per width;
- memories and array of the shared engine: mapped after the sums and maxima are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.board import Board
from hwmodel.choices import Floats, act_bits, by_kind
from hwmodel.compute import Count
from hwmodel.cost import operation_stored_bits, pipelined_operation_memories, shared_place, weight_reads
from hwmodel.dataflow import DataFlow, Schedule
from hwmodel.energy import mac_energy_pj, on_chip_energy_pj
from hwmodel.network import INPUT, LayerSpec, NetworkSpec
from hwmodel.precision import LayerConfig, WeightFormat, kept_groups, operand_bit_width
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

MERGED_ROWS = 1024
"""Rows up to which tables of layers are merged into one."""

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

SHARED_FIELDS = tuple(f.name for f in fields(SharedLayer))
MAXIMISED = tuple(name for name in SHARED_FIELDS if name not in SUMMED)
NEEDS = (*SUMMED, *MAXIMISED)
"""Fields of `SharedLayer` in the order of their columns."""

MANY = 16
"""Densities from which the formulas are quicker on arrays than one by one."""

RESCALE_BITS = MULTIPLIER_BITS + SHIFT_BITS
"""Stored bits of the rescaling on the way into a layer that reads fewer bits than were written."""


class Terms:
    """Terms of one network on one board under one schedule.

    Args:
        network: The network.
        board: The board.
        schedule: How the network is executed.
        choices: Configurations that each layer with weights can have, by name, in execution order.
        bit_widths: `sum_bit_width`, `input_bit_width` and `output_bit_width` as in `NetworkConfig`.

    Attributes:
        rows: Shape (choices of all layers, `TERMS`): what each choice adds.
        energy_pj: Shape (choices,): energy on chip of each choice.
        act_bits: Shape (choices,): bits that each choice reads.
        constant: Shape (`TERMS`,): what no choice changes.
        width_rows: By tensor whose width depends on choices: shape (17, `TERMS`), what each width adds.
        rescaled_inputs: (column of a layer, tensor it reads) where the tensor's width depends on choices.
        readers: By tensor: columns of the layers that set its width.
        shared_columns: Columns of the layers on the shared engine.
        buffers: Tensors of each frame buffer whose size depends on choices.
    """

    def __init__(
        self,
        network: NetworkSpec,
        board: Board,
        schedule: Schedule,
        choices: Mapping[str, Sequence[LayerConfig]],
        bit_widths: Mapping[str, int],
    ) -> None:
        self.network = network
        self.board = board
        self.schedule = schedule
        self.choices = choices
        self.bit_widths = bit_widths
        names = tuple(choices)
        found = [self._of_choices(network.by_name[name], choices[name]) for name in names]
        bits = {name: act_bits(choices[name]) for name in names}
        self._act_widths: dict[str, frozenset[int]] = {name: frozenset(own.tolist()) for name, own in bits.items()}
        self.rows = np.concatenate([rows for rows, _, _ in found])
        self.energy_pj = np.concatenate([energy for _, _, energy in found])
        self.act_bits = np.concatenate(list(bits.values()))
        is_shared = [not schedule[name].data_flow.is_pipelined for name in names]
        self.shared_columns = np.flatnonzero(is_shared)
        self._needs = self._merge_needs(np.concatenate([needs for _, needs, _ in found]))
        self.readers, self._floor = _width_readers(network, bit_widths)
        self._add_tensors(names)

    def fixed_width(self, tensor: str) -> int | None:
        """Width of a tensor that no choice changes; None for the others."""
        if tensor == INPUT:
            return self.bit_widths["input_bit_width"]
        names = [self.network.weighted[column].name for column in self.readers[tensor]]
        if any(len(self._act_widths[name]) > 1 for name in names):
            return None
        return max([self._floor[tensor], *(width for name in names for width in self._act_widths[name])])

    def widths(self, tensor: str, rows: Array) -> Array:
        """Width of a tensor in each configuration; `rows` has shape (n, layers)."""
        fixed = self.fixed_width(tensor)
        if fixed is not None:
            return np.full(len(rows), fixed)
        widest: Array = self.act_bits[rows[:, self.readers[tensor]]].max(axis=1)
        return np.maximum(widest, self._floor[tensor])

    def shared_needs(self, rows: Array) -> Array:
        """What the shared layers ask for together; `rows` has shape (n, shared layers)."""
        needs: Array = np.zeros((len(rows), len(SHARED_FIELDS)), dtype=np.int64)
        columns, found = np.ascontiguousarray(rows.T), np.empty_like(needs)
        sums, maxima = (slice(None, len(SUMMED)), slice(len(SUMMED), None))
        for start, strides, first_key, table in self._needs:
            key = sum(columns[start + i] * stride for i, stride in enumerate(strides)) - first_key
            np.take(table, key, axis=0, out=found, mode="clip")
            needs[:, sums] += found[:, sums]
            np.maximum(needs[:, maxima], found[:, maxima], out=needs[:, maxima])
        return needs

    def _merge_needs(self, needs: Array) -> list[tuple[int, list[int], int, Array]]:
        """What the shared layers ask for, some layers together: one row of a table for each combination of choices.

        Args:
            needs: Shape (choices of all layers, fields), first the summed ones.

        Returns:
            Of each table: the first of the shared layers that it is for; strides that turn their rows in `needs` into
            its own, and what these give for first choices; its rows.
        """
        sizes = np.array([len(choices) for choices in self.choices.values()])
        offsets = (np.cumsum(sizes) - sizes)[self.shared_columns]
        sizes, summed = sizes[self.shared_columns], len(SUMMED)
        merged, start = [], 0
        while start < len(sizes):
            stop = start + 1
            while stop < len(sizes) and np.prod(sizes[start : stop + 1]) <= MERGED_ROWS:
                stop += 1
            table = np.zeros((1, needs.shape[1]), dtype=np.int64)
            for first, size in zip(offsets[start:stop], sizes[start:stop], strict=True):
                before, own = table[:, None], needs[None, first : first + size]
                sums, maxima = before[..., :summed] + own[..., :summed], np.maximum(before, own)[..., summed:]
                table = np.concatenate([sums, maxima], axis=2).reshape(-1, needs.shape[1])
            strides = [int(np.prod(sizes[i + 1 : stop])) for i in range(start, stop)]
            merged.append((start, strides, int(offsets[start:stop] @ strides), table))
            start = stop
        return merged

    def of_shared_engine(self, needs: Array) -> Array:
        """Terms of the shared engine's array and memories without frame buffers, from rows of `shared_needs`."""
        terms = np.zeros((len(needs), len(TERMS)), dtype=np.int64)
        bits = needs[:, [NEEDS.index("weight_bit_width"), NEEDS.index("act_bit_width")]]
        kinds = bits @ (len(WIDTHS), 1)
        for kind in np.flatnonzero(np.bincount(kinds)):
            same = np.flatnonzero(kinds == kind)
            weight_bit_width, act_bit_width = divmod(int(kind), len(WIDTHS))
            values = dict(zip(NEEDS, needs[same].T, strict=True))
            values |= {"weight_bit_width": weight_bit_width, "act_bit_width": act_bit_width}
            need = SharedLayer(**values)
            engine = self.schedule.shared[0]
            array = shared_array(need, engine.pe, engine.simd, engine.multiplier, self.board.family)
            memories = shared_memories(need, engine.pe, engine.simd, shared_place(self.schedule))
            terms[same] = self._many_terms(len(same), memories, lut=array.lut, dsp=array.dsp)
        return terms

    def of_frame_buffers(self, bits: Array) -> Array:
        """Terms of frame buffers of the shared engine, by their bits."""
        shape = frame_buffer_shape(bits, self.schedule.shared[0].simd)
        return self._many_terms(len(bits), [Memory(FRAME_ENGINE, "frame_buffer", *shape)])

    def buffer_bits(self, tensors: Sequence[str], rows: Array) -> Array:
        """Bits of a frame buffer in each configuration."""
        sizes = [elements(self.network, tensor) * self.widths(tensor, rows) for tensor in tensors]
        return np.asarray(np.max(sizes, axis=0), dtype=np.int64)

    def _of_choices(self, layer: LayerSpec, configs: Sequence[LayerConfig]) -> tuple[Array, Array, Floats]:
        """What each choice of a layer adds: `rows`, what it asks of the shared engine, and `energy_pj`.

        Of a kind only the number of kept groups matters.  Many of them are arrays for the formulas; few, and those that
        keep nothing or all, go through them one by one.
        """
        size = len(configs)
        rows = np.empty((size, len(TERMS)), dtype=np.int64)
        needs = np.empty((size, len(NEEDS)), dtype=np.int64)
        energy = np.empty(size)
        if size < MANY:
            for i, config in enumerate(configs):
                rows[i], needs[i], energy[i] = self._of_choice(layer, config, weight_storage(layer, config))
            return rows, needs, energy
        for kind in by_kind(configs):
            groups = number_of_groups(layer, kind.example)
            if kind.example.weight_format is WeightFormat.DENSE:
                each, inverse = np.array([groups]), np.zeros(len(kind.members), dtype=np.int64)
            else:
                each, inverse = np.unique(kept_groups(groups, kind.sparsity), return_inverse=True)
            own = np.empty((len(each), len(TERMS)), dtype=np.int64)
            own_needs = np.empty((len(each), len(NEEDS)), dtype=np.int64)
            own_energy = np.empty(len(each))
            many = slice(*np.searchsorted(each, [1, groups]).tolist())
            if many.stop - many.start < MANY:
                many = slice(0, 0)
            else:
                storage = many_weight_bits(layer, kind.example, each[many])
                own[many], own_needs[many], own_energy[many] = self._of_choice(layer, kind.example, storage)
            some = [*range(many.start), *range(many.stop, len(each))]
            if some:
                firsts = np.full(len(each), size)
                np.minimum.at(firsts, inverse, kind.members)
                for i in some:
                    config = configs[firsts[i]]
                    own[i], own_needs[i], own_energy[i] = self._of_choice(layer, config, weight_storage(layer, config))
            rows[kind.members], needs[kind.members] = own[inverse], own_needs[inverse]
            energy[kind.members] = own_energy[inverse]
        return rows, needs, energy

    def _of_choice(self, layer: LayerSpec, config: LayerConfig, storage: WeightBits) -> tuple[Array, Array, Any]:
        """Shapes (`TERMS`,), (`NEEDS`,) and () of one density; with n of them in `storage`, (n, ...) each."""
        plan = self.schedule[layer.name]
        held = stored(layer, storage)
        row = {
            "stored_bits": held.total_bits,
            "entropy_bound_bits": held.entropy_bound_bits,
            "offchip_weight_bits": weight_reads(layer, plan) * storage.weight_bits,
            "baseline_offchip_bits": storage.weight_bits,
        }
        need = SharedLayer()
        memories: Sequence[Memory] = ()
        if plan.data_flow.is_pipelined:
            host = self.schedule.host
            rescales = host.result_word_bits is None or layer.name not in self.network.outputs
            array = pipelined_array(layer, config, storage, plan, rescales, self.board.family)
            row |= {"lut": array.lut, "dsp": array.dsp}
            memories = (*weight_memories(layer, config, storage, plan), *pipelined_memories(layer, config, plan))
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

    def _add_tensors(self, names: Sequence[str]) -> None:
        network = self.network
        placement = place(network, tuple(plan.data_flow for plan in self.schedule.layers))
        baseline = place(network, (DataFlow.SPILLED,) * len(network.layers))
        self.constant = np.zeros(len(TERMS), dtype=np.int64)
        self.buffers: list[tuple[str, ...]] = []
        for tensors in (buffer.tensors for buffer in placement.buffers):
            widths = [self.fixed_width(tensor) for tensor in tensors]
            fixed_bits = [elements(network, t) * w for t, w in zip(tensors, widths, strict=True) if w is not None]
            if len(fixed_bits) == len(tensors):
                self.constant += self.of_frame_buffers(np.array([max(fixed_bits)]))[0]
            else:
                self.buffers.append(tensors)
        self.constant[:2] = sum(operation_stored_bits(layer) for layer in network.layers)
        self.width_rows: dict[str, Array] = {}
        for tensor in (INPUT, *(layer.name for layer in network.layers)):
            fixed = self.fixed_width(tensor)
            if fixed is not None:
                self.constant += self._of_tensor(tensor, fixed, placement, baseline)
                continue
            table = np.array([self._of_tensor(tensor, width, placement, baseline) for width in WIDTHS])
            if table.any():
                self.width_rows[tensor] = table
        self.rescaled_inputs: list[tuple[int, str]] = []
        start = 0
        for column, name in enumerate(names):
            own = slice(start, start + len(self.choices[name]))
            producer, start = network.by_name[name].inputs[0], own.stop
            fixed = self.fixed_width(producer)
            if fixed is None:
                self.rescaled_inputs.append((column, producer))
            else:  # rescaling depends on the layer's own choice
                self.rows[own, :2] += np.where(fixed > self.act_bits[own], RESCALE_BITS, 0)[:, None]

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
