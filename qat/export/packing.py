"""The integers of one layer <-> streams of bits.

A layer with weights has these streams, in this order:

| stream                       | formats                      | content                                        |
|------------------------------|------------------------------|------------------------------------------------|
| `weights`                    | dense, binary_plus_sparse    | every weight: its code, or its sign            |
| `values`                     | sparse, binary_plus_sparse   | codes of the kept weights                      |
| `index_*` (none to two)      | sparse, binary_plus_sparse   | which groups are kept, see `qat.export.index`  |
| `multipliers`, `biases`      | all; `scale`, `*_norm`       | int16 per output channel                       |
| `shifts`                     | all                          | uint8: shift of the multipliers, of the biases |
| `epsilon`                    | operation `group_norm`       | uint64                                         |
| `input_multiplier`, `input_shift` | with a requantized ifm  | int16, uint8                                   |

A layer that uses the weights of an earlier one (`weights_of`) has only the streams from `multipliers` on.

Additions, concatenations and average pools have `multipliers` (int16, one per operand) and `shifts` (one uint8); gates
one multiplier.  Lookups have `table`: the codes of the ofm, in as many bits as their range needs.

Order: the products of a filter are counted kernel row, kernel column, input channel (the last fastest).  `weights`
come in the order in which an array of pe x simd multipliers reads them: block of pe filters, block of simd
products, filter, product; blocks at the edges are smaller.  `values` and the groups of the index come filter by
filter, the products of a filter in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hwmodel.compute import reduction_length
from hwmodel.network import AFFINE, LayerSpec, Op
from hwmodel.precision import SIGNIFICANT_BIT_WIDTH, LayerConfig, WeightFormat, group_shape, kept_groups
from hwmodel.storage import IndexCoding
from qat.export.bits import BitStream, pack_bytes, pack_codes, unpack_codes, unpack_int16
from qat.export.index import STREAMS, CodedIndex, decode, encode_cheapest
from qat.export.tables import TableShape, pack_table, unpack_table
from qat.integer import BINARY_SHIFT, IntegerLayer, Rescale

Code = TypeVar("Code", bound=np.generic)


@dataclass(frozen=True)
class Folding:
    """What an array of multipliers reads at a time.

    Args:
        pe: Output channels in parallel, >= 1.
        simd: Products per output channel in parallel, >= 1.
    """

    pe: int
    simd: int

    @classmethod
    def whole_filters(cls, layer: LayerSpec) -> Folding:
        """Filter by filter, each in one piece: the order without a schedule."""
        return cls(1, reduction_length(layer))


@dataclass(frozen=True)
class PackedLayer:
    """The stored form of one layer.

    Args:
        folding: Order of the `weights` stream.
        index_coding: Coding of the positions of kept groups.
        index_parameter: Its parameter.
        streams: Streams by name, in the order of the module's table.
    """

    folding: Folding
    index_coding: IndexCoding = IndexCoding.NONE
    index_parameter: int = 0
    streams: Mapping[str, BitStream] = field(default_factory=dict)


@dataclass(frozen=True)
class Requantization:
    """What a manifest tells of a layer beside its streams: ranges of codes and shifts, None where there is no rescale.

    Args:
        quant_min: Smallest code of the ofm.
        quant_max: Largest code of the ofm.
        shift: Shift of the multipliers.
        bias_shift: Shift of the biases.
        negative_shift: By so many bits more are negative products shifted.
    """

    quant_min: int
    quant_max: int
    shift: int
    bias_shift: int = 0
    negative_shift: int = 0


def pack_layer(
    spec: LayerSpec, config: LayerConfig | None, layer: IntegerLayer, folding: Folding | None = None
) -> PackedLayer:
    """Streams of a layer that `qat.export.check` accepts.

    Args:
        spec: Its geometry.
        config: Its precision; None without weights.
        layer: Its integers.
        folding: Order of `weights`; None reads filter by filter.
    """
    folding = folding or Folding.whole_filters(spec)
    streams: dict[str, BitStream] = {}
    index = CodedIndex(IndexCoding.NONE)
    if spec.owns_weights:
        assert layer.weight is not None and config is not None
        rows = _to_rows(layer.weight)
        if config.weight_format is WeightFormat.DENSE:
            streams["weights"] = pack_codes(fold(rows, folding), config.weight_bit_width)
        else:
            assert layer.mask is not None
            if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
                streams["weights"] = pack_codes(fold(rows, folding), 1)
            kept = rows.reshape(-1)[_kept_weights(layer.mask, spec)]
            streams["values"] = pack_codes(kept, config.stored_bit_width)
            index = encode_cheapest(_to_rows(layer.mask))
            streams.update(index.streams)
    streams.update(_pack_parameters(spec, layer))
    return PackedLayer(folding, index.coding, index.parameter, streams)


def unpack_weights(
    spec: LayerSpec, config: LayerConfig, packed: PackedLayer
) -> tuple[NDArray[np.int8], NDArray[np.bool_] | None]:
    """Weight codes and mask of a layer: the inverse of `pack_layer`.

    Returns:
        int8 codes (O, I/groups, Kh, Kw), and the group grid (None for `dense`).

    Raises:
        ValueError: A stream has another size than the layer needs, or does not decode.
    """
    shape = (spec.out_channels, reduction_length(spec))
    if config.weight_format is WeightFormat.DENSE:
        rows = _unpack_plane(packed, shape, config.weight_bit_width)
        return _from_rows(rows, spec.weight_shape), None
    grid = group_shape(spec.weight_shape, config.granularity)
    per_filter = grid[1] * grid[2] * grid[3]
    kept = kept_groups(grid[0] * per_filter, config.sparsity)
    index_streams = {name: packed.streams[name] for name in STREAMS[packed.index_coding]}
    index = CodedIndex(packed.index_coding, packed.index_parameter, index_streams)
    mask = _from_rows(decode(index, grid[0], per_filter, kept), grid)
    count = kept * (shape[1] // per_filter)
    values = unpack_codes(packed.streams["values"], count, config.stored_bit_width)
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        rows = _unpack_plane(packed, shape, 1)
        rows <<= BINARY_SHIFT
    else:
        rows = np.zeros(shape, np.int8)
    rows.reshape(-1)[_kept_weights(mask, spec)] = values
    return _from_rows(rows, spec.weight_shape), mask


def unpack_layer(
    spec: LayerSpec,
    config: LayerConfig | None,
    packed: PackedLayer,
    requantization: Requantization | None,
    input_range: tuple[int, int] | None,
    ofm_scale: float,
    table_shape: TableShape | None = None,
    owner: IntegerLayer | None = None,
) -> IntegerLayer:
    """Inverse of `pack_layer`, given what the manifest holds.

    Args:
        spec: Its geometry.
        config: Its precision; None without weights.
        packed: Its streams.
        requantization: Ranges and shifts; None where codes are only moved.
        input_range: Smallest and largest code that the layer reads, where its ifm is requantized.
        ofm_scale: Value of one step of the ofm's codes.
        table_shape: Of a lookup's table.
        owner: The layer whose weights it uses, if they are not its own.

    Raises:
        ValueError: A stream has another size than the layer needs, or contradicts the manifest.
    """
    weight, mask, bias, rescale, input_rescale, table = None, None, None, None, None, None
    streams = packed.streams
    if requantization is not None:
        count = _multipliers(spec)
        shifts = [requantization.shift, *([requantization.bias_shift] if _has_bias(spec) else [])]
        if streams["shifts"].data.tolist() != shifts:
            raise ValueError(f"shifts are {streams['shifts'].data.tolist()}, the manifest says {shifts}")
        multiplier = unpack_int16(streams["multipliers"], count)
        limits = requantization.quant_min, requantization.quant_max
        rescale = Rescale(multiplier, requantization.shift, *limits, requantization.negative_shift)
    if _has_bias(spec):
        bias = unpack_int16(streams["biases"], spec.out_channels)
    if table_shape is not None:
        table = unpack_table(streams["table"], table_shape)
    if owner is not None:
        weight, mask = owner.weight, owner.mask
    elif spec.has_weights:
        assert config is not None
        weight, mask = unpack_weights(spec, config, packed)
    if input_range is not None:
        shift = int(streams["input_shift"].data[0])
        input_rescale = Rescale(unpack_int16(streams["input_multiplier"], 1), shift, *input_range)
    bias_shift = requantization.bias_shift if requantization is not None else 0
    epsilon = int.from_bytes(streams["epsilon"].data.tobytes(), "little") if spec.op is Op.GROUP_NORM else 0
    return IntegerLayer(spec.name, rescale, weight, mask, bias, bias_shift, input_rescale, ofm_scale, table, epsilon)


def _has_bias(spec: LayerSpec) -> bool:
    return spec.has_weights or spec.op in AFFINE


def _multipliers(spec: LayerSpec) -> int:
    """Multipliers of a layer with a requantization."""
    if _has_bias(spec):
        return spec.out_channels
    return 1 if spec.op is Op.MUL else len(spec.inputs)


def expected_streams(
    spec: LayerSpec, config: LayerConfig | None, coding: IndexCoding, has_rescale: bool, has_input_rescale: bool
) -> tuple[str, ...]:
    """Names of the streams of a layer, in their order."""
    names: list[str] = []
    if spec.owns_weights and config is not None:
        if config.weight_format is not WeightFormat.SPARSE:
            names.append("weights")
        if config.weight_format is not WeightFormat.DENSE:
            names += ["values", *STREAMS[coding]]
    if spec.has_weights or has_rescale:
        names += ["multipliers", *(["biases"] if _has_bias(spec) else []), "shifts"]
        names += ["epsilon"] if spec.op is Op.GROUP_NORM else []
    elif spec.op is Op.LOOKUP:
        names.append("table")
    if has_input_rescale:
        names += ["input_multiplier", "input_shift"]
    return tuple(names)


def stream_bits(
    spec: LayerSpec,
    config: LayerConfig | None,
    coding: IndexCoding,
    parameter: int,
    table_shape: TableShape | None = None,
) -> dict[str, int | None]:
    """Payload bits that each stream of a layer must have; None where they depend on the content."""
    bits: dict[str, int | None] = {
        "multipliers": 16 * _multipliers(spec),
        "biases": 16 * spec.out_channels,
        "shifts": 16 if _has_bias(spec) else 8,
        "epsilon": 64,
        "input_multiplier": 16,
        "input_shift": 8,
        "table": table_shape.entries * table_shape.bit_width if table_shape is not None else 0,
    }
    if config is None:
        return bits
    grid = group_shape(spec.weight_shape, config.granularity)
    groups = grid[0] * grid[1] * grid[2] * grid[3]
    kept = kept_groups(groups, config.sparsity)
    bits["weights"] = spec.weights * (1 if config.weight_format is not WeightFormat.DENSE else config.weight_bit_width)
    bits["values"] = (
        kept
        * (spec.weights // groups)
        * (
            SIGNIFICANT_BIT_WIDTH
            if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE
            else config.weight_bit_width
        )
    )
    count_bits = (groups // grid[0]).bit_length()
    bits |= {"index_bitmap": groups, "index_quotients": None, "index_remainders": kept * parameter}
    bits |= {"index_counts": grid[0] * count_bits, "index_positions": kept * parameter}
    return bits


def fold(rows: NDArray[np.int8], folding: Folding) -> NDArray[np.int8]:
    """Weights in reading order.

    Args:
        rows: Shape (filters, products).
        folding: What is read at a time.

    Returns:
        Shape (filters * products,).

    >>> fold(np.array([[0, 1, 2], [10, 11, 12], [20, 21, 22]], np.int8), Folding(2, 2)).tolist()
    [0, 1, 10, 11, 2, 12, 20, 21, 22]
    """
    if _is_identity(rows.shape, folding):
        return rows.reshape(-1)
    filters, products = rows.shape
    grid, valid = _fold_grid(rows.shape, folding)
    padded = np.zeros((grid[0] * grid[1], grid[2] * grid[3]), np.int8)
    padded[:filters, :products] = rows
    blocks = padded.reshape(grid).transpose(0, 2, 1, 3)
    return blocks.reshape(-1) if valid is None else blocks[valid]


def unfold(flat: NDArray[np.int8], shape: tuple[int, int], folding: Folding) -> NDArray[np.int8]:
    """Inverse of `fold`."""
    if _is_identity(shape, folding):
        return flat.reshape(shape)
    grid, valid = _fold_grid(shape, folding)
    if valid is None:
        blocks = flat.reshape(grid[0], grid[2], grid[1], grid[3])
    else:
        blocks = np.zeros(valid.shape, np.int8)
        blocks[valid] = flat
    rows = blocks.transpose(0, 2, 1, 3).reshape(grid[0] * grid[1], grid[2] * grid[3])
    return np.ascontiguousarray(rows[: shape[0], : shape[1]])


def weight_blocks(packed: PackedLayer, shape: tuple[int, int], bit_width: int) -> NDArray[np.int8]:
    """Codes of the `weights` stream with the edges filled up: what a memory of whole words holds.

    Args:
        packed: A layer with that stream.
        shape: (filters, products).
        bit_width: Of the stream.

    Returns:
        Codes of shape (folds, pe * simd), 0 where there is no weight.
    """
    rows = _unpack_plane(packed, shape, bit_width)
    pe, simd = packed.folding.pe, packed.folding.simd
    filter_blocks, product_blocks = -(-shape[0] // pe), -(-shape[1] // simd)
    padded = np.zeros((filter_blocks * pe, product_blocks * simd), np.int8)
    padded[: shape[0], : shape[1]] = rows
    blocks = padded.reshape(filter_blocks, pe, product_blocks, simd).transpose(0, 2, 1, 3)
    return blocks.reshape(filter_blocks * product_blocks, pe * simd)


def _is_identity(shape: tuple[int, ...], folding: Folding) -> bool:
    return folding.pe == 1 or (folding.simd >= shape[1] and shape[0] > 0)


def _fold_grid(shape: tuple[int, ...], folding: Folding) -> tuple[tuple[int, int, int, int], NDArray[np.bool_] | None]:
    """(filter blocks, pe, product blocks, simd), and which places are weights (None: all) in reading order."""
    pe, simd = min(folding.pe, shape[0]), min(folding.simd, shape[1])
    grid = (-(-shape[0] // pe), pe, -(-shape[1] // simd), simd)
    if shape == (grid[0] * pe, grid[2] * simd):
        return grid, None
    filters = (np.arange(grid[0] * pe) < shape[0]).reshape(grid[0], 1, pe, 1)
    products = (np.arange(grid[2] * simd) < shape[1]).reshape(1, grid[2], 1, simd)
    return grid, filters & products


def _unpack_plane(packed: PackedLayer, shape: tuple[int, int], bit_width: int) -> NDArray[np.int8]:
    return unfold(unpack_codes(packed.streams["weights"], shape[0] * shape[1], bit_width), shape, packed.folding)


def _to_rows(array_OIHW: NDArray[Code]) -> NDArray[Code]:
    """Filters by products (kernel row, kernel column, input channel)."""
    return np.ascontiguousarray(array_OIHW.transpose(0, 2, 3, 1)).reshape(array_OIHW.shape[0], -1)


def _from_rows(rows: NDArray[Code], shape_OIHW: tuple[int, int, int, int]) -> NDArray[Code]:
    out_channels, in_channels, height, width = shape_OIHW
    return np.ascontiguousarray(rows.reshape(out_channels, height, width, in_channels).transpose(0, 3, 1, 2))


def _kept_weights(mask: NDArray[np.bool_], spec: LayerSpec) -> NDArray[np.int64]:
    """Places of the kept weights in filter order; positions are some ten times faster than a boolean index."""
    return np.flatnonzero(_to_rows(np.broadcast_to(mask, spec.weight_shape)))


def _pack_parameters(spec: LayerSpec, layer: IntegerLayer) -> Iterable[tuple[str, BitStream]]:
    if layer.rescale is not None:
        yield "multipliers", pack_bytes(layer.rescale.multiplier.astype(np.int16))
        shifts = [layer.rescale.shift]
        if layer.bias is not None:
            yield "biases", pack_bytes(layer.bias.astype(np.int16))
            shifts.append(layer.bias_shift)
        yield "shifts", pack_bytes(np.array(shifts, np.uint8))
    if spec.op is Op.GROUP_NORM:
        yield "epsilon", pack_bytes(np.array([layer.epsilon], np.uint64))
    if layer.table is not None:
        yield "table", pack_table(layer.table)
    if layer.input_rescale is not None:
        yield "input_multiplier", pack_bytes(layer.input_rescale.multiplier.astype(np.int16))
        yield "input_shift", pack_bytes(np.array([layer.input_rescale.shift], np.uint8))
