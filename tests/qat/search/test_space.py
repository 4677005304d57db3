from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import Granularity, LayerConfig, WeightFormat, group_shape
from hwmodel.storage import weight_storage
from qat.errors import ConfigError, SearchError
from qat.search.noise import at_least_as_precise
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from tests.qat.search.problems import RULE, chain

NETWORK = chain(5)

RULES = st.builds(
    LayerRule,
    weight_bit_widths=st.lists(st.integers(1, 8), min_size=1, max_size=4, unique=True),
    significant_densities=st.lists(st.sampled_from([0, 0.01, 0.05]), unique=True),
    binary_densities=st.lists(st.sampled_from([0.25, 0.5]), unique=True),
    sparse_densities=st.lists(st.sampled_from([0.1, 0.5]), unique=True),
    act_bit_widths=st.sampled_from([(2,), (4,), (2, 8)]),
    granularities=st.lists(st.sampled_from(list(Granularity)), min_size=1, unique=True),
)
SQUARES = NetworkSpec(
    "squares", 8, 6, 6,
    (
        LayerSpec("square", Op.CONV, ("input",), 8, 6, 6, 16, 6, 6, (3, 3), (1, 1), (1, 1)),
        LayerSpec("point", Op.CONV, ("square",), 16, 6, 6, 16, 6, 6),
        LayerSpec("deep", Op.CONV, ("point",), 16, 6, 6, 16, 6, 6, (3, 3), (1, 1), (1, 1), groups=16),
    ),
)  # fmt: skip
"""Where kernels are more than elements, where they are the same, and where a filter is one kernel."""
GROUPS = st.sampled_from([(), (("conv0", "conv1"),), (("conv*",),), (("conv[01]",), ("conv[23]", "fc"))])


@settings(max_examples=60, deadline=None)
@given(rule=RULES, groups=GROUPS, seed=st.integers(0, 1000))
def test_points_and_configurations_are_inverse(rule: LayerRule, groups: tuple[tuple[str, ...], ...], seed: int) -> None:
    assume(len(rule.act_bit_widths) == 1 or not groups)  # the first layer's are given: it cannot be tied
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=rule, groups=groups))
    for point in space.sample(5, np.random.default_rng(seed)):
        config = space.config(point)
        config.check_matches(NETWORK)
        assert space.point(config) == tuple(point)
        indices = space.layer_indices(point[None, :])[0]
        for name, choices, index in zip(space.layers, space.choices, indices, strict=True):
            assert config[name] == choices[index]
        assert config["conv0"].act_bit_width == 8
        assert {config[name].act_bit_width for name in space.layers[1:]} <= set(rule.act_bit_widths)


@given(rule=RULES)
@settings(max_examples=30, deadline=None)
def test_choices_are_unique_and_ordered_by_stored_bits(rule: LayerRule) -> None:
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=rule))
    for name, choices, bits in zip(space.layers, space.choices, space.stored_bits, strict=True):
        planes = len([c for c in rule.choices() if c.sparsity > 0]) // len(rule.granularities)
        dense = len([c for c in rule.choices() if c.sparsity == 0])
        grids = {group_shape(NETWORK.by_name[name].weight_shape, granularity) for granularity in rule.granularities}
        widths = len(rule.act_bit_widths) if name == "conv0" else 1  # its activations are given
        assert len(set(choices)) == len(choices) == (dense + planes * len(grids)) // widths
        assert list(bits) == sorted(bits)
        assert list(bits) == [weight_storage(NETWORK.by_name[name], choice).total_bits for choice in choices]


@given(rule=RULES, groups=st.sampled_from([(), (("point", "deep"),)]))
@settings(max_examples=60, deadline=None)
def test_granularities_are_choices_where_they_differ(rule: LayerRule, groups: tuple[tuple[str, ...], ...]) -> None:
    space = SearchSpace.from_network(SQUARES, SpaceSettings(rule=rule, groups=groups))
    for group, noise in zip(space.groups, space.dimension_noise, strict=True):
        specs = [SQUARES.by_name[space.layers[column]] for column in group]
        rows = list(zip(*(space.choices[column] for column in group), strict=True))
        grids = [
            tuple(group_shape(s.weight_shape, c.granularity) for s, c in zip(specs, row, strict=True)) for row in rows
        ]
        plain = [replace(row[0], granularity=Granularity.ELEMENT) for row in rows]
        assert len(set(zip(grids, plain, strict=True))) == len(rows)
        offered = {
            tuple(group_shape(spec.weight_shape, granularity) for spec in specs) for granularity in rule.granularities
        }
        for one in set(plain):
            found = {grid for grid, other in zip(grids, plain, strict=True) if other == one}
            assert found == offered or (one.sparsity == 0 and len(found) == 1)
        for a, row in enumerate(rows):
            for b, other in enumerate(rows):
                if row[0].act_bit_width == other[0].act_bit_width and at_least_as_precise(row[0], other[0]):
                    assert noise[a] <= noise[b] + 1e-9
    names = {choice.granularity for choices in space.choices for choice in choices if choice.sparsity > 0}
    assert names <= set(rule.granularities)


