"""Options of the shared engine for every cut of a network, made only for the cuts and foldings that are asked about.

Weights become resident in a fixed order, so that "the layers from cut c on, of which those before p are resident" is
all there is to choose beside the engine.  What the engine needs is then a difference of sums over the layers before c
and before p, and a maximum over the layers from c or from p on: both are accumulated once for all cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwmodel.board import Board
from hwmodel.chains import Chain, Cut, SharedRows, Split
from hwmodel.choices import NO_LIMIT
from hwmodel.cost import dram_cycles
from hwmodel.dataflow import WeightPlace
from hwmodel.engines import EngineUses
from hwmodel.exchanges import Floats
from hwmodel.layers import LayerFacts
from hwmodel.memory import RAMB18_BITS, RAMB18_WIDTHS, URAM_SHAPE, VIVADO_LUTRAM_BITS, VIVADO_MIN_FILL
from hwmodel.network import NetworkSpec
from hwmodel.option_cache import OptionCache
from hwmodel.options import Array, Space, resource_use
from hwmodel.resources import BUFFERED, CODE_BITS, KEPT, LOADED, SPARSE_WORD_BITS, WEIGHTS, SharedLayer, shared_memories

LEAST_DEPTH = RAMB18_BITS // RAMB18_WIDTHS[-1]
"""Rows that a memory takes the block RAM of at least."""


class SharedEngine:
    """The shared engine of one network and configuration.

    Args:
        network: The network.
        facts: By index: the layers with weights.
        board: The board.
        places: Where weights may lie on chip.
        space: Which executions are tried.
        uses: What engines take beside memories of weights.
        cache: What earlier configurations left; it is added to.
    """

    def __init__(
        self,
        network: NetworkSpec,
        facts: Mapping[int, LayerFacts],
        board: Board,
        places: Sequence[WeightPlace],
        space: Space,
        uses: EngineUses,
        cache: OptionCache,
    ) -> None:
        self.network = network
        self.board = board
        self.grid = space.shared_grid
        self.kinds = tuple((multiplier, place) for multiplier in space.multipliers for place in places)
        self.uses = uses
        self._facts = facts
        self._places = tuple(places)
        self._cache = cache
        self._chains: dict[tuple[int, int, int], Chain] = {}
        self._shares_weights = any(layer.weights_of is not None for layer in network.weighted)

    def chain(self, cut: Cut) -> tuple[Chain, int]:
        """The layers of the shared engine at a cut, and where in their order they start."""
        start = 0 if self._shares_weights else int(self.uses.weighted_before[cut.pipelined])
        return self._chain_of(*self._chain_key(cut)), start

    def loadable_bits(self, spilled: int) -> list[int]:
        """Each number of bits that some of the first layers, spilled, can load whole and read more than once."""
        return sorted({int(self._weight_bits[i]) for i in range(spilled) if self._reads(i, True) > 1} - {0})

    def splits(self, cut: Cut) -> list[Split]:
        """Every number of resident layers of a cut, most resident first."""
        bits = self.offchip_bits(cut).tolist()
        return [Split(cut, resident, bits[resident]) for resident in range(len(bits) - 1, -1, -1)]

    def offchip_bits(self, cut: Cut) -> Array:
        """Off-chip bits per frame by number of resident layers, shape (layers behind the cut + 1,)."""
        chain, start = self.chain(cut)
        bits: Array = chain.streamed_bits[start:] + cut.map_bits
        return bits

    def all_resident(self, cut: Cut) -> Split:
        """The split of a cut whose weights all are resident."""
        return Split(cut, self._layers_from[cut.pipelined], cut.map_bits)

    @cached_property
    def _layers_from(self) -> list[int]:
        """By layer, and for the end of the network: layers with weights from it on."""
        before = self.uses.weighted_before
        found: list[int] = (before[-1] - before).tolist()
        return found

    def cycles(self, cut: Cut) -> Array:
        """Shape (engines,): cycles per frame at a cut, without those of waiting for weights that are loaded."""
        chain, start = self.chain(cut)
        cycles: Array = chain.cycles[start]
        return cycles

    def least_cycles(self, cuts: Sequence[Cut]) -> Array:
        """Cycles per frame that no engine is faster than at each cut, shape (cuts,)."""
        frame = np.cumsum([0, *(facts.least_cycles(False) for facts in self._facts.values())])
        least: Array = frame[-1] - frame[self.uses.weighted_before[[sum(one.depths) for one in cuts]]]
        if any(one.spilled for one in cuts):
            spilled = np.cumsum([0, *(facts.least_cycles(True) for facts in self._facts.values())])
            least += spilled[self.uses.weighted_before[[one.spilled for one in cuts]]]
        return least

    def with_room(self, cuts: Sequence[Cut], rooms: Floats, limit: int) -> tuple[Array, Array, Array]:
        """Splits that may have room for their weights on some engine; `room_taken` leaves out some more.

        Args:
            cuts: Cuts.
            rooms: Shape (cuts, engines): bits that weights may take.
            limit: Most off-chip bits of a split.

        Returns:
            Shape (splits,) each: the number of its cut, its resident layers and its off-chip bits.
        """
        parts = [np.zeros((3, 0), dtype=np.int64)]
        map_bits = np.array([one.map_bits for one in cuts])
        for chain, numbers, start in self._by_chain(cuts):
            ends = np.arange(len(chain.order) + 1)
            if len(numbers) == 1:
                one = cuts[numbers[0]]
                lane_words = self.uses.lane_words([one.pipelined])
                taken = self._taken(chain, start, ends, one.loaded_bits > 0, lane_words)
                has_room = np.array([(taken <= rooms[numbers]).any(axis=1)])
            else:
                # Few numbers for many cuts: as if LUTs held all that they may, and memories had any depth.
                in_luts = [self._words_in_luts(0, 1), self._words_in_luts(1, self.uses.most_lane_words)]
                spare = (np.array(in_luts) * self._bits_per_word).sum(axis=0)
                bits = (chain.before * self._bits_per_word).sum(axis=1, dtype=np.float64)
                has_room = (bits <= (rooms[numbers] + bits[start] + spare)[:, None]).any(axis=2)
            offchip = chain.streamed_bits + map_bits[numbers, None]
            cut, end = np.nonzero(has_room & (ends >= start[:, None]) & (offchip <= limit))
            parts.append(np.array([numbers[cut], end - start[cut], offchip[cut, end]]))
        number, resident, offchip_bits = np.concatenate(parts, axis=1)
        return number, resident, offchip_bits

    def room_taken(self, splits: Sequence[Split]) -> Array:
        """Bits of block RAM or UltraRAM that weights take at least, shape (splits, engines)."""
        found = np.empty((len(splits), len(self.grid[0])), dtype=np.int64)
        resident = np.array([split.resident for split in splits], dtype=np.int64)
        lane_words = self.uses.lane_words([split.cut.pipelined for split in splits])
        for chain, numbers, start in self._by_chain([split.cut for split in splits]):
            loads = splits[numbers[0]].cut.loaded_bits > 0  # and so do all, as such a cut has a chain of its own
            found[numbers] = self._taken(chain, start, start + resident[numbers], loads, lane_words[numbers])
        return found

    def _taken(self, chain: Chain, start: Array, stop: Array, loads: bool, lane_words: Array) -> Array:
        """`room_taken` where layers of a chain from `start` to before `stop` stay, shape (starts, engines).

        Args:
            chain: The chain.
            start: Shape (starts,), or (1,) for one that all have in common.
            stop: Shape (starts,).
            loads: Whether weights that do not stay may be loaded.
            lane_words: `EngineUses.lane_words` of each start.
        """
        taken = np.zeros((len(stop), len(self.grid[0])), dtype=np.int64)
        in_rows: tuple[int | Array, ...] = (1, lane_words)
        for column, in_row in enumerate(in_rows):
            words = chain.before[stop, column] - chain.before[start, column]
            if loads:
                words += chain.after[stop, LOADED[column]]
            bits = np.maximum(words, LEAST_DEPTH * in_row) * self._bits_per_word[column]
            taken += np.where(words > self._words_in_luts(column, in_row), bits, 0)
        return taken

    @cached_property
    def weights_by_users(self) -> tuple[Array, Array]:
        """Bits of weights that are resident, and what they save: those that most layers use come first."""

        def make() -> tuple[list[int], Array]:
            users = Counter(self._owner(index, 0) for index in self._facts)
            owners = sorted(users, key=lambda owner: -users[owner])
            return owners, np.array([users[owner] for owner in owners], dtype=np.int64)

        owners, counts = self._cache.get("users", make)
        bits = self._weight_bits[owners]
        return np.append(0, np.cumsum(bits)), np.append(0, np.cumsum(bits * counts))

    @cached_property
    def most_in_luts(self) -> Array:
        """Shape (engines,): bits of weights and of significant values that may lie in LUTs, whatever the cut."""
        width, lane_width = self._word_widths
        bits = _small_memory_bits(width) + _small_memory_bits(lane_width * self.uses.most_lane_words)
        most: Array = np.ceil(bits).astype(np.int64)
        return most

    def _words_in_luts(self, column: int, in_row: int | Array) -> Floats:
        """Most words of a memory of weights (`KEPT`) that may lie in LUTs, so many of them in a row."""
        width = self._word_widths[column]
        return _small_memory_bits(width * in_row) / width

    @cached_property
    def _word_widths(self) -> tuple[Array, Array]:
        """Bits of a word of each memory of weights (`KEPT`), shape (engines,); of significant ones for all lanes."""
        pe, simd = self.grid
        return CODE_BITS * pe * simd, SPARSE_WORD_BITS * pe

    @cached_property
    def _bits_per_word(self) -> Array:
        """Bits of block RAM or UltraRAM that such a word takes at least, shape (`KEPT`, engines).

        However many words are in a row: those of lanes fill columns of block RAM without a rest, so no fewer bits hold
        them.
        """

        def make() -> Array:
            widths = np.array(self._word_widths)
            taken: Floats = np.min(
                [-(-widths // bits) * RAMB18_BITS / (16384 >> i) for i, bits in enumerate(RAMB18_WIDTHS)], axis=0
            )
            if WeightPlace.URAM in self._places:
                taken = np.minimum(taken, -(-widths // URAM_SHAPE[1]) * URAM_SHAPE[1])
            return np.floor(taken).astype(np.int64)

        return self._cache.get("bits per word of weights", make)

    def rows(
        self, splits: Sequence[Split], longest: int = NO_LIMIT, has_room: NDArray[np.bool_] | None = None
    ) -> SharedRows:
        """Options of some splits.

        Args:
            splits: The splits.
            longest: Options with more cycles are left out.
            has_room: Shape (splits, engines): those that are looked at; all if it is None.
        """
        cycles = np.empty((len(splits), len(self.grid[0])), dtype=np.int64)
        words = np.empty((len(WEIGHTS), *cycles.shape), dtype=np.int64)
        resident = np.array([split.resident for split in splits])
        lane_words = self.uses.lane_words([split.cut.pipelined for split in splits])
        for chain, numbers, start in self._by_chain([split.cut for split in splits]):
            stop = start + resident[numbers]
            cycles[numbers] = chain.cycles[start] + chain.loading_cycles[stop][:, None]
            kept, buffered = chain.before[stop] - chain.before[start], chain.buffered(stop)
            words[:, numbers] = np.concatenate([kept, buffered], axis=1).transpose(1, 0, 2)
        split, engine = np.nonzero(cycles <= longest if has_room is None else has_room & (cycles <= longest))
        fields = dict(zip((*KEPT, *BUFFERED), words[:, split, engine], strict=True))
        need = SharedLayer(**fields, lane_words=lane_words[split, engine])
        pe, simd = (values[engine] for values in self.grid)
        placed = [
            resource_use(shared_memories(need, pe, simd, place), 0, 0, self.board.family, len(engine))
            for place in self._places
        ]
        fixed = self.uses.fixed([one.cut.depths for one in splits])[split, engine]
        kinds = len(self.kinds)
        return SharedRows(
            np.repeat(split, kinds),
            np.repeat(cycles[split, engine], kinds),
            (fixed[:, :, None] + np.stack(placed, axis=1)[:, None]).reshape(-1, fixed.shape[-1]),
            np.repeat(engine, kinds),
            np.tile(np.arange(kinds), len(engine)),
        )

    def residency(self, cut: Cut) -> tuple[int, ...]:
        """Layers on the shared engine in the order in which their weights become resident."""
        chain, start = self.chain(cut)
        return chain.order[start:]

    def _by_chain(self, cuts: Sequence[Cut]) -> list[tuple[Chain, Array, Array]]:
        """By chain: the numbers of its cuts, and where their layers start."""
        found: dict[tuple[int, int, int], list[int]] = {}
        for number, one in enumerate(cuts):
            found.setdefault(self._chain_key(one), []).append(number)
        starts = self.uses.weighted_before[[one.pipelined for one in cuts]] * (not self._shares_weights)
        return [(self._chain_of(*key), np.array(numbers), starts[numbers]) for key, numbers in found.items()]

    def _chain_key(self, cut: Cut) -> tuple[int, int, int]:
        """What `_chain_of` is asked for at a cut."""
        if cut.spilled or self._shares_weights:
            return cut.pipelined, cut.spilled, cut.loaded_bits
        return 0, 0, 0

    def _chain_of(self, pipelined: int, spilled: int, loaded_bits: int) -> Chain:
        key = (pipelined, spilled, loaded_bits)
        if key not in self._chains:
            end = pipelined + spilled
            order, reads, keeps = self._order(pipelined, spilled) if not loaded_bits else self._loading(*key[1:])
            loads = [loaded_bits > 0 and self._loads(index, spilled, loaded_bits) for index in order]
            facts = [self._facts[index] for index in order]
            bits, waits = (np.zeros(len(order) + 1, dtype=np.int64) for _ in range(2))
            bits[:-1] = self._weight_bits[list(order)]
            if loaded_bits:
                waits[:-1] = dram_cycles(bits[:-1], self.board) * np.array(loads, dtype=np.int64)
            bits[:-1] *= reads
            self._chains[key] = Chain(
                len(self.grid[0]),
                order,
                tuple(one.words(*how) for one, *how in zip(facts, keeps, loads, strict=True)),
                tuple(one.cycles(index < end) for one, index in zip(facts, order, strict=True)),
                np.cumsum(waits[::-1])[::-1],
                np.cumsum(bits[::-1])[::-1],
            )
        return self._chains[key]

    @cached_property
    def _weight_bits(self) -> Array:
        """Stored bits of each layer of the network."""
        bits = np.zeros(len(self.network.layers), dtype=np.int64)
        bits[list(self._facts)] = [facts.weight_bits for facts in self._facts.values()]
        return bits

    def _order(self, pipelined: int, spilled: int) -> tuple[tuple[int, ...], Array, tuple[bool, ...]]:
        """Layers on the shared engine in the order in which their weights become resident.

        First the layers whose weights are read most often: a resident bit saves one off-chip bit per reading.

        Returns:
            The layers; how often each reads its weights; whether it needs words of its own for them.
        """

        def make() -> tuple[tuple[int, ...], Array, tuple[bool, ...]]:
            end = pipelined + spilled
            indices = [i for i in self._facts if i >= pipelined]
            # Layers that use the same weights follow each other: once the first has them, they cost the others nothing.
            owners = {i: self._owner(i, pipelined) for i in indices}
            order = sorted(indices, key=lambda i: (-self._reads(owners[i], owners[i] < end), owners[i], i))
            reads = np.array([self._reads(i, i < end) for i in order], dtype=np.int64)
            return tuple(order), reads, tuple(owners[i] == i for i in order)

        return self._cache.get(("order", pipelined, spilled), make)

    def loads(self, index: int, cut: Cut) -> bool:
        """Whether a layer loads its weights whole if they are not resident."""
        return self._loads(index, cut.spilled, cut.loaded_bits)

    def _loads(self, index: int, spilled: int, loaded_bits: int) -> bool:
        # Weights that are read once anyhow are streamed: that takes a smaller buffer.
        return index < spilled and bool(self._weight_bits[index] <= loaded_bits) and self._reads(index, True) > 1

    def _loading(self, spilled: int, loaded_bits: int) -> tuple[tuple[int, ...], Array, tuple[bool, ...]]:
        """`_order` where spilled layers load weights of no more bits than some.

        A resident bit saves what all layers that use it read.  Of equal ones the largest weights come first: they take
        the largest buffers.
        """
        indices = list(self._facts)
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

    def _reads(self, index: int, is_spilled: bool) -> int:
        return self.network.layers[index].out_height if is_spilled else 1


def _small_memory_bits(width: Array) -> Floats:
    """Most bits of a memory of some width that lies in LUTs.

    `hwmodel.memory.map_memories` takes LUTs for small memories and those that would fill little of the block RAM, which
    takes at most ceil(width / 36) of them where there are no more than 512 words.
    """
    return VIVADO_LUTRAM_BITS + VIVADO_MIN_FILL * RAMB18_BITS * (width / RAMB18_WIDTHS[-1] + 1)
