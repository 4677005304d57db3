"""Integer inference: what the accelerator computes, code for code.  numpy only.

The formulas are those of `qat.integer`; the arithmetic is that of `qat.export.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import INPUT, NORMALIZING, LayerSpec, Op
from qat.export import kernels
from qat.export.bounds import accumulator_bound, accumulator_bounds, code_ranges
from qat.export.check import check_network
from qat.export.kernels import Codes, Requantizer
from qat.integer import IntegerLayer, IntegerNetwork

__all__ = ["IntegerRuntime", "accumulator_bounds"]

BATCH_BYTES = 1 << 23
"""Bytes of the largest temporary of a batch; images beyond that are computed in turn."""


class IntegerRuntime:
    """Runs a network in integers.

    Args:
        network: Geometry and integers.

    Raises:
        ExportError: The integers are inconsistent, or an accumulator can overflow.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        check_network(network)
        self.network = network
        ranges = code_ranges(network)
        self._functions = {
            spec.name: _layer_function(spec, network.layers[spec.name], [ranges[name] for name in spec.inputs])
            for spec in network.network.layers
        }
        last_use = {name: spec.name for spec in network.network.layers for name in spec.inputs}
        self._finished = {
            spec.name: tuple(name for name, user in last_use.items() if user == spec.name)
            for spec in network.network.layers
        }
        self._batch = max(1, BATCH_BYTES // max(map(_temporary_bytes, network.network.layers)))

    def run(self, images_NCHW: NDArray[np.uint8]) -> NDArray[np.int32] | tuple[NDArray[np.int32], ...]:
        """Output codes.

        Args:
            images_NCHW: uint8, shape (N, C, H, W).

        Returns:
            (N, classes) if the result has one pixel, else (N, C, H, W); of several results a tuple, in the order of
            `NetworkSpec.outputs`.

        Raises:
            ValueError: The images have another type or shape.
        """
        outputs = self.network.network.outputs
        found = self._collect(images_NCHW, outputs)
        results = tuple(
            codes.reshape(codes.shape[:2]) if codes.shape[2:] == (1, 1) else codes
            for codes in (found[name] for name in outputs)
        )
        return results[0] if len(results) == 1 else results

    def layer_codes(self, images_NCHW: NDArray[np.uint8]) -> dict[str, NDArray[np.int32]]:
        """Codes of every layer's ofm, (N, C, H, W), by layer name in execution order.

        Args:
            images_NCHW: uint8, shape (N, C, H, W).

        Raises:
            ValueError: The images have another type or shape.
        """
        return self._collect(images_NCHW, [spec.name for spec in self.network.network.layers])

    def _collect(self, images_NCHW: NDArray[np.uint8], names: Sequence[str]) -> dict[str, NDArray[np.int32]]:
        parts: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}
        for name, codes in self._execute(images_NCHW):
            if name in parts:
                parts[name].append(_to_NCHW(codes))
        return {name: np.concatenate(found) if found else self._empty(name) for name, found in parts.items()}

    def _execute(self, images_NCHW: NDArray[np.uint8]) -> Iterator[tuple[str, Codes]]:
        """Every layer's codes, batch after batch."""
        spec = self.network.network
        want = (spec.input_channels, spec.input_height, spec.input_width)
        if images_NCHW.dtype != np.uint8 or images_NCHW.ndim != 4 or images_NCHW.shape[1:] != want:
            raise ValueError(
                f"images are {images_NCHW.dtype} of shape {images_NCHW.shape}, expected uint8 of shape (N, *{want})"
            )
        for start in range(0, images_NCHW.shape[0], self._batch):
            tensors = {INPUT: self._input_codes(images_NCHW[start : start + self._batch])}
            for layer in spec.layers:
                codes = self._functions[layer.name]([tensors[name] for name in layer.inputs])
                tensors[layer.name] = codes
                yield layer.name, codes
                for name in self._finished[layer.name]:
                    del tensors[name]

    def _input_codes(self, images_NCHW: NDArray[np.uint8]) -> Codes:
        tables = self.network.input_codes.astype(np.float32)
        planes = [table[images_NCHW[:, channel]] for channel, table in enumerate(tables)]
        return np.stack(planes, axis=3)

    def _empty(self, name: str) -> NDArray[np.int32]:
        spec = self.network.network.by_name[name]
        return np.zeros((0, spec.out_channels, spec.out_height, spec.out_width), np.int32)


def _to_NCHW(codes_NHWC: Codes) -> NDArray[np.int32]:
    return np.ascontiguousarray(codes_NHWC.transpose(0, 3, 1, 2)).astype(np.int32)


