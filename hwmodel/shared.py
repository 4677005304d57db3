"""Options of the shared engine for every cut of a network, made only for the cuts and foldings that are asked about.

Weights become resident in a fixed order, so that "the layers from cut c on, of which those before p are resident" is
all there is to choose beside the engine.  What the engine needs is then a difference of sums over the layers before c
and before p, and a maximum over the layers from c or from p on: both are accumulated once for all cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.board import Board
from hwmodel.chains import FIELDS, MAXIMISED, Candidate, Chain, SharedRows, Split
from hwmodel.compute import Multiplier
from hwmodel.cost import dram_cycles
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, WeightPlace
from hwmodel.exchanges import Floats
from hwmodel.memory import RAMB18_BITS, RAMB18_WIDTHS, URAM_SHAPE, VIVADO_LUTRAM_BITS, VIVADO_MIN_FILL
from hwmodel.network import NetworkSpec
from hwmodel.options import Array, Foldings, Space, resource_use, shared_uses
from hwmodel.precision import NetworkConfig
from hwmodel.problem import NO_LIMIT
from hwmodel.resources import (
    BUFFERED,
    CODE_BITS,
    FRAME_ENGINE,
    SPARSE_WORD_BITS,
    SUMMED,
    Memory,
    SharedLayer,
    frame_buffer_shape,
    shared_layer,
)
from hwmodel.storage import WeightStorage
from hwmodel.traffic import Placement, elements


class SharedEngine:
    """The shared engine of one network and configuration.

    Args:
        network: The network.
        config: Precision of each layer.
        storages: Stored weights by layer.
        widths: Bit width of each tensor.
        board: The board.
        places: Where weights may lie on chip.
        space: Which executions are tried.
        placement: The feature maps of a cut, by its pipelined and spilled layers.
        cache: What earlier configurations left; it is added to.
    """

    def __init__(
        self,
        network: NetworkSpec,
        config: NetworkConfig,
        storages: Mapping[str, WeightStorage],
        widths: Mapping[str, int],
        board: Board,
        places: Sequence[WeightPlace],
        space: Space,
        placement: Callable[[int, int], Placement],
        cache: dict[Any, Any],
    ) -> None:
        self.network = network
        self.config = config
        self.storages = storages
        self.widths = widths
        self.board = board
        self.kinds = tuple((multiplier, place) for multiplier in space.multipliers for place in places)
        self._places = tuple(places)
        self._space = space
        self._placement = placement
        self._cache = cache
        self._chains: dict[tuple[int, int, int], Chain] = {}
        self._layer_needs: dict[tuple[int, bool, bool, bool], tuple[Array, Array]] = {}
        self._buffers: dict[tuple[int, int], Array] = {}
        self._fixed: dict[tuple[int, int], Array] = {}
        self._shares_weights = any(layer.weights_of is not None for layer in network.weighted)

    @cached_property
    def grid(self) -> tuple[Array, Array]:
        """Output channels and products in parallel of each engine."""
        pairs = [(pe, simd) for pe in self._space.shared_pe for simd in self._space.shared_simd]
        pe, simd = np.array(pairs, dtype=np.int64).T
        return pe, simd

    def chain(self, candidate: Candidate) -> tuple[Chain, int]:
        """The layers of the shared engine at a cut, and where in their order they start."""
        cut = candidate.pipelined
        if candidate.spilled or self._shares_weights:
            return self._chain_of(cut, candidate.spilled, candidate.loaded_bits), 0
        return self._chain_of(0, 0, 0), self._weighted_before[cut]

    def loadable_bits(self, spilled: int) -> list[int]:
        """Each number of bits that some of the first layers, spilled, can load whole and read more than once."""
        return sorted({int(self._weight_bits[i]) for i in range(spilled) if self._reads(i, True) > 1} - {0})

    def splits(self, candidate: Candidate) -> list[Split]:
        """Every number of resident layers of a cut, most resident first."""
        bits = self.offchip_bits(candidate).tolist()
        return [Split(candidate, resident, bits[resident]) for resident in range(len(bits) - 1, -1, -1)]

    def offchip_bits(self, candidate: Candidate) -> Array:
        """Off-chip bits per frame by number of resident layers, shape (layers behind the cut + 1,)."""
        chain, start = self.chain(candidate)
        bits: Array = chain.streamed_bits[start:] + candidate.map_bits
        return bits

    def cycles(self, candidate: Candidate) -> Array:
        """Shape (engines,): cycles per frame at a cut, without those of waiting for weights that are loaded."""
        chain, start = self.chain(candidate)
        cycles: Array = chain.cycles[start]
        return cycles

    def weight_memories(
        self, candidates: Sequence[Candidate], budgets: Array, limit: int, longest: int = NO_LIMIT
    ) -> tuple[Array, Array, Array, Array]:
        """What weights of each split take at least, of splits that may fit.

        Args:
            candidates: Cuts with a shared engine.
            budgets: Shape (resources,): where weights are loaded, what nothing of fits is left out.
            limit: Most off-chip bits of a split.
            longest: Engines with more cycles than this are left out.

        Returns:
            Shape (splits,) each, those of one cut after those of another: the number of its cut, its resident layers,
            its off-chip bits, and bits of block RAM or UltraRAM that weights take.
        """
        width, most_in_luts = self._weight_memories
        parts = [np.zeros((4, 0), dtype=np.int64)]
        whole = [Split(one, 0, one.map_bits) for one in candidates]
        for chain, numbers, start, _ in self._by_chain(whole):
            size = len(chain.order)
            maps = np.array([candidates[number].map_bits for number in numbers])
            bits = chain.streamed_bits + maps[:, None]
            cut, end = np.nonzero((np.arange(size + 1) >= start[:, None]) & (bits <= limit))
            words = chain.weight_words[end] - chain.weight_words[start[cut]]
            loads = candidates[numbers[0]].loaded_bits
            if loads:
                words += chain.loaded_words[end]
            memory = np.maximum(words, RAMB18_BITS // RAMB18_WIDTHS[-1]) * width
            memory[words <= most_in_luts] = 0
            if loads:  # one cut, as each that loads weights has a chain of its own
                memory[memory > self.rooms([candidates[numbers[0]]], budgets)[0]] = NO_LIMIT
            if longest < NO_LIMIT - 1:
                memory[(chain.cycles[start] > longest)[cut]] = NO_LIMIT
            least = memory.min(axis=1, initial=NO_LIMIT)
            kept = least < NO_LIMIT if loads else np.ones(len(cut), dtype=bool)
            columns = (numbers[cut], end - start[cut], bits[cut, end], least)
            parts.append(np.array([column[kept] for column in columns]))
        found = np.concatenate(parts, axis=1)
        number, resident, bits, least = found[:, np.argsort(found[0], kind="stable")]
        return number, resident, bits, least

    def fixed_use(self, candidates: Sequence[Candidate]) -> Array:
        """What each engine takes at a cut beside memories of weights, shape (cuts, engines, kinds, resources)."""
        missing = {(one.pipelined, one.spilled): one for one in candidates}
        missing = {cut: one for cut, one in missing.items() if cut not in self._fixed}
        if missing:
            chains = [self.chain(replace(one, loaded_bits=0)) for one in missing.values()]
            fields = {
                name: np.concatenate([chain.after[start, i] for chain, start in chains])
                for i, name in enumerate(MAXIMISED)
                if name not in BUFFERED
            }
            column = SUMMED.index("parameter_words")
            fields["parameter_words"] = np.concatenate(
                [chain.before[-1, column] - chain.before[start, column] for chain, start in chains]
            )
            engines = (np.tile(values, len(missing)) for values in self.grid)
            uses = self._uses(SharedLayer(**fields), *engines).reshape(len(missing), -1, len(self.kinds), 4)
            for (cut, one), use in zip(missing.items(), uses, strict=True):
                self._fixed[cut] = use + self.buffer_use(one)[:, None]
        return np.array([self._fixed[one.pipelined, one.spilled] for one in candidates])

    def rooms(self, candidates: Sequence[Candidate], budgets: Array) -> Array:
        """What some cuts leave for weights, shape (cuts, engines): bits; negative if another budget is missed.

        Args:
            candidates: Cuts before which nothing is pipelined, one at least.
            budgets: Shape (resources,).
        """
        left = budgets - self.fixed_use(candidates)
        bits = np.where(self.in_uram, left[..., 1] * prod(URAM_SHAPE), left[..., 0] * RAMB18_BITS)
        room: Array = np.where((left >= 0).all(axis=3), bits, -1).max(axis=2)
        return room

    @cached_property
    def in_uram(self) -> NDArray[np.bool_]:
        """Shape (kinds,): whether weights lie in UltraRAM."""
        return np.array([place is WeightPlace.URAM for _, place in self.kinds])

    def _uses(self, need: SharedLayer, pe: Array, simd: Array) -> Array:
        """Resources of engines without their frame buffers, shape (engines, kinds, resources).

        Args:
            need: What each has to do, arrays of shape (engines,).
            pe: Output channels in parallel.
            simd: Products per output channel in parallel.
        """
        uses = shared_uses(need, pe, simd, self._space.multipliers, self._places, self.board.family)
        return np.stack([uses[kind] for kind in self.kinds], axis=1)

    def reaching(self, candidates: Sequence[Candidate], budgets: Array, limit: int) -> list[Candidate]:
        """The cuts, nothing pipelined before them, that may have no more off-chip bits than this within the budgets."""
        whole = int(budgets[0]) * RAMB18_BITS + int(budgets[1]) * prod(URAM_SHAPE)
        most = whole + int(self._most_in_luts.max())
        cuts = [one for one in candidates if one.map_bits + self.least_weight_bits(most) <= limit]
        if not cuts:
            return []
        rooms = self.rooms(cuts, budgets)
        return [
            cut
            for cut, room in zip(cuts, rooms, strict=True)
            if room.max() >= 0
            and cut.map_bits + self.least_weight_bits(int((room + self._most_in_luts)[room >= 0].max())) <= limit
        ]

    def least_weight_bits(self, memory_bits: int) -> int:
        """Bits of weights that cross the chip's border at least, all layers on the engine, with so much memory."""
        bits, saved = self._weights_by_users
        return int(saved[-1]) - int(np.interp(memory_bits, bits, saved) + 1)

    @cached_property
    def _weights_by_users(self) -> tuple[Array, Array]:
        """Bits of weights that are resident, and what they save: those that most layers use come first."""
        users: dict[int, int] = {}
        for index, layer in enumerate(self.network.layers):
            if layer.has_weights:
                owner = self._owner(index, 0)
                users[owner] = users.get(owner, 0) + 1
        owners = sorted(users, key=lambda owner: -users[owner])
        bits = self._weight_bits[owners]
        saved = bits * np.array([users[owner] for owner in owners])
        return np.append(0, np.cumsum(bits)), np.append(0, np.cumsum(saved))

    @cached_property
    def _most_in_luts(self) -> Array:
        """Shape (engines,): bits of weights and of significant values that may lie in LUTs."""
        pe, simd = self.grid
        return np.ceil(_small_memory_bits(CODE_BITS * pe * simd) + _small_memory_bits(SPARSE_WORD_BITS * pe)).astype(
            int
        )

    @cached_property
    def _weight_memories(self) -> tuple[Array, Array]:
        """By engine: the width of the memory of weights, and the most words that may lie in LUTs."""
        pe, simd = self.grid
        width = CODE_BITS * pe * simd
        return width, np.floor(_small_memory_bits(width) / width).astype(np.int64)

    def rows(self, splits: Sequence[Split], longest: int = NO_LIMIT) -> SharedRows:
        """Options of some splits with no more than `longest` cycles."""
        parts = [
            self._rows(chain, splits, numbers, start, stop, longest)
            for chain, numbers, start, stop in self._by_chain(splits)
        ]
        if len(parts) == 1:
            return parts[0]
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in SharedRows.__dataclass_fields__]
        order = np.argsort(columns[0], kind="stable")
        return SharedRows(*(column[order] for column in columns))

    def residency(self, candidate: Candidate) -> tuple[int, ...]:
        """Layers on the shared engine in the order in which their weights become resident."""
        chain, start = self.chain(candidate)
        return chain.order[start:]

    def _by_chain(self, splits: Sequence[Split]) -> list[tuple[Chain, Array, Array, Array]]:
        """By chain: the numbers of its splits, where their layers start and where their resident ones end."""
        found: dict[int, tuple[Chain, list[tuple[int, int, int]]]] = {}
        for number, split in enumerate(splits):
            chain, start = self.chain(split.candidate)
            found.setdefault(id(chain), (chain, []))[1].append((number, start, start + split.resident))
        return [(chain, *np.array(rows, dtype=np.int64).T) for chain, rows in found.values()]

    def _rows(
        self, chain: Chain, splits: Sequence[Split], numbers: Array, start: Array, stop: Array, longest: int
    ) -> SharedRows:
        cycles = chain.cycles[start] + chain.loading_cycles[stop][:, None]
        split, engine = np.nonzero(cycles <= longest)
        first, last = start[split], stop[split]
        fields: dict[str, Any] = {}
        for i, name in enumerate(SUMMED):
            column = chain.before[:, i]
            end = len(chain.order) if name == "parameter_words" else last
            fields[name] = column[end, engine] - column[first, engine]
        for i, name in enumerate(MAXIMISED):
            fields[name] = chain.after[last if name in BUFFERED else first, i, engine]
        use = self._uses(SharedLayer(**fields), *(values[engine] for values in self.grid))
        buffers = np.array([self.buffer_use(splits[number].candidate) for number in numbers])
        use += buffers[split, engine][:, None]
        kinds = len(self.kinds)
        return SharedRows(
            np.repeat(numbers[split], kinds),
            np.repeat(cycles[split, engine], kinds),
            use.reshape(-1, 4),
            np.repeat(engine, kinds),
            np.tile(np.arange(kinds), len(engine)),
        )

    def _chain_of(self, pipelined: int, spilled: int, loaded_bits: int) -> Chain:
        key = (pipelined, spilled, loaded_bits)
        if key not in self._chains:
            end = pipelined + spilled
            order, reads, keeps = self._order(pipelined, spilled) if not loaded_bits else self._loading(*key[1:])
            loads = [self._loads(index, spilled, loaded_bits) for index in order]
            found = [self._needs(index, index < end, *how) for index, *how in zip(order, keeps, loads, strict=True)]
            bits = np.append(self._weight_bits[list(order)], 0)
            waits = np.append(dram_cycles(bits[:-1], self.board) * np.array(loads, dtype=np.int64), 0)
            bits[:-1] *= reads
            self._chains[key] = Chain(
                len(self.grid[0]),
                order,
                tuple(needs for needs, _ in found),
                tuple(cycles for _, cycles in found),
                np.cumsum(waits[::-1])[::-1],
                np.cumsum(bits[::-1])[::-1],
            )
        return self._chains[key]

    @cached_property
    def _weight_bits(self) -> Array:
        """Stored bits of each layer of the network."""
        layers = self.network.layers
        return np.array([self.storages[one.name].weight_bits if one.has_weights else 0 for one in layers])

    def _order(self, pipelined: int, spilled: int) -> tuple[tuple[int, ...], Array, tuple[bool, ...]]:
        """Layers on the shared engine in the order in which their weights become resident.

        First the layers whose weights are read most often: a resident bit saves one off-chip bit per reading.

        Returns:
            The layers; how often each reads its weights; whether it needs words of its own for them.
        """
        key = ("order", pipelined, spilled)
        if key not in self._cache:
            layers, end = self.network.layers, pipelined + spilled
            indices = [i for i in range(pipelined, len(layers)) if layers[i].has_weights]
            # Layers that use the same weights follow each other: once the first has them, they cost the others nothing.
            owners = {i: self._owner(i, pipelined) for i in indices}
            order = sorted(indices, key=lambda i: (-self._reads(owners[i], owners[i] < end), owners[i], i))
            reads = np.array([self._reads(i, i < end) for i in order], dtype=np.int64)
            self._cache[key] = tuple(order), reads, tuple(owners[i] == i for i in order)
        found: tuple[tuple[int, ...], Array, tuple[bool, ...]] = self._cache[key]
        return found

    def loads(self, index: int, candidate: Candidate) -> bool:
        """Whether a layer loads its weights whole if they are not resident."""
        return self._loads(index, candidate.spilled, candidate.loaded_bits)

    def _loads(self, index: int, spilled: int, loaded_bits: int) -> bool:
        # Weights that are read once anyhow are streamed: that takes a smaller buffer.
        return index < spilled and bool(self._weight_bits[index] <= loaded_bits) and self._reads(index, True) > 1

    def _loading(self, spilled: int, loaded_bits: int) -> tuple[tuple[int, ...], Array, tuple[bool, ...]]:
        """`_order` where spilled layers load weights of no more bits than some.

        A resident bit saves what all layers that use it read.  Of equal ones the largest weights come first: they take
        the largest buffers.
        """
        indices = [i for i, layer in enumerate(self.network.layers) if layer.has_weights]
        reads = {i: 1 if self._loads(i, spilled, loaded_bits) else self._reads(i, i < spilled) for i in indices}
        owners = {i: self._owner(i, 0) for i in indices}
        saved = dict.fromkeys(indices, 0)
        for i in indices:
            saved[owners[i]] += reads[i]
        order = sorted(indices, key=lambda i: (-saved[owners[i]], -int(self._weight_bits[owners[i]]), owners[i], i))
        return tuple(order), np.array([reads[i] for i in order]), tuple(owners[i] == i for i in order)

    def _owner(self, index: int, pipelined: int) -> int:
        """The layer on the shared engine that has the weights of a layer: itself, unless an earlier one shares them."""
        name = self.network.layers[index].weights_of
        owner = index if name is None else self._index[name]
        return owner if owner >= pipelined else index

    @cached_property
    def _index(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.network.layers)}

    @cached_property
    def _weighted_before(self) -> list[int]:
        """By layer, and for the end of the network: layers with weights before it."""
        return [0, *np.cumsum([layer.has_weights for layer in self.network.layers]).tolist()]

    def _reads(self, index: int, is_spilled: bool) -> int:
        return self.network.layers[index].out_height if is_spilled else 1

    def _needs(self, index: int, is_spilled: bool, keeps_weights: bool, loads: bool) -> tuple[Array, Array]:
        """What a layer asks of each engine, shape (`FIELDS`, engines), and its cycles.

        Words of resident weights stand there, and those of the buffer for weights that are not; one of the two counts.
        """
        here = (index, is_spilled, keeps_weights, loads)
        if here in self._layer_needs:
            return self._layer_needs[here]
        layer = self.network.layers[index]
        key = ("needs", layer.name, self.config[layer.name], is_spilled, keeps_weights, loads)
        if key not in self._cache:
            flow = DataFlow.SPILLED if is_spilled else DataFlow.FRAME
            pe, simd = self.grid
            table = np.zeros((len(FIELDS), len(pe)), dtype=np.int64)
            for where in (WeightPlace.BRAM, WeightPlace.LOADED_BRAM if loads else WeightPlace.STREAMED):
                plan = Foldings(flow, pe, simd, np.ones_like(pe), Multiplier.LUT, where)
                storage = self.storages[layer.name]
                need = shared_layer(layer, self.config[layer.name], storage, plan, keeps_weights=keeps_weights)
                np.maximum(table, [np.broadcast_to(getattr(need, name), pe.shape) for name in FIELDS], out=table)
            self._cache[key] = table, layer_cycles(layer, plan)
        self._layer_needs[here] = self._cache[key]
        return self._layer_needs[here]

    def buffer_use(self, candidate: Candidate) -> Array:
        """Resources of the frame buffers of each engine, shape (engines, resources)."""
        cut = candidate.pipelined, candidate.spilled
        if cut not in self._buffers:
            _, simd = self.grid
            tensors, counts, starts = self._buffered(cut)
            bits = counts * self._tensor_widths[tensors]
            sizes = tuple(np.maximum.reduceat(bits, starts).tolist()) if len(starts) else ()
            key = ("buffers", sizes)
            if key not in self._cache:
                memories = [Memory(FRAME_ENGINE, "frame_buffer", *frame_buffer_shape(bits, simd)) for bits in sizes]
                self._cache[key] = resource_use(memories, 0, 0, self.board.family, len(simd))
            self._buffers[cut] = self._cache[key]
        return self._buffers[cut]

    def _buffered(self, cut: tuple[int, int]) -> tuple[Array, Array, Array]:
        """Tensors in the frame buffers of a cut: their numbers, their values, and where each buffer's start."""
        key = ("buffered", *cut)
        if key not in self._cache:
            buffers = [buffer.tensors for buffer in self._placement(*cut).buffers]
            number = {tensor: place for place, tensor in enumerate(self.widths)}
            held = [tensor for tensors in buffers for tensor in tensors]
            starts = np.cumsum([0, *(len(tensors) for tensors in buffers)])[:-1]
            counts = np.array([elements(self.network, tensor) for tensor in held], dtype=np.int64)
            self._cache[key] = np.array([number[tensor] for tensor in held], dtype=np.int64), counts, starts
        found: tuple[Array, Array, Array] = self._cache[key]
        return found

    @cached_property
    def _tensor_widths(self) -> Array:
        """Bit widths of all tensors, in the order of `widths`."""
        return np.array(list(self.widths.values()))


def _small_memory_bits(width: Array) -> Floats:
    """Most bits of a memory of some width that lies in LUTs.

    `hwmodel.memory.map_memories` takes LUTs for small memories and those that would fill little of the block RAM, which
    takes at most ceil(width / 36) of them where there are no more than 512 words.
    """
    return VIVADO_LUTRAM_BITS + VIVADO_MIN_FILL * RAMB18_BITS * (width / RAMB18_WIDTHS[-1] + 1)
