"""The report: totals, files, budgets."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from hwmodel import (
    BudgetError,
    CostReport,
    HostInterface,
    LayerConfig,
    NetworkConfig,
    NetworkSpec,
    Schedule,
    SpecError,
    estimate,
    load_board,
    schedule,
    uniform,
)

PYNQ = load_board("pynq_z2")


def test_totals_are_sums_of_rows(residual_network: NetworkSpec) -> None:
    report = estimate(residual_network, uniform(residual_network, 2, 4), PYNQ)
    assert report.fits
    assert report.bram18 == sum(memory.bram18 for memory in report.memories) <= PYNQ.bram18
    assert report.stored_bits == sum(layer.stored_bits for layer in report.layers)
    assert report.total_weights == residual_network.total_weights
    assert report.compression == pytest.approx(32 / report.bits_per_weight)
    assert report.fps == pytest.approx(PYNQ.clock_hz / report.interval_cycles)
    assert report.latency_cycles >= report.interval_cycles * 0.99
    assert report.gops / (2 * report.multipliers * PYNQ.clock_hz / 1e9) == pytest.approx(report.mac_efficiency)
    assert [layer.name for layer in report.layers] == [layer.name for layer in residual_network.layers]


def test_least_traffic_is_image_in_and_result_out(residual_network: NetworkSpec) -> None:
    report = estimate(residual_network, uniform(residual_network, 2, 4), PYNQ)
    assert report.offchip_bits == 3 * 16 * 16 * 8 + 10 * 16
    assert report.baseline_offchip_bits > 5 * report.offchip_bits


def test_plain_form_round_trip(residual_network: NetworkSpec) -> None:
    report = estimate(residual_network, uniform(residual_network, 2, 4), PYNQ)
    plain = json.loads(json.dumps(report.to_dict()))
    assert CostReport.from_dict(plain) == report
    assert plain["compression"] == report.compression
    with pytest.raises(SpecError, match="version=9 of a cost report, expected 1"):
        CostReport.from_dict({**plain, "version": 9})
    with pytest.raises(SpecError, match=r"unknown fields \['colour'\]"):
        CostReport.from_dict({**plain, "colour": 1})
    del plain["lut"]
    with pytest.raises(SpecError, match=r"cost report: .*'lut'"):
        CostReport.from_dict(plain)


def test_schedule_round_trip(residual_network: NetworkSpec) -> None:
    plan = schedule(residual_network, uniform(residual_network, 2, 4), PYNQ)
    plan = replace(plan, host=HostInterface(32, 32))
    plain = json.loads(json.dumps(plan.to_dict()))
    assert Schedule.from_dict(plain) == plan
    with pytest.raises(SpecError, match="version=None of a schedule, expected 1"):
        Schedule.from_dict({k: v for k, v in plain.items() if k != "version"})


def test_board_too_small_names_budget_and_remedy(residual_network: NetworkSpec) -> None:
    tiny = replace(PYNQ, name="tiny", bram18=2, lut=200)
    config = uniform(residual_network, 8, 8)
    with pytest.raises(
        BudgetError, match=r"does not fit board 'tiny': (bram18|lut) binds, \d+ needed at least, \d+ there"
    ):
        schedule(residual_network, config, tiny)
    with pytest.raises(BudgetError, match="smallest listed board that would do is pynq_z2"):
        estimate(residual_network, config, tiny)
    roomy = schedule(residual_network, config, PYNQ)
    report = estimate(residual_network, config, tiny, roomy)
    assert not report.fits
    assert report.binding in ("bram18", "lut")


def test_a_layer_that_is_configured_twice_is_refused() -> None:
    one = LayerConfig(4, 4)
    with pytest.raises(SpecError, match="layer 'a' is configured twice"):
        NetworkConfig((("a", one), ("b", one), ("a", one)))


def test_configuration_of_another_network(residual_network: NetworkSpec, plain_network: NetworkSpec) -> None:
    with pytest.raises(SpecError, match="does not match network 'residual'"):
        estimate(residual_network, uniform(plain_network, 2, 4), PYNQ)
    other = schedule(plain_network, uniform(plain_network, 2, 4), PYNQ)
    with pytest.raises(SpecError, match="schedule does not match network 'residual'"):
        estimate(residual_network, uniform(residual_network, 2, 4), PYNQ, other)


def test_fewer_bits_never_cost_more(residual_network: NetworkSpec) -> None:
    plan = schedule(residual_network, uniform(residual_network, 4, 4), PYNQ)
    names = [layer.name for layer in residual_network.weighted]

    def cost(bits: int) -> CostReport:
        config = NetworkConfig(tuple((name, LayerConfig(bits, bits)) for name in names), sum_bit_width=bits)
        return estimate(residual_network, config, PYNQ, plan)

    reports = [cost(bits) for bits in range(2, 9)]
    for low, high in pairwise(reports):
        assert low.stored_bits < high.stored_bits
        assert low.onchip_bits < high.onchip_bits
        assert low.energy_rel < high.energy_rel
        assert low.baseline_offchip_bits < high.baseline_offchip_bits


def test_multipliers_are_one_array_per_pipelined_layer_and_the_shared_one(plain_network: NetworkSpec) -> None:
    config = uniform(plain_network, 4, 4)
    board = load_board("zcu102")
    layers = list(schedule(plain_network, config, board).layers)
    convs = [i for i, layer in enumerate(plain_network.layers) if layer.has_weights]
    for cut in (0, convs[1], len(layers)):
        plans = [
            replace(plan, data_flow="row_pixel" if i < cut else "frame", pe=1, simd=2, multiplier="lut")
            for i, plan in enumerate(layers)
        ]
        report = estimate(plain_network, config, board, Schedule(plain_network.name, tuple(plans)))
        own = sum(i < cut for i in convs)
        assert report.multipliers == 2 * (own + (own < len(convs)))
        assert report.mac_efficiency == report.total_macs / report.multipliers / report.interval_cycles <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": -1}, "layer 'c': sparsity=-1, expected a number in 0..1"),
        ({"sparsity": 1.5}, "layer 'c': sparsity=1.5, expected a number in 0..1"),
        ({"sparsity": "half"}, "layer 'c': sparsity='half', expected a number in 0..1"),
        ({"weight_bit_width": 9}, r"layer 'c': weight_bit_width=9, expected 1\.\.8"),
        ({"act_bit_width": 12}, r"layer 'c': act_bit_width=12, expected 1\.\.8 or 16"),
    ],
)
def test_wrong_precision_is_refused_by_name_field_and_value(changes: dict[str, object], message: str) -> None:
    layer = {"weight_bit_width": 2, "act_bit_width": 4, "sparsity": 0.5, "weight_format": "sparse", **changes}
    with pytest.raises(SpecError, match=message):
        NetworkConfig.from_dict({"version": 1, "layers": {"c": layer}})


def test_precision_of_another_form() -> None:
    with pytest.raises(SpecError, match=r"layers=\[1\] of a network configuration, expected configurations by layer"):
        NetworkConfig.from_dict({"version": 1, "layers": [1]})
