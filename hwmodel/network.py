"""The inference graph as hardware sees it: shapes, weights, MACs, edges.  No precision, no training.

Batch norm and activation are part of the layer that they follow, as in the accelerator; what is left
are the operations that move or combine feature maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from hwmodel.errors import SpecError
from hwmodel.names import Names

INPUT = "input"
"""Name of the network input; `LayerSpec.inputs` refers to it like to a layer."""

FRAME_ENGINE = "frame engine"
"""Owner of the memories that layers on the shared engine have in common."""

DRAM = "dram"
"""Name of the off-chip memory as a bottleneck."""

LARGEST_SIZE = 2**32
"""Largest channel count, number of rows or of columns."""

LARGEST_MAP = 2**40
"""Most values of a feature map, and most weights of a layer."""

MOST_MACS = 2**56
"""Most multiply-accumulates per frame: sums of cycles and bits stay within 64 bits."""

RESERVED = (INPUT, FRAME_ENGINE, DRAM)
"""Names that no layer has."""


class Op(Names):
    """What a layer does to its input feature maps (ifm)."""

    CONV = "conv"
    LINEAR = "linear"
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    SUBSAMPLE = "subsample"  # keep every stride-th pixel, zero-pad the channels (ResNet option A)
    UPSAMPLE = "upsample"  # nearest neighbour; `stride` is the factor
    ADD = "add"
    CONCAT = "concat"
    REORG = "reorg"  # space to depth: `stride` rows and columns become channels (YOLOv2's passthrough)
    FLATTEN = "flatten"
    MUL = "mul"  # a feature map times a gate: the second operand has one value per channel
    SCALE = "scale"  # multiplier and bias per channel: a batch norm that follows no convolution
    LOOKUP = "lookup"  # a function of each code, from a table; `activation` says which
    SHUFFLE = "shuffle"  # channels of `groups` equal parts interleaved: part 0's first, part 1's first, ...
    SLICE = "slice"  # `out_channels` channels from `first_channel` on
    GROUP_NORM = "group_norm"  # `groups` equal parts of the channels, each by its mean and deviation over the whole map
    L2_NORM = "l2_norm"  # each pixel divided by the length of the vector of its channels


WEIGHTED = (Op.CONV, Op.LINEAR)
RELAYING = (Op.MAX_POOL, Op.SUBSAMPLE, Op.UPSAMPLE, Op.REORG, Op.FLATTEN, Op.SHUFFLE, Op.SLICE)
"""Operations that pass codes on unchanged: same scale, same bit width, no arithmetic."""

NORMALIZING = (Op.GROUP_NORM, Op.L2_NORM)
"""Operations that divide by what they measure in the map itself; then a multiplier and a bias per channel."""
AFFINE = (Op.SCALE, *NORMALIZING)
"""Operations without weights that have a multiplier and a bias per channel."""

STRIDE_ALONE = (Op.SUBSAMPLE, Op.UPSAMPLE, Op.REORG)
"""Operations without a window that have a stride."""

POINTWISE = (Op.LINEAR, Op.ADD, Op.CONCAT, Op.FLATTEN, Op.MUL, Op.LOOKUP, Op.SHUFFLE, Op.SLICE, *AFFINE)
"""Operations that have neither window nor stride."""

ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "hard_swish", "hard_sigmoid", "silu", "sigmoid", "tanh")


def is_size(value: object, low: int) -> bool:
    """Whether a value is an integer, not a truth value, and at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


