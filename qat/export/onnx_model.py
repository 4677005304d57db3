"""A network in integers as an ONNX graph whose results are the integer runtime's, code for code.

Tensors hold codes (scale 1, zero_point 0) in float32: sums below 2**24 are exact in it.  Requantization multiplies,
adds and floors in float64, which is exact below 2**53; then codes are clamped.  Three dialects clamp by

| dialect | clamping node                       | weights                              | runs in             |
|---------|-------------------------------------|--------------------------------------|---------------------|
| `plain` | Clip                                | float32 constants                    | any ONNX runtime    |
| `qdq`   | Clip, QuantizeLinear, DequantizeLinear | int8 constants, DequantizeLinear  | any ONNX runtime    |
| `qonnx` | Quant (bit width, signed)           | Quant, or BipolarQuant for one bit   | the qonnx package   |

Codes of more than 8 bits are clamped by Clip alone in `qdq`.  What one step of a layer's codes is worth stands in the
graph's metadata (`ofm_scale`), by layer.

Needs the package `onnx`: extra `onnx`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwmodel.network import AFFINE, INPUT, NORMALIZING, LayerSpec, Op
from hwmodel.precision import WeightFormat
from qat.errors import ExportError
from qat.export.bounds import accumulator_bounds
from qat.export.check import check_network
from qat.export.kernels import FLOAT32_EXACT, FLOAT64_EXACT
from qat.export.tables import TableShape
from qat.integer import (
    NORM_FRACTION_BITS,
    NORM_INVERSE_BITS,
    NORM_ROOT_BITS,
    IntegerLayer,
    IntegerNetwork,
    Rescale,
)

OPSET = 19
"""QuantizeLinear of 8 bits; with 21 and its other types onnxruntime 1.32 refuses graphs that mix signs."""
QONNX_DOMAIN = "qonnx.custom_op.general"
IMAGES, CODES = "images", "codes"
"""Names of the graph's input (uint8, NCHW) and output (codes, NCHW); several results are codes_0, codes_1, ..."""


class Dialect(StrEnum):
    """How codes are clamped and weights are held (table in the module's docstring)."""

    PLAIN = "plain"
    QDQ = "qdq"
    QONNX = "qonnx"


def to_onnx(integers: IntegerNetwork, dialect: Dialect = Dialect.QDQ, batch: int | None = None) -> onnx.ModelProto:
    """The network as an ONNX model from uint8 images to the codes of its results, as `NetworkSpec.outputs` has them.

    Args:
        integers: What `qat.deploy(model).integers` or `load_packed(folder).integers` hold.
        dialect: How codes are clamped and weights are held.
        batch: Images per run; None leaves it open, which qonnx does not take.

    Raises:
        ExportError: A sum is not exact in floats; the message names the layer and the cure.
    """
    check_network(integers)
    builder = _Builder(integers, Dialect(dialect), batch)
    for spec in integers.network.layers:
        builder.add_layer(spec, integers.layers[spec.name])
    return builder.model()


def save_onnx(
    integers: IntegerNetwork, path: str | Path, dialect: Dialect = Dialect.QDQ, batch: int | None = None
) -> None:
    """Writes what `to_onnx` gives; the arguments are those."""
    from qat.files import write_bytes

    write_bytes(Path(path), to_onnx(integers, dialect, batch).SerializeToString())


