"""The stored bytes as a C array with a table of layers; `qat_unpack.h` unpacks them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from math import prod

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import LayerSpec
from hwmodel.precision import LayerConfig, WeightFormat, group_shape, kept_groups
from hwmodel.storage import IndexCoding
from qat.export.bits import byte_count
from qat.export.index import STREAMS
from qat.export.packing import PackedLayer
from qat.integer import IntegerNetwork

DECODER = "qat_unpack.h"
HEADER = "model.h"

_FORMATS = {
    WeightFormat.DENSE: "QAT_DENSE",
    WeightFormat.SPARSE: "QAT_SPARSE",
    WeightFormat.BINARY_PLUS_SPARSE: "QAT_BINARY_PLUS_SPARSE",
}
_CODINGS = {coding: f"QAT_INDEX_{coding.name}" for coding in IndexCoding}
_BYTES_PER_LINE = 20


def decoder_source() -> bytes:
    """The decoder: `qat_unpack.h`."""
    return files("qat.export").joinpath(DECODER).read_bytes()


def header_source(integers: IntegerNetwork, packed_layers: Mapping[str, PackedLayer], data: bytes, first: int) -> bytes:
    """The header `model.h`.

    Args:
        integers: The network.
        packed_layers: Streams by layer, in execution order.
        data: Content of `weights.bin`.
        first: Offset in it of the first layer's streams, in bytes.
    """
    rows, offset = [], first
    offsets: dict[str, dict[str, int]] = {}
    for spec in integers.network.layers:
        packed = packed_layers[spec.name]
        offsets[spec.name] = _offsets(packed, offset)
        if spec.has_weights:
            owner = spec.weights_of or spec.name  # its weights are where they are stored, in the order stored there
            found = {**offsets[owner], **offsets[spec.name]}
            rows.append(_layer_row(spec, integers.config[spec.name], packed_layers[owner], integers, found))
        offset += sum(byte_count(stream.bits) for stream in packed.streams.values())
    text = (
        f"/* Weights of a packed integer network: content of weights.bin, and where what lies. */\n"
        f'#ifndef QAT_MODEL_H\n#define QAT_MODEL_H\n\n#include "{DECODER}"\n\n'
        f"#define QAT_LAYER_COUNT {len(rows)}\n\n"
        f"static const qat_layer qat_layers[QAT_LAYER_COUNT] = {{\n{''.join(rows)}}};\n\n"
        f"static const uint8_t qat_weights[{len(data)}] = {{\n"
    )
    return text.encode("ascii") + _byte_lines(np.frombuffer(data, np.uint8)) + b"};\n\n#endif\n"


def _offsets(packed: PackedLayer, offset: int) -> dict[str, int]:
    offsets = {}
    for name, stream in packed.streams.items():
        offsets[name] = offset
        offset += byte_count(stream.bits)
    return offsets


def _layer_row(
    spec: LayerSpec, config: LayerConfig, packed: PackedLayer, integers: IntegerNetwork, offsets: dict[str, int]
) -> str:
    layer = integers.layers[spec.name]
    assert layer.rescale is not None
    _, channels, rows, columns = spec.weight_shape
    grid = group_shape(spec.weight_shape, config.granularity)
    index = [offsets[name] for name in STREAMS[packed.index_coding]] + [0, 0]
    kept = 0 if config.weight_format is WeightFormat.DENSE else kept_groups(prod(grid), config.sparsity)
    fields = {
        "name": _c_string(spec.name),
        "format": _FORMATS[config.weight_format],
        "weight_bit_width": config.weight_bit_width,
        "index_coding": _CODINGS[packed.index_coding],
        "index_parameter": packed.index_parameter,
        "filters": spec.out_channels,
        "kernel_rows": rows,
        "kernel_columns": columns,
        "channels": channels,
        "group_rows": grid[2],
        "group_columns": grid[3],
        "group_channels": grid[1],
        "kept_groups": kept,
        "pe": min(packed.folding.pe, spec.out_channels),
        "simd": min(packed.folding.simd, rows * columns * channels),
        "shift": layer.rescale.shift,
        "bias_shift": layer.bias_shift,
        "negative_shift": layer.rescale.negative_shift,
        "quant_min": layer.rescale.quant_min,
        "quant_max": layer.rescale.quant_max,
        "weights": offsets.get("weights", 0),
        "values": offsets.get("values", 0),
        "index_first": index[0],
        "index_second": index[1],
        "multipliers": offsets["multipliers"],
        "biases": offsets["biases"],
    }
    return "    {" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "},\n"


def _c_string(text: str) -> str:
    """A literal of any text: everything but plain characters as octal escapes."""
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/ ")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _byte_lines(data: NDArray[np.uint8]) -> bytes:
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.empty((data.size, 5), np.uint8)
    text[:] = np.frombuffer(b"0x00,", np.uint8)
    text[:, 2] = digits[data >> 4]
    text[:, 3] = digits[data & 15]
    lines = [text[start : start + _BYTES_PER_LINE].tobytes() for start in range(0, data.size, _BYTES_PER_LINE)]
    return b"\n".join(lines) + b"\n"
