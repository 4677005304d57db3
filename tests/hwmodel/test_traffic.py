"""Off-chip bits equal those of a simulator that walks the loops and counts every access."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    INPUT,
    CostReport,
    DataFlow,
    LayerConfig,
    LayerSchedule,
    LayerSpec,
    NetworkConfig,
    NetworkSpec,
    Op,
    Schedule,
    SpecError,
    WeightPlace,
    estimate,
    load_board,
    uniform,
    weight_storage,
)
from hwmodel.cost import dram_cycles
from hwmodel.network import NORMALIZING
from hwmodel.precision import ofm_bit_widths
from hwmodel.traffic import fused_tensors, place, waiting_rows
from tests.hwmodel.conftest import conv


class CountingMachine:
    """Executes a network pixel by pixel on sets of coordinates: on chip, or off chip with every access counted.

    Nothing here knows tensor sizes or formulas: it moves one pixel (all its channels) at a time, and what a memory
    does not hold it must fetch.
    """

    def __init__(self, network: NetworkSpec, config: NetworkConfig, schedule: Schedule) -> None:
        self.network = network
        self.config = config
        self.schedule = schedule
        self.widths = ofm_bit_widths(network, config)
        self.bits: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        """Off-chip bits by kind."""
        for index, layer in enumerate(self.network.layers):
            plan = self.schedule[layer.name]
            self._read_inputs(index, layer, plan)
            self._read_weights(layer, plan)
            self._write_output(index, layer)
        return self.bits

    def _pixels(self, tensor: str) -> list[int]:
        """Bits of each pixel of a tensor."""
        if tensor == INPUT:
            channels, rows, columns = (
                self.network.input_channels,
                self.network.input_height,
                self.network.input_width,
            )
        else:
            layer = self.network.by_name[tensor]
            channels, rows, columns = layer.out_channels, layer.out_height, layer.out_width
        return [channels * self.widths[tensor] for _ in range(rows) for _ in range(columns)]

    def _flow(self, tensor: str) -> DataFlow | None:
        return None if tensor == INPUT else self.schedule[tensor].data_flow

    def _in_output_path(self, index: int, tensor: str) -> bool:
        """Whether a tensor goes from the shared engine straight into the operation right behind."""
        layer = self.network.layers[index]
        return (
            index > 0
            and self.network.layers[index - 1].name == tensor
            and not layer.has_weights
            and layer.op not in NORMALIZING
            and len(self.network.consumers[tensor]) == 1
            and tensor not in self.network.outputs  # a result is written whoever reads it
            and not self.schedule[tensor].data_flow.is_pipelined
            and layer.inputs.count(tensor) == 1
        )

    def _read_inputs(self, index: int, layer: LayerSpec, plan: LayerSchedule) -> None:
        for tensor in layer.inputs:
            if self._in_output_path(index, tensor):
                continue
            line_buffer: set[int] = set()
            spilled = plan.data_flow is DataFlow.SPILLED
            if not spilled and tensor != INPUT:
                continue  # a line buffer, FIFO or frame buffer was filled on chip by the writer
            if not spilled and self._loaded_before(index):
                continue  # the input is on chip since an earlier reader fetched it
            before = self.network.layers[index - 1].name if index else None
            joins = layer.op in (Op.ADD, Op.CONCAT)
            kind = "shortcut" if joins and tensor != before else "ifm"
            for pixel, bits in enumerate(self._pixels(tensor)):
                if pixel not in line_buffer:  # each row enters the line buffer once
                    line_buffer.add(pixel)
                    self.bits[kind] += bits

    def _loaded_before(self, index: int) -> bool:
        earlier = self.network.layers[:index]
        return any(
            INPUT in layer.inputs and self.schedule[layer.name].data_flow is not DataFlow.SPILLED for layer in earlier
        )

    def _read_weights(self, layer: LayerSpec, plan: LayerSchedule) -> None:
        if not layer.has_weights or plan.weight_place in (WeightPlace.BRAM, WeightPlace.URAM):
            return
        block_bits = weight_storage(layer, self.config[layer.name]).weight_bits
        on_chip = False
        columns = layer.out_width if plan.data_flow is DataFlow.ROW_PIXEL else 1
        for _row, _pass in product(range(layer.out_height), range(columns)):
            if plan.data_flow is DataFlow.FRAME and on_chip:
                continue  # the block serves the whole frame before the next one comes
            if plan.weight_place is not WeightPlace.STREAMED and on_chip:
                continue  # the buffer holds all of them until the layer ends
            self.bits["weight"] += block_bits
            on_chip = True

    def _write_output(self, index: int, layer: LayerSpec) -> None:
        readers = self.network.consumers[layer.name]
        if any(self._in_output_path(index + 1, layer.name) for _ in readers[:1] if index + 1 < self._size):
            return
        wanted = any(self.schedule[reader.name].data_flow is DataFlow.SPILLED for reader in readers)
        if wanted or layer.name in self.network.outputs:
            for bits in self._pixels(layer.name):
                self.bits["ofm"] += bits

    @property
    def _size(self) -> int:
        return len(self.network.layers)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), normalizes=st.booleans())
def test_equals_the_counting_machine(
    residual_network: NetworkSpec, normalizing_network: NetworkSpec, seed: int, normalizes: bool
) -> None:
    network, pick = normalizing_network if normalizes else residual_network, np.random.default_rng(seed)
    size = len(network.layers)
    read_too = [layer.name for layer in network.layers if pick.random() < 0.2 and layer.name not in network.outputs]
    network = replace(network, outputs=(*network.outputs, *read_too))
    cut = int(pick.integers(0, size + 1))
    spilled = int(pick.integers(0, size + 1 - cut))
    flows = [DataFlow.ROW_PIXEL] * cut + [DataFlow.SPILLED] * spilled + [DataFlow.FRAME] * (size - cut - spilled)
    plans = []
    for layer, flow in zip(network.layers, flows, strict=True):
        places = [WeightPlace.BRAM, WeightPlace.STREAMED]
        places += [WeightPlace.LOADED_BRAM, WeightPlace.LOADED_URAM] if flow is DataFlow.SPILLED else []
        place = pick.choice(places) if layer.has_weights else WeightPlace.NONE
        plans.append(LayerSchedule(layer.name, flow, 1, 1, weight_place=place))
    schedule = Schedule(network.name, tuple(plans))
    config = uniform(network, int(pick.integers(1, 9)), int(pick.integers(1, 9)))
    report = estimate(network, config, load_board("vc707"), schedule)
    counted = CountingMachine(network, config, schedule).run()
    assert counted["weight"] == report.offchip_weight_bits
    assert counted["ifm"] == report.offchip_ifm_bits
    assert counted["ofm"] == report.offchip_ofm_bits
    assert counted["shortcut"] == report.offchip_shortcut_bits


@pytest.mark.parametrize("flow", [DataFlow.FRAME, DataFlow.ROW_PASS, DataFlow.ROW_PIXEL])
def test_only_spilled_layers_load_weights(flow: DataFlow) -> None:
    with pytest.raises(SpecError, match=f"weight_place='loaded_bram' with data_flow='{flow}', expected 'spilled'"):
        LayerSchedule("conv", flow, 1, 1, weight_place=WeightPlace.LOADED_BRAM)


@pytest.mark.parametrize("config", [LayerConfig(8, 8), LayerConfig(1, 8, 0.9, "binary_plus_sparse")])
@pytest.mark.parametrize("place", [WeightPlace.LOADED_BRAM, WeightPlace.LOADED_URAM])
def test_what_loading_takes(plain_network: NetworkSpec, place: WeightPlace, config: LayerConfig) -> None:
    """One buffer, as large as the largest layer asks, and the time to fill it for each layer, one after the other."""
    board = replace(load_board("zcu104"), dram_bytes_per_s=10**9)
    configs = NetworkConfig(tuple((layer.name, config) for layer in plain_network.weighted))

    def report_of(*places: WeightPlace) -> CostReport:
        plans = [
            LayerSchedule(layer.name, DataFlow.SPILLED, 2, 2, weight_place=one)
            for layer, one in zip(plain_network.layers, places, strict=True)
        ]
        return estimate(plain_network, configs, board, Schedule(plain_network.name, tuple(plans)))

    def words(report: CostReport) -> dict[str, int]:
        return {row.purpose: row.depth for row in report.memories if row.purpose in ("weights", "values")}

    bits = [weight_storage(layer, config).weight_bits for layer in plain_network.weighted]
    resident = place.memory
    alone = [words(report_of(*(resident if i == j else WeightPlace.STREAMED for j in range(3)))) for i in range(3)]
    for places in product([resident, place, WeightPlace.STREAMED], repeat=3):
        report = report_of(*places)
        loaded = [i for i, one in enumerate(places) if one is place]
        kept = [i for i, one in enumerate(places) if one is resident]
        for purpose in alone[0]:
            want = sum(alone[i][purpose] for i in kept) + max([alone[i][purpose] for i in loaded], default=0)
            assert words(report).get(purpose, 0) == want
        waits = [dram_cycles(bits[i], board) if i in loaded else 0 for i in range(3)]
        assert [layer.loading_cycles for layer in report.layers] == waits
        assert report.loading_cycles == sum(waits)
        streamed = report_of(*(WeightPlace.STREAMED if one is place else one for one in places))
        slower = [layer.cycles - other.cycles for layer, other in zip(report.layers, streamed.layers, strict=True)]
        assert slower == waits
        assert report.latency_cycles >= sum(layer.cycles for layer in report.layers)
        assert (report.uram > 0) == (place is WeightPlace.LOADED_URAM and bool(loaded or kept))


def test_a_frame_buffer_holds_one_live_tensor_at_a_time(residual_network: NetworkSpec) -> None:
    order = {layer.name: i for i, layer in enumerate(residual_network.layers)}
    fused = fused_tensors(residual_network)
    placement = place(residual_network, (DataFlow.FRAME,) * len(order))
    held = [buffer.tensors for buffer in placement.buffers]
    assert held[:2] == [(INPUT,), (INPUT,)]  # ping-pong towards the host
    assert {t for tensors in held[2:] for t in tensors} == set(order) - fused - set(residual_network.outputs)
    for tensors in held[2:]:
        for first, second in pairwise(tensors):
            last_read = max(order[reader.name] for reader in residual_network.consumers[first])
            assert last_read < order[second]


def gated(size: int) -> NetworkSpec:
    """A convolution whose channels are weighted by a gate: pooling of the whole map, and two layers on vectors."""
    return NetworkSpec("gated", 3, size, size, (
        conv("stem", INPUT, 3, 8, size),
        LayerSpec("pool", Op.AVG_POOL, ("stem",), 8, size, size, 8, 1, 1, (size, size), (size, size)),
        conv("squeeze", "pool", 8, 4, 1, kernel=1),
        conv("excite", "squeeze", 4, 8, 1, kernel=1),
        LayerSpec("gate", Op.MUL, ("stem", "excite"), 8, size, size, 8, size, size),
        conv("last", "gate", 8, 4, size),
    ))  # fmt: skip


@pytest.mark.parametrize("size", [4, 16])
def test_what_a_gate_weights_waits_for_it(size: int) -> None:
    """Three frames: the pooling has seen all of the map, and each layer on a vector may take as long as a frame."""
    network = gated(size)
    assert waiting_rows(network)["gate", "stem"] == 3 * size
    flows = [DataFlow.FRAME if layer.name in ("gate", "last") else DataFlow.ROW_PIXEL for layer in network.layers]
    held = [buffer.tensors for buffer in place(network, tuple(flows)).buffers]
    assert held.count(("excite",)) == 2 and held.count(("stem",)) == 2 + 3


def test_a_result_that_the_next_layer_reads_leaves_the_chip() -> None:
    network = NetworkSpec("n", 3, 8, 8, (
        conv("a", INPUT, 3, 4, 8), LayerSpec("p", Op.MAX_POOL, ("a",), 4, 8, 8, 4, 4, 4, (2, 2), (2, 2)),
    ), outputs=("a", "p"))  # fmt: skip
    config, board = uniform(network, 4, 4), load_board("zcu102")
    for flow in (DataFlow.FRAME, DataFlow.SPILLED, DataFlow.ROW_PIXEL):
        plans = [LayerSchedule("a", flow, 1, 1, weight_place=WeightPlace.BRAM), LayerSchedule("p", flow, 1, 1)]
        report = estimate(network, config, board, Schedule("n", tuple(plans)))
        assert report.offchip_ofm_bits == 16 * (4 * 64 + 4 * 16)
    assert report.baseline_offchip_bits > 16 * (4 * 64 + 4 * 16)


@given(
    bits=st.lists(st.integers(0, 2**44), min_size=1, max_size=4),
    clock=st.integers(1, 10**6).map(lambda khz: 1000 * khz),
    bandwidth=st.integers(1, 10**5).map(lambda mb: mb * 10**6),
)
def test_cycles_of_traffic_are_exact_beyond_64_bits(bits: list[int], clock: int, bandwidth: int) -> None:
    board = replace(load_board("vc707"), clock_hz=clock, dram_bytes_per_s=bandwidth)
    exact = [-(-n * clock // (8 * bandwidth)) for n in bits]
    assert [dram_cycles(n, board) for n in bits] == exact
    assert dram_cycles(np.array(bits), board).tolist() == exact
