"""Options of the shared engine for every cut of a network, made only for the cuts and foldings that are asked about.

Weights become resident in a fixed order, so that "the layers from cut c on, of which those before p are resident" is
all there is to choose beside the engine.  What the engine needs is then a difference of sums over the layers before c
and before p, and a maximum over the layers from c or from p on: both are accumulated once for all cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from hwmodel.board import Board
from hwmodel.chains import FIELDS, MAXIMISED, Candidate, Chain, SharedRows, Split, prefixes
from hwmodel.compute import Multiplier
from hwmodel.cost import dram_cycles
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, WeightPlace
from hwmodel.exchanges import Floats
from hwmodel.memory import RAMB18_BITS, RAMB18_WIDTHS, URAM_SHAPE, VIVADO_LUTRAM_BITS, VIVADO_MIN_FILL
from hwmodel.network import NetworkSpec
from hwmodel.options import Array, Foldings, Space, resource_use, shared_array_uses
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
    shared_memories,
)
from hwmodel.storage import WeightStorage
from hwmodel.traffic import Placement, elements

WEIGHTS = ("weight_words", "sparse_words", *BUFFERED)
"""Fields of `SharedLayer` that depend on which weights are resident."""

FIXED = tuple(name for name in MAXIMISED if name not in WEIGHTS)
"""Fields of `SharedLayer` that do not, the sum of parameter words apart."""

FIXED_ROWS = [FIELDS.index(name) for name in FIXED]


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
        self._options: dict[Split, tuple[Array, Array]] = {}
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
                memory[memory > self.rooms(self.fixed_use([candidates[numbers[0]]]), budgets)[0]] = NO_LIMIT
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
        """What each engine takes at a cut beside memories of weights, shape (cuts, engines, multipliers, resources)."""
        missing = {(one.pipelined, one.spilled): one for one in candidates}
        missing = {cut: one for cut, one in missing.items() if cut not in self._fixed}
        if missing:
            cuts = np.array(list(missing))
            start, end = (np.array(self._weighted_before)[layer] for layer in (cuts[:, 0], cuts.sum(axis=1)))
            needs = self._frame_needs[end]
            if cuts[:, 1].any():
                spilled = np.flatnonzero(cuts[:, 1])
                needs[spilled] = np.maximum(needs[spilled], self._spilled_needs[end[spilled]])
            needs = needs.transpose(1, 0, 2).reshape(len(FIXED), -1)
            need = SharedLayer(**dict(zip(FIXED, needs, strict=True)), parameter_words=self._parameters[start].ravel())
            pe, simd = (np.tile(values, len(missing)) for values in self.grid)
            family = self.board.family
            uses = shared_array_uses(need, pe, simd, self._space.multipliers, family)
            uses += resource_use(shared_memories(need, pe, simd, WeightPlace.BRAM), 0, 0, family, len(pe))[:, None]
            uses = (
                uses.reshape(len(missing), -1, *uses.shape[1:]) + self.buffer_uses(list(missing.values()))[:, :, None]
            )
            self._fixed.update(zip(missing, uses, strict=True))
        return np.array([self._fixed[one.pipelined, one.spilled] for one in candidates])

    @cached_property
    def _frame_needs(self) -> Array:
        """Shape (layers with weights + 1, `FIXED`, engines): maxima over the layers from one on, frame-based."""
        return prefixes(np.maximum.accumulate(self._fixed_needs(is_spilled=False)[::-1], axis=0))[::-1]

    @cached_property
    def _spilled_needs(self) -> Array:
        """Shape (layers with weights + 1, `FIXED`, engines): maxima over the layers before one, spilled."""
        return prefixes(np.maximum.accumulate(self._fixed_needs(is_spilled=True), axis=0))

    @cached_property
    def _parameters(self) -> Array:
        """Shape (layers with weights + 1, engines): parameter words of the layers from one on."""
        pe, _ = self.grid
        channels = np.array([layer.out_channels for layer in self.network.weighted])
        return prefixes(np.cumsum(-(-channels[::-1, None] // pe), axis=0))[::-1]

    def _fixed_needs(self, *, is_spilled: bool) -> Array:
        """Shape (layers with weights, `FIXED`, engines)."""
        indices = [index for index, layer in enumerate(self.network.layers) if layer.has_weights]
        return np.array([self._needs(index, is_spilled, True, False)[0] for index in indices])[:, FIXED_ROWS]

    def rooms(self, uses: Array, budgets: Array) -> Array:
        """What some uses leave for weights, shape (cuts, engines): bits; negative if another budget is missed.

        Args:
            uses: What engines take, shape (cuts, engines, multipliers, resources).
            budgets: Shape (resources,).
        """
        left = budgets - uses
        bits = left[..., 0] * RAMB18_BITS
        if WeightPlace.URAM in self._places:
            bits = np.maximum(bits, left[..., 1] * prod(URAM_SHAPE))
        room: Array = np.where((left >= 0).all(axis=3), bits, -1).max(axis=2)
        return room

    def reaching(self, candidates: Sequence[Candidate], budgets: Array, limit: int) -> list[Candidate]:
        """The cuts, nothing pipelined before them, that may have no more off-chip bits than this within the budgets."""
        cuts = list(candidates)
        # What costs little leaves out most.
        for uses in (_no_uses, self.buffer_uses, self.fixed_use):
            if cuts:
                found = uses(cuts)
                rooms = self.rooms(found.reshape(*found.shape[:2], -1, len(budgets)), budgets)
                most = np.where(rooms >= 0, rooms + self._most_in_luts, -1).max(axis=1).tolist()
                cuts = [
                    cut
                    for cut, room in zip(cuts, most, strict=True)
                    if room >= 0 and cut.map_bits + self.least_weight_bits(room) <= limit
                ]
        return cuts

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
        missing = [split for split in splits if split not in self._options]
        if missing:
            self._options.update(zip(missing, zip(*self._cycles_and_uses(missing), strict=True), strict=True))
        found = [self._options[split] for split in splits]
        cycles = np.array([cycles for cycles, _ in found])
        split, engine = np.nonzero(cycles <= longest)
        kinds = len(self.kinds)
        return SharedRows(
            np.repeat(split, kinds),
            np.repeat(cycles[split, engine], kinds),
            np.array([use for _, use in found])[split, engine].reshape(-1, 4),
            np.repeat(engine, kinds),
            np.tile(np.arange(kinds), len(engine)),
        )

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

    def _cycles_and_uses(self, splits: Sequence[Split]) -> tuple[Array, Array]:
        """Cycles of each engine, shape (splits, engines), and its resources, shape (splits, engines, kinds, 4)."""
        cycles = np.empty((len(splits), len(self.grid[0])), dtype=np.int64)
        words = {name: np.empty_like(cycles) for name in WEIGHTS}
        for chain, numbers, start, stop in self._by_chain(splits):
            cycles[numbers] = chain.cycles[start] + chain.loading_cycles[stop][:, None]
            for name in WEIGHTS:
                if name in BUFFERED:
                    words[name][numbers] = chain.after[stop, MAXIMISED.index(name)]
                else:
                    summed = chain.before[:, SUMMED.index(name)]
                    words[name][numbers] = summed[stop] - summed[start]
        need = SharedLayer(**{name: counts.ravel() for name, counts in words.items()})
        pe, simd = (np.tile(values, len(splits)) for values in self.grid)
        placed = [
            resource_use(shared_memories(need, pe, simd, place), 0, 0, self.board.family, cycles.size)
            for place in self._places
        ]
        weights = np.stack(placed, axis=1).reshape(*cycles.shape, 1, len(placed), -1)
        fixed = self.fixed_use([split.candidate for split in splits])
        return cycles, (fixed[:, :, :, None] + weights).reshape(*cycles.shape, len(self.kinds), -1)

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
                followers = self.network.followers[layer.name]
                need = shared_layer(
                    layer, self.config[layer.name], storage, plan, followers=followers, keeps_weights=keeps_weights
                )
                np.maximum(table, [np.broadcast_to(getattr(need, name), pe.shape) for name in FIELDS], out=table)
            self._cache[key] = table, sum(layer_cycles(one, plan) for one in (layer, *followers))
        self._layer_needs[here] = self._cache[key]
        return self._layer_needs[here]

    def buffer_uses(self, candidates: Sequence[Candidate]) -> Array:
        """Resources of the frame buffers of each engine at some cuts, shape (cuts, engines, resources)."""
        cuts = [(one.pipelined, one.spilled) for one in candidates]
        sizes = {cut: self._buffer_bits(cut) for cut in cuts if cut not in self._buffers}
        _, simd = self.grid
        keys = {("buffer", bits) for found in sizes.values() for bits in found}
        missing = [key for key in keys if key not in self._cache]
        if missing:
            shape = frame_buffer_shape(np.array([bits for _, bits in missing])[:, None], simd)
            depth, width = (np.broadcast_to(values, (len(missing), len(simd))).ravel() for values in shape)
            memory = Memory(FRAME_ENGINE, "frame_buffer", depth, width)
            uses = resource_use([memory], 0, 0, self.board.family, len(depth))
            self._cache.update(zip(missing, np.split(uses, len(missing)), strict=True))
        for cut, found in sizes.items():
            none = np.zeros((len(simd), 4), dtype=np.int64)
            self._buffers[cut] = sum((self._cache["buffer", bits] for bits in found), none)
        return np.array([self._buffers[cut] for cut in cuts]).reshape(-1, len(simd), 4)

    def _buffer_bits(self, cut: tuple[int, int]) -> list[int]:
        """Bits of each frame buffer at a cut."""
        tensors, counts, starts = self._buffered(cut)
        found: list[int] = (
            np.maximum.reduceat(counts * self._tensor_widths[tensors], starts).tolist() if len(starts) else []
        )
        return found

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


def _no_uses(cuts: Sequence[Candidate]) -> Array:
    return np.zeros((len(cuts), 1, 4), dtype=np.int64)


def _small_memory_bits(width: Array) -> Floats:
    """Most bits of a memory of some width that lies in LUTs.

    `hwmodel.memory.map_memories` takes LUTs for small memories and those that would fill little of the block RAM, which
    takes at most ceil(width / 36) of them where there are no more than 512 words.
    """
    return VIVADO_LUTRAM_BITS + VIVADO_MIN_FILL * RAMB18_BITS * (width / RAMB18_WIDTHS[-1] + 1)
