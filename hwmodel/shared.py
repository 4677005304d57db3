"""Options of the shared engine for every cut of a network, made only for the cuts and foldings that are asked about.

Weights become resident in a fixed order, so that "the layers from cut c on, of which those before p are resident" is
all there is to choose beside the engine.  What the engine needs is then a difference of sums over the layers before c
and before p, and a maximum over the layers from c or from p on: both are accumulated once for all cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from hwmodel.board import Board
from hwmodel.chains import KEPT, LOADED, Candidate, Chain, SharedRows, Split
from hwmodel.choices import NO_LIMIT
from hwmodel.cost import dram_cycles
from hwmodel.dataflow import WeightPlace
from hwmodel.engines import EngineUses
from hwmodel.exchanges import Floats
from hwmodel.layers import WEIGHTS, LayerFacts, OptionCache
from hwmodel.memory import RAMB18_BITS, RAMB18_WIDTHS, URAM_SHAPE, VIVADO_LUTRAM_BITS, VIVADO_MIN_FILL
from hwmodel.network import NetworkSpec
from hwmodel.options import Array, Space, resource_use
from hwmodel.resources import BUFFERED, CODE_BITS, SPARSE_WORD_BITS, SharedLayer, shared_memories


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
        self._made: dict[Split, tuple[SharedRows, int, int]] = {}
        self._shares_weights = any(layer.weights_of is not None for layer in network.weighted)

    def chain(self, candidate: Candidate) -> tuple[Chain, int]:
        """The layers of the shared engine at a cut, and where in their order they start."""
        cut = candidate.pipelined
        if candidate.spilled or self._shares_weights:
            return self._chain_of(cut, candidate.spilled, candidate.loaded_bits), 0
        return self._chain_of(0, 0, 0), int(self.uses.weighted_before[cut])

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

    def all_resident(self, candidate: Candidate) -> Split:
        """The split of a cut whose weights all are resident."""
        before = self.uses.weighted_before
        return Split(candidate, int(before[-1] - before[candidate.pipelined]), candidate.map_bits)

    def cycles(self, candidate: Candidate) -> Array:
        """Shape (engines,): cycles per frame at a cut, without those of waiting for weights that are loaded."""
        chain, start = self.chain(candidate)
        cycles: Array = chain.cycles[start]
        return cycles

    def least_cycles(self, candidate: Candidate) -> int:
        """`cycles` of the fastest engine."""
        chain, start = self.chain(candidate)
        return int(chain.least_cycles[start])

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
        parts = [np.zeros((4, 0), dtype=np.int64)]
        whole = [Split(one, 0, one.map_bits) for one in candidates]
        for chain, numbers, start, _ in self._by_chain(whole):
            size = len(chain.order)
            maps = np.array([candidates[number].map_bits for number in numbers])
            bits = chain.streamed_bits + maps[:, None]
            cut, end = np.nonzero((np.arange(size + 1) >= start[:, None]) & (bits <= limit))
            loads = candidates[numbers[0]].loaded_bits
            memory = np.zeros((len(cut), len(self.grid[0])), dtype=np.int64)
            for column, (taken, most_in_luts) in enumerate(self._weight_memories):
                words = chain.before[end, column] - chain.before[start[cut], column]
                if loads:
                    words += chain.after[end, LOADED[column]]
                part = np.maximum(words, RAMB18_BITS // RAMB18_WIDTHS[-1]) * taken
                part[words <= most_in_luts] = 0
                memory += part
            if loads:  # one cut, as each that loads weights has a chain of its own
                uses = self.uses.fixed_of_all([(0, candidates[numbers[0]].spilled)])
                memory[memory > self.uses.rooms(uses, budgets)[0]] = NO_LIMIT
            if longest < NO_LIMIT - 1:
                memory[(chain.cycles[start] > longest)[cut]] = NO_LIMIT
            least = memory.min(axis=1, initial=NO_LIMIT)
            kept = least < NO_LIMIT if loads else np.ones(len(cut), dtype=bool)
            columns = (numbers[cut], end - start[cut], bits[cut, end], least)
            parts.append(np.array([column[kept] for column in columns]))
        found = np.concatenate(parts, axis=1)
        number, resident, bits, least = found[:, np.argsort(found[0], kind="stable")]
        return number, resident, bits, least

    @cached_property
    def weights_by_users(self) -> tuple[Array, Array]:
        """Bits of weights that are resident, and what they save: those that most layers use come first."""
        if "users" not in self._cache:
            users: dict[int, int] = {}
            for index in self._facts:
                owner = self._owner(index, 0)
                users[owner] = users.get(owner, 0) + 1
            owners = sorted(users, key=lambda owner: -users[owner])
            self._cache["users"] = owners, np.array([users[owner] for owner in owners], dtype=np.int64)
        owners, counts = self._cache["users"]
        bits = self._weight_bits[owners]
        return np.append(0, np.cumsum(bits)), np.append(0, np.cumsum(bits * counts))

    @cached_property
    def most_in_luts(self) -> Array:
        """Shape (engines,): bits of weights and of significant values that may lie in LUTs."""
        pe, simd = self.grid
        return np.ceil(_small_memory_bits(CODE_BITS * pe * simd) + _small_memory_bits(SPARSE_WORD_BITS * pe)).astype(
            int
        )

    @cached_property
    def _weight_memories(self) -> list[tuple[Array, Array]]:
        """By memory of weights (`KEPT`), shape (engines,): bits that a word takes at least, and most words in LUTs."""
        pe, simd = self.grid
        found = []
        for width in (CODE_BITS * pe * simd, SPARSE_WORD_BITS * pe):
            taken = np.min(
                [-(-width // bits) * RAMB18_BITS / (16384 >> i) for i, bits in enumerate(RAMB18_WIDTHS)], axis=0
            )
            if WeightPlace.URAM in self._places:
                taken = np.minimum(taken, -(-width // URAM_SHAPE[1]) * URAM_SHAPE[1])
            in_luts = np.floor(_small_memory_bits(width) / width)
            found.append((np.floor(taken).astype(np.int64), in_luts.astype(np.int64)))
        return found

    def rows(self, splits: Sequence[Split], longest: int = NO_LIMIT) -> SharedRows:
        """Options of some splits with no more than `longest` cycles."""
        if len(splits) == 1 and splits[0] in self._made:
            made, number, most = self._made[splits[0]]
            if longest <= most:
                found = made.where((made.split == number) & (made.cycles <= longest))
                return replace(found, split=np.zeros_like(found.split))
        found = self._made_rows(splits, longest)
        self._made.update({split: (found, number, longest) for number, split in enumerate(splits)})
        return found

    def _made_rows(self, splits: Sequence[Split], longest: int) -> SharedRows:
        """`rows`, not from memory."""
        cycles = np.empty((len(splits), len(self.grid[0])), dtype=np.int64)
        words = np.empty((len(WEIGHTS), *cycles.shape), dtype=np.int64)
        for chain, numbers, start, stop in self._by_chain(splits):
            cycles[numbers] = chain.cycles[start] + chain.loading_cycles[stop][:, None]
            kept, buffered = chain.before[stop] - chain.before[start], chain.after[stop]
            words[:, numbers] = np.concatenate([kept, buffered], axis=1).transpose(1, 0, 2)
        split, engine = np.nonzero(cycles <= longest)
        need = SharedLayer(**dict(zip((*KEPT, *BUFFERED), words[:, split, engine], strict=True)))
        pe, simd = (values[engine] for values in self.grid)
        placed = [
            resource_use(shared_memories(need, pe, simd, place), 0, 0, self.board.family, len(engine))
            for place in self._places
        ]
        cuts = [(one.candidate.pipelined, one.candidate.spilled) for one in splits]
        fixed = self.uses.fixed(cuts, split, engine)
        kinds = len(self.kinds)
        return SharedRows(
            np.repeat(split, kinds),
            np.repeat(cycles[split, engine], kinds),
            (fixed[:, :, None] + np.stack(placed, axis=1)[:, None]).reshape(-1, fixed.shape[-1]),
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

    def _chain_of(self, pipelined: int, spilled: int, loaded_bits: int) -> Chain:
        key = (pipelined, spilled, loaded_bits)
        if key not in self._chains:
            end = pipelined + spilled
            order, reads, keeps = self._order(pipelined, spilled) if not loaded_bits else self._loading(*key[1:])
            loads = [self._loads(index, spilled, loaded_bits) for index in order]
            facts = [self._facts[index] for index in order]
            bits = np.append(self._weight_bits[list(order)], 0)
            waits = np.append(dram_cycles(bits[:-1], self.board) * np.array(loads, dtype=np.int64), 0)
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
        bits[list(self._facts)] = [facts.storage.weight_bits for facts in self._facts.values()]
        return bits

    def _order(self, pipelined: int, spilled: int) -> tuple[tuple[int, ...], Array, tuple[bool, ...]]:
        """Layers on the shared engine in the order in which their weights become resident.

        First the layers whose weights are read most often: a resident bit saves one off-chip bit per reading.

        Returns:
            The layers; how often each reads its weights; whether it needs words of its own for them.
        """
        key = ("order", pipelined, spilled)
        if key not in self._cache:
            end = pipelined + spilled
            indices = [i for i in self._facts if i >= pipelined]
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