@dataclass(frozen=True)
class LayerSpec:
    """One layer of the inference graph.

    Args:
        name: Path of the torch module, or of the traced operation for `add` and `concat`.
        op: What the layer does.
        inputs: Names of the layers that produce its ifm, in operand order; `"input"` is the network's.
        in_channels: Channels read; for `concat` the sum over operands, for `add` those of one operand.
        in_height: Rows of the ifm.
        in_width: Pixels per row of the ifm.
        out_channels: Channels of the ofm.
        out_height: Rows of the ofm.
        out_width: Pixels per row of the ofm.
        kernel_size: Kernel rows and columns, each >= 1.
        stride: Row and column stride (for `upsample`: the factors), each >= 1.
        padding: Rows and columns of zeros on each side, each >= 0.
        padding_end: Rows of zeros below and columns at the right, where they are not those of `padding`.
        dilation: Row and column dilation, each >= 1.
        groups: Convolution groups, divides both channel counts; for `shuffle` the parts that are interleaved, for
            `group_norm` those that are normalised.
        activation: One of `ACTIVATIONS`, fused into the layer; for `lookup` the function.
        first_channel: First channel that a `slice` keeps.
        weights_of: Earlier layer whose weights this one uses too, as a detection head that serves several maps;
            None for a layer with weights of its own.  Multipliers and biases are each layer's own.

    Raises:
        SpecError: A field is out of range or the output shape does not follow from the input shape.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    padding_end: tuple[int, int] | None = None
    first_channel: int = 0
    weights_of: str | None = None

    def __post_init__(self) -> None:
        self._require(isinstance(self.name, str), "name", "a string")
        self._require(self.name not in RESERVED, "name", f"another one: {list(RESERVED)} are no layers")
        try:
            object.__setattr__(self, "op", Op(self.op))
        except ValueError:
            raise SpecError(f"layer {self.name!r}: op={self.op!r} is not one of {[str(o) for o in Op]}") from None
        for name in ("inputs", "kernel_size", "stride", "padding", "dilation", "padding_end"):
            value = getattr(self, name)
            if value is not None or name != "padding_end":
                self._require(isinstance(value, list | tuple), name, "a list")
                object.__setattr__(self, name, tuple(value))
        if self.padding_end == self.padding:
            object.__setattr__(self, "padding_end", None)
        positive = ("in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width", "groups")
        for name in positive:
            self._require(is_size(getattr(self, name), 1), name, "an integer >= 1")
            self._require(getattr(self, name) <= LARGEST_SIZE, name, f"at most {LARGEST_SIZE:,}")
        for name, low in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, name)
            ok = len(pair) == 2 and all(is_size(v, low) for v in pair)
            self._require(ok, name, f"two integers >= {low}")
            self._require(max(pair) <= LARGEST_SIZE, name, f"at most {LARGEST_SIZE:,} each")
        ok = len(self.end_padding) == 2 and all(is_size(v, 0) for v in self.end_padding)
        self._require(ok, "padding_end", "two integers >= 0, or None")
        self._require(self.activation in ACTIVATIONS, "activation", f"one of {list(ACTIVATIONS)}")
        self._require(len(self.inputs) >= 1, "inputs", "at least one producer")
        self._require(all(isinstance(name, str) for name in self.inputs), "inputs", "names of layers")
        self._require(self.weights_of is None or isinstance(self.weights_of, str), "weights_of", "a name, or None")
        self._require(self.weights_of is None or self.has_weights, "weights_of", f"None for op={str(self.op)!r}")
        self._check_shapes()
        self._check_products()

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise SpecError(f"layer {self.name!r}: {name}={getattr(self, name)!r}, expected {expected}")

    def _check_shapes(self) -> None:
        if self.op in (*STRIDE_ALONE, *POINTWISE):
            self._require(self.padding_end is None, "padding_end", f"None for op={str(self.op)!r}")
            plain = {"kernel_size": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
            if self.op in POINTWISE:
                plain["stride"] = (1, 1)
            for name, default in plain.items():
                self._require(getattr(self, name) == default, name, f"{default} for op={str(self.op)!r}")
        if self.op is Op.CONV:
            self._require(self.in_channels % self.groups == 0, "groups", f"a divisor of in_channels={self.in_channels}")
            self._require(
                self.out_channels % self.groups == 0, "groups", f"a divisor of out_channels={self.out_channels}"
            )
        if self.op is Op.LINEAR:
            for name, value in (("in_height", 1), ("in_width", 1), ("kernel_size", (1, 1)), ("groups", 1)):
                self._require(getattr(self, name) == value, name, f"{value} for op='linear', which reads a vector")
        if self.op in (
            Op.MAX_POOL,
            Op.AVG_POOL,
            Op.UPSAMPLE,
            Op.ADD,
            Op.CONCAT,
            Op.MUL,
            Op.LOOKUP,
            Op.SHUFFLE,
            *AFFINE,
        ):
            self._require(self.out_channels == self.in_channels, "out_channels", f"in_channels={self.in_channels}")
        if self.op is Op.L2_NORM:
            self._require(self.groups == 1, "groups", "1: a pixel is divided by the length of all its channels")
        if self.op in (Op.SHUFFLE, Op.GROUP_NORM):
            self._require(self.in_channels % self.groups == 0, "groups", f"a divisor of in_channels={self.in_channels}")
        last = self.in_channels - self.out_channels if self.op is Op.SLICE else 0
        if self.op is Op.SUBSAMPLE:
            ok = self.out_channels >= self.in_channels
            self._require(ok, "out_channels", f"at least in_channels={self.in_channels}")
        ok = is_size(self.first_channel, 0) and self.first_channel <= last
        self._require(ok, "first_channel", f"0..{last}" if last >= 0 else f"at most {self.in_channels} channels")
        if self.op is Op.MUL:
            self._require(len(self.inputs) == 2, "inputs", "a feature map and its gate")
        elif self.op in (Op.ADD, Op.CONCAT):
            self._require(len(self.inputs) >= 2, "inputs", "at least two producers")
        else:
            self._require(len(self.inputs) == 1, "inputs", "exactly one producer")
        self._require(self.out_height == self._expected_size(0), "out_height", str(self._expected_size(0)))
        self._require(self.out_width == self._expected_size(1), "out_width", str(self._expected_size(1)))
        if self.op is Op.FLATTEN:
            size = self.in_channels * self.in_height * self.in_width
            self._require(self.out_channels == size, "out_channels", str(size))
        if self.op is Op.REORG:
            ok = self.in_height % self.stride[0] == 0 and self.in_width % self.stride[1] == 0
            self._require(ok, "stride", f"divisors of the ifm's {self.in_height} rows and {self.in_width} columns")
            size = self.in_channels * self.stride[0] * self.stride[1]
            self._require(self.out_channels == size, "out_channels", str(size))

    def _check_products(self) -> None:
        sizes = {
            "in_channels x in_height x in_width": self.in_channels * self.in_height * self.in_width,
            "out_channels x out_height x out_width": self.out_channels * self.out_height * self.out_width,
            "weights": self.weights,
        }
        for name, size in sizes.items():
            if size > LARGEST_MAP:
                raise SpecError(f"layer {self.name!r}: {name}={size:,}, expected at most {LARGEST_MAP:,}")

    def _expected_size(self, axis: int) -> int:
        size = (self.in_height, self.in_width)[axis]
        if self.op in (Op.LINEAR, Op.FLATTEN):
            return 1
        if self.op is Op.UPSAMPLE:
            return size * self.stride[axis]
        if self.op is Op.REORG:
            return size // self.stride[axis]
        if self.op in (Op.ADD, Op.CONCAT, Op.MUL):
            return size
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + self.padding[axis] + self.end_padding[axis] - reach) // self.stride[axis] + 1

    @property
    def end_padding(self) -> tuple[int, int]:
        """Rows of zeros below and columns of zeros at the right."""
        return self.padding if self.padding_end is None else self.padding_end

    @property
    def has_weights(self) -> bool:
        """Whether the layer is a convolution or a fully connected layer."""
        return self.op in WEIGHTED

    @property
    def owns_weights(self) -> bool:
        """Whether the layer has weights that are not another layer's."""
        return self.has_weights and self.weights_of is None

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weights as (out, in per group, kernel rows, kernel columns); zeros without weights."""
        if not self.has_weights:
            return (0, 0, 0, 0)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def weights(self) -> int:
        """Number of weights that the layer uses, without bias and batch norm."""
        out_channels, in_channels, rows, columns = self.weight_shape
        return out_channels * in_channels * rows * columns

    @property
    def normalized_values(self) -> int:
        """Values that a normalisation measures together: of a group over the whole map, or of a pixel."""
        pixels = self.in_height * self.in_width if self.op is Op.GROUP_NORM else 1
        return pixels * self.in_channels // self.groups

    @property
    def macs(self) -> int:
        """Multiply-accumulates per frame of a convolution or fully connected layer; else 0."""
        return self.weights * self.out_height * self.out_width


@dataclass(frozen=True)
class NetworkSpec:
    """A network: its input shape and its layers in execution order.

    Args:
        name: What reports call it.
        input_channels: Channels of the network input.
        input_height: Rows of the network input.
        input_width: Pixels per row of the network input.
        layers: Layers in execution order; every input is the network's or an earlier layer's.
        outputs: Names of the layers whose ofm are the network's results, in the order in which they are returned; by
            default those that no layer reads.

    Raises:
        SpecError: The input shape is out of range, a name occurs twice, an input is unknown, shapes of neighbours
            differ, a layer uses the weights of one that has none of that shape, or a normalisation comes before all
            layers with weights.
    """

    name: str
    input_channels: int
    input_height: int
    input_width: int
    layers: tuple[LayerSpec, ...] = field(repr=False)
    outputs: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self._require(isinstance(self.name, str), "name", "a string")
        for name, kind, expected in (("layers", LayerSpec, "LayerSpecs"), ("outputs", str, "names of layers")):
            value = getattr(self, name)
            ok = isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)
            self._require(ok, name, f"a list of {expected}")
            object.__setattr__(self, name, tuple(value))
        for name in ("input_channels", "input_height", "input_width"):
            self._require(is_size(getattr(self, name), 1), name, "an integer >= 1")
        shapes = {INPUT: (self.input_channels, self.input_height, self.input_width)}
        earlier: dict[str, LayerSpec] = {}
        for layer in self.layers:
            if layer.name in shapes:
                raise SpecError(f"layer {layer.name!r}: the name occurs twice in network {self.name!r}")
            operands = []
            for producer in layer.inputs:
                if producer not in shapes:
                    raise SpecError(f"layer {layer.name!r}: inputs names {producer!r}, which no earlier layer produces")
                operands.append(shapes[producer])
            self._check_operands(layer, operands)
            self._check_owner(layer, earlier)
            if layer.op in NORMALIZING and not any(other.has_weights for other in earlier.values()):
                raise SpecError(
                    f"layer {layer.name!r}: op={str(layer.op)!r} needs a layer with weights before it, whose engine "
                    "it is on; images are normalised by data.mean and data.std"
                )
            earlier[layer.name] = layer
            shapes[layer.name] = (layer.out_channels, layer.out_height, layer.out_width)
        unread = tuple(layer.name for layer in self.layers if not self.consumers[layer.name])
        object.__setattr__(self, "outputs", self.outputs or unread)
        if len(set(self.outputs)) < len(self.outputs) or not set(unread) <= set(self.outputs) <= set(self.by_name):
            raise SpecError(
                f"network {self.name!r}: outputs={self.outputs}, expected different layers, among them {unread}, "
                "which no layer reads"
            )
        self._require(self.total_macs <= MOST_MACS, "total_macs", f"at most {MOST_MACS:,}")

    def __hash__(self) -> int:
        # That of all layers takes long, and much is looked up by network.  Few differ and have all this in common.
        shape = (self.input_channels, self.input_height, self.input_width)
        return hash((self.name, shape, len(self.layers), self.outputs))

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise SpecError(f"network {self.name!r}: {name}={getattr(self, name)!r}, expected {expected}")

    @staticmethod
    def _check_operands(layer: LayerSpec, operands: list[tuple[int, int, int]]) -> None:
        want = (layer.in_channels, layer.in_height, layer.in_width)
        if layer.op is Op.CONCAT:
            channels = sum(shape[0] for shape in operands)
            got = {(channels, *shape[1:]) for shape in operands}
        elif layer.op is Op.MUL:
            gate = (layer.in_channels, 1, 1)
            if operands[1] != gate:
                raise SpecError(f"layer {layer.name!r}: its gate {layer.inputs[1]!r} is {operands[1]}, expected {gate}")
            got = {operands[0]}
        else:
            got = set(operands)
        if got != {want}:
            produced = dict(zip(layer.inputs, operands, strict=True))
            raise SpecError(
                f"layer {layer.name!r}: (in_channels, in_height, in_width)={want}, its producers give {produced}"
            )

    @staticmethod
    def _check_owner(layer: LayerSpec, earlier: Mapping[str, LayerSpec]) -> None:
        if layer.weights_of is None:
            return
        owner = earlier.get(layer.weights_of)
        if owner is None or not owner.has_weights or owner.weights_of is not None:
            raise SpecError(
                f"layer {layer.name!r}: weights_of={layer.weights_of!r}, expected an earlier layer that has "
                "weights of its own"
            )
        if (owner.op, owner.weight_shape, owner.groups) != (layer.op, layer.weight_shape, layer.groups):
            raise SpecError(
                f"layer {layer.name!r}: weights_of={layer.weights_of!r}, whose weights are {owner.weight_shape} in "
                f"{owner.groups} groups of a {str(owner.op)!r}; expected {layer.weight_shape} in {layer.groups} of a "
                f"{str(layer.op)!r}"
            )

    @cached_property
    def by_name(self) -> Mapping[str, LayerSpec]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def weighted(self) -> tuple[LayerSpec, ...]:
        """The layers that have weights, in execution order."""
        return tuple(layer for layer in self.layers if layer.has_weights)

    @cached_property
    def consumers(self) -> Mapping[str, tuple[LayerSpec, ...]]:
        """Layers that read each tensor, by the producer's name (`"input"` included)."""
        names = (INPUT, *(layer.name for layer in self.layers))
        return {name: tuple(layer for layer in self.layers if name in layer.inputs) for name in names}

    @cached_property
    def followers(self) -> Mapping[str, tuple[LayerSpec, ...]]:
        """Layers without weights between each layer with weights and the next one, by the name of the former."""
        found: dict[str, list[LayerSpec]] = {}
        for layer in self.layers:
            if layer.has_weights:
                found[layer.name] = []
            elif found:
                found[next(reversed(found))].append(layer)
        return {name: tuple(layers) for name, layers in found.items()}

    def require_weights(self) -> None:
        """Raises `SpecError` where no layer has weights: there is nothing to choose, and nothing to compare with."""
        if not self.weighted:
            raise SpecError(f"network {self.name!r}: no layer has weights; expected a convolution or a linear layer")

    @property
    def total_weights(self) -> int:
        """Weights of convolutions and fully connected layers, without bias and batch norm; shared ones once."""
        return sum(layer.weights for layer in self.layers if layer.weights_of is None)

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates per frame of convolutions and fully connected layers."""
        return sum(layer.macs for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkSpec:
        """Inverse of `to_dict`.

        Raises:
            SpecError: A field is unknown, missing or invalid.
        """
        try:
            layers = tuple(LayerSpec(**layer) for layer in data["layers"])
            return cls(**{**data, "layers": layers})
        except (TypeError, KeyError) as error:
            raise SpecError(f"network description: {error}") from error
