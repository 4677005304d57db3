"""Memories and arrays of one layer's engine and of the shared engine.

Every memory has an owner and a purpose, and is mapped by `hwmodel.memory`.  Sizes in bits and words:

| purpose      | of                                | depth                             | width                       |
|--------------|-----------------------------------|-----------------------------------|-----------------------------|
| weights      | dense or sign plane               | folds; + the most loaded          | pe * simd * bits            |
| values       | kept weights                      | kept values / values per cycle    | values per cycle * bits     |
| index        | positions of kept groups          | kept groups / per cycle, or folds | coded bits / depth          |
| values       | both, on the shared engine        | 18-bit words of a lane / in a row | pe * words in a row * 18    |
| stream       | weights that are not resident     | two output blocks                 | pe * simd * stored bits     |
| parameters   | multiplier and bias               | ceil(M / pe)                      | pe * 32                     |
| line_buffer  | ifm rows                          | W * C / ingest channels           | rows * ingest channels * a  |
| sums         | partial sums of a row or a frame  | pixels                            | pe * accumulator bits       |
| frame_buffer | whole feature maps                | bits / width                      | simd * 8, or 16-bit codes   |
| frame_buffer | a pipelined group norm's maps     | 2 * pixels * C / lanes            | lanes * bits                |
| pixel        | pixels whose length is measured   | 2 * C / lanes                     | lanes * bits                |
| table        | codes of a function of codes      | 2 ** bits                         | lanes * bits                |
| shortcut     | rows that wait for an addition    | rows * W * C / lanes              | lanes * bits                |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from hwmodel.compute import (
    CONTROL_LUTS,
    NORM_LANE_LUTS,
    POOL_LUTS_PER_BIT,
    RESCALE_LUTS,
    ROOT_LUTS,
    ArrayUse,
    Count,
    Multiplier,
    accumulator_bits,
    folds,
    lane_load,
    lane_loads,
    larger,
    mac_array,
    reduction_length,
    round_up,
    sharing,
)
from hwmodel.cycles import reach
from hwmodel.dataflow import DataFlow, Execution, WeightPlace
from hwmodel.memory import MemoryUse, lutram_luts, map_memories, map_uram
from hwmodel.network import AFFINE, FRAME_ENGINE, NORMALIZING, LayerSpec, Op
from hwmodel.precision import SIGNIFICANT_BIT_WIDTH, LayerConfig, WeightFormat
from hwmodel.storage import BIAS_BITS, MULTIPLIER_BITS, WeightBits

CODE_BITS = 8
"""Bits per lane of a word of the shared engine's memories, if no code is wider; narrower codes are packed into it."""


@dataclass(frozen=True)
class Memory:
    """One memory.

    Args:
        owner: A layer's name, or `FRAME_ENGINE`.
        purpose: See the module's table.
        depth: Words.
        width: Bits per word.
        place: `BRAM` (or LUTs, if small) or `URAM`.
    """

    owner: str
    purpose: str
    depth: Count
    width: Count
    place: WeightPlace = WeightPlace.BRAM

    def use(self, family: str) -> MemoryUse:
        """Resources of the memory."""
        if self.place is WeightPlace.URAM:
            return map_uram(self.depth, self.width)
        return map_memories(self.depth, self.width, family)


@dataclass(frozen=True)
class SparseLanes:
    """The lanes that multiply kept weights beside a 1-bit array: one per output channel in parallel.

    Args:
        groups: Groups that the fullest lane is expected to hold.
        multipliers: Multipliers per lane, so that no lane is slower than the array.
    """

    groups: Count
    multipliers: Count


