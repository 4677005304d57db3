"""Random small networks in integers, and a slow reference that computes their codes by the book."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.network import AFFINE, INPUT, NORMALIZING, RELAYING, LayerSpec, NetworkSpec, Op
from hwmodel.precision import Granularity, LayerConfig, NetworkConfig, WeightFormat, group_shape, kept_groups
from qat.integer import BINARY_SHIFT, IntegerLayer, IntegerNetwork, Rescale, Table

OPS = (
    "conv",
    "grouped",
    "depthwise",
    "max_pool",
    "avg_pool",
    "subsample",
    "upsample",
    "add",
    "concat",
    "scale",
    "lookup",
    "mul",
    "shuffle",
    "slice",
    "reorg",
    "group_norm",
    "l2_norm",
    "again",
)
"""Operations of random networks; "again" is an earlier convolution's weights on another map."""

Generator = np.random.Generator


def random_network(seed: int, ops: Sequence[str] = OPS, *, with_head: bool = True) -> IntegerNetwork:
    """A network with the given operations in order, random geometry, precision and numbers."""
    rng = np.random.default_rng(seed)
    channels, height, width = int(rng.integers(1, 4)), int(rng.integers(4, 10)), int(rng.integers(4, 10))
    shapes = {INPUT: (channels, height, width)}
    specs: list[LayerSpec] = []
    for op in (*ops, *(("flatten", "linear") if with_head else ())):
        if op == "mul":  # its gate: one value per channel, from a pool over the whole map
            source = specs[-1].name if specs else INPUT
            shape = shapes[source]
            gate = LayerSpec(f"gate{len(specs)}", Op.AVG_POOL, (source,), *shape, shape[0], 1, 1, kernel_size=shape[1:])
            specs.append(gate)
            shapes[gate.name] = (shape[0], 1, 1)
            spec = LayerSpec(f"mul{len(specs)}", Op.MUL, (source, gate.name), *shape, *shape)
            specs.append(spec)
            shapes[spec.name] = shape
            continue
        if op in NORMALIZING and not any(spec.has_weights for spec in specs):
            op = "conv"
        owners = [spec for spec in specs if spec.op is Op.CONV and spec.weights_of is None]
        if op == "again" and owners:
            spec = _random_call(rng, f"again{len(specs)}", owners[rng.integers(len(owners))], shapes)
        else:
            spec = _random_spec(rng, op, f"{op}{len(specs)}", shapes, specs)
        specs.append(spec)
        shapes[spec.name] = (spec.out_channels, spec.out_height, spec.out_width)
    network = NetworkSpec("random", channels, height, width, tuple(specs))
    configs: dict[str, LayerConfig] = {}
    for spec in network.weighted:
        configs[spec.name] = random_config(rng) if spec.weights_of is None else configs[spec.weights_of]
    config = NetworkConfig(tuple(configs.items()))
    input_codes = rng.integers(-128, 128, (channels, 256)).astype(np.int16)
    ranges, layers = {INPUT: (-128, 127)}, {}
    for spec in specs:
        layer = random_layer(rng, spec, config[spec.name] if spec.has_weights else None, ranges[spec.inputs[0]])
        if spec.weights_of is not None:
            layer = replace(layer, weight=layers[spec.weights_of].weight, mask=layers[spec.weights_of].mask)
        layers[spec.name] = layer
        low, high = ranges[spec.inputs[0]]
        written = layer.rescale or layer.table
        ranges[spec.name] = (min(low, 0), max(high, 0)) if written is None else (written.quant_min, written.quant_max)
    return IntegerNetwork(network, config, layers, input_codes, ("a", "b"))