class _Builder:
    """Nodes, constants and shapes of the graph so far; `names` says which tensor holds a layer's codes."""

    def __init__(self, integers: IntegerNetwork, dialect: Dialect, batch: int | None) -> None:
        self.integers = integers
        self.dialect = dialect
        self.batch: int | str = batch or "N"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values: dict[str, onnx.ValueInfoProto] = {}
        self.bounds = accumulator_bounds(integers)
        self.names = {INPUT: self._input()}

    # -- the graph ----------------------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        network = self.integers.network
        results = []
        for number, name in enumerate(network.outputs):
            result = CODES if len(network.outputs) == 1 else f"{CODES}_{number}"
            shape = (self.batch, self._channels(name), *self._size(name))
            self.nodes.append(helper.make_node("Identity", [self.names[name]], [result], name=result))
            results.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, shape))
        values = list(self.values.values())
        if self.dialect is Dialect.QONNX:  # qonnx runs node by node and asks for the type of constants too
            values += [helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in self.constants]
        pixels = (self.batch, network.input_channels, network.input_height, network.input_width)
        graph = helper.make_graph(
            self.nodes,
            network.name,
            [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, pixels)],
            results,
            self.constants,
            value_info=values,
        )
        domains = [helper.make_opsetid("", OPSET)]
        if self.dialect is Dialect.QONNX:
            domains.append(helper.make_opsetid(QONNX_DOMAIN, 1))
        model = helper.make_model(graph, opset_imports=domains, ir_version=10, producer_name="qat")
        scales = {name: layer.ofm_scale for name, layer in self.integers.layers.items()}
        names = list(self.integers.class_names)
        helper.set_model_props(model, {"ofm_scale": json.dumps(scales), "class_names": json.dumps(names)})
        return model

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, shape: tuple[int, ...], kind: int, **attributes: Any) -> str:
        """Adds a node whose result is called like itself; `shape` is without the batch."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.values[name] = helper.make_tensor_value_info(name, kind, (self.batch, *shape))
        return name

    def floats(self, op: str, inputs: list[str], name: str, shape: tuple[int, ...], **attributes: Any) -> str:
        return self.node(op, inputs, name, shape, TensorProto.FLOAT, **attributes)

    def doubles(self, op: str, inputs: list[str], name: str, shape: tuple[int, ...], **attributes: Any) -> str:
        return self.node(op, inputs, name, shape, TensorProto.DOUBLE, **attributes)

    def integers64(self, op: str, inputs: list[str], name: str, shape: tuple[int, ...], **attributes: Any) -> str:
        return self.node(op, inputs, name, shape, TensorProto.INT64, **attributes)

    def _input(self) -> str:
        """Codes of 8-bit levels: level + 256 * channel, looked up."""
        network = self.integers.network
        shape = (network.input_channels, network.input_height, network.input_width)
        offsets = 256 * np.arange(network.input_channels)[None, :, None, None]
        levels = self.node("Cast", [IMAGES], "input.levels", shape, TensorProto.INT64, to=TensorProto.INT64)
        places = [levels, self.constant("input.offsets", offsets, np.int64)]
        index = self.node("Add", places, "input.index", shape, TensorProto.INT64)
        table = self.constant("input.table", self.integers.input_codes.reshape(-1))
        return self.floats("Gather", [table, index], "input.codes", shape, axis=0)

    # -- layers -------------------------------------------------------------------------------------------------

    def add_layer(self, spec: LayerSpec, layer: IntegerLayer) -> None:
        operands = [self.names[name] for name in spec.inputs]
        shape = (spec.out_channels, spec.out_height, spec.out_width)
        if layer.weight is not None:
            self.names[spec.name] = self._weighted(spec, layer, operands[0], shape)
        elif layer.table is not None:
            self.names[spec.name] = self._lookup(spec, layer, operands[0], shape)
        elif layer.rescale is None:
            self.names[spec.name] = self._moved(spec, operands[0], shape)
        else:
            self.names[spec.name] = self._computed(spec, layer, layer.rescale, operands, shape)

    def _weighted(self, spec: LayerSpec, layer: IntegerLayer, codes: str, shape: tuple[int, ...]) -> str:
        assert layer.weight is not None and layer.rescale is not None
        if layer.input_rescale is not None:
            ifm = (spec.in_channels, spec.in_height, spec.in_width)
            codes = self._requantized(f"{spec.name}.input", codes, layer.input_rescale, ifm, bound=1 << 16)
        bound = self.bounds[spec.name]
        if bound >= FLOAT32_EXACT:
            raise ExportError(
                f"layer {spec.name!r}: sums reach {bound}, float32 is exact below {FLOAT32_EXACT}; use fewer weight or "
                "activation bits in this layer, or the packed format, which has no such limit"
            )
        weight = self._weight(spec, layer.weight)
        sums = self.floats("Conv", [codes, weight], f"{spec.name}.sums", shape, group=spec.groups, **_window(spec))
        assert layer.bias is not None
        offset = layer.bias.astype(np.float64) * 2.0**layer.bias_shift
        return self._requantized(spec.name, sums, layer.rescale, shape, bound, offset=offset)

    def _weight(self, spec: LayerSpec, weight: NDArray[np.int8]) -> str:
        if spec.weights_of is not None:
            return f"{spec.weights_of}.weight"
        name, config = f"{spec.name}.weight", self.integers.config[spec.name]
        if self.dialect is Dialect.QDQ:
            inputs = [self.constant(f"{name}.codes", weight, np.int8), self.constant(f"{name}.scale", 1.0)]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=name))
            return name
        if self.dialect is Dialect.PLAIN:
            return self.constant(name, weight)
        inputs = [self.constant(f"{name}.codes", weight), self.constant(f"{name}.scale", 1.0)]
        self.values[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, weight.shape)
        if config.weight_format is WeightFormat.DENSE and config.weight_bit_width == 1:
            self.nodes.append(helper.make_node("BipolarQuant", inputs, [name], name=name, domain=QONNX_DOMAIN))
        else:
            self._quant(name, inputs, max(2, config.stored_bit_width), signed=True)
        return name

    def _quant(self, name: str, inputs: list[str], bit_width: int, *, signed: bool) -> None:
        inputs = [*inputs, self.constant(f"{name}.zero_point", 0.0), self.constant(f"{name}.bit_width", bit_width)]
        attributes: dict[str, Any] = {"signed": int(signed), "narrow": 0, "rounding_mode": "ROUND"}
        self.nodes.append(helper.make_node("Quant", inputs, [name], name=name, domain=QONNX_DOMAIN, **attributes))

    def _lookup(self, spec: LayerSpec, layer: IntegerLayer, codes: str, shape: tuple[int, ...]) -> str:
        assert layer.table is not None
        first = self.constant(f"{spec.name}.first_code", layer.table.first_code)
        index = self.floats("Sub", [codes, first], f"{spec.name}.entry", shape)
        index = self.node("Cast", [index], f"{spec.name}.index", shape, TensorProto.INT64, to=TensorProto.INT64)
        table = self.constant(f"{spec.name}.table", layer.table.codes)
        return self.floats("Gather", [table, index], spec.name, shape, axis=0)

    def _computed(
        self, spec: LayerSpec, layer: IntegerLayer, rescale: Rescale, operands: list[str], shape: tuple[int, ...]
    ) -> str:
        """Operations with a requantization but no weights."""
        name, bound = spec.name, self.bounds[spec.name]
        if spec.op is Op.CONCAT:
            parts = []
            for number, (operand, producer) in enumerate(zip(operands, spec.inputs, strict=True)):
                part = (self._channels(producer), *shape[1:])
                alone = _one(rescale, number)
                parts.append(self._requantized(f"{name}.part{number}", operand, alone, part, bound=1 << 16))
            return self.floats("Concat", parts, name, shape, axis=1)
        if spec.op is Op.AVG_POOL:
            ones = self.constant(f"{name}.ones", np.ones((spec.in_channels, 1, *spec.kernel_size)))
            sums = self.floats(
                "Conv", [operands[0], ones], f"{name}.sums", shape, group=spec.in_channels, **_window(spec)
            )
            return self._requantized(name, sums, rescale, shape, bound)
        if spec.op in AFFINE:
            assert layer.bias is not None
            offset = layer.bias.astype(np.float64) * 2.0**layer.bias_shift
            normalizes = spec.op in NORMALIZING
            values = self._normalized(spec, layer.epsilon, operands[0], shape) if normalizes else operands[0]
            return self._requantized(name, values, rescale, shape, bound, offset=offset, is_double=normalizes)
        ifms = [(self._channels(p), *self._size(p)) for p in spec.inputs]
        wide = [
            self.doubles("Cast", [operand], f"{name}.operand{number}", ifm, to=TensorProto.DOUBLE)
            for number, (operand, ifm) in enumerate(zip(operands, ifms, strict=True))
        ]
        if spec.op is Op.MUL:
            product = self.doubles("Mul", wide, f"{name}.product", shape)
            return self._requantized(name, product, rescale, shape, bound, is_double=True)
        total = ""
        for number, (operand, multiplier) in enumerate(zip(wide, rescale.multiplier, strict=True)):
            factor = self.constant(f"{name}.multiplier{number}", multiplier, np.float64)
            term = self.doubles("Mul", [operand, factor], f"{name}.term{number}", shape)
            total = term if not total else self.doubles("Add", [total, term], f"{name}.total{number}", shape)
        summed = Rescale(
            np.ones(1, np.int16), rescale.shift, rescale.quant_min, rescale.quant_max, rescale.negative_shift
        )
        return self._requantized(name, total, summed, shape, bound, is_double=True)

    def _normalized(self, spec: LayerSpec, epsilon: int, codes: str, shape: tuple[int, ...]) -> str:
        """What a normalisation multiplies by its gains, in float64: statistics in int64, as in `qat.integer`."""
        name = f"{spec.name}.norm"
        wide = self.integers64("Cast", [codes], f"{name}.codes", shape, to=TensorProto.INT64)
        if spec.op is Op.L2_NORM:
            groups, measured, axis, centred = shape, (1, *shape[1:]), 1, wide
        else:
            groups, measured, axis = (spec.groups, spec.normalized_values), (spec.groups, 1), 2
            wide = centred = self._reshaped(wide, f"{name}.groups", groups, TensorProto.INT64)
        axes = self.constant(f"{name}.axes", [axis], np.int64)
        squares = self.integers64("Mul", [wide, wide], f"{name}.squares", groups)
        spread = self.integers64("ReduceSum", [squares, axes], f"{name}.energy", measured)
        if spec.op is Op.GROUP_NORM:
            count = self.constant(f"{name}.count", spec.normalized_values, np.int64)
            total = self.integers64("ReduceSum", [wide, axes], f"{name}.total", measured)
            scaled = self.integers64("Mul", [wide, count], f"{name}.scaled", groups)
            centred = self.integers64("Sub", [scaled, total], f"{name}.centred", groups)
            spread = self.integers64("Mul", [spread, count], f"{name}.scaled_energy", measured)
            square = self.integers64("Mul", [total, total], f"{name}.squared_total", measured)
            spread = self.integers64("Sub", [spread, square], f"{name}.spread", measured)
            given = self.constant(f"{name}.epsilon", epsilon, np.int64)
            spread = self.integers64("Add", [spread, given], f"{name}.spread_and_epsilon", measured)
        least = self.constant(f"{name}.least", 1, np.int64)
        spread = self.integers64("Max", [spread, least], f"{name}.positive", measured)
        inverse, step = self._inverse_root(name, spread, measured)
        products = self.integers64("Mul", [centred, inverse], f"{name}.products", groups)
        value = self.doubles("Cast", [products], f"{name}.wide_products", groups, to=TensorProto.DOUBLE)
        value = self.doubles("Mul", [value, step], f"{name}.quotients", groups)
        half = self.constant(f"{name}.half", 0.5, np.float64)
        value = self.doubles("Add", [value, half], f"{name}.shifted", groups)
        value = self.doubles("Floor", [value], f"{name}.floor", groups)
        return value if groups == shape else self._reshaped(value, name, shape, TensorProto.DOUBLE)

    def _inverse_root(self, name: str, spread: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """The inverse of a root as an integer, and by what products with it are multiplied."""
        powers = self.constant(f"{name}.powers_of_4", [4**count for count in range(1, 31)], np.int64)
        last = self.constant(f"{name}.last_axis", [-1], np.int64)
        column = self.integers64("Unsqueeze", [spread, last], f"{name}.column", (*shape, 1))
        reaches = self.node("GreaterOrEqual", [column, powers], f"{name}.reaches", (*shape, 30), TensorProto.BOOL)
        reached = self.integers64("Cast", [reaches], f"{name}.reached", (*shape, 30), to=TensorProto.INT64)
        exponent = self.integers64("ReduceSum", [reached, last], f"{name}.exponent", shape, keepdims=0)
        places = NORM_ROOT_BITS - 1 - np.arange(31)
        for way, factors in (("up", 4 ** places.clip(min=0)), ("down", 4 ** (-places).clip(min=0))):
            table = self.constant(f"{name}.{way}_table", factors, np.int64)
            factor = self.integers64("Gather", [table, exponent], f"{name}.{way}", shape)
            spread = self.integers64("Mul" if way == "up" else "Div", [spread, factor], f"{name}.moved_{way}", shape)
        value = self.doubles("Cast", [spread], f"{name}.wide", shape, to=TensorProto.DOUBLE)
        value = self.doubles("Sqrt", [value], f"{name}.exact_root", shape)
        root = self.integers64("Cast", [value], f"{name}.root", shape, to=TensorProto.INT64)
        one = self.constant(f"{name}.one", 1 << (NORM_ROOT_BITS - 1 + NORM_INVERSE_BITS), np.int64)
        largest = self.constant(f"{name}.largest_inverse", (1 << NORM_INVERSE_BITS) - 1, np.int64)
        inverse = self.integers64("Div", [one, root], f"{name}.quotient", shape)
        inverse = self.integers64("Min", [inverse, largest], f"{name}.inverse", shape)
        steps = 2.0 ** (NORM_FRACTION_BITS - NORM_INVERSE_BITS - np.arange(31))
        table = self.constant(f"{name}.step_table", steps, np.float64)
        return inverse, self.doubles("Gather", [table, exponent], f"{name}.step", shape)

    def _channels(self, producer: str) -> int:
        network = self.integers.network
        return network.input_channels if producer == INPUT else network.by_name[producer].out_channels

    def _size(self, producer: str) -> tuple[int, int]:
        network = self.integers.network
        if producer == INPUT:
            return network.input_height, network.input_width
        return network.by_name[producer].out_height, network.by_name[producer].out_width

    def _requantized(
        self,
        name: str,
        sums: str,
        rescale: Rescale,
        shape: tuple[int, ...],
        bound: int,
        *,
        offset: NDArray[np.float64] | None = None,
        is_double: bool = False,
    ) -> str:
        """clamp((sums * multiplier + offset + half) >> shift): powers of two scale floats without loss."""
        multiplier = rescale.multiplier.astype(np.float64)
        offset = np.zeros(1) if offset is None else offset
        half = 2.0 ** (rescale.shift - 1 + rescale.negative_shift)
        if bound * np.abs(multiplier).max() + np.abs(offset).max() + half >= FLOAT64_EXACT:
            raise ExportError(
                f"layer {name!r}: its requantization is not exact in float64; use fewer weight or activation bits in "
                "this layer, or the packed format, which has no such limit"
            )
        wide = sums if is_double else self.doubles("Cast", [sums], f"{name}.wide", shape, to=TensorProto.DOUBLE)
        step = 2.0**-rescale.shift
        gain = self.constant(f"{name}.gain", (multiplier * step)[None, :, None, None], np.float64)
        value = self.doubles("Mul", [wide, gain], f"{name}.scaled", shape)
        if np.any(offset):
            bias = self.constant(f"{name}.bias", (offset * step)[None, :, None, None], np.float64)
            value = self.doubles("Add", [value, bias], f"{name}.biased", shape)
        if rescale.negative_shift:
            zero = self.constant(f"{name}.zero", 0.0, np.float64)
            slope = self.constant(f"{name}.slope", 2.0**-rescale.negative_shift, np.float64)
            above = self.doubles("Max", [value, zero], f"{name}.above", shape)
            below = self.doubles("Min", [value, zero], f"{name}.below", shape)
            below = self.doubles("Mul", [below, slope], f"{name}.shallow", shape)
            value = self.doubles("Add", [above, below], f"{name}.leaky", shape)
        rounded = self.constant(f"{name}.half", 0.5, np.float64)
        value = self.doubles("Add", [value, rounded], f"{name}.shifted", shape)
        value = self.doubles("Floor", [value], f"{name}.floor", shape)
        value = self.floats("Cast", [value], f"{name}.unclamped", shape, to=TensorProto.FLOAT)
        return self._clamped(name, value, rescale, shape)

    def _clamped(self, name: str, value: str, rescale: Rescale, shape: tuple[int, ...]) -> str:
        signed, bit_width = rescale.quant_min < 0, TableShape(0, 1, rescale.quant_min, rescale.quant_max).bit_width
        whole = (-(1 << (bit_width - 1)), (1 << (bit_width - 1)) - 1) if signed else (0, (1 << bit_width) - 1)
        only_clip = self.dialect is Dialect.PLAIN or (self.dialect is Dialect.QDQ and bit_width > 8)
        by_clip = self.dialect is not Dialect.QONNX or (rescale.quant_min, rescale.quant_max) != whole
        if by_clip:
            limits = [
                self.constant(f"{name}.quant_min", rescale.quant_min),
                self.constant(f"{name}.quant_max", rescale.quant_max),
            ]
            value = self.floats("Clip", [value, *limits], name if only_clip else f"{name}.clipped", shape)
        if only_clip:
            return value
        scale = self.constant(f"{name}.scale", 1.0)
        self.values[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, (self.batch, *shape))
        if self.dialect is Dialect.QONNX:
            self._quant(name, [value, scale], bit_width, signed=signed)
            return name
        kind: Any = np.int8 if signed else np.uint8
        point = self.constant(f"{name}.zero_point", 0, kind)
        element = TensorProto.INT8 if signed else TensorProto.UINT8
        code = self.node("QuantizeLinear", [value, scale, point], f"{name}.code", shape, element)
        self.nodes.append(helper.make_node("DequantizeLinear", [code, scale, point], [name], name=name))
        return name

    def _moved(self, spec: LayerSpec, codes: str, shape: tuple[int, ...]) -> str:
        """Operations that only move codes."""
        name = spec.name
        rows, columns = spec.stride
        channels, height, width = spec.in_channels, spec.in_height, spec.in_width
        if spec.op is Op.MAX_POOL:
            return self.floats("MaxPool", [codes], name, shape, **_window(spec))
        if spec.op is Op.FLATTEN:
            return self._reshaped(codes, name, shape)
        if spec.op is Op.SHUFFLE:
            parts = (spec.groups, channels // spec.groups, height, width)
            split = self._reshaped(codes, f"{name}.parts", parts)
            turned = (parts[1], parts[0], height, width)
            mixed = self.floats("Transpose", [split], f"{name}.mixed", turned, perm=[0, 2, 1, 3, 4])
            return self._reshaped(mixed, name, shape)
        if spec.op is Op.REORG:
            blocks = (channels, spec.out_height, rows, spec.out_width, columns)
            split = self._reshaped(codes, f"{name}.blocks", blocks)
            deep = (channels, rows, columns, spec.out_height, spec.out_width)
            mixed = self.floats("Transpose", [split], f"{name}.mixed", deep, perm=[0, 1, 3, 5, 2, 4])
            return self._reshaped(mixed, name, shape)
        if spec.op is Op.UPSAMPLE:
            factors = self.constant(f"{name}.factors", [1, 1, rows, columns])
            modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            return self.floats("Resize", [codes, "", factors], name, shape, **modes)
        if spec.op is Op.SLICE:
            return self._sliced(codes, name, shape, [spec.first_channel], [spec.first_channel + shape[0]], [1], [1])
        padded = spec.out_channels > channels
        kept = (channels, *shape[1:])
        part = self._sliced(
            codes, f"{name}.kept" if padded else name, kept, [0, 0], [height, width], [2, 3], [rows, columns]
        )
        if not padded:
            return part
        before = (spec.out_channels - channels) // 2
        pads = [0, before, 0, 0, 0, spec.out_channels - channels - before, 0, 0]
        return self.floats("Pad", [part, self.constant(f"{name}.pads", pads, np.int64)], name, shape)

    def _reshaped(self, codes: str, name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> str:
        return self.node("Reshape", [codes, self.constant(f"{name}.shape", [0, *shape], np.int64)], name, shape, kind)

    def _sliced(
        self,
        codes: str,
        name: str,
        shape: tuple[int, ...],
        starts: list[int],
        ends: list[int],
        axes: list[int],
        steps: list[int],
    ) -> str:
        numbers = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        inputs = [self.constant(f"{name}.{key}", value, np.int64) for key, value in numbers.items()]
        return self.floats("Slice", [codes, *inputs], name, shape)


def _window(spec: LayerSpec) -> dict[str, list[int]]:
    """Attributes that convolutions and pools share."""
    return {
        "kernel_shape": list(spec.kernel_size),
        "strides": list(spec.stride),
        "pads": [*spec.padding, *spec.end_padding],
        "dilations": list(spec.dilation),
    }


def _one(rescale: Rescale, number: int) -> Rescale:
    """The requantization of one operand."""
    multiplier = rescale.multiplier[number : number + 1]
    return Rescale(multiplier, rescale.shift, rescale.quant_min, rescale.quant_max, rescale.negative_shift)
