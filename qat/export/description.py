"""What `manifest.json` says of a network, and back: description, layout of `weights.bin`, integers.

Nothing that is read is believed: sizes follow from the layers and are compared with what is listed, so a crafted
description can neither point outside its data nor ask for memory without bound.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import LayerConfig, NetworkConfig
from hwmodel.storage import IndexCoding
from qat.export.bits import BitStream, byte_count, unpack_codes
from qat.export.index import MAX_PARAMETER
from qat.export.packing import Folding, PackedLayer, Requantization, expected_streams, stream_bits, unpack_layer
from qat.export.tables import TableShape, table_shape_of
from qat.integer import IntegerLayer, IntegerNetwork

INPUT_LAYER = ""
"""Stands for the network input where streams are listed by layer."""
INPUT_CODES = "input_codes"
"""Stream of the network input: codes of the 256 levels, `input_bit_width` bits each, channel by channel."""

MAX_LAYERS = 10_000
MAX_WEIGHTS = 1 << 30
FREE_WEIGHTS = 1 << 20
MAX_WEIGHTS_PER_BYTE = 1 << 14
"""Weights of a network per byte of stored data, beyond `FREE_WEIGHTS`: a small file cannot ask for much."""

Place = tuple[str, str, int]
"""Layer, stream, payload bits."""


def config_of(spec: LayerSpec, config: NetworkConfig) -> LayerConfig | None:
    """Precision of a layer; None without weights."""
    return config[spec.name] if spec.has_weights else None


def all_streams(
    packed_layers: Mapping[str, PackedLayer], input_stream: BitStream
) -> Iterator[tuple[str, str, BitStream]]:
    """(layer, name, stream) in file order; the input's codes come first."""
    yield INPUT_LAYER, INPUT_CODES, input_stream
    for layer, packed in packed_layers.items():
        for name, stream in packed.streams.items():
            yield layer, name, stream


def describe(
    integers: IntegerNetwork, packed_layers: Mapping[str, PackedLayer], input_stream: BitStream
) -> dict[str, Any]:
    """The manifest's description of a network: plain values.

    Args:
        integers: The network.
        packed_layers: Its streams, by layer in execution order.
        input_stream: Codes of the input levels.
    """
    places: dict[str, dict[str, dict[str, int]]] = {name: {} for name in (INPUT_LAYER, *packed_layers)}
    offset = 0
    for name, stream_name, stream in all_streams(packed_layers, input_stream):
        places[name][stream_name] = {"offset_bytes": offset, "bits": stream.bits}
        offset += stream.data.size
    records = []
    for spec in integers.network.layers:
        described = _describe_layer(spec, integers.layers[spec.name], packed_layers[spec.name])
        records.append({"name": spec.name, **described, "streams": places[spec.name]})
    return {
        "class_names": list(integers.class_names),
        "network": integers.network.to_dict(),
        "config": integers.config.to_dict(),
        "input": {"streams": places[INPUT_LAYER]},
        "layers": records,
    }


def _describe_layer(spec: LayerSpec, layer: IntegerLayer, packed: PackedLayer) -> dict[str, Any]:
    record: dict[str, Any] = {"ofm_scale": float(layer.ofm_scale)}
    if layer.rescale is not None:
        record["rescale"] = {
            "quant_min": int(layer.rescale.quant_min),
            "quant_max": int(layer.rescale.quant_max),
            "shift": int(layer.rescale.shift),
            "bias_shift": int(layer.bias_shift),
            "negative_shift": int(layer.rescale.negative_shift),
        }
    if spec.op is Op.GROUP_NORM:
        record["epsilon"] = int(layer.epsilon)
    if layer.table is not None:
        record["table"] = asdict(table_shape_of(layer.table))
    if layer.input_rescale is not None:
        record["input_range"] = [int(layer.input_rescale.quant_min), int(layer.input_rescale.quant_max)]
    if spec.has_weights:
        record["folding"] = {"pe": packed.folding.pe, "simd": packed.folding.simd}
    if spec.owns_weights:
        record["index"] = {"coding": str(packed.index_coding), "parameter": packed.index_parameter}
    return record


def read_description(body: Mapping[str, Any]) -> tuple[NetworkSpec, NetworkConfig]:
    """Geometry and precision.

    Args:
        body: The manifest's content.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: The description contradicts itself.
    """
    layers, configured, records = body["network"]["layers"], body["config"]["layers"], body["layers"]
    if max(len(layers), len(configured), len(records)) > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} layers")
    network, config = NetworkSpec.from_dict(body["network"]), NetworkConfig.from_dict(body["config"])
    names = [spec.name for spec in network.layers]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("a layer's name is not a string")
    if [record["name"] for record in records] != names:
        raise ValueError(f"layers are {[record['name'] for record in records]}, the network has {names}")
    sizes = (network.input_channels, network.input_height, network.input_width)
    if not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"the input is {sizes}, expected integers >= 1")
    config.check_matches(network)
    return network, config


def read_layout(body: Mapping[str, Any], network: NetworkSpec, config: NetworkConfig) -> list[Place]:
    """Streams in file order; every size and place is checked against what the layers need.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: The layout does not follow from the layers, or unpacking it
            would take memory out of proportion to its size.
    """
    layout = list(_read_layout(body, network, config))
    size_bytes = sum(byte_count(bits) for _, _, bits in layout)
    limit = min(MAX_WEIGHTS, FREE_WEIGHTS + MAX_WEIGHTS_PER_BYTE * size_bytes)
    if network.total_weights > limit:
        raise ValueError(f"the network has {network.total_weights} weights, at most {limit} with {size_bytes} bytes")
    return layout