def random_images(network: NetworkSpec, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 images (count, C, H, W)."""
    shape = (count, network.input_channels, network.input_height, network.input_width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_config(rng: Generator) -> LayerConfig:
    """Any precision."""
    weight_format = WeightFormat(str(rng.choice([str(f) for f in WeightFormat])))
    bits = 1 if weight_format is WeightFormat.BINARY_PLUS_SPARSE else int(rng.integers(1, 9))
    sparsity = 0.0 if weight_format is WeightFormat.DENSE else float(rng.choice([0.0, 0.3, 0.8, 0.97, 1.0]))
    granularity = Granularity(str(rng.choice([str(g) for g in Granularity])))
    return LayerConfig(bits, int(rng.integers(1, 9)), sparsity, weight_format, granularity)


def random_weight(
    rng: Generator, shape: tuple[int, int, int, int], config: LayerConfig
) -> tuple[NDArray[np.int8], NDArray[np.bool_] | None]:
    """Weight codes of a configuration, and its mask."""
    bits = config.stored_bit_width
    values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape) if bits > 1 else rng.choice([-1, 1], shape)
    if config.weight_format is WeightFormat.DENSE:
        return values.astype(np.int8), None
    grid = group_shape(shape, config.granularity)
    flat = np.zeros(int(np.prod(grid)), np.bool_)
    flat[rng.permutation(flat.size)[: kept_groups(flat.size, config.sparsity)]] = True
    mask = flat.reshape(grid)
    binary = config.weight_format is WeightFormat.BINARY_PLUS_SPARSE
    others = rng.choice([-1, 1], shape) << BINARY_SHIFT if binary else np.zeros(shape, int)
    return np.where(mask, values, others).astype(np.int8), mask


def random_rescale(rng: Generator, count: int) -> Rescale:
    """Multipliers of 16 bits and a shift that keeps most codes off the clamp, now and then an extreme one."""
    multiplier = rng.integers(-(2**15), 2**15, count).astype(np.int16)
    shift = int(rng.choice([1, 12, 18, 22, 24, 46]))
    low, high = [(0, 15), (-8, 7), (0, 255), (-128, 127), (-32768, 32767), (0, 1)][rng.integers(6)]
    return Rescale(multiplier, shift, low, high, int(rng.choice([0, 0, 1, 3, 7])))


def random_layer(
    rng: Generator, spec: LayerSpec, config: LayerConfig | None, read: tuple[int, int] = (-128, 127)
) -> IntegerLayer:
    """Numbers of one layer that reads codes in the range `read`."""
    scale = float(rng.random() + 0.1)
    if spec.op is Op.LOOKUP:
        low, high = [(0, 15), (-3, 5), (0, 255), (-128, 127), (-32768, 32767)][rng.integers(5)]
        codes = rng.integers(low, high + 1, read[1] - read[0] + 1).astype(np.int32)
        return IntegerLayer(spec.name, ofm_scale=scale, table=Table(codes, read[0], low, high))
    if spec.op in AFFINE:
        bias = rng.integers(-(2**15), 2**15, spec.out_channels).astype(np.int16)
        rescale = random_rescale(rng, spec.out_channels)
        layer = IntegerLayer(spec.name, rescale, bias=bias, bias_shift=int(rng.choice([0, 5, 46])), ofm_scale=scale)
        epsilon = int(2.0 ** rng.uniform(0, 40)) if spec.op is Op.GROUP_NORM and rng.random() < 0.7 else 0
        return replace(layer, epsilon=epsilon)
    if config is None:
        operands = 1 if spec.op is Op.MUL else len(spec.inputs)
        rescale = None if spec.op in RELAYING else random_rescale(rng, operands)
        return IntegerLayer(spec.name, rescale, ofm_scale=scale)
    weight, mask = random_weight(rng, spec.weight_shape, config)
    bias = rng.integers(-(2**15), 2**15, spec.out_channels).astype(np.int16)
    narrow = replace(random_rescale(rng, 1), negative_shift=0) if rng.random() < 0.5 else None
    bias_shift = int(rng.choice([0, 5, 12, 46]))
    rescale = random_rescale(rng, spec.out_channels)
    return IntegerLayer(spec.name, rescale, weight, mask, bias, bias_shift, narrow, float(rng.random() + 0.1))


def _random_spec(
    rng: Generator, op: str, name: str, shapes: dict[str, tuple[int, int, int]], specs: list[LayerSpec]
) -> LayerSpec:
    producer = specs[-1].name if specs else INPUT
    channels, height, width = shapes[producer]
    pair = lambda low, high: tuple(int(v) for v in rng.integers(low, high, 2))  # noqa: E731
    geometry: dict[str, Any] = {}
    inputs: tuple[str, ...] = (producer,)
    out_channels = channels
    op = "conv" if op == "again" else op  # there is nothing to call again
    if op in ("conv", "grouped", "depthwise", "max_pool", "avg_pool"):
        geometry = {"kernel_size": pair(1, 4), "stride": pair(1, 3), "padding": pair(0, 2)}
        if op == "max_pool":  # every window holds at least one pixel
            geometry["padding"] = tuple(min(geometry["padding"][i], geometry["kernel_size"][i] - 1) for i in (0, 1))
        elif op != "avg_pool":
            geometry["dilation"] = pair(1, 3)
        # Make the kernel fit whatever is left of the map.
        reach = [geometry.get("dilation", (1, 1))[i] * (geometry["kernel_size"][i] - 1) + 1 for i in (0, 1)]
        if reach[0] > height or reach[1] > width:
            geometry = {"stride": geometry["stride"]}
        if "padding" in geometry and op != "max_pool":
            geometry["padding_end"] = pair(0, 3)
    if op == "conv":
        out_channels = int(rng.integers(1, 7))
    elif op in ("grouped", "depthwise"):
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        groups = channels if op == "depthwise" else int(rng.choice(divisors))
        geometry["groups"] = groups
        out_channels = groups * int(rng.integers(1, 3))
    elif op == "subsample":
        geometry, out_channels = {"stride": pair(1, 3)}, channels + int(rng.integers(0, 4))
    elif op == "upsample":
        geometry = {"stride": pair(1, 3)}
    elif op in ("shuffle", "group_norm"):
        geometry = {"groups": int(rng.choice([d for d in range(1, channels + 1) if channels % d == 0]))}
    elif op == "slice":
        first = int(rng.integers(0, channels))
        geometry, out_channels = {"first_channel": first}, int(rng.integers(1, channels - first + 1))
    elif op == "reorg":
        stride = tuple(int(rng.choice([d for d in (1, 2, 3) if size % d == 0])) for size in (height, width))
        geometry, out_channels = {"stride": stride}, channels * stride[0] * stride[1]
    elif op in ("add", "concat"):
        skip = 0 if op == "add" else 1  # operands of a concatenation may differ in channels
        fits = [n for n, shape in shapes.items() if shape[skip:] == shapes[producer][skip:]]
        inputs = (producer, *(str(n) for n in rng.choice(fits, int(rng.integers(1, 3)))))
        if op == "concat":
            channels = out_channels = sum(shapes[n][0] for n in inputs)
    elif op == "flatten":
        out_channels = channels * height * width
    elif op == "linear":
        out_channels = int(rng.integers(1, 6))
    kind = Op.CONV if op in ("conv", "grouped", "depthwise") else Op(op)
    size = _out_size(kind, (height, width), geometry)
    return LayerSpec(name, kind, inputs, channels, height, width, out_channels, *size, **geometry)


def _random_call(rng: Generator, name: str, owner: LayerSpec, shapes: dict[str, tuple[int, int, int]]) -> LayerSpec:
    """The layer `owner` on one of the maps that it can read."""
    fits = [
        map_
        for map_, (channels, height, width) in shapes.items()
        if channels == owner.in_channels and height >= owner.in_height and width >= owner.in_width
    ]
    producer = str(rng.choice(fits))
    _, height, width = shapes[producer]
    geometry = {key: getattr(owner, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    size = _out_size(Op.CONV, (height, width), {**geometry, "padding_end": owner.end_padding})
    here = {"in_height": height, "in_width": width, "out_height": size[0], "out_width": size[1]}
    return replace(owner, name=name, inputs=(producer,), weights_of=owner.name, **here)


def _out_size(op: Op, size: tuple[int, int], geometry: dict[str, Any]) -> tuple[int, int]:
    if op in (Op.LINEAR, Op.FLATTEN):
        return 1, 1
    kernel, stride = geometry.get("kernel_size", (1, 1)), geometry.get("stride", (1, 1))
    padding, dilation = geometry.get("padding", (0, 0)), geometry.get("dilation", (1, 1))
    if op is Op.UPSAMPLE:
        return size[0] * stride[0], size[1] * stride[1]
    if op is Op.REORG:
        return size[0] // stride[0], size[1] // stride[1]
    if op in (Op.ADD, Op.CONCAT):
        return size
    end = geometry.get("padding_end", padding)
    reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    return tuple((size[i] + padding[i] + end[i] - reach[i]) // stride[i] + 1 for i in (0, 1))  # type: ignore[return-value]


def reference_codes(integers: IntegerNetwork, images: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
    """Codes of every layer in int64, by the formulas of `qat.integer` and loops over kernel positions."""
    channels = np.arange(images.shape[1])[None, :, None, None]
    codes = {INPUT: integers.input_codes.astype(np.int64)[channels, images]}
    for spec in integers.network.layers:
        layer = integers.layers[spec.name]
        codes[spec.name] = _reference_layer(spec, layer, [codes[name] for name in spec.inputs])
    return codes


def _shift_clamp(product: NDArray[np.int64], rescale: Rescale) -> NDArray[np.int64]:
    shift = np.where(product < 0, rescale.shift + rescale.negative_shift, rescale.shift)
    shifted = (product + (np.int64(1) << (shift - 1))) >> shift
    return np.clip(shifted, rescale.quant_min, rescale.quant_max)


def _reference_layer(spec: LayerSpec, layer: IntegerLayer, x: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    first = x[0]
    multiplier = None if layer.rescale is None else layer.rescale.multiplier.astype(np.int64)
    if layer.weight is not None:
        if layer.input_rescale is not None:
            first = _shift_clamp(first * int(layer.input_rescale.multiplier[0]), layer.input_rescale)
        acc = _reference_convolution(spec, first, layer.weight.astype(np.int64))
        bias = layer.bias.astype(np.int64) << layer.bias_shift
        return _shift_clamp(acc * multiplier[:, None, None] + bias[:, None, None], layer.rescale)
    if spec.op is Op.ADD:
        return _shift_clamp(sum(m * operand for m, operand in zip(multiplier, x, strict=True)), layer.rescale)
    if spec.op is Op.CONCAT:
        return np.concatenate([_shift_clamp(m * o, layer.rescale) for m, o in zip(multiplier, x, strict=True)], 1)
    if spec.op is Op.MUL:
        return _shift_clamp(x[0] * x[1] * multiplier[0], layer.rescale)
    if spec.op in AFFINE:
        if spec.op in NORMALIZING:
            first = reference_norm(spec, first, layer.epsilon)
        bias = layer.bias.astype(np.int64) << layer.bias_shift
        return _shift_clamp(first * multiplier[:, None, None] + bias[:, None, None], layer.rescale)
    if spec.op is Op.LOOKUP:
        return np.vectorize(lambda code: layer.table.codes[code - layer.table.first_code], otypes=[np.int64])(first)
    if spec.op is Op.SHUFFLE:
        part = spec.in_channels // spec.groups
        return first[:, [(c % spec.groups) * part + c // spec.groups for c in range(spec.in_channels)]]
    if spec.op is Op.SLICE:
        return first[:, spec.first_channel : spec.first_channel + spec.out_channels]
    if spec.op is Op.REORG:
        rows, columns = spec.stride
        blocks = [(c, i, j) for c in range(spec.in_channels) for i in range(rows) for j in range(columns)]
        return np.stack([first[:, c, i::rows, j::columns] for c, i, j in blocks], 1)
    if spec.op is Op.AVG_POOL:
        return _shift_clamp(_windows(spec, first, 0).sum((4, 5)) * multiplier[0], layer.rescale)
    if spec.op is Op.MAX_POOL:
        return _windows(spec, first, -(10**9)).max((4, 5))
    if spec.op is Op.FLATTEN:
        return first.reshape(first.shape[0], -1, 1, 1)
    if spec.op is Op.UPSAMPLE:
        return np.kron(first, np.ones((1, 1, *spec.stride), np.int64))
    before = (spec.out_channels - spec.in_channels) // 2
    after = spec.out_channels - spec.in_channels - before
    kept = first[:, :, :: spec.stride[0], :: spec.stride[1]]
    return np.pad(kept, ((0, 0), (before, after), (0, 0), (0, 0)))


def reference_norm(spec: LayerSpec, x: NDArray[np.int64], epsilon: int) -> NDArray[np.int64]:
    """Normalised values with 14 binary places, one group or pixel after the other, in Python's integers."""
    groups = x.reshape(len(x), spec.groups, -1, *x.shape[2:])
    axes = (0, 1) if spec.op is Op.GROUP_NORM else (0, 3, 4)
    out = np.empty_like(groups)
    for place in np.ndindex(*(groups.shape[axis] for axis in axes)):
        where = place if spec.op is Op.GROUP_NORM else (place[0], 0, slice(None), *place[1:])
        codes = [int(code) for code in groups[where].ravel()]
        if spec.op is Op.GROUP_NORM:
            centred = [len(codes) * code - sum(codes) for code in codes]
            spread = len(codes) * sum(code**2 for code in codes) - sum(codes) ** 2 + epsilon
        else:
            centred, spread = codes, sum(code**2 for code in codes)
        spread = max(spread, 1)
        exponent = (spread.bit_length() - 1) // 2
        inverse = min(2**40 // isqrt(spread * 4**23 // 4**exponent), 2**17 - 1)
        values = [(value * inverse + 2 ** (exponent + 2)) >> (exponent + 3) for value in centred]
        out[where] = np.array(values).reshape(out[where].shape)
    return out.reshape(x.shape)


def _windows(spec: LayerSpec, x: NDArray[np.int64], fill: int) -> NDArray[np.int64]:
    """(N, C, H', W', Kh, Kw), gathered pixel by pixel."""
    (top, left), (bottom, right) = spec.padding, spec.end_padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    out = np.empty((*x.shape[:2], spec.out_height, spec.out_width, *spec.kernel_size), np.int64)
    for h, w, i, j in np.ndindex(*out.shape[2:]):
        row, column = h * spec.stride[0] + i * spec.dilation[0], w * spec.stride[1] + j * spec.dilation[1]
        out[:, :, h, w, i, j] = padded[:, :, row, column]
    return out


def _reference_convolution(spec: LayerSpec, x: NDArray[np.int64], weight: NDArray[np.int64]) -> NDArray[np.int64]:
    windows = _windows(spec, x, 0)
    out = np.zeros((x.shape[0], spec.out_channels, spec.out_height, spec.out_width), np.int64)
    for o in range(spec.out_channels):
        group = o // (spec.out_channels // spec.groups)
        first = group * weight.shape[1]
        out[:, o] = np.einsum("nchwij,cij->nhw", windows[:, first : first + weight.shape[1]], weight[o])
    return out
