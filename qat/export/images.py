"""Initial contents of the accelerator's memories, as text that synthesis tools load.

| memory       | word                                                     | bits of a word            |
|--------------|----------------------------------------------------------|---------------------------|
| `weights`    | one fold: product s of filter p at bit (p * simd + s) * b | pe * simd * b            |
| `values`     | the next kept weights                                    | per cycle * b             |
| `index_*`    | the next bits of the stream                              | 32                        |
| `parameters` | filter p: multiplier at bit 32 * p, bias at 32 * p + 16  | pe * 32                   |
| `table`      | the code of the ofm for the next code of the ifm         | as the table's entries    |

Kept weights per cycle: the density times pe * simd, rounded up.  Folds at the edges are filled up with 0.  Without
a schedule no engine says how wide its words are: then all streams come in words of 32 bits, and pe = 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.compute import reduction_length
from hwmodel.network import AFFINE, LayerSpec
from hwmodel.precision import LayerConfig, WeightFormat
from qat.export.bits import BitStream, pack_codes
from qat.export.packing import PackedLayer, weight_blocks

STREAM_WORD_BITS = 32
"""Width of a memory that holds a stream as it is."""

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@dataclass(frozen=True)
class MemoryImage:
    """Contents of one memory.

    Args:
        layer: Name of the layer.
        purpose: See the module's table.
        file_stem: Name of its files, without ending.
        words: Bits (0 or 1) of shape (depth, width); column k is bit k of the word.
    """

    layer: str
    purpose: str
    file_stem: str
    words: NDArray[np.uint8]

    @property
    def depth(self) -> int:
        """Words."""
        return len(self.words)

    @property
    def width_bits(self) -> int:
        """Bits per word."""
        return int(self.words.shape[1])

    def mem(self) -> bytes:
        """Verilog memory file for $readmemh: one word per line, in hexadecimal."""
        head = f"// {self.layer!a} {self.purpose}: {self.depth} words of {self.width_bits} bits\n"
        return head.encode("ascii") + self._lines(b"\n")

    def coe(self) -> bytes:
        """Coefficient file of Vivado's block memory generator."""
        head = b"memory_initialization_radix=16;\nmemory_initialization_vector=\n"
        return head + self._lines(b",\n")[:-2] + b";\n"

    def _lines(self, separator: bytes) -> bytes:
        digits = -(-self.width_bits // 4)
        bits = np.zeros((self.depth, 4 * digits), np.uint8)
        bits[:, : self.width_bits] = self.words
        nibbles = bits.reshape(self.depth, digits, 4) @ np.array([1, 2, 4, 8], np.uint8)
        text = np.empty((self.depth, digits + len(separator)), np.uint8)
        text[:, :digits] = _HEX[nibbles[:, ::-1]]
        text[:, digits:] = np.frombuffer(separator, np.uint8)
        return text.tobytes()


def operation_images(position: int, spec: LayerSpec, packed: PackedLayer, entries: int) -> Iterator[MemoryImage]:
    """Memories of a layer without weights: parameters by channel, or the table of a `lookup` with its entries."""
    stem = _stem(position, spec)
    if spec.op in AFFINE:
        yield MemoryImage(spec.name, "parameters", f"{stem}.parameters", _parameters(packed.streams, 1))
    if "table" in packed.streams:
        stream = packed.streams["table"]
        width = stream.bits // entries
        yield MemoryImage(spec.name, "table", f"{stem}.table", _in_words(stream, width))


def _stem(position: int, spec: LayerSpec) -> str:
    return f"{position:03d}_{re.sub(r'[^A-Za-z0-9_.-]', '_', spec.name)[:60]}"


def layer_images(
    position: int, spec: LayerSpec, config: LayerConfig, packed: PackedLayer, *, scheduled: bool
) -> Iterator[MemoryImage]:
    """Memories of one layer with weights.

    Args:
        position: Place of the layer in the network; makes file names unique.
        spec: Its geometry.
        config: Its precision.
        packed: Its streams.
        scheduled: Whether the folding comes from a schedule.
    """
    stem = _stem(position, spec)

    def image(purpose: str, words: NDArray[np.uint8]) -> MemoryImage:
        return MemoryImage(spec.name, purpose, f"{stem}.{purpose}", words)

    pe, simd = (packed.folding.pe, packed.folding.simd) if scheduled else (1, 1)
    if "weights" in packed.streams:
        binary = config.weight_format is WeightFormat.BINARY_PLUS_SPARSE
        bit_width = 1 if binary else config.weight_bit_width
        if scheduled:
            blocks = weight_blocks(packed, (spec.out_channels, reduction_length(spec)), bit_width)
            yield image("weights", _in_words(pack_codes(blocks, bit_width), pe * simd * bit_width))
        else:
            yield image("weights", _in_words(packed.streams["weights"], STREAM_WORD_BITS))
    if "values" in packed.streams and packed.streams["values"].bits:
        values = packed.streams["values"]
        per_cycle = max(1, -(-pe * simd * (values.bits // config.stored_bit_width) // spec.weights))
        width = per_cycle * config.stored_bit_width if scheduled else STREAM_WORD_BITS
        yield image("values", _in_words(values, width))
    for name, stream in packed.streams.items():
        if name.startswith("index_") and stream.bits:
            yield image(name, _in_words(stream, STREAM_WORD_BITS))
    yield image("parameters", _parameters(packed.streams, pe))


def _parameters(streams: Mapping[str, BitStream], pe: int) -> NDArray[np.uint8]:
    columns = [
        np.unpackbits(streams[name].data, bitorder="little").reshape(-1, 16) for name in ("multipliers", "biases")
    ]
    rows = np.concatenate(columns, axis=1)
    padded = np.zeros((-(-rows.shape[0] // pe) * pe, 32), np.uint8)
    padded[: rows.shape[0]] = rows
    return padded.reshape(-1, 32 * pe)


def _in_words(stream: BitStream, width_bits: int) -> NDArray[np.uint8]:
    """Bits of a stream in rows of `width_bits`, the last one filled up with 0."""
    depth = -(-stream.bits // width_bits)
    bits = np.zeros(depth * width_bits, np.uint8)
    bits[: stream.bits] = np.unpackbits(stream.data, count=stream.bits, bitorder="little")
    return bits.reshape(depth, width_bits)
