"""Layers that use the weights of another one: counted once where they are stored once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwmodel import (
    CostReport,
    DataFlow,
    LayerConfig,
    LayerSchedule,
    NetworkConfig,
    NetworkSpec,
    Schedule,
    SpecError,
    WeightPlace,
    estimate,
    load_board,
    uniform,
    weight_storage,
)

BOARD = load_board("zcu104")


def _report(network: NetworkSpec, pipelined: int, places: dict[str, WeightPlace] | None = None) -> CostReport:
    flows = [DataFlow.ROW_PIXEL] * pipelined + [DataFlow.FRAME] * (len(network.layers) - pipelined)
    plans = [
        LayerSchedule(layer.name, flow, 2, 2, weight_place=(places or {}).get(layer.name, WeightPlace.BRAM))
        for layer, flow in zip(network.layers, flows, strict=True)
    ]
    return estimate(network, uniform(network, 8, 8), BOARD, Schedule(network.name, tuple(plans)))


def _weight_words(report: CostReport) -> int:
    return sum(row.depth for row in report.memories if row.purpose == "weights")


def test_counts(sharing_network: NetworkSpec) -> None:
    assert sharing_network.total_weights == 9 * (4 * 8 + 8 * 8 + 8 * 8 + 8 * 12)
    assert sharing_network.by_name["head1.1"].macs == 9 * 8 * 8 * 8 * 8
    assert NetworkSpec.from_dict(sharing_network.to_dict()) == sharing_network


def test_files_hold_weights_once(sharing_network: NetworkSpec) -> None:
    report = _report(sharing_network, 0)
    config = uniform(sharing_network, 8, 8)
    for layer in report.layers:
        storage = weight_storage(sharing_network.by_name[layer.name], config[layer.name])
        own = storage.scale_bits + storage.bias_bits
        assert layer.stored_bits == (own if "." in layer.name else own + 8 * layer.weights)


def test_shared_engine_holds_weights_once(sharing_network: NetworkSpec) -> None:
    assert _weight_words(_report(sharing_network, 0)) == sharing_network.total_weights // 4


def test_pipelined_engines_hold_a_copy_each(sharing_network: NetworkSpec) -> None:
    everything = sum(layer.weights for layer in sharing_network.layers)
    assert _weight_words(_report(sharing_network, 6)) == everything // 4
    assert _weight_words(_report(sharing_network, 4)) == everything // 4  # owners pipelined, the others have no access


def test_weights_that_the_owner_streams_need_words(sharing_network: NetworkSpec) -> None:
    head1 = sharing_network.by_name["head1"].weights
    words = _weight_words(_report(sharing_network, 0, {"head1": WeightPlace.STREAMED}))
    assert words == sharing_network.total_weights // 4  # head1.1 keeps what head1 does not
    both = {"head1": WeightPlace.STREAMED, "head1.1": WeightPlace.STREAMED}
    report = _report(sharing_network, 0, both)
    assert _weight_words(report) == (sharing_network.total_weights - head1) // 4
    assert report.offchip_weight_bits == 2 * 8 * head1


def test_weights_that_the_owner_loads_need_words_and_are_read_again(sharing_network: NetworkSpec) -> None:
    flows = [DataFlow.SPILLED] * 4 + [DataFlow.FRAME] * 2
    places = [WeightPlace.BRAM, WeightPlace.BRAM, WeightPlace.LOADED_BRAM, WeightPlace.LOADED_BRAM]
    places += [WeightPlace.BRAM, WeightPlace.STREAMED]
    plans = [
        LayerSchedule(layer.name, flow, 2, 2, weight_place=place)
        for layer, flow, place in zip(sharing_network.layers, flows, places, strict=True)
    ]
    plan = Schedule(sharing_network.name, tuple(plans))
    report = estimate(sharing_network, uniform(sharing_network, 8, 8), BOARD, plan)
    weights = {layer.name: layer.weights for layer in sharing_network.layers}
    resident = weights["stem"] + weights["down"] + weights["head1.1"]  # which its owner does not keep for it
    assert _weight_words(report) == (resident + weights["head2"]) // 4  # the larger one of the two that are loaded
    assert report.offchip_weight_bits == 8 * (weights["head1"] + 2 * weights["head2"])


@pytest.mark.parametrize("end_bit_width", [8, None])
def test_uniform_gives_owner_and_user_the_same(sharing_network: NetworkSpec, end_bit_width: int | None) -> None:
    config = uniform(sharing_network, 2, 4, end_bit_width=end_bit_width)
    config.check_matches(sharing_network)
    assert config["head2"].weight_bit_width == (end_bit_width or 2)


def test_another_precision_is_refused(sharing_network: NetworkSpec) -> None:
    config = dict(uniform(sharing_network, 2, 4).layers) | {"head1.1": LayerConfig(3, 4)}
    with pytest.raises(
        SpecError, match=r"layer 'head1.1' uses the weights of 'head1', but is configured .*bit_width=3"
    ):
        NetworkConfig(tuple(config.items())).check_matches(sharing_network)


@pytest.mark.parametrize(
    ("name", "owner", "message"),
    [
        ("head1.1", "head2", r"layer 'head1.1': weights_of='head2', whose weights are \(12, 8, 3, 3\) in 1 groups"),
        ("head1.1", "head2.1", "expected an earlier layer that has weights of its own"),
        ("head1.1", "nobody", "expected an earlier layer that has weights of its own"),
    ],
)
def test_a_wrong_owner_is_refused(sharing_network: NetworkSpec, name: str, owner: str, message: str) -> None:
    layers = [replace(one, weights_of=owner) if one.name == name else one for one in sharing_network.layers]
    with pytest.raises(SpecError, match=message):
        NetworkSpec("wrong", 4, 16, 16, tuple(layers))