def test_a_kernel_of_one_weight_is_no_choice_beside_an_element() -> None:
    rule = LayerRule(
        weight_bit_widths=(4,), significant_densities=(), sparse_densities=(0.5,), granularities=("element", "kernel")
    )
    space = SearchSpace.from_network(
        SQUARES, SpaceSettings(rule=rule, layers=[("deep", {"granularities": ["filter"]})])
    )
    found = [[c.granularity for c in choices if c.sparsity > 0] for choices in space.choices]
    assert found == [["kernel", "element"], ["element"], ["filter"]]  # cheapest first: the index of kernels is shorter


def test_formats_follow_the_rule() -> None:
    rule = LayerRule(
        weight_bit_widths=(1, 4), significant_densities=(0, 0.02), binary_densities=(0.5,), sparse_densities=(0.25,)
    )
    assert set(rule.choices()) == {
        LayerConfig(1, 4),
        LayerConfig(1, 4, 0.98, WeightFormat.BINARY_PLUS_SPARSE),
        LayerConfig(1, 4, 0.5, WeightFormat.SPARSE),
        LayerConfig(4, 4),
        LayerConfig(4, 4, 0.75, WeightFormat.SPARSE),
    }


def test_later_patterns_override_field_by_field() -> None:
    layers = [
        ("conv*", {"weight_bit_widths": [1, 2]}),
        ("conv0", {"sparse_densities": []}),
        ("fc", {"act_bit_widths": [8]}),
    ]
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE, layers=layers))
    assert {choice.weight_bit_width for choice in space.choices_by_layer["conv1"]} == {1, 2}
    assert all(c.weight_bit_width == 1 for c in space.choices_by_layer["conv0"] if c.weight_format == "sparse")
    assert {choice.weight_bit_width for choice in space.choices_by_layer["fc"]} == {1, 2, 4, 8}
    assert {choice.act_bit_width for choice in space.choices_by_layer["fc"]} == {8}


def test_tied_layers_share_a_dimension() -> None:
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE, groups=[["conv1", "fc"]]))
    assert space.dimensions == ("conv0", "conv1+fc", "conv2", "conv3")
    np.testing.assert_array_equal(space.layer_indices([[0, 3, 1, 2]]), [[0, 3, 1, 2, 3]])
    assert space.dimension_bits[1][2] == space.stored_bits[1][2] + space.stored_bits[4][2]
    untied = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE)).config([0, 3, 1, 2, 4])
    with pytest.raises(SearchError, match=r"tied layers \['conv1', 'fc'\] are configured differently"):
        space.point(untied)


def test_activation_bits_are_choices_of_all_but_the_first_layer() -> None:
    rule = LayerRule(weight_bit_widths=(1, 4), significant_densities=(), sparse_densities=(), act_bit_widths=(8, 2))
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=rule, layers=[("fc", {"act_bit_widths": [4]})]))
    assert space.act_bit_widths == ((8,), (2, 8), (2, 8), (2, 8), (4,))
    assert space.searches_activations
    found = [(c.weight_bit_width, c.act_bit_width) for c in space.choices_by_layer["conv1"]]
    assert found == [(1, 2), (1, 8), (4, 2), (4, 8)]
    assert not SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE)).searches_activations


