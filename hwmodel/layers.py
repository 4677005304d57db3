"""What a layer at one precision asks of engines: the same for all layers of equal geometry, so made once for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from hwmodel.compute import Multiplier
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, WeightPlace
from hwmodel.network import NORMALIZING, LayerSpec
from hwmodel.option_cache import OptionCache
from hwmodel.options import Array, Foldings, Options, Space, geometry, weighted_options
from hwmodel.precision import LayerConfig
from hwmodel.resources import FIXED, FOLDED, WEIGHTS, SharedLayer, shared_layer, shared_norms
from hwmodel.storage import weight_storage


class LayerFacts:
    """A layer with weights at one precision, and on the shared engine the normalisations behind it.

    Args:
        layer: The layer, its name and neighbours of no account (`hwmodel.options.geometry`).
        norms: Normalisations between it and the next layer with weights, in the same form.
        config: Its precision.
        family: Device family.
        places: Where weights may lie on chip.
        space: Which executions are tried.
    """

    def __init__(
        self,
        layer: LayerSpec,
        norms: tuple[LayerSpec, ...],
        config: LayerConfig,
        family: str,
        places: tuple[WeightPlace, ...],
        space: Space,
    ) -> None:
        self.storage = weight_storage(layer, config)
        self.weight_bits = self.storage.weight_bits
        self._layer = layer
        self._norms = norms
        self._config = config
        self._family = family
        self._places = places
        self._space = space
        self._words: dict[tuple[bool, bool], Array] = {}
        self._fixed: dict[bool, Array] = {}
        self._cycles: dict[bool, Array] = {}
        self._least_cycles: dict[bool, int] = {}

    @cached_property
    def pipelined(self) -> Options:
        """Executions as a pipelined layer."""
        return weighted_options(self._layer, self._config, self.storage, True, self._family, self._places, self._space)

    def cycles(self, is_spilled: bool) -> Array:
        """Cycles of each shared engine, shape (engines,)."""
        if is_spilled not in self._cycles:
            plan = self._plan(is_spilled, WeightPlace.BRAM)
            self._cycles[is_spilled] = np.asarray(sum(layer_cycles(one, plan) for one in (self._layer, *self._norms)))
        return self._cycles[is_spilled]

    def least_cycles(self, is_spilled: bool) -> int:
        """`cycles` of the fastest shared engine."""
        if is_spilled not in self._least_cycles:
            self._least_cycles[is_spilled] = int(self.cycles(is_spilled).min())
        return self._least_cycles[is_spilled]

    def fixed(self, is_spilled: bool) -> Array:
        """What it asks of shared engines beside weights and parameters: `FIXED`, then each one's `FOLDED`."""
        if is_spilled not in self._fixed:
            need = self._need(is_spilled, WeightPlace.BRAM, True)
            alike = [getattr(need, name) for name in FIXED]
            self._fixed[is_spilled] = np.append(np.array(alike, dtype=np.int64), self._table(FOLDED, need))
        return self._fixed[is_spilled]

    def words(self, keeps_weights: bool, loads: bool) -> Array:
        """Words of weights on each shared engine, shape (`WEIGHTS`, engines).

        Those of resident weights stand there, and those of the buffer for weights that are not; one of the two counts.

        Args:
            keeps_weights: Whether resident weights need words of their own, as in `shared_layer`.
            loads: Whether weights that are not resident are loaded whole.
        """
        key = (keeps_weights, loads)
        if key not in self._words:
            away = WeightPlace.LOADED_BRAM if loads else WeightPlace.STREAMED
            resident, buffered = (
                self._table(WEIGHTS, self._need(False, where, keeps_weights)) for where in (WeightPlace.BRAM, away)
            )
            self._words[key] = np.maximum(resident, buffered)
        return self._words[key]

    def _plan(self, is_spilled: bool, where: WeightPlace) -> Foldings:
        pe, simd = self._space.shared_grid
        flow = DataFlow.SPILLED if is_spilled else DataFlow.FRAME
        return Foldings(flow, pe, simd, np.ones_like(pe), Multiplier.LUT, where)

    def _need(self, is_spilled: bool, where: WeightPlace, keeps_weights: bool) -> SharedLayer:
        plan = self._plan(is_spilled, where)
        need = shared_layer(self._layer, self._config, self.storage, plan, keeps_weights=keeps_weights)
        return replace(need, norm_dsp=shared_norms(self._norms).norm_dsp)

    def _table(self, names: tuple[str, ...], need: SharedLayer) -> Array:
        table = np.empty((len(names), len(self._space.shared_grid[0])), dtype=np.int64)
        for row, name in enumerate(names):
            table[row] = getattr(need, name)
        return table


def layer_facts(
    layer: LayerSpec,
    followers: Sequence[LayerSpec],
    config: LayerConfig,
    family: str,
    places: tuple[WeightPlace, ...],
    space: Space,
    cache: OptionCache,
) -> LayerFacts:
    """The facts of a layer with its `NetworkSpec.followers`, from the cache if they are there."""

    def shapes() -> tuple[LayerSpec, tuple[LayerSpec, ...]]:
        return geometry(layer), tuple(geometry(one) for one in followers if one.op in NORMALIZING)

    def make() -> LayerFacts:
        alike = (*cache.get(("shapes", layer.name), shapes), config)
        return cache.get(("facts", *alike), lambda: LayerFacts(*alike, family, places, space))

    return cache.get(("facts of", layer.name, config), make)
