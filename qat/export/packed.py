"""A network in integers as a folder of files: `save_packed`, `load_packed`, `PackedModel`.

Layout and rules: docs/packed-format.md.  numpy only; reading needs nothing of the training side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.dataflow import Schedule
from hwmodel.network import LayerSpec, NetworkSpec
from hwmodel.precision import NetworkConfig
from qat.errors import ExportError
from qat.export.bits import BitStream, byte_count, pack_codes
from qat.export.c_header import DECODER, HEADER, decoder_source, header_source
from qat.export.check import check_network
from qat.export.description import (
    INPUT_CODES,
    INPUT_LAYER,
    all_streams,
    config_of,
    describe,
    read_description,
    read_layout,
    slice_streams,
    unpack_network,
)
from qat.export.folder import write_folder
from qat.export.images import MemoryImage, layer_images, operation_images
from qat.export.manifest import MANIFEST, check_files, contents_of, file_entry, manifest_bytes, read_file, read_manifest
from qat.export.packing import Folding, PackedLayer, pack_layer
from qat.export.runtime import IntegerRuntime
from qat.integer import IntegerNetwork

WEIGHTS = "weights.bin"
"""The file with all streams, one behind the other, each from a whole byte on."""


@dataclass(frozen=True)
class PackedModel:
    """A packed network, read and verified.

    Args:
        integers: The network in integers.
        packed_layers: Streams of each layer, by name.
        input_stream: Codes of the input levels, `input_bit_width` bits each, channel by channel.
        extra: What the writer added for its own use: plain values.
    """

    integers: IntegerNetwork
    packed_layers: Mapping[str, PackedLayer] = field(repr=False)
    input_stream: BitStream = field(repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> NetworkSpec:
        """Geometry and edges."""
        return self.integers.network

    @property
    def config(self) -> NetworkConfig:
        """Precision of each layer."""
        return self.integers.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, empty if unknown."""
        return self.integers.class_names

    @property
    def output_scales(self) -> tuple[float, ...]:
        """Value of one step of the codes of each result, in the order of `NetworkSpec.outputs`."""
        return self.integers.output_scales

    @cached_property
    def stored_bits_by_stream(self) -> Mapping[str, int]:
        """Payload bits by the name of the stream, summed over layers; `input_codes` included."""
        bits: dict[str, int] = {}
        for _, name, stream in all_streams(self.packed_layers, self.input_stream):
            bits[name] = bits.get(name, 0) + stream.bits
        return bits

    @cached_property
    def stored_bits_by_layer(self) -> Mapping[str, int]:
        """Payload bits of each layer, by its name."""
        return {
            name: sum(stream.bits for stream in layer.streams.values()) for name, layer in self.packed_layers.items()
        }

    @property
    def stored_bits(self) -> int:
        """All payload bits: what the accelerator stores, without manifest and without padding to bytes."""
        return sum(self.stored_bits_by_stream.values())

    @cached_property
    def runtime(self) -> IntegerRuntime:
        """Integer inference of this network."""
        return IntegerRuntime(self.integers)

    def run(self, images_NCHW: NDArray[np.uint8]) -> NDArray[np.int32] | tuple[NDArray[np.int32], ...]:
        """Output codes: (N, classes), or (N, C, H, W) where they are maps; of several results a tuple.

        Args:
            images_NCHW: uint8, shape (N, C, H, W).

        Raises:
            ValueError: The images have another type or shape.
        """
        return self.runtime.run(images_NCHW)

    def layer_codes(self, images_NCHW: NDArray[np.uint8]) -> dict[str, NDArray[np.int32]]:
        """Codes of every layer's ofm, (N, C, H, W), by layer name.

        Args:
            images_NCHW: uint8, shape (N, C, H, W).

        Raises:
            ValueError: The images have another type or shape.
        """
        return self.runtime.layer_codes(images_NCHW)


def pack(
    integers: IntegerNetwork, schedule: Schedule | None = None, extra: Mapping[str, Any] | None = None
) -> PackedModel:
    """Packs a network, without files.

    Args:
        integers: The network in integers.
        schedule: Gives the order of weights: folds as the engine of each layer reads them.  None: filter by filter.
        extra: Plain values for the writer's own use.

    Raises:
        ExportError: The integers are inconsistent, or an accumulator can overflow.
        hwmodel.SpecError: The schedule or the configuration is not of this network.
    """
    check_network(integers)
    network, config = integers.network, integers.config
    if schedule is not None:
        schedule.check_matches(network)
    layers = {}
    for spec in network.layers:
        folding = None if schedule is None else Folding(schedule[spec.name].pe, schedule[spec.name].simd)
        layers[spec.name] = pack_layer(spec, config_of(spec, config), integers.layers[spec.name], folding)
    input_stream = pack_codes(integers.input_codes.astype(np.int8), config.input_bit_width)
    return PackedModel(integers, layers, input_stream, dict(extra or {}))