def test_layers_of_given_activation_bits_can_be_tied_searched_ones_only_alike() -> None:
    given_ = SpaceSettings(rule=RULE, groups=[["conv1", "fc"]], layers=[("fc", {"act_bit_widths": [8]})])
    space = SearchSpace.from_network(NETWORK, given_)
    config = space.config([0, 2, 1, 1])
    assert [config[name].act_bit_width for name in ("conv1", "fc")] == [4, 8]
    assert config["conv1"].weight_bit_width == config["fc"].weight_bit_width
    searched = SpaceSettings(rule=RULE, groups=[["conv1", "fc"]], layers=[("fc", {"act_bit_widths": [4, 8]})])
    with pytest.raises(ConfigError, match="tied layers 'conv1' and 'fc' have different rules"):
        SearchSpace.from_network(NETWORK, searched)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (
            SpaceSettings(layers=[("stem*", {})]),
            r"search\.layers: pattern 'stem\*' matches no layer; layers .*'conv0'.*'fc'",
        ),
        (SpaceSettings(groups=[["head"]]), r"search\.groups\[0\]: pattern 'head' matches no layer; layers .*'fc'"),
        (SpaceSettings(groups=["conv1"]), r"search\.groups\[0\]='conv1', expected a list of patterns"),
        (SpaceSettings(groups=[["conv*"], ["conv1"]]), r"layer 'conv1' is in search\.groups 0 and 1"),
        (
            SpaceSettings(layers=[("fc", {"bits": [1]})]),
            r"search\.layers\['fc'\] has unknown fields \['bits'\], exp",
        ),
        (
            SpaceSettings(layers=[("fc", {"weight_bit_widths": [9]})]),
            r"search\.layers\['fc'\]: weight_bit_widths=\[9\]",
        ),
        (
            SpaceSettings(groups=[["conv1", "fc"]], layers=[("fc", {"weight_bit_widths": [8]})]),
            r"tied layers 'conv1' and 'fc' have different rules",
        ),
    ],
)
def test_settings_that_do_not_fit_the_network(settings_: SpaceSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace.from_network(NETWORK, settings_)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bit_widths": ()}, r"weight_bit_widths=\[\], expected at least one of 1\.\.8"),
        ({"weight_bit_widths": (0,)}, r"weight_bit_widths=\[0\]"),
        ({"weight_bit_widths": 4}, r"weight_bit_widths=4, expected a list"),
        ({"sparse_densities": (0,)}, r"sparse_densities holds 0, expected a share in \(0, 1\)"),
        ({"binary_densities": (1.0,)}, r"binary_densities holds 1\.0"),
        ({"significant_densities": (float("nan"),)}, r"significant_densities holds nan, expected a share in \[0, 1\)"),
        ({"act_bit_widths": [12]}, r"act_bit_widths=\[12\], expected at least one of 1\.\.8 and 16"),
        ({"granularities": ["row"]}, r"granularities=\['row'\], expected some of \['element', 'kernel', "),
        ({"granularities": []}, r"granularities=\[\], expected at least one"),
        ({"granularities": "kernel"}, r"granularities='kernel', expected a list"),
    ],
)
def test_rules_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayerRule(**changes)


def test_points_outside_the_space() -> None:
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE))
    with pytest.raises(SearchError, match=r"points\[0, 2\]=99: 'conv2' has choices 0\.\."):
        space.layer_indices([[0, 0, 99, 0, 0]])
    with pytest.raises(SearchError, match=r"points of shape \(1, 2\)"):
        space.layer_indices([[0, 0]])
    other = SearchSpace.from_network(NETWORK, SpaceSettings(rule=LayerRule(weight_bit_widths=(5,))))
    with pytest.raises(SearchError, match=r"layer 'conv0': LayerConfig\(weight_bit_width=5.* is not among the choices"):
        space.point(other.config([0] * 5))


def test_mean_bits_and_density() -> None:
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE))
    by_choice = [
        (LayerConfig(4, 4), 4.0, 1.0),
        (LayerConfig(4, 4, 0.5, WeightFormat.SPARSE), 2.0, 0.5),
        (LayerConfig(1, 4, 0.98, WeightFormat.BINARY_PLUS_SPARSE), 1.16, 1.0),
    ]
    for choice, bits, density in by_choice:
        key = (choice.weight_bit_width, choice.sparsity, choice.weight_format)
        point = [
            [(c.weight_bit_width, c.sparsity, c.weight_format) for c in choices].index(key) for choices in space.choices
        ]
        assert space.mean_bits(space.config(point)) == pytest.approx(bits)
        assert space.mean_density(space.config(point)) == pytest.approx(density)


def test_description_is_plain_and_tells_spaces_apart() -> None:
    one = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE)).to_dict()
    assert json.loads(json.dumps(one)) == one
    assert one != SearchSpace.from_network(NETWORK, SpaceSettings(rule=LayerRule())).to_dict()
