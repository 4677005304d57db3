"""NetworkSpec x NetworkConfig x Board x Schedule -> CostReport: the plain scalar reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

from hwmodel.board import Board
from hwmodel.compute import Count
from hwmodel.cycles import layer_cycles, reach
from hwmodel.dataflow import DataFlow, Execution, HostInterface, LayerSchedule, Schedule, WeightPlace
from hwmodel.energy import dram_energy_pj, mac_energy_pj, on_chip_energy_pj
from hwmodel.network import AFFINE, DRAM, FRAME_ENGINE, INPUT, LayerSpec, NetworkSpec, Op
from hwmodel.precision import LOOKUP_BIT_WIDTH, LayerConfig, NetworkConfig, ofm_bit_widths, operand_bit_width
from hwmodel.report import CostReport, LayerCost, MemoryCost
from hwmodel.resources import (
    Memory,
    SharedLayer,
    combine,
    frame_buffer_shape,
    operation_array,
    operation_memories,
    pipelined_array,
    pipelined_memories,
    shared_array,
    shared_layer,
    shared_memories,
    shared_norms,
    sparse_lanes,
    weight_memories,
)
from hwmodel.storage import BIAS_BITS, EPSILON_BITS, MULTIPLIER_BITS, SHIFT_BITS, WeightStorage, stored, weight_storage
from hwmodel.traffic import elements, place, tensor_bits, waiting_rows

RESOURCES = ("bram18", "uram", "lut", "dsp")
"""Budgets of a board, in the order in which ties between them are reported."""


def cost_of(network: NetworkSpec, config: NetworkConfig, board: Board, schedule: Schedule) -> CostReport:
    """What a network costs on a board under a given schedule.

    Args:
        network: The network.
        config: Precision of each layer.
        board: The board; the schedule may exceed it, then `fits` is False.
        schedule: How to execute it.

    Raises:
        SpecError: Configuration or schedule do not match the network.
    """
    network.require_weights()
    config.check_matches(network)
    schedule.check_matches(network)
    storages = {layer.name: weight_storage(layer, config[layer.name]) for layer in network.weighted}
    widths = ofm_bit_widths(network, config)
    rows = memory_rows(all_memories(network, config, schedule, storages, widths), board)
    traffic = feature_map_bits(network, schedule, widths)
    rows_of: dict[str, list[MemoryCost]] = {layer.name: [] for layer in network.layers}
    for row in rows:
        if row.owner != FRAME_ENGINE:
            rows_of[row.owner].append(row)
    layers = tuple(
        _layer_cost(network, config, schedule, storages, widths, traffic, rows_of[layer.name], layer, board)
        for layer in network.layers
    )
    lut, dsp = _shared_array(network, config, schedule, storages, board)
    used = {
        "bram18": sum(row.bram18 for row in rows),
        "uram": sum(row.uram for row in rows),
        "lut": lut + sum(row.lutram_luts for row in rows if row.owner == FRAME_ENGINE) + sum(c.lut for c in layers),
        "dsp": dsp + sum(layer.dsp for layer in layers),
    }
    kinds = ("weight", "ifm", "ofm", "shortcut")
    offchip = {kind: sum(getattr(layer, f"offchip_{kind}_bits") for layer in layers) for kind in kinds}
    cycles = {layer.name: layer.cycles for layer in layers}
    stages = _stage_cycles(schedule, cycles)
    stages[DRAM] = dram_cycles(sum(offchip.values()), board)
    bottleneck = max(stages, key=lambda name: stages[name])
    input_bits = tensor_bits(network, INPUT, widths[INPUT], schedule.host)
    utilisation = {name: _share(used[name], getattr(board, name)) for name in RESOURCES}
    energy_pj = dram_energy_pj(sum(offchip.values())) + sum(
        mac_energy_pj(layer, config[layer.name], storages[layer.name])
        + on_chip_energy_pj(layer, config[layer.name], storages[layer.name], schedule[layer.name])
        for layer in network.weighted
    )
    return CostReport(
        network=network.name,
        board=board.name,
        layers=layers,
        memories=rows,
        total_weights=network.total_weights,
        total_macs=network.total_macs,
        stored_bits=sum(layer.stored_bits for layer in layers),
        entropy_bound_bits=sum(layer.entropy_bound_bits for layer in layers),
        bram18=used["bram18"],
        uram=used["uram"],
        lut=used["lut"],
        dsp=used["dsp"],
        offchip_weight_bits=offchip["weight"],
        offchip_ifm_bits=offchip["ifm"],
        offchip_ofm_bits=offchip["ofm"],
        offchip_shortcut_bits=offchip["shortcut"],
        baseline_offchip_bits=baseline_bits(network, config, schedule.host),
        interval_cycles=max(1, stages[bottleneck]),
        latency_cycles=max(stages[DRAM], latency(network, schedule, cycles, dram_cycles(input_bits, board))),
        bottleneck=bottleneck,
        clock_hz=board.clock_hz,
        energy_rel=energy_pj / reference_energy_pj(network),
        fits=all(value <= 1 for value in utilisation.values()),
        binding=max(RESOURCES, key=lambda name: utilisation[name]),
    )


def all_memories(
    network: NetworkSpec,
    config: NetworkConfig,
    schedule: Schedule,
    storages: Mapping[str, WeightStorage],
    widths: Mapping[str, int],
) -> tuple[Memory, ...]:
    """Every memory of the accelerator."""
    placement = place(network, tuple(layer.data_flow for layer in schedule.layers))
    memories: list[Memory] = []
    for layer in network.layers:
        plan = schedule[layer.name]
        if not plan.data_flow.is_pipelined:
            continue
        if layer.has_weights:
            precision, storage = config[layer.name], storages[layer.name]
            lanes = sparse_lanes(layer, precision, storage, plan.pe, plan.simd)
            memories += weight_memories(layer, precision, storage, lanes, plan)
            memories += pipelined_memories(layer, precision, plan)
        else:
            bit_width = operation_bit_width(layer, config, widths)
            memories += pipelined_operation_memories(network, layer, bit_width, plan)
    if schedule.shared:
        engine = schedule.shared[0]
        need = _shared_need(network, config, schedule, storages)
        memories += shared_memories(need, engine.pe, engine.simd, shared_place(schedule))
        for buffer in placement.buffers:
            bits = max(elements(network, tensor) * widths[tensor] for tensor in buffer.tensors)
            widest = max(widths[tensor] for tensor in buffer.tensors)
            memories.append(Memory(FRAME_ENGINE, "frame_buffer", *frame_buffer_shape(bits, widest, engine.simd)))
    return tuple(memories)


def pipelined_operation_memories(
    network: NetworkSpec, layer: LayerSpec, bit_width: int, plan: LayerSchedule
) -> tuple[Memory, ...]:
    """Memories of a pipelined layer without weights: its rows, and the operands' rows that wait."""
    memories = list(operation_memories(layer, bit_width, plan))
    waiting = layer.inputs if layer.op in (Op.ADD, Op.CONCAT) else layer.inputs[:1] if layer.op is Op.MUL else ()
    for tensor in waiting:
        channels = elements(network, tensor) // (layer.in_height * layer.in_width)
        depth = waiting_rows(network)[layer.name, tensor] * layer.in_width * -(-channels // plan.simd)
        memories.append(Memory(layer.name, "shortcut", depth, plan.simd * bit_width))
    return tuple(memories)


def operation_bit_width(layer: LayerSpec, config: NetworkConfig, widths: Mapping[str, int]) -> int:
    """Bits of the codes that a layer without weights works on."""
    return operand_bit_width(layer, config.sum_bit_width) or widths[layer.name]


def memory_rows(memories: tuple[Memory, ...], board: Board) -> tuple[MemoryCost, ...]:
    """What each memory takes on the board."""
    rows = []
    for memory in memories:
        use = memory.use(board.family)
        rows.append(
            MemoryCost(memory.owner, memory.purpose, memory.depth, memory.width, use.bram18, use.uram, use.lutram_luts)
        )
    return tuple(rows)


def feature_map_bits(network: NetworkSpec, schedule: Schedule, widths: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Off-chip bits of feature maps per frame: by layer, then by kind (`ifm`, `ofm`, `shortcut`)."""
    placement = place(network, tuple(layer.data_flow for layer in schedule.layers))
    bits = {layer.name: {"ifm": 0, "ofm": 0, "shortcut": 0} for layer in network.layers}
    for transfer in placement.transfers:
        size = tensor_bits(network, transfer.tensor, widths[transfer.tensor], schedule.host)
        bits[transfer.layer][transfer.kind] += size
    return bits


def weight_reads(layer: LayerSpec, plan: Execution) -> int:
    """How often weights of a layer come from off chip per frame.

    Streamed ones once per output row, where the data flow finishes one pixel after the other once per pixel, and once
    where it is frame-based.
    """
    if plan.weight_place.is_loaded:
        return 1
    if plan.weight_place is not WeightPlace.STREAMED:
        return 0
    if plan.data_flow is DataFlow.ROW_PIXEL:
        return layer.out_height * layer.out_width
    return 1 if plan.data_flow is DataFlow.FRAME else layer.out_height


def loading_cycles(plan: LayerSchedule, weight_bits: Count, board: Board) -> Count:
    """Cycles in which the shared engine waits for the weights of a layer, per frame: all of them if they are loaded.

    Args:
        plan: Execution of the layer.
        weight_bits: Its stored weights; one number, or an array.
        board: The board.
    """
    return dram_cycles(weight_bits, board) if plan.weight_place.is_loaded else 0


def baseline_bits(network: NetworkSpec, config: NetworkConfig, host: HostInterface | None = None) -> int:
    """Off-chip bits per frame of layer-by-layer execution: every map written and read, every weight read once."""
    widths = ofm_bit_widths(network, config)
    placement = place(network, (DataFlow.SPILLED,) * len(network.layers))
    maps = sum(tensor_bits(network, t.tensor, widths[t.tensor], host or HostInterface()) for t in placement.transfers)
    return maps + sum(int(weight_storage(layer, config[layer.name]).weight_bits) for layer in network.weighted)


def engine_cycles(schedule: Schedule, cycles: Mapping[str, int]) -> int:
    """Cycles per frame of the slowest engine: a pipelined layer, or the shared engine with all its layers."""
    return max(_stage_cycles(schedule, cycles).values())


def _stage_cycles(schedule: Schedule, cycles: Mapping[str, int]) -> dict[str, int]:
    stages = {plan.name: cycles[plan.name] for plan in schedule.layers if plan.data_flow.is_pipelined}
    stages[FRAME_ENGINE] = sum(cycles[plan.name] for plan in schedule.shared)
    return stages


def dram_cycles(bits: Count, board: Board) -> Count:
    """Cycles that off-chip traffic takes at the board's peak bandwidth; of one number of bits or of an array."""
    # The same as ceil(bits * clock_hz / bandwidth), by parts: the product of large maps leaves 64 bits.
    bandwidth = 8 * board.dram_bytes_per_s
    whole, rest = divmod(board.clock_hz, bandwidth)
    shared = gcd(rest, bandwidth)
    rest, bandwidth = rest // shared, bandwidth // shared
    turns = bits // bandwidth
    return bits * whole + turns * rest - (-(bits - turns * bandwidth) * rest // bandwidth)


def operation_stored_bits(layer: LayerSpec) -> int:
    """Stored bits of a layer without weights: the multipliers and the shift of its rescaling, or its table."""
    if layer.op in (Op.ADD, Op.CONCAT, Op.AVG_POOL):
        return MULTIPLIER_BITS * len(layer.inputs) + SHIFT_BITS
    if layer.op is Op.MUL:
        return MULTIPLIER_BITS + SHIFT_BITS
    if layer.op in AFFINE:
        epsilon = EPSILON_BITS if layer.op is Op.GROUP_NORM else 0
        return (MULTIPLIER_BITS + BIAS_BITS) * layer.out_channels + 2 * SHIFT_BITS + epsilon
    if layer.op is Op.LOOKUP:
        return LOOKUP_BIT_WIDTH << LOOKUP_BIT_WIDTH
    return 0


def input_rescale_bits(layer: LayerSpec, config: NetworkConfig, widths: Mapping[str, int]) -> int:
    """Stored bits of the rescaling on the way in, where the producer writes wider codes than the layer reads."""
    wider = layer.has_weights and widths[layer.inputs[0]] > config[layer.name].act_bit_width
    return MULTIPLIER_BITS + SHIFT_BITS if wider else 0


def latency(network: NetworkSpec, schedule: Schedule, cycles: Mapping[str, int], input_cycles: int) -> int:
    """Cycles from the first pixel to the last result of a single frame.

    Pipelined layers move in lock step, at the pace of the slowest engine: the pace divided by the rows of a map is
    the slot of one row.  A layer starts when the rows that its kernel needs have come, and hands on its first row one
    slot later.  The shared engine starts when the pipeline has delivered.

    Args:
        network: The network.
        schedule: Its schedule.
        cycles: Cycles per frame of each layer.
        input_cycles: Cycles in which the network input arrives.
    """
    pace = max([input_cycles, *(cycles[plan.name] for plan in schedule.layers if plan.data_flow.is_pipelined)])
    rows = {INPUT: network.input_height}
    first = {INPUT: pace / network.input_height}  # when the first row of a tensor is there
    for layer in network.layers:
        if not schedule[layer.name].data_flow.is_pipelined:
            continue
        needed = min(max(1, reach(layer, 0) - layer.padding[0]), layer.in_height)
        if layer.op in (Op.LINEAR, Op.FLATTEN, Op.GROUP_NORM):
            needed = layer.in_height
        ready = max(first[tensor] + (needed - 1) * pace / rows[tensor] for tensor in layer.inputs)
        rows[layer.name] = layer.out_height
        # A map of one row has no next row to wait for: its layer takes its own time.
        slot = cycles[layer.name] if layer.out_height == 1 else pace / layer.out_height
        first[layer.name] = ready + (slot if layer.has_weights else 0)
    delivered = max(first[name] + (rows[name] - 1) * pace / rows[name] for name in first)
    return max(1, int(delivered + 0.5) + sum(cycles[plan.name] for plan in schedule.shared))


def reference_energy_pj(network: NetworkSpec) -> float:
    """Energy per frame of the network in 8 bits, layer by layer: what `energy_rel` is relative to."""
    config = NetworkConfig(tuple((layer.name, LayerConfig(8, 8)) for layer in network.weighted))
    energy = dram_energy_pj(baseline_bits(network, config))
    for layer in network.weighted:
        plan = LayerSchedule(layer.name, DataFlow.FRAME, 1, 1, weight_place=WeightPlace.STREAMED)
        storage = weight_storage(layer, config[layer.name])
        energy += mac_energy_pj(layer, config[layer.name], storage)
        energy += on_chip_energy_pj(layer, config[layer.name], storage, plan)
    return energy


def _layer_cost(
    network: NetworkSpec,
    config: NetworkConfig,
    schedule: Schedule,
    storages: Mapping[str, WeightStorage],
    widths: Mapping[str, int],
    traffic: Mapping[str, Mapping[str, int]],
    own: Sequence[MemoryCost],
    layer: LayerSpec,
    board: Board,
) -> LayerCost:
    plan = schedule[layer.name]
    lut, dsp = sum(row.lutram_luts for row in own), 0
    weight_format, density, waits = "", 1.0, 0
    if layer.has_weights:
        precision, storage = config[layer.name], storages[layer.name]
        rescale_bits = input_rescale_bits(layer, config, widths)
        stored_bits = stored(layer, storage).total_bits + rescale_bits
        bound = stored(layer, storage).entropy_bound_bits + rescale_bits
        weight_format, density = str(precision.weight_format), precision.density
        weight_bit_width, act_bit_width = precision.weight_bit_width, precision.act_bit_width
        streamed_bits = weight_reads(layer, plan) * storage.weight_bits
        waits = loading_cycles(plan, storage.weight_bits, board)
        if plan.data_flow.is_pipelined:
            rescales = schedule.host.result_word_bits is None or layer.name not in network.outputs
            lanes = sparse_lanes(layer, precision, storage, plan.pe, plan.simd)
            array = pipelined_array(layer, precision, lanes, plan, rescales, board.family)
            lut, dsp = lut + array.lut, array.dsp
    else:
        stored_bits = bound = operation_stored_bits(layer)
        weight_bit_width, streamed_bits = 0, 0
        act_bit_width = operation_bit_width(layer, config, widths)
        if plan.data_flow.is_pipelined:
            array = operation_array(layer, act_bit_width, plan)
            lut, dsp = lut + array.lut, array.dsp
    return LayerCost(
        name=layer.name,
        op=str(layer.op),
        data_flow=str(plan.data_flow),
        pe=plan.pe,
        simd=plan.simd,
        multiplier=str(plan.multiplier),
        weight_place=str(plan.weight_place),
        weight_format=weight_format,
        weight_bit_width=weight_bit_width,
        act_bit_width=act_bit_width,
        density=density,
        weights=layer.weights,
        macs=layer.macs,
        stored_bits=stored_bits,
        entropy_bound_bits=bound,
        bram18=sum(row.bram18 for row in own),
        uram=sum(row.uram for row in own),
        lut=lut,
        dsp=dsp,
        cycles=layer_cycles(layer, plan) + waits,
        loading_cycles=waits,
        offchip_weight_bits=streamed_bits,
        offchip_ifm_bits=traffic[layer.name]["ifm"],
        offchip_ofm_bits=traffic[layer.name]["ofm"],
        offchip_shortcut_bits=traffic[layer.name]["shortcut"],
    )


def _shared_need(
    network: NetworkSpec, config: NetworkConfig, schedule: Schedule, storages: Mapping[str, WeightStorage]
) -> SharedLayer:
    layers = [layer for layer in network.layers if not schedule[layer.name].data_flow.is_pipelined]
    needs = [
        shared_layer(
            layer,
            config[layer.name],
            storages[layer.name],
            schedule[layer.name],
            keeps_weights=schedule.keeps_weights(layer),
        )
        for layer in layers
        if layer.has_weights
    ]
    return combine([*needs, shared_norms(layers)])


def shared_place(schedule: Schedule) -> WeightPlace:
    """Where weights of the shared engine lie, resident and loaded ones: in one memory for all its layers."""
    in_uram = any(plan.weight_place.memory is WeightPlace.URAM for plan in schedule.shared)
    return WeightPlace.URAM if in_uram else WeightPlace.BRAM


def _shared_array(
    network: NetworkSpec,
    config: NetworkConfig,
    schedule: Schedule,
    storages: Mapping[str, WeightStorage],
    board: Board,
) -> tuple[int, int]:
    if not schedule.shared:
        return 0, 0
    engine = schedule.shared[0]
    need = _shared_need(network, config, schedule, storages)
    array = shared_array(need, engine.pe, engine.simd, engine.multiplier, board.family)
    return array.lut, array.dsp


def _share(used: int, available: int) -> float:
    if used == 0:
        return 0.0
    return used / available if available else float("inf")
