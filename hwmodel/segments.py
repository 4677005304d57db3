"""The cuts of a network into layers with engines of their own and layers on the shared engine, with all options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from hwmodel.board import Board
from hwmodel.chains import Cut, SharedRows, Split
from hwmodel.choices import NO_LIMIT, Choices
from hwmodel.cost import operation_bit_width, pipelined_operation_memories
from hwmodel.dataflow import DataFlow, HostInterface, LayerSchedule, Schedule, WeightPlace
from hwmodel.engines import EngineUses
from hwmodel.exchanges import TINY, starts_of
from hwmodel.layers import layer_facts
from hwmodel.network import LayerSpec, NetworkSpec
from hwmodel.option_cache import OptionCache
from hwmodel.options import (
    FREE,
    Array,
    Options,
    Rates,
    Space,
    column,
    join,
    operation_options,
    undominated,
    undominated_blocks,
)
from hwmodel.precision import NetworkConfig, ofm_bit_widths
from hwmodel.shared import SharedEngine
from hwmodel.traffic import Placement, place, tensor_bits

LAYERS_TOGETHER = 8
"""Layers after which it is asked again whether those so far may be pipelined together."""


class Segments:
    """Options of every part of a network, for one configuration and board.

    Of the board its family counts, whether it has UltraRAM, and how fast weights can be loaded; its budgets do not.

    Args:
        network: The network.
        config: Precision of each layer.
        board: The board.
        space: Which executions are tried.
        cache: Options that earlier configurations left; they are added to.
        rates: Prices at which pipelined layers may cost 1 at most: those that cannot keep that need no options.
    """

    def __init__(
        self,
        network: NetworkSpec,
        config: NetworkConfig,
        board: Board,
        space: Space,
        cache: OptionCache | None = None,
        rates: Rates = FREE,
    ) -> None:
        self.network = network
        self.config = config
        self.board = board
        self.space = space
        self.places = (WeightPlace.BRAM, WeightPlace.URAM) if board.uram else (WeightPlace.BRAM,)
        self.cache = OptionCache() if cache is None else cache
        read = (config.sum_bit_width, config.input_bit_width, config.output_bit_width)
        read_by_layers = tuple(config[layer.name].act_bit_width for layer in network.weighted)
        self.widths = self.cache.get(("widths", *read, read_by_layers), lambda: ofm_bit_widths(network, config))
        self._rates = rates
        self.facts = {
            index: layer_facts(
                layer,
                network.followers[layer.name],
                config[layer.name],
                board.family,
                self.places,
                space,
                self.cache,
            )
            for index, layer in enumerate(network.layers)
            if layer.has_weights
        }
        # Not a method: segments that do not refer to themselves are freed, and their memory used again, at once.
        self._placement = partial(_placement, network, self.cache)
        has_uram = WeightPlace.URAM in self.places
        uses = EngineUses(network, self.facts, self.widths, board.family, has_uram, space, self._placement, self.cache)
        self.engine = SharedEngine(network, self.facts, board, self.places, space, uses, self.cache)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Every cut, nothing loaded; least traffic of feature maps first, of equal ones the longest pipeline."""

        def make() -> tuple[Cut, ...]:
            end = len(self.network.layers)
            before = (0, *(i for i, layer in enumerate(self.network.layers) if layer.has_weights and i), end)
            found = [self._cut(layers, 0) for layers in before] + [self._cut(0, layers) for layers in before[1:]]
            return tuple(sorted(found, key=lambda one: (one.map_bits, -one.pipelined)))

        return self.cache.get(("cuts", *self.widths.values()), make)

    def all_resident(self, map_bits: int) -> list[Split]:
        """Splits whose weights are all resident and whose feature maps are so many bits, the longest pipeline first."""

        def make() -> list[Split]:
            cuts = [one for one in self.cuts if one.map_bits == map_bits]
            if self.network.layers[-1].has_weights:
                # Alone on the shared engine it is among the options of the longest pipeline.
                cuts = [one for one in cuts if one.depths != (len(self.network.layers) - 1, 0)]
            return [self.engine.all_resident(one) for one in cuts]

        return self.cache.get(("all resident", map_bits, *self.widths.values()), make)

    def loading(self, cut: Cut) -> list[Cut]:
        """The same cut where spilled layers load weights of up to some bits whole, for each number that matters."""
        return [replace(cut, loaded_bits=bits) for bits in self.engine.loadable_bits(cut.spilled)]

    def _last_options(self, pipelined: Options) -> Options:
        """Options of the last layer: on an engine of its own, or as all that runs on the shared one.

        The same feature maps cross the chip's border.
        """
        depths = (len(self.network.layers) - 1, 0)
        buffered = {tensor for held in self._placement(*depths).buffers for tensor in held.tensors}
        widths = tuple(self.widths[tensor] for tensor in sorted(buffered))

        def make() -> Options:
            splits = [self.engine.all_resident(self._cut(*depths))]
            rows = self.engine.rows(splits)
            alone = self.shared_options(rows, splits, np.arange(len(rows.cycles)))
            flow, pe, simd, _, multiplier, where = alone.plans
            plans = (flow, pe, simd, np.ones_like(pe), multiplier, where)
            return undominated(join([pipelined, replace(alone, plans=plans)]))

        return self.cache.get(("last", self.config[self.network.layers[-1].name], widths), make)

    def _cut(self, pipelined: int, spilled: int) -> Cut:
        host = HostInterface()
        transfers = self._placement(pipelined, spilled).transfers
        bits = sum(tensor_bits(self.network, t.tensor, self.widths[t.tensor], host) for t in transfers)
        return Cut(pipelined, spilled, bits)

    def least_cycles(self, cuts: Sequence[Cut]) -> Array:
        """Cycles per frame that no choice of options of a cut is faster than, shape (cuts,)."""
        own = self._own_cycles[[one.pipelined for one in cuts]]
        return np.maximum(own, self.engine.least_cycles(cuts))

    @cached_property
    def _own_cycles(self) -> Array:
        """Shape (layers + 1,): least cycles of the slowest of the first layers with an engine of their own."""
        least = np.full(len(self.network.layers) + 1, NO_LIMIT)
        least[0] = 0
        least[1 : len(self.own_options) + 1] = self.own.key[self.own_starts]
        return np.maximum.accumulate(least)

    def groups(self, cut: Cut, *, streams: bool) -> tuple[Options, ...]:
        """Options of each pipelined layer, then of the shared engine if there is one.

        Args:
            cut: The cut.
            streams: Whether layers on the shared engine may read their weights from off chip.
        """
        groups = self.own_options[: cut.pipelined]
        if cut.pipelined < len(self.network.layers):
            splits = self.engine.splits(cut)
            splits = splits if streams else splits[:1]
            rows = self.engine.rows(splits)
            parts = []
            for kind in range(len(self.engine.kinds)):
                options = self.shared_options(rows, splits, np.flatnonzero(rows.kind == kind))
                parts.append(undominated_blocks(options, len(self.engine.grid[0])))
            groups = (*groups, join(parts))
        return groups

    def shared_options(self, rows: SharedRows, splits: Sequence[Split], kept: Array) -> Options:
        """Some rows of the shared engine as options."""
        pe, simd = (values[rows.engine[kept]] for values in self.engine.grid)
        resident = np.array([split.resident for split in splits], dtype=np.int64)[rows.split[kept]]
        streamed = np.array([one.offchip_bits - one.cut.map_bits for one in splits], dtype=np.int64)
        kinds = np.empty((len(self.engine.kinds), 2), dtype=object)
        kinds[:] = self.engine.kinds
        multiplier, where = kinds[rows.kind[kept]].T
        plans = (column(DataFlow.FRAME, len(kept)), pe, simd, resident, multiplier, where)
        return Options(rows.cycles[kept], rows.use[kept], streamed[rows.split[kept]], plans)

    @cached_property
    def own(self) -> Choices:
        """`own_options`, with cycles as keys."""
        options = self.own_options
        return Choices.of([one.cycles for one in options], [one.use for one in options], [one.until for one in options])

    @cached_property
    def own_starts(self) -> Array:
        """Where the options of each layer start in `own`: there is its fastest one."""
        return starts_of(self.own.group)

    @cached_property
    def own_options(self) -> tuple[Options, ...]:
        """Options of each layer as a pipelined one, up to layers with which they are too dear together."""
        found, costs = list[Options](), [0.0] * self._rates.values.shape[1]
        for index, layer in enumerate(self.network.layers):
            found.append(self.facts[index].pipelined if index in self.facts else self._operation(layer))
            if layer is self.network.layers[-1] and layer.has_weights:
                found[-1] = self._last_options(found[-1])
            if index % LAYERS_TOGETHER == LAYERS_TOGETHER - 1:
                more = [options.least_prices(self._rates) for options in found[-LAYERS_TOGETHER:]]
                costs = list(map(sum, zip(costs, *more, strict=True)))
                if max(costs) > 1 + TINY:
                    break
        return tuple(found)

    def write(self, cut: Cut, groups: Sequence[Options], picks: Sequence[int]) -> Schedule:
        """The schedule that takes the picked option of each group."""
        layers = self.network.layers
        plans = [
            group.plan(layer.name, pick)
            for layer, group, pick in zip(layers[: cut.pipelined], groups, picks, strict=False)
        ]
        if cut.pipelined < len(layers):
            _, pe, simd, resident, multiplier, where = (values[picks[-1]] for values in groups[-1].plans)
            order = self.engine.residency(cut)
            streamed = set(order[int(resident) :])
            flows = _flows(self.network, cut.pipelined, cut.spilled)
            for index in range(cut.pipelined, len(layers)):
                weights = where if layers[index].has_weights else WeightPlace.NONE
                if index in streamed:
                    loads = self.engine.loads(index, cut)
                    weights = where.loaded if loads else WeightPlace.STREAMED
                plans.append(
                    LayerSchedule(layers[index].name, flows[index], int(pe), int(simd), 1, multiplier, weights)
                )
        return Schedule(self.network.name, tuple(plans))

    def _operation(self, layer: LayerSpec) -> Options:
        bit_width = operation_bit_width(layer, self.config, self.widths)

        def make() -> Options:
            memories_of = partial(pipelined_operation_memories, self.network, layer, bit_width)
            return operation_options(layer, bit_width, memories_of, self.board.family, self.space)

        return self.cache.get(("operation", layer.name, bit_width), make)


def _placement(network: NetworkSpec, cache: OptionCache, pipelined: int, spilled: int) -> Placement:
    """The feature maps of a cut."""
    key = ("placement", pipelined, spilled)
    return cache.get(key, lambda: place(network, _flows(network, pipelined, spilled)))


def _flows(network: NetworkSpec, pipelined: int, spilled: int) -> tuple[DataFlow, ...]:
    rest = len(network.layers) - pipelined - spilled
    return (DataFlow.ROW_PIXEL,) * pipelined + (DataFlow.SPILLED,) * spilled + (DataFlow.FRAME,) * rest
