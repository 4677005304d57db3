"""From the settings of a search to its space and its targets; nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwmodel import estimate, load_board
from hwmodel.errors import BudgetError
from hwmodel.precision import Granularity
from qat.compose import compose_config
from qat.config import Config
from qat.errors import ConfigError, SearchError
from qat.pipeline.planning import (
    bounded_schedule,
    plan,
    required_fps,
    space_settings,
    targets_of,
    untrained,
)
from qat.pipeline.retargeting import retarget_run
from qat.runs import RunFolder
from qat.search.front import Front
from qat.search.space import SearchSpace
from qat.search.trial import Target
from qat.uniform import uniform_of
from tests.qat.search.problems import chain


def config(*overrides: str) -> Config:
    return compose_config(["experiment=digits_demo", "baselines=[]", *overrides])


def test_one_budget_for_each_compression() -> None:
    found = targets_of(
        config(
            "search.min_compression=[16,12]",
            "search.bounds=[{column: offchip_bits, high: 9e5}, {column: fps, low: 30}]",
        )
    )
    others = {"fits": (1, None), "bram18": (None, 280), "offchip_bits": (None, 9e5), "fps": (30, None)}
    assert found == [
        Target("16x", {"compression": (16, None), **others}),
        Target("12x", {"compression": (12, None), **others}),
    ]


def test_bounds_alone_are_a_target() -> None:
    found = targets_of(
        config("search.min_compression=[]", "search.bounds=[{column: bits_per_weight, high: 2}]", "search.bram18=50")
    )
    assert found == [Target("bounds", {"fits": (1, None), "bram18": (None, 50), "bits_per_weight": (None, 2)})]


def test_a_front_takes_the_place_of_the_budgets() -> None:
    found = targets_of(config("search.front=[bram18,offchip_bits]", "search.bounds=[{column: compression, low: 8}]"))
    assert found == [
        Front("front", {"fits": (1, None), "bram18": (None, 280), "compression": (8, None)}, ("bram18", "offchip_bits"))
    ]


def test_a_bound_that_nothing_reaches_is_named() -> None:
    with pytest.raises(SearchError, match=r"target '16x': no configuration .*; latency_cycles must be <= 9, the best"):
        plan(config("search.min_compression=[16]", "search.bounds=[{column: latency_cycles, high: 9}]"))


@pytest.mark.parametrize("bound", ["{column: fps, low: 1e9}", "{column: interval_cycles, high: 0.1}"])
def test_a_frame_rate_that_no_schedule_reaches(bound: str) -> None:
    with pytest.raises(
        BudgetError, match=r"on pynq_z2 inside search\.bounds .*: min_fps=1e\+09 .* the fastest schedule"
    ):
        plan(config(f"search.bounds=[{bound}]"))


@pytest.mark.parametrize(
    ("overrides", "layer", "expected"),
    [
        (["quant.layers=[{pattern: '*', act_bit_width: 4}, {pattern: fc, act_bit_width: 6}]"], "fc", 6),
        (["quant.layers=[{pattern: fc, act_bit_width: 6}, {pattern: '*', act_bit_width: 4}]"], "fc", 4),
        (
            [
                "quant.layers=[{pattern: conv1, act_bit_width: 6}, {pattern: 'conv*', act_bit_width: 4},"
                "{pattern: conv1, act_bit_width: 2}]"
            ],
            "conv1",
            2,
        ),
        (
            [
                "quant.layers=[{pattern: conv1, act_bit_width: 6}]",
                "search.layers=[{pattern: 'conv*', act_bit_widths: [4]}, {pattern: conv1, act_bit_widths: [2]}]",
            ],
            "conv1",
            2,
        ),
    ],
)
def test_the_last_pattern_that_matches_counts(overrides: list[str], layer: str, expected: int) -> None:
    network = chain(4)
    space = SearchSpace.from_network(network, space_settings(config(*overrides), network))
    assert {choice.act_bit_width for choice in space.choices_by_layer[layer]} == {expected}


def test_an_early_rule_for_a_layer_gives_way_field_by_field() -> None:
    """A later rule for one field of the layer brings none of the others back."""
    network = chain(4)
    rules = "{pattern: fc, weight_bit_widths: [8]}, {pattern: '*', weight_bit_widths: [4]}"
    space = SearchSpace.from_network(
        network, space_settings(config(f"search.layers=[{rules}, {{pattern: fc, act_bit_widths: [2]}}]"), network)
    )
    found = {(choice.weight_bit_width, choice.act_bit_width) for choice in space.choices_by_layer["fc"]}
    assert {bits for bits, _ in found if bits > 1} <= {4} and {act for _, act in found} == {2}


def test_schedules_keep_the_bounds_of_the_search() -> None:
    """The best schedule of the whole board takes more block RAM and DSP slices than the search allowed."""
    free, board = config(), load_board("pynq_z2")
    network = untrained(free)
    precision = uniform_of(free.quant, network, 1)
    whole = estimate(network, precision, board, bounded_schedule(free, network, precision))
    assert whole.bram18 > 30 and whole.dsp > 100
    few_memories = bounded_schedule(config("search.bram18=30"), network, precision)
    assert estimate(network, precision, board, few_memories).bram18 <= 30
    few_slices = bounded_schedule(config("search.bounds=[{column: dsp, high: 100}]"), network, precision)
    assert estimate(network, precision, board, few_slices).dsp <= 100


def test_the_frame_rate_that_bounds_ask_for() -> None:
    clock = load_board("pynq_z2").clock_hz
    assert required_fps(config()) == required_fps(config("search.bounds=[{column: fps, high: 30}]")) == 0
    both = config("search.bounds=[{column: fps, low: 30},{column: interval_cycles, high: 1000}]")
    assert required_fps(both) == clock / 1000


def test_tied_layers_share_a_dimension() -> None:
    space, _, _ = plan(config("search.groups=[[layer2.*],[conv1,layer1.0.conv1]]"))
    tied = [tuple(space.layers[column] for column in group) for group in space.groups if len(group) > 1]
    assert ("conv1", "layer1.0.conv1") in tied
    assert all(name.startswith("layer2.") for group in tied[1:] for name in group)
    assert len(space.groups) < len(space.layers)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            "[[layer9.*]]",
            r"search\.groups\[0\]: pattern 'layer9\.\*' matches no layer; layers with weights are",
        ),
        ("[[layer1.*],[conv1,layer1.0.conv1]]", r"layer 'layer1\.0\.conv1' is in search\.groups 0 and 1, expected one"),
    ],
)
def test_groups_that_do_not_fit_the_network(groups: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(config(f"search.groups={groups}"))


def test_activation_bits_are_searched_where_quant_does_not_give_them() -> None:
    quant = ["quant.act_bit_width=4", "quant.end_bit_width=8", "quant.layers=[{pattern: layer1.*, act_bit_width: 6}]"]
    layers = "search.layers=[{pattern: layer2.0.conv2, act_bit_widths: [3]}]"
    space, _, _ = plan(config(*quant, "search.act_bit_widths=[4,2]", layers))
    found = dict(zip(space.layers, space.act_bit_widths, strict=True))
    assert found.pop("conv1") == found.pop(space.layers[-1]) == (8,)
    assert found.pop("layer2.0.conv2") == (3,)
    assert {widths for name, widths in found.items() if name.startswith("layer1.")} == {(6,)}
    assert {widths for name, widths in found.items() if not name.startswith("layer1.")} == {(2, 4)}
    given, _, _ = plan(config(*quant))
    assert set(given.act_bit_widths) == {(8,), (6,), (4,)}


def test_densities_between_bounds() -> None:
    layers = "search.layers=[{pattern: conv1, significant_densities: [0.02]}]"
    densities = [
        "search.significant_densities=[0.05,0.005]",
        "search.sparse_densities=[0.25]",
        "search.density_levels=9",
    ]
    chosen = config(*densities, layers)
    space, costs, _ = plan(chosen)
    found = {
        name: sorted(choice.density for choice in choices if choice.weight_format == "binary_plus_sparse")
        for name, choices in space.choices_by_layer.items()
    }
    assert found.pop("conv1") == pytest.approx([0.02])
    for row in found.values():
        assert row == pytest.approx([0.005 * 10 ** (i / 8) for i in range(9)], rel=1e-3)
    sparse = {c.density for choices in space.choices for c in choices if c.weight_format == "sparse"}
    assert sparse == {0.25}
    (point,) = points = space.sample(1, np.random.default_rng(0))
    exact = estimate(untrained(chosen), space.config(point), load_board("pynq_z2"))
    assert costs.evaluate(space.layer_indices(points))["stored_bits"] == exact.stored_bits


def test_granularity_for_all_layers_and_for_some() -> None:
    layers = "search.layers=[{pattern: conv1, granularities: [element]}]"
    space, _, _ = plan(config("search.granularities=[filter,kernel]", "search.significant_densities=[0.05]", layers))
    found = {
        name: {choice.granularity for choice in choices if choice.sparsity > 0}
        for name, choices in space.choices_by_layer.items()
    }
    assert found.pop("conv1") == {Granularity.ELEMENT}
    assert found.pop(space.layers[-1]) == {Granularity.FILTER, Granularity.KERNEL}  # one weight, and a row of them
    assert set(map(frozenset, found.values())) == {frozenset({Granularity.FILTER, Granularity.KERNEL})}


def test_budgets_that_a_front_makes_void_are_refused(tmp_path: Path) -> None:
    there = [f"run_dir={tmp_path / 'run'}", "search.front=[bram18]"]
    RunFolder.create(config(*there))
    message = (
        r"search\.min_compression=\[18\.0\] says nothing beside search\.front=\['bram18'\]; give search\.front=\[\]"
    )
    with pytest.raises(ConfigError, match=message):
        retarget_run(config(*there, "search.min_compression=[18]"))