def _temporary_bytes(spec: LayerSpec) -> int:
    """Bytes per image of a layer's largest temporary: its windows side by side."""
    taps = spec.kernel_size[0] * spec.kernel_size[1] if spec.op is Op.CONV else 1
    pixels = spec.out_height * spec.out_width
    return 4 * max(pixels * spec.in_channels * taps // spec.groups, pixels * spec.out_channels)


def _layer_function(
    spec: LayerSpec, layer: IntegerLayer, operand_ranges: list[tuple[int, int]]
) -> Callable[[list[Codes]], Codes]:
    """A function from the producers' codes to the layer's."""
    bound = accumulator_bound(spec, layer, operand_ranges)
    if layer.weight is not None:
        return _weighted(spec, layer, bound, operand_ranges[0])
    if layer.table is not None:
        look_up = kernels.lookup(layer.table)
        return lambda operands: look_up(operands[0])
    if layer.rescale is None:
        moves: dict[Op, Callable[[Codes], Codes]] = {
            Op.MAX_POOL: kernels.max_pool(spec, operand_ranges[0][0]),
            Op.SUBSAMPLE: kernels.subsample(spec),
            Op.UPSAMPLE: kernels.upsample(spec),
            Op.REORG: kernels.reorg(spec),
            Op.FLATTEN: kernels.flatten,
            Op.SHUFFLE: kernels.shuffle(spec),
            Op.SLICE: kernels.channel_slice(spec),
        }
        move = moves[spec.op]
        return lambda operands: move(operands[0])
    if spec.op is Op.AVG_POOL:
        window_sum = kernels.window_sum(spec, bound)
        requantize = Requantizer(layer.rescale, layer.rescale.multiplier, 0, bound)
        return lambda operands: requantize(window_sum(operands[0]))
    if spec.op is Op.SCALE:
        requantize = Requantizer(layer.rescale, layer.rescale.multiplier, _offset(layer), bound)
        return lambda operands: requantize(operands[0])
    if spec.op in NORMALIZING:
        normalize = kernels.normalization(spec, layer.epsilon)
        requantize = Requantizer(layer.rescale, layer.rescale.multiplier, _offset(layer), bound)
        return lambda operands: requantize(normalize(operands[0]))
    if spec.op is Op.MUL:
        requantize = Requantizer(layer.rescale, layer.rescale.multiplier, 0, bound)
        return lambda operands: requantize(np.multiply(operands[0], operands[1], dtype=np.float64))
    multipliers = [int(m) for m in layer.rescale.multiplier]
    requantize = Requantizer(layer.rescale, np.ones(1, np.int64), 0, bound)  # the sums are multiplied already
    combine = _add if spec.op is Op.ADD else _concat
    return partial(combine, multipliers, requantize)


def _weighted(
    spec: LayerSpec, layer: IntegerLayer, bound: int, ifm_range: tuple[int, int]
) -> Callable[[list[Codes]], Codes]:
    assert layer.weight is not None
    assert layer.rescale is not None
    convolution = kernels.convolution(spec, layer.weight, bound)
    requantize = Requantizer(layer.rescale, layer.rescale.multiplier, _offset(layer), bound)
    if layer.input_rescale is None:
        return lambda operands: requantize(convolution(operands[0]))
    largest_code = max(-ifm_range[0], ifm_range[1])
    narrow = Requantizer(layer.input_rescale, layer.input_rescale.multiplier, 0, largest_code)
    return lambda operands: requantize(convolution(narrow(operands[0])))


def _offset(layer: IntegerLayer) -> NDArray[np.int64]:
    """Biases behind the multiplier."""
    assert layer.bias is not None
    return layer.bias.astype(np.int64) << layer.bias_shift


def _add(multipliers: list[int], requantize: Requantizer, operands: list[Codes]) -> Codes:
    # Operands of 16 bits times multipliers of 16 bits: far below 2**53.
    total = np.multiply(operands[0], multipliers[0], dtype=np.float64)
    for codes, multiplier in zip(operands[1:], multipliers[1:], strict=True):
        total += np.multiply(codes, multiplier, dtype=np.float64)
    return requantize(total)


def _concat(multipliers: list[int], requantize: Requantizer, operands: list[Codes]) -> Codes:
    scaled = [np.multiply(codes, m, dtype=np.float64) for codes, m in zip(operands, multipliers, strict=True)]
    return requantize(np.concatenate(scaled, axis=3))