def save_packed(
    integers: IntegerNetwork,
    folder: str | Path,
    schedule: Schedule | None = None,
    extra: Mapping[str, Any] | None = None,
) -> PackedModel:
    """Packs a network and writes it; the folder appears complete or not at all.

    Args:
        integers: The network in integers.
        folder: Where to write; a packed model that is there is replaced.
        schedule: See `pack`.
        extra: Plain values that the manifest carries along.

    Raises:
        ExportError: As for `pack`; or `extra` is not JSON; or the folder holds something else or cannot be written.
    """
    model = pack(integers, schedule, extra)
    streams = all_streams(model.packed_layers, model.input_stream)
    data = b"".join(stream.data.tobytes() for _, _, stream in streams)
    files = {
        WEIGHTS: data,
        f"c/{DECODER}": decoder_source(),
        f"c/{HEADER}": header_source(integers, model.packed_layers, data, model.input_stream.data.size),
    }
    memories = []
    for image in _memory_images(model, schedule):
        entry = {"layer": image.layer, "purpose": image.purpose, "depth": image.depth, "width_bits": image.width_bits}
        memories.append({**entry, "files": f"images/{image.file_stem}"})
        files[f"images/{image.file_stem}.mem"] = image.mem()
        files[f"images/{image.file_stem}.coe"] = image.coe()
    body = {
        "stored_bits": model.stored_bits,
        "stored_bits_by_stream": dict(model.stored_bits_by_stream),
        "extra": model.extra,
        **describe(integers, model.packed_layers, model.input_stream),
        "memories": memories,
        "files": {name: file_entry(content) for name, content in files.items()},
    }
    try:
        manifest = manifest_bytes(body)
    except (TypeError, ValueError) as error:
        raise ExportError(f"extra={extra!r} cannot be written as JSON: {error}") from error
    write_folder(Path(folder), {**files, MANIFEST: manifest})
    return model


def _memory_images(model: PackedModel, schedule: Schedule | None) -> Iterator[MemoryImage]:
    for position, spec in enumerate(model.network.layers):
        packed, layer = model.packed_layers[spec.name], model.integers.layers[spec.name]
        if spec.has_weights:
            config = model.config[spec.name]
            if schedule is not None and _has_own_copy(spec, schedule):
                packed = pack_layer(replace(spec, weights_of=None), config, layer, packed.folding)
            yield from layer_images(position, spec, config, packed, scheduled=schedule is not None)
        else:
            table = layer.table
            yield from operation_images(position, spec, packed, 0 if table is None else len(table.codes))


def _has_own_copy(spec: LayerSpec, schedule: Schedule) -> bool:
    """Whether the engine of a layer that shares weights holds them too, in the order in which it reads them."""
    if spec.weights_of is None:
        return False
    plans = schedule[spec.name], schedule[spec.weights_of]
    if any(plan.data_flow.is_pipelined for plan in plans):
        return True
    return plans[0].weight_place.is_resident and not plans[1].weight_place.is_resident


def load_packed(folder: str | Path) -> PackedModel:
    """Reads a packed model and verifies all of it.

    Raises:
        PackedFormatError: Something is damaged, truncated, swapped, missing or newer; the message names the file.
    """
    folder = Path(folder)
    body = read_manifest(folder)
    with contents_of(folder / MANIFEST):
        files = dict(body["files"])
        weights_entry = files.pop(WEIGHTS)
        check_files(folder, files)
        network, config = read_description(body)
        layout = read_layout(body, network, config)
        data = read_file(folder, WEIGHTS, weights_entry, sum(byte_count(bits) for _, _, bits in layout))
        extra = dict(body["extra"])
    with contents_of(folder / WEIGHTS):
        streams = slice_streams(np.frombuffer(data, np.uint8), layout)
        integers, packed_layers = unpack_network(body, network, config, streams)
        check_network(integers)
    return PackedModel(integers, packed_layers, streams[INPUT_LAYER][INPUT_CODES], extra)