def _read_layout(body: Mapping[str, Any], network: NetworkSpec, config: NetworkConfig) -> Iterator[Place]:
    expected = {INPUT_CODES: network.input_channels * 256 * config.input_bit_width}
    offset = yield from _read_places(INPUT_LAYER, body["input"]["streams"], expected, (INPUT_CODES,), 0)
    for spec, record in zip(network.layers, body["layers"], strict=True):
        coding, parameter = _read_index(spec, record)
        layer_config = config_of(spec, config)
        names = expected_streams(spec, layer_config, coding, "rescale" in record, "input_range" in record)
        bits = stream_bits(spec, layer_config, coding, parameter, _read_table(record))
        offset = yield from _read_places(spec.name, record["streams"], bits, names, offset)


def _read_places(
    layer: str, places: Mapping[str, Any], expected: Mapping[str, int | None], names: tuple[str, ...], offset: int
) -> Generator[Place, None, int]:
    """Yields the streams of one layer; returns the offset behind them."""
    if tuple(places) != names:
        raise ValueError(f"layer {layer!r}: streams are {list(places)}, expected {list(names)}")
    for name, place in places.items():
        bits = place["bits"]
        if type(bits) is not int or bits < 0 or bits > MAX_WEIGHTS * 9:
            raise ValueError(f"layer {layer!r}: stream {name!r} has bits={bits!r}")
        if expected[name] not in (None, bits):
            raise ValueError(f"layer {layer!r}: stream {name!r} has {bits} bits, expected {expected[name]}")
        if place["offset_bytes"] != offset:
            raise ValueError(f"layer {layer!r}: stream {name!r} is at {place['offset_bytes']!r}, expected {offset}")
        yield layer, name, bits
        offset += byte_count(bits)
    return offset


def _read_table(record: Mapping[str, Any]) -> TableShape | None:
    if "table" not in record:
        return None
    shape = TableShape(**record["table"])
    shape.check()
    return shape


def _read_index(spec: LayerSpec, record: Mapping[str, Any]) -> tuple[IndexCoding, int]:
    if not spec.owns_weights:
        return IndexCoding.NONE, 0
    coding, parameter = IndexCoding(record["index"]["coding"]), record["index"]["parameter"]
    if type(parameter) is not int or not 0 <= parameter <= MAX_PARAMETER:
        raise ValueError(f"layer {spec.name!r}: index parameter={parameter!r}, expected 0..{MAX_PARAMETER}")
    return coding, parameter


def slice_streams(data: NDArray[np.uint8], layout: list[Place]) -> dict[str, dict[str, BitStream]]:
    """Streams of `weights.bin` by layer and name."""
    streams: dict[str, dict[str, BitStream]] = {}
    offset = 0
    for layer, name, bits in layout:
        size = byte_count(bits)
        streams.setdefault(layer, {})[name] = BitStream(bits, data[offset : offset + size])
        offset += size
    return streams


def unpack_network(
    body: Mapping[str, Any], network: NetworkSpec, config: NetworkConfig, streams: Mapping[str, dict[str, BitStream]]
) -> tuple[IntegerNetwork, dict[str, PackedLayer]]:
    """Integers and streams of a network.

    Args:
        body: The manifest's content, accepted by `read_layout`.
        network: Its geometry.
        config: Its precision.
        streams: By layer and name.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: A layer does not decode.
    """
    layers: dict[str, IntegerLayer] = {}
    packed_layers: dict[str, PackedLayer] = {}
    for spec, record in zip(network.layers, body["layers"], strict=True):
        packed = PackedLayer(_read_folding(spec, record), *_read_index(spec, record), streams.get(spec.name, {}))
        owner = None if spec.weights_of is None else layers[spec.weights_of]
        try:
            layers[spec.name] = _unpack_layer(spec, config, packed, record, owner)
        except ValueError as error:
            raise ValueError(f"layer {spec.name!r}: {error}") from error
        packed_layers[spec.name] = packed
    codes = unpack_codes(streams[INPUT_LAYER][INPUT_CODES], network.input_channels * 256, config.input_bit_width)
    input_codes = codes.reshape(network.input_channels, 256).astype(np.int16)
    class_names = tuple(map(str, body["class_names"]))
    return IntegerNetwork(network, config, layers, input_codes, class_names), packed_layers


def _read_folding(spec: LayerSpec, record: Mapping[str, Any]) -> Folding:
    if not spec.has_weights:
        return Folding.whole_filters(spec)
    folding = Folding(record["folding"]["pe"], record["folding"]["simd"])
    if any(type(v) is not int or v < 1 for v in (folding.pe, folding.simd)):
        raise ValueError(f"layer {spec.name!r}: folding is {folding}, expected integers >= 1")
    return folding


def _unpack_layer(
    spec: LayerSpec,
    config: NetworkConfig,
    packed: PackedLayer,
    record: Mapping[str, Any],
    owner: IntegerLayer | None,
) -> IntegerLayer:
    requantization = Requantization(**record["rescale"]) if "rescale" in record else None
    if requantization is not None and any(type(v) is not int for v in vars(requantization).values()):
        raise ValueError(f"rescale is {requantization}, expected integers")
    input_range = tuple(record["input_range"]) if "input_range" in record else None
    if input_range is not None and (len(input_range) != 2 or any(type(v) is not int for v in input_range)):
        raise ValueError(f"input_range is {input_range}, expected two integers")
    layer_config, table = config_of(spec, config), _read_table(record)
    layer = unpack_layer(spec, layer_config, packed, requantization, input_range, record["ofm_scale"], table, owner)
    if spec.op is Op.GROUP_NORM and record["epsilon"] != layer.epsilon:
        raise ValueError(f"epsilon is {layer.epsilon}, the manifest says {record['epsilon']!r}")
    return layer
