"""Facts of a layer are the scalar formulas for every engine, and shared by layers of equal geometry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwmodel import DataFlow, LayerConfig, LayerSchedule, LayerSpec, Multiplier, Op, WeightPlace
from hwmodel.cycles import layer_cycles
from hwmodel.layers import layer_facts
from hwmodel.option_cache import OptionCache
from hwmodel.options import Space
from hwmodel.resources import FIXED, WEIGHTS, SharedLayer, combine, shared_layer, shared_norms
from hwmodel.storage import weight_storage
from tests.hwmodel.conftest import conv

SPACE = Space(shared_pe=(1, 3, 8), shared_simd=(2, 4))
PLACES = (WeightPlace.BRAM, WeightPlace.URAM)
FAMILY = "ultrascale_plus"
CONFIGS = [LayerConfig(4, 8), LayerConfig(4, 8, 0.7, "sparse"), LayerConfig(1, 4, 0.9, "binary_plus_sparse")]
NORM = LayerSpec("norm", Op.GROUP_NORM, ("a",), 12, 8, 8, 12, 8, 8)


def need(layer: LayerSpec, config: LayerConfig, plan: LayerSchedule, keeps_weights: bool = True) -> SharedLayer:
    """The scalar reference, a group norm behind the layer."""
    storage = weight_storage(layer, config)
    return combine([shared_layer(layer, config, storage, plan, keeps_weights=keeps_weights), shared_norms([NORM])])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("is_spilled", [False, True])
def test_every_engine_has_the_scalar_values(config: LayerConfig, kernel: int, is_spilled: bool) -> None:
    layer = conv("a", "input", 8, 12, 8, kernel)
    facts = layer_facts(layer, (NORM,), config, FAMILY, PLACES, SPACE, OptionCache())
    flow = DataFlow.SPILLED if is_spilled else DataFlow.FRAME
    for engine, (pe, simd) in enumerate(zip(*(values.tolist() for values in SPACE.shared_grid), strict=True)):
        plan = LayerSchedule("a", flow, pe, simd, 1, Multiplier.LUT, WeightPlace.BRAM)
        resident = need(layer, config, plan)
        assert facts.cycles(is_spilled)[engine] == layer_cycles(layer, plan) + layer_cycles(NORM, plan)
        fixed = facts.fixed(is_spilled)
        assert fixed[: len(FIXED)].tolist() == [getattr(resident, name) for name in FIXED]
        engines = len(SPACE.shared_grid[0])
        assert fixed[len(FIXED) + engine] == resident.lane_multipliers
        assert fixed[len(FIXED) + engines + engine] == resident.lane_words
        for loads in {False, is_spilled}:  # frame-based layers stream
            place = WeightPlace.LOADED_BRAM if loads else WeightPlace.STREAMED
            away = need(layer, config, replace(plan, weight_place=place))
            for keeps in (False, True):
                kept = need(layer, config, plan, keeps_weights=keeps)
                want = [max(getattr(kept, name), getattr(away, name)) for name in WEIGHTS]
                assert facts.words(keeps, loads)[:, engine].tolist() == want


def test_layers_of_equal_geometry_share_their_facts() -> None:
    cache = OptionCache()

    def facts_of(layer: LayerSpec, *norms: LayerSpec, config: LayerConfig = CONFIGS[0]) -> object:
        return layer_facts(layer, norms, config, FAMILY, PLACES, SPACE, cache)

    first = facts_of(conv("a", "input", 8, 12, 8))
    assert facts_of(conv("a", "input", 8, 12, 8)) is first
    assert facts_of(conv("b", "a", 8, 12, 8)) is first
    assert facts_of(conv("c", "a", 8, 12, 8), replace(NORM, op=Op.MAX_POOL)) is first  # not a norm
    others = [
        facts_of(conv("d", "a", 8, 12, 8), NORM),
        facts_of(conv("e", "a", 8, 12, 16)),
        facts_of(conv("a", "input", 8, 12, 8), config=CONFIGS[1]),
    ]
    assert len({id(one) for one in (first, *others)}) == 4