def sparse_lanes(layer: LayerSpec, config: LayerConfig, storage: WeightBits, pe: Count, simd: Count) -> SparseLanes:
    """Lanes for the significant weights of `binary_plus_sparse`, with the load imbalance between them.

    Args:
        layer: The layer.
        config: Its precision; formats other than `binary_plus_sparse` have no lanes.
        storage: Its stored weights, of one density or of many.
        pe: Output channels in parallel; an array only with one density.
        simd: Products per output channel in parallel, for each of `pe`.
    """
    if config.weight_format is not WeightFormat.BINARY_PLUS_SPARSE or not storage.keeps_any:
        return SparseLanes(0, 0)
    weights_per_group = storage.weights_per_group
    groups = layer.weights // weights_per_group
    density = storage.kept_groups / groups
    if isinstance(density, np.ndarray):
        load: Count = lane_loads(pe, groups, density)
    elif isinstance(pe, np.ndarray):
        lanes, inverse = np.unique(pe, return_inverse=True)
        load = np.array([lane_load(int(lane), groups, density) for lane in lanes])[inverse.reshape(pe.shape)]
    else:
        load = lane_load(pe, groups, density)
    return SparseLanes(load, -(-load * weights_per_group // folds(layer, pe, simd)))


def weight_memories(
    layer: LayerSpec, config: LayerConfig, storage: WeightBits, lanes: SparseLanes, plan: Execution
) -> tuple[Memory, ...]:
    """Memories for the weights of a pipelined layer, `lanes` its `sparse_lanes`."""
    pixel_folds = folds(layer, plan.pe, plan.simd)
    products = plan.pe * plan.simd
    parameters = Memory(
        layer.name, "parameters", -(-layer.out_channels // plan.pe), plan.pe * (MULTIPLIER_BITS + BIAS_BITS)
    )
    if plan.weight_place is WeightPlace.STREAMED:
        width = -(-products * storage.weight_bits // layer.weights)
        depth = 2 * -(-reduction_length(layer) // plan.simd)
        return (Memory(layer.name, "stream", depth, width), parameters)
    place = plan.weight_place
    memories: list[Memory] = []
    if config.weight_format is WeightFormat.DENSE:
        memories.append(Memory(layer.name, "weights", pixel_folds, products * config.weight_bit_width, place))
    elif config.weight_format is WeightFormat.SPARSE:
        per_cycle = -(-products * (storage.kept_weights + (not storage.keeps_any)) // layer.weights)
        depth = -(-storage.kept_weights // per_cycle)
        memories.append(Memory(layer.name, "values", depth, per_cycle * config.weight_bit_width, place))
        memories.append(Memory(layer.name, "index", pixel_folds, -(-storage.index_bits // pixel_folds), place))
    else:
        memories.append(Memory(layer.name, "weights", pixel_folds, products, place))
        if storage.keeps_any:
            per_lane = lanes.groups * storage.weights_per_group
            width = plan.pe * lanes.multipliers * SIGNIFICANT_BIT_WIDTH
            memories.append(Memory(layer.name, "values", -(-per_lane // lanes.multipliers), width, place))
            groups = -(-lanes.multipliers // storage.weights_per_group)  # that a lane begins in one cycle
            bits = -(-groups * storage.index_bits // storage.kept_groups)  # of their codes, which differ in length
            memories.append(Memory(layer.name, "index", -(-lanes.groups // groups), plan.pe * bits, place))
    return (*memories, parameters)


def pipelined_memories(layer: LayerSpec, config: LayerConfig, plan: Execution) -> tuple[Memory, ...]:
    """Line buffer and partial sums of a pipelined layer with weights."""
    depth, width = line_buffer_shape(layer, config.act_bit_width, plan.ingest_channels)
    memories = [Memory(layer.name, "line_buffer", depth, width)]
    if plan.data_flow is DataFlow.ROW_PASS:
        bits = accumulator_bits(layer, config.stored_bit_width, config.act_bit_width)
        memories.append(Memory(layer.name, "sums", layer.out_width, plan.pe * bits))
    return tuple(memories)


def line_buffer_shape(layer: LayerSpec, act_bit_width: int, ingest_channels: Count) -> tuple[Count, Count]:
    """Depth and width of a line buffer: the kernel's rows and those that arrive meanwhile (K + 1 at stride 1)."""
    rows = min(reach(layer, 0) + layer.stride[0], 2 * layer.in_height)
    depth = layer.in_width * -(-layer.in_channels // ingest_channels)
    return depth, rows * ingest_channels * act_bit_width


def operation_memories(layer: LayerSpec, bit_width: int, plan: Execution) -> tuple[Memory, ...]:
    """Rows, parameters or tables of a pipelined layer without weights (waiting rows of additions are apart)."""
    lanes = plan.simd
    per_row = -(-layer.in_channels // lanes)
    if layer.op in (Op.MAX_POOL, Op.AVG_POOL) and layer.kernel_size != (1, 1):
        rows = -(-reach(layer, 0) // layer.stride[0])
        bits = bit_width
        if layer.op is Op.AVG_POOL:
            bits += (layer.kernel_size[0] * layer.kernel_size[1] - 1).bit_length()
        return (Memory(layer.name, "line_buffer", rows * layer.out_width * per_row, lanes * bits),)
    if layer.op in (Op.UPSAMPLE, Op.REORG):  # rows that go out again, or that become channels
        rows = 1 if layer.op is Op.UPSAMPLE else layer.stride[0]
        return (Memory(layer.name, "line_buffer", rows * layer.in_width * per_row, lanes * bit_width),)
    if layer.op in AFFINE:
        parameters = Memory(layer.name, "parameters", per_row, lanes * (MULTIPLIER_BITS + BIAS_BITS))
        if layer.op not in NORMALIZING:
            return (parameters,)
        # What is measured waits while the next is measured: maps, or pixels.
        frames = layer.op is Op.GROUP_NORM
        pixels = layer.in_height * layer.in_width if frames else 1
        waiting = Memory(layer.name, "frame_buffer" if frames else "pixel", 2 * pixels * per_row, lanes * bit_width)
        return (parameters, waiting)
    if layer.op is Op.LOOKUP:
        return (Memory(layer.name, "table", 1 << bit_width, lanes * bit_width),)
    return ()


def pipelined_array(
    layer: LayerSpec, config: LayerConfig, lanes: SparseLanes, plan: Execution, rescales: bool, family: str
) -> ArrayUse:
    """LUTs and DSP slices of a pipelined layer with weights, without its memories.

    Args:
        layer: The layer.
        config: Its precision.
        lanes: Its `sparse_lanes`.
        plan: Its folding.
        rescales: Whether it brings its sums to codes itself (one multiplier per output channel in parallel).
        family: Device family.
    """
    sum_bits = accumulator_bits(layer, config.stored_bit_width, config.act_bit_width)
    bits = config.weight_bit_width, config.act_bit_width
    shared = sharing(layer, plan.pe)
    array = mac_array(plan.pe, plan.simd, *bits, sum_bits, plan.multiplier, family, shared)
    lut, dsp = array.lut + CONTROL_LUTS, array.dsp
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        # Each multiplier reads any activation of the window, from its own copy.
        lut = lut + plan.pe * lanes.multipliers * lutram_luts(reduction_length(layer), config.act_bit_width, family)
        dsp = dsp + plan.pe * lanes.multipliers
    if plan.data_flow is DataFlow.ROW_PIXEL:
        sets = -(-plan.pe // shared)  # windows of channel groups that are read at once
        words = -(-layer.groups // sets) * -(-reduction_length(layer) // plan.simd)
        lut += lutram_luts(words, sets * plan.simd * config.act_bit_width, family)
    if rescales:
        lut += plan.pe * RESCALE_LUTS
        dsp += plan.pe
    return ArrayUse(lut, dsp)


DSP_PER_LANE = {Op.AVG_POOL: 1, Op.MUL: 2, Op.SCALE: 1, Op.L2_NORM: 3, Op.GROUP_NORM: 5}
"""Multiplications of each operand of an operation; one more for each operand of an addition.

A normalisation squares a code, multiplies it by the inverse root, and by the channel's multiplier; a group norm
multiplies by the number of values besides, and its centred codes take two slices.
"""


def operation_array(layer: LayerSpec, bit_width: int, plan: Execution) -> ArrayUse:
    """LUTs and DSP slices of a pipelined layer without weights."""
    if layer.op in (Op.FLATTEN, Op.SUBSAMPLE, Op.UPSAMPLE, Op.REORG, Op.SHUFFLE, Op.SLICE, Op.LOOKUP):
        return ArrayUse(0 * plan.simd, 0 * plan.simd)
    dsp = plan.simd * DSP_PER_LANE.get(layer.op, len(layer.inputs) if layer.op is Op.ADD else 0)
    lut = round_up(plan.simd * bit_width * POOL_LUTS_PER_BIT * max(2, len(layer.inputs)))
    if layer.op in NORMALIZING:
        lut += plan.simd * NORM_LANE_LUTS + ROOT_LUTS
    return ArrayUse(lut, dsp)


@dataclass(frozen=True)
class SharedLayer:
    """What one layer asks of the shared engine, or its normalisations; the engine takes the maximum, or the sum.

    Args:
        weight_words: Words of resident weights (sum).
        stream_words: Words of the stream buffer (maximum).
        loaded_words: Words in the weight memory for a layer whose weights are loaded (maximum).
        parameter_words: Words of the parameter memory (sum).
        line_bits: Bits of the line buffer (maximum).
        sum_words: Words of the partial sums (maximum).
        sum_bits: Bits of an accumulator (maximum).
        weight_bit_width: Bits of the array's weights (maximum).
        act_bit_width: Bits of the array's activations (maximum).
        lane_multipliers: Multipliers per sparse lane (maximum).
        lane_window: Activations that a sparse lane chooses from (maximum).
        sparse_words: Words per sparse lane of resident significant weights with their index (sum).
        loaded_sparse_words: Words per sparse lane for a layer whose weights are loaded (maximum).
        lane_words: Words that a sparse lane reads per cycle: as many weights as it multiplies (maximum).
        norm_dsp: DSP slices per lane for normalisations, 0 without any (maximum).
    """

    weight_words: Count = 0
    stream_words: Count = 0
    loaded_words: Count = 0
    parameter_words: Count = 0
    line_bits: Count = 0
    sum_words: Count = 0
    sum_bits: Count = 0
    weight_bit_width: Count = 0
    act_bit_width: Count = 0
    lane_multipliers: Count = 0
    lane_window: Count = 0
    sparse_words: Count = 0
    loaded_sparse_words: Count = 0
    lane_words: Count = 0
    norm_dsp: Count = 0


SUMMED = ("weight_words", "parameter_words", "sparse_words")
"""Fields of `SharedLayer` that add up; of the others the maximum counts."""

BUFFERED = ("stream_words", "loaded_words", "loaded_sparse_words")
"""Fields of `SharedLayer` that only layers have whose weights are not resident."""

WEIGHTS = ("weight_words", "sparse_words", *BUFFERED)
"""Fields that depend on which weights are resident."""

KEPT = tuple(name for name in WEIGHTS if name in SUMMED)
"""Those that add up over layers with resident weights: one for each memory of weights."""

LOADED = tuple(BUFFERED.index(name) for name in ("loaded_words", "loaded_sparse_words"))
"""Of each of them: the number of the field in `BUFFERED` that counts where weights are loaded."""

FOLDED = ("lane_multipliers", "lane_words")
"""Fields of which the maximum counts and that depend on the engine's folding."""

FIXED = tuple(name for name in SharedLayer.__dataclass_fields__ if name not in (*WEIGHTS, *SUMMED, *FOLDED))
"""Fields that depend neither on which weights are resident nor on the engine's folding."""


def shared_layer(
    layer: LayerSpec,
    config: LayerConfig,
    storage: WeightBits,
    plan: Execution,
    *,
    keeps_weights: bool = True,
) -> SharedLayer:
    """What a layer with weights asks of the shared engine, with the layers without weights behind it.

    Args:
        layer: The layer.
        config: Its precision.
        storage: Its stored weights.
        plan: Its execution.
        keeps_weights: Whether its weights need words of their own when they are resident: False where the layer that it
            shares them with (`LayerSpec.weights_of`) has them resident on the same engine.
    """
    pixel_folds = folds(layer, plan.pe, plan.simd)
    products = plan.pe * plan.simd
    word = products * CODE_BITS
    block_folds = -(-reduction_length(layer) // plan.simd)
    need = SharedLayer(
        parameter_words=-(-layer.out_channels // plan.pe),
        sum_bits=accumulator_bits(layer, config.stored_bit_width, config.act_bit_width),
        weight_bit_width=config.weight_bit_width,
        act_bit_width=config.act_bit_width,
    )
    if plan.weight_place is WeightPlace.STREAMED:
        block_bits = -(-block_folds * products * storage.weight_bits // layer.weights)
        need = replace(need, stream_words=2 * -(-block_bits // word))
    words, sparse_words = _whole_words(config, storage, pixel_folds, products), 0
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE and storage.keeps_any:
        lanes = sparse_lanes(layer, config, storage, plan.pe, plan.simd)
        per_group = SIGNIFICANT_BIT_WIDTH * storage.weights_per_group + -(-storage.index_bits // storage.kept_groups)
        per_cycle = -(-lanes.multipliers * per_group // storage.weights_per_group)
        need = replace(
            need,
            lane_multipliers=lanes.multipliers,
            lane_window=reduction_length(layer),
            lane_words=-(-per_cycle // SPARSE_WORD_BITS),
        )
        sparse_words = -(-lanes.groups * per_group // SPARSE_WORD_BITS)
    if plan.weight_place.is_loaded:
        need = replace(need, loaded_words=words, loaded_sparse_words=sparse_words)
    elif plan.weight_place is not WeightPlace.STREAMED and keeps_weights:
        need = replace(need, weight_words=words, sparse_words=sparse_words)
    if plan.data_flow is DataFlow.SPILLED:
        depth, width = line_buffer_shape(layer, config.act_bit_width, 1)
        return replace(need, line_bits=depth * width, sum_words=layer.out_width)
    if layer.op is Op.CONV and layer.kernel_size != (1, 1):
        return replace(need, sum_words=layer.out_width * layer.out_height)
    return need


def shared_norms(layers: Iterable[LayerSpec]) -> SharedLayer:
    """What the normalisations among some layers of the shared engine ask of it: lanes, beside `shared_layer`."""
    return SharedLayer(norm_dsp=max((DSP_PER_LANE[one.op] for one in layers if one.op in NORMALIZING), default=0))


SPARSE_WORD_BITS = 18
"""Bits of a word of a lane in the shared engine's sparse memory: a column of block RAM.

A row of the memory has as many words of each lane as its multipliers take per cycle in the layer that needs most, be
its weights resident or not, so no layer waits for its weights; where one needs fewer, its codes fill rows nevertheless.
Layers follow each other without gaps: where one begins inside a row, the columns before its start are read a row later
than the others.
"""


def _whole_words(config: LayerConfig, storage: WeightBits, pixel_folds: Count, products: Count) -> Count:
    word = products * CODE_BITS
    if config.weight_format is WeightFormat.SPARSE:
        return -(-storage.value_bits // word) + -(-storage.index_bits // word)
    return -(-pixel_folds * config.weight_bit_width // CODE_BITS)


def combine(needs: Iterable[SharedLayer]) -> SharedLayer:
    """What all layers together ask of the shared engine."""
    rows = list(needs)
    if not rows:
        return SharedLayer()
    names = SharedLayer.__dataclass_fields__
    return SharedLayer(**{n: (sum if n in SUMMED else max)(getattr(row, n) for row in rows) for n in names})


def shared_memories(need: SharedLayer, pe: Count, simd: Count, place: WeightPlace) -> tuple[Memory, ...]:
    """Memories of the shared engine but its frame buffers.

    Args:
        need: What its layers ask for together.
        pe: Output channels in parallel.
        simd: Products per output channel in parallel.
        place: `BRAM` or `URAM`, for weights that are resident or loaded.
    """
    word = pe * simd * CODE_BITS
    line_word = simd * larger(CODE_BITS, need.act_bit_width)
    lane_words = larger(1, need.lane_words)
    sparse_rows = -(-(need.sparse_words + need.loaded_sparse_words) // lane_words)
    shapes = (
        ("weights", need.weight_words + need.loaded_words, word, place),
        ("stream", need.stream_words, word, WeightPlace.BRAM),
        ("values", sparse_rows, pe * lane_words * SPARSE_WORD_BITS, place),
        ("parameters", need.parameter_words, pe * (MULTIPLIER_BITS + BIAS_BITS), WeightPlace.BRAM),
        ("line_buffer", -(-need.line_bits // line_word), line_word, WeightPlace.BRAM),
        ("sums", need.sum_words, pe * need.sum_bits, WeightPlace.BRAM),
    )
    return tuple(Memory(FRAME_ENGINE, purpose, d, w, where) for purpose, d, w, where in shapes if np.any(d))


def frame_buffer_shape(bits: Count, widest: Count, simd: Count) -> tuple[Count, Count]:
    """Depth and width of a frame buffer of the shared engine.

    Args:
        bits: Of the largest feature map that lies in it.
        widest: Bits of its widest codes, `simd` of which are read per cycle.
        simd: Products per output channel in parallel.
    """
    width = simd * larger(CODE_BITS, widest)
    return -(-bits // width), width


def shared_array(need: SharedLayer, pe: Count, simd: Count, multiplier: Multiplier, family: str) -> ArrayUse:
    """LUTs and DSP slices of the shared engine, without its memories."""
    if not np.any(need.weight_bit_width):
        return _norm_lanes(need, simd)
    array = mac_array(pe, simd, need.weight_bit_width, need.act_bit_width, need.sum_bits, multiplier, family)
    beside = beside_shared_array(need, pe, simd, family)
    return ArrayUse(array.lut + beside.lut, array.dsp + beside.dsp)


def beside_shared_array(need: SharedLayer, pe: Count, simd: Count, family: str) -> ArrayUse:
    """LUTs and DSP slices of the shared engine beside its array: control, rescaling, sparse lanes, normalisations."""
    lut = CONTROL_LUTS + pe * RESCALE_LUTS
    lut = lut + pe * need.lane_multipliers * lutram_luts(need.lane_window, need.act_bit_width, family)
    norms = _norm_lanes(need, simd)
    return ArrayUse(lut + norms.lut, pe + pe * need.lane_multipliers + norms.dsp)


def _norm_lanes(need: SharedLayer, simd: Count) -> ArrayUse:
    """LUTs and DSP slices of the lanes and the root unit that all normalisations of the shared engine use."""
    return ArrayUse((need.norm_dsp > 0) * (simd * NORM_LANE_LUTS + ROOT_LUTS), simd * need.norm_dsp)
