"""Precision of each layer: bit widths, sparsity, weight format.  What a layer *can be*, not what it costs.

Terms (N weights, groups of g weights, density d = share of groups in the sparse plane):

| format               | a weight is                                                        |
|----------------------|--------------------------------------------------------------------|
| `dense`              | `weight_bit_width` bits; 1 bit is a sign                           |
| `sparse`             | kept groups `weight_bit_width` bits (1 bit: a sign), others zero   |
| `binary_plus_sparse` | a sign; in a few significant groups 8 bits instead                 |

`act_bit_width` is the precision of the codes that a convolution or linear layer *reads*: it sets the width
of its line buffer and of its multipliers.  The tensor that a producer writes has the widest precision that
any reader asks for (`ofm_bit_width`); a reader that asks for less requantizes on the way in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from hwmodel.errors import SpecError, require_type
from hwmodel.names import Names
from hwmodel.network import AFFINE, INPUT, LayerSpec, NetworkSpec, Op

SIGNIFICANT_BIT_WIDTH = 8
"""Bits of a weight in the sparse plane of `binary_plus_sparse`."""

VERSION = 1
"""Schema version of `NetworkConfig.to_dict`."""


class WeightFormat(Names):
    """How the weights of a layer are stored (table in the module's docstring)."""

    DENSE = "dense"
    SPARSE = "sparse"
    BINARY_PLUS_SPARSE = "binary_plus_sparse"


class Granularity(Names):
    """Which weights are kept or dropped together."""

    ELEMENT = "element"  # one weight
    KERNEL = "kernel"  # the K*K weights of one (filter, input channel)
    CHANNEL_VECTOR = "channel_vector"  # the input channels of one kernel position of a filter
    FILTER = "filter"  # all weights of one output channel


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """Precision of one convolution or fully connected layer.

    Args:
        weight_bit_width: 1..8; must be 1 for `binary_plus_sparse`.
        act_bit_width: 1..8 or 16: bits of the codes that the layer reads.
        sparsity: Share of weight groups outside the sparse plane, in [0, 1]; 0 for `dense`.
        weight_format: How the weights are stored.
        granularity: What a group is, for the formats with a sparse plane.

    Raises:
        SpecError: A field is out of range.
    """

    weight_bit_width: int
    act_bit_width: int
    sparsity: float = 0.0
    weight_format: WeightFormat = WeightFormat.DENSE
    granularity: Granularity = Granularity.ELEMENT

    def __post_init__(self) -> None:
        for name, kind in (("weight_format", WeightFormat), ("granularity", Granularity)):
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError:
                raise SpecError(f"{name}={getattr(self, name)!r}, expected one of {[str(k) for k in kind]}") from None
        self._require(_is_int(self.weight_bit_width) and 1 <= self.weight_bit_width <= 8, "weight_bit_width", "1..8")
        allowed = _is_int(self.act_bit_width) and (1 <= self.act_bit_width <= 8 or self.act_bit_width == 16)
        self._require(allowed, "act_bit_width", "1..8 or 16")
        share: object = self.sparsity
        ok = not isinstance(share, bool) and isinstance(share, Real) and 0 <= float(share) <= 1
        self._require(ok, "sparsity", "a number in 0..1")
        object.__setattr__(self, "sparsity", float(self.sparsity))
        if self.weight_format is WeightFormat.DENSE:
            self._require(self.sparsity == 0, "sparsity", "0 for weight_format='dense'")
        if self.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
            self._require(self.weight_bit_width == 1, "weight_bit_width", "1 for weight_format='binary_plus_sparse'")

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise SpecError(f"{name}={getattr(self, name)!r}, expected {expected}")

    @property
    def density(self) -> float:
        """Share of weight groups in the sparse plane (1 for `dense`)."""
        return 1.0 - self.sparsity

    @property
    def stored_bit_width(self) -> int:
        """Bits of a weight in the plane that `density` speaks of."""
        if self.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
            return SIGNIFICANT_BIT_WIDTH
        return self.weight_bit_width


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def group_shape(weight_shape: tuple[int, int, int, int], granularity: Granularity) -> tuple[int, int, int, int]:
    """Shape of the group grid: weights of shape (O, I, Kh, Kw) fall into O' * I' * Kh' * Kw' groups.

    >>> group_shape((64, 32, 3, 3), Granularity.KERNEL)
    (64, 32, 1, 1)
    """
    out_channels, in_channels, rows, columns = weight_shape
    return {
        Granularity.ELEMENT: (out_channels, in_channels, rows, columns),
        Granularity.KERNEL: (out_channels, in_channels, 1, 1),
        Granularity.CHANNEL_VECTOR: (out_channels, 1, rows, columns),
        Granularity.FILTER: (out_channels, 1, 1, 1),
    }[granularity]


def kept_groups(groups: int, sparsity: Any) -> Any:
    """Groups in the sparse plane: the density times the number of groups, rounded half up.

    The one place that turns a density into a count: masks, cost model and packer agree to the group.

    Args:
        groups: All groups.
        sparsity: A number in 0..1, or an array of them.

    Returns:
        An integer, or an array of them.
    """
    kept = (1.0 - sparsity) * groups + 0.5
    if isinstance(kept, np.ndarray):
        return np.minimum(groups, kept.astype(np.int64))
    return min(groups, int(kept))


@dataclass(frozen=True)
class NetworkConfig:
    """Precision of a whole network: one `LayerConfig` per convolution and fully connected layer.

    Args:
        layers: (layer name, configuration) in execution order; a mapping is accepted too.
        sum_bit_width: Bits at which additions, gates, `scale` and normalisations read their operands: 1..8 or 16.
        input_bit_width: Bits of the network input's codes (signed): 2..8.
        output_bit_width: Bits of the network's result codes (signed): 2..16.

    Raises:
        SpecError: A field is out of range or a layer occurs twice.
    """

    layers: tuple[tuple[str, LayerConfig], ...]
    sum_bit_width: int = 8
    input_bit_width: int = 8
    output_bit_width: int = 16

    def __post_init__(self) -> None:
        pairs = self.layers.items() if isinstance(self.layers, Mapping) else self.layers
        try:
            object.__setattr__(self, "layers", tuple((name, layer) for name, layer in pairs))
        except (TypeError, ValueError):
            raise SpecError(f"layers={self.layers!r}, expected pairs of a layer's name and its LayerConfig") from None
        seen = set[str]()
        for name, layer in self.layers:
            if not (isinstance(name, str) and isinstance(layer, LayerConfig)):
                raise SpecError(f"layer {name!r}: {layer!r}, expected a layer's name and its LayerConfig")
            if name in seen:
                raise SpecError(f"layer {name!r} is configured twice")
            seen.add(name)
        for name, allowed in (
            ("sum_bit_width", (*range(1, 9), 16)),
            ("input_bit_width", range(2, 9)),
            ("output_bit_width", range(2, 17)),
        ):
            value = getattr(self, name)
            if not _is_int(value) or value not in allowed:
                raise SpecError(f"{name}={value!r}, expected one of {list(allowed)}")

    @cached_property
    def by_name(self) -> Mapping[str, LayerConfig]:
        """Layer configurations by layer name."""
        return dict(self.layers)

    def __getitem__(self, name: str) -> LayerConfig:
        try:
            return self.by_name[name]
        except KeyError:
            raise SpecError(f"layer {name!r} has no configuration; configured are {list(self.by_name)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.layers)

    def check_matches(self, network: NetworkSpec) -> None:
        """Raises `SpecError` unless exactly the weighted layers of `network` are configured, sharing ones alike."""
        want = [layer.name for layer in network.weighted]
        missing = [name for name in want if name not in self.by_name]
        known = set(want)
        unknown = [name for name in self.by_name if name not in known]
        if missing or unknown:
            raise SpecError(
                f"configuration does not match network {network.name!r}: missing {missing}, unknown {unknown}; "
                f"layers with weights are {want}"
            )
        for layer in network.weighted:
            if layer.weights_of is not None and self[layer.name] != self[layer.weights_of]:
                raise SpecError(
                    f"layer {layer.name!r} uses the weights of {layer.weights_of!r}, but is configured "
                    f"{self[layer.name]}, not {self[layer.weights_of]}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        plain = asdict(self)
        plain["layers"] = {name: asdict(layer) for name, layer in self.layers}
        return {"version": VERSION, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Inverse of `to_dict`.

        Raises:
            SpecError: The version is another one, or a field is unknown, missing or invalid.
        """
        if not isinstance(data, Mapping):
            raise SpecError(f"a network configuration is {type(data).__name__}, expected fields with values")
        values = dict(data)
        version = values.pop("version", None)
        if version != VERSION:
            raise SpecError(f"version={version!r} of a network configuration, expected {VERSION}")
        layers, described = [], values.pop("layers", {})
        if not isinstance(described, Mapping):
            raise SpecError(f"layers={described!r} of a network configuration, expected configurations by layer name")
        for name, layer in described.items():
            try:
                layers.append((name, LayerConfig(**layer)))
            except (TypeError, SpecError) as error:
                raise SpecError(f"layer {name!r}: {error}") from error
        try:
            return cls(layers=tuple(layers), **values)
        except TypeError as error:
            raise SpecError(f"network configuration: {error}") from error


def uniform(
    network: NetworkSpec,
    weight_bit_width: int,
    act_bit_width: int,
    *,
    end_bit_width: int | None = 8,
    sum_bit_width: int = 8,
) -> NetworkConfig:
    """The same dense precision for every layer; the first and last weighted layer at `end_bit_width`.

    Args:
        network: The network to configure.
        weight_bit_width: 1..8, for the layers between first and last.
        act_bit_width: 1..8 or 16, for the layers between first and last.
        end_bit_width: Weight and activation bits of first and last layer; `None` treats them like the others.  The
            last one in execution order, also where a network has several results.
        sum_bit_width: As in `NetworkConfig`.

    Raises:
        SpecError: No layer has weights, or a width is out of range.
    """
    require_type("network", network, NetworkSpec, "load_network reads one")
    network.require_weights()
    owners = {layer.name: layer.weights_of or layer.name for layer in network.weighted}
    names = list(owners)
    body = LayerConfig(weight_bit_width, act_bit_width)
    end = body if end_bit_width is None else LayerConfig(end_bit_width, end_bit_width)
    ends = (owners[names[0]], owners[names[-1]])
    layers = {name: end if owner in ends else body for name, owner in owners.items()}
    return NetworkConfig(tuple(layers.items()), sum_bit_width=sum_bit_width)


LOOKUP_BIT_WIDTH = 8
"""Most bits that a table of codes asks for: 256 entries."""


def operand_bit_width(layer: LayerSpec, sum_bit_width: int) -> int | None:
    """Bits at which an operation without weights reads its operands; None where it passes on what is asked of it."""
    if layer.op in (Op.ADD, Op.MUL, *AFFINE):
        return sum_bit_width
    return min(sum_bit_width, LOOKUP_BIT_WIDTH) if layer.op is Op.LOOKUP else None


def ofm_bit_widths(network: NetworkSpec, config: NetworkConfig) -> dict[str, int]:
    """Bits of each tensor as its producer writes it, by producer name (`"input"` included).

    A tensor is as wide as its widest reader asks for; pooling, concatenation and other relaying layers ask for
    what is asked of them; of the others see `operand_bit_width`.  Results of the network have `output_bit_width`.
    """
    widths: dict[str, int] = {}

    def asked_by(reader: LayerSpec) -> int:
        if reader.has_weights:
            return config[reader.name].act_bit_width
        return operand_bit_width(reader, config.sum_bit_width) or widths[reader.name]

    for name in (*(layer.name for layer in reversed(network.layers)), INPUT):
        readers = network.consumers[name]
        asked = [asked_by(reader) for reader in readers]
        widths[name] = max([*asked, config.output_bit_width] if name in network.outputs else asked)
    widths[INPUT] = config.input_bit_width
    return widths
