"""Precision of many configurations as arrays, and sorted by kind: those of a layer that differ only in density."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodel.errors import SpecError
from hwmodel.network import NetworkSpec
from hwmodel.precision import Granularity, LayerConfig, NetworkConfig, WeightFormat

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

ENUMERATIONS: Mapping[str, tuple[StrEnum, ...]] = MappingProxyType(
    {"weight_format": tuple(WeightFormat), "granularity": tuple(Granularity)}
)
"""Values of the fields that stand as positions in these."""

WIDTHS = ("sum_bit_width", "input_bit_width", "output_bit_width")
"""Fields that hold for all layers."""


REPEATING = 1000
"""Objects of which most stand for several configurations if all of them do."""


@dataclass(frozen=True)
class Kind:
    """Configurations of one layer that differ in nothing but their density.

    Args:
        example: One of them.
        members: Shape (n,): which ones these are.
        sparsity: Shape (n,): share of groups outside the sparse plane of each.
    """

    example: LayerConfig
    members: Array
    sparsity: Floats


@dataclass(frozen=True, eq=False)
class ConfigArrays:
    """Precision of a network in many configurations: the fields of `LayerConfig` as arrays.

    Each array has a row per configuration and a column per layer, or whatever broadcasts to that shape: one value for
    all, or a row for all configurations.

    Args:
        layers: Names of the layers with weights, in execution order.
        weight_bit_width: Integers 1..8; 1 for `binary_plus_sparse`.
        act_bit_width: Integers, 1..8 or 16.
        sparsity: Numbers in 0..1; 0 for `dense`.
        weight_format: Values of `WeightFormat`, or their positions in it.
        granularity: Values of `Granularity`, or their positions in it.
        sum_bit_width: As in `NetworkConfig`, of all configurations; the others too.
        input_bit_width: See there.
        output_bit_width: See there.

    Raises:
        SpecError: A value is out of range, or arrays have other or different shapes.

    >>> arrays = ConfigArrays(("a", "b"), 1, [4, 8], [[0.9, 0.5], [0.8, 0.7]], "sparse")
    >>> len(arrays), arrays.config(1)["b"].sparsity
    (2, 0.7)
    """

    layers: tuple[str, ...]
    weight_bit_width: ArrayLike
    act_bit_width: ArrayLike
    sparsity: ArrayLike = 0.0
    weight_format: ArrayLike = WeightFormat.DENSE
    granularity: ArrayLike = Granularity.ELEMENT
    sum_bit_width: int = 8
    input_bit_width: int = 8
    output_bit_width: int = 16

    def __post_init__(self) -> None:
        NetworkConfig((), **widths(self))  # refuses widths out of range
        if not isinstance(self.layers, list | tuple) or not all(isinstance(name, str) for name in self.layers):
            raise SpecError(f"layers={self.layers!r}, expected names of layers")
        object.__setattr__(self, "layers", tuple(self.layers))
        given = {
            "weight_bit_width": self._numbers("weight_bit_width", "iu", "integers"),
            "act_bit_width": self._numbers("act_bit_width", "iu", "integers"),
            "sparsity": self._numbers("sparsity", "iuf", "numbers").astype(np.float64),
            **{name: self._positions(name, kinds) for name, kinds in ENUMERATIONS.items()},
        }
        rows = max(len(values) for values in given.values())
        for name, values in given.items():
            if len(values) not in (1, rows) or not rows:
                raise SpecError(f"{name} of {len(values)} configurations, where other arrays have {rows}; at least 1")
            object.__setattr__(self, name, np.broadcast_to(values, (rows, len(self.layers))))
        fields = self.fields
        bits, act, sparsity = (fields[name] for name in ("weight_bit_width", "act_bit_width", "sparsity"))
        dense, planes = (
            fields["weight_format"] == ENUMERATIONS["weight_format"].index(kind)
            for kind in (WeightFormat.DENSE, WeightFormat.BINARY_PLUS_SPARSE)
        )
        self._require("weight_bit_width", (bits >= 1) & (bits <= 8), "1..8")
        self._require("act_bit_width", (act >= 1) & (act <= 8) | (act == 16), "1..8 or 16")
        self._require("sparsity", (sparsity >= 0) & (sparsity <= 1), "a number in 0..1")
        self._require("sparsity", ~dense | (sparsity == 0), "0 for weight_format='dense'")
        self._require("weight_bit_width", ~planes | (bits == 1), "1 for weight_format='binary_plus_sparse'")

    def __len__(self) -> int:
        return len(self.fields["sparsity"])

    @cached_property
    def fields(self) -> dict[str, NDArray[Any]]:
        """Arrays by field, shape (n, layers); formats and granularities as positions in their enumerations."""
        names = ("weight_bit_width", "act_bit_width", "sparsity", *ENUMERATIONS)
        return {name: np.asarray(getattr(self, name)) for name in names}

    @classmethod
    def read(cls, configs: Sequence[NetworkConfig], network: NetworkSpec) -> ConfigArrays:
        """Reads configurations, at least one, that have the widths of the first in common.

        Raises:
            SpecError: One does not match the network.
        """
        names = tuple(layer.name for layer in network.weighted)
        objects: list[LayerConfig] = []
        for config in configs:
            own, layers = zip(*config.layers, strict=True) if config.layers else ((), ())
            if own != names:
                config.check_matches(network)
                layers = tuple(config[name] for name in names)
            objects += layers
        fields: dict[str, Any] = {
            name: values.reshape(len(configs), len(names)) for name, values in _read(objects).items()
        }
        return cls(names, **fields, **widths(configs[0]))

    def config(self, row: int) -> NetworkConfig:
        """One of the configurations."""
        layers = [(name, self._layer_config(row, column)) for column, name in enumerate(self.layers)]
        return NetworkConfig(tuple(layers), **widths(self))

    def check_matches(self, network: NetworkSpec) -> None:
        """Raises `SpecError` unless the layers are those of `network` with weights, sharing ones configured alike."""
        want = tuple(layer.name for layer in network.weighted)
        if self.layers != want:
            raise SpecError(
                f"layers={list(self.layers)} do not match network {network.name!r}: its layers with weights are "
                f"{list(want)}, in this order"
            )
        for column, layer in enumerate(network.weighted):
            if layer.weights_of is None:
                continue
            owner = want.index(layer.weights_of)
            for name, values in self.fields.items():
                other = values[:, column] != values[:, owner]
                if other.any():
                    row = int(other.argmax())
                    raise SpecError(
                        f"layer {layer.name!r} uses the weights of {layer.weights_of!r}, but {name} of configuration "
                        f"{row} is {self._value(name, row, column)!r}, not {self._value(name, row, owner)!r}"
                    )

    def kinds(self) -> list[list[Kind]]:
        """Configurations of each layer, by kind."""
        fields = self.fields
        keys = fields["weight_bit_width"] * 32 + fields["act_bit_width"]
        for name, enumeration in ENUMERATIONS.items():
            keys = keys * len(enumeration) + fields[name]
        by_layer = zip(np.ascontiguousarray(keys.T), np.ascontiguousarray(fields["sparsity"].T), strict=True)
        found: list[list[Kind]] = []
        for column, (own_keys, sparsity) in enumerate(by_layer):
            found.append([])
            for key in np.flatnonzero(np.bincount(own_keys)):
                members = np.flatnonzero(own_keys == key)
                found[-1].append(Kind(self._layer_config(int(members[0]), column), members, sparsity[members]))
        return found

    def _layer_config(self, row: int, column: int) -> LayerConfig:
        return LayerConfig(**{name: self._value(name, row, column) for name in self.fields})

    def _value(self, name: str, row: int, column: int) -> Any:
        """One value as it is in a `LayerConfig`."""
        value = self.fields[name][row, column].item()
        return ENUMERATIONS[name][value] if name in ENUMERATIONS else value

    def _numbers(self, name: str, dtypes: str, expected: str) -> NDArray[Any]:
        values = self._rows(name)
        if values.dtype.kind not in dtypes:
            raise SpecError(f"{name} of dtype {values.dtype}, expected {expected}")
        return values.astype(np.float64 if "f" in dtypes else np.int64)  # sums of narrower ones wrap

    def _positions(self, name: str, kinds: Sequence[StrEnum]) -> NDArray[Any]:
        values = self._rows(name)
        if values.dtype.kind in "iu":
            positions, wrong = values.astype(np.int64), (values < 0) | (values >= len(kinds))
        else:
            positions = np.full(values.shape, -1)
            for number, kind in enumerate(kinds):
                positions[values == kind] = number
            wrong = positions < 0
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            (found,) = values[row, [column]].tolist()
            self._refuse(name, row, column, found, f"one of {[str(kind) for kind in kinds]}")
        return positions

    def _rows(self, name: str) -> NDArray[Any]:
        """A field with a row per configuration, or one for all."""
        values = np.asarray(getattr(self, name))
        if values.ndim > 2 or (values.ndim and values.shape[-1] not in (1, len(self.layers))):
            raise SpecError(f"{name} of shape {values.shape}, expected (configurations, {len(self.layers)} layers)")
        return np.broadcast_to(values, (len(values) if values.ndim == 2 else 1, len(self.layers)))

    def _require(self, name: str, ok: NDArray[np.bool_], expected: str) -> None:
        if not ok.all():
            row, column = np.argwhere(~ok)[0].tolist()
            self._refuse(name, row, column, self._value(name, row, column), expected)

    def _refuse(self, name: str, row: int, column: int, value: object, expected: str) -> None:
        raise SpecError(f"layer {self.layers[column]!r}, configuration {row}: {name}={value!r}, expected {expected}")


def widths(config: NetworkConfig | ConfigArrays) -> dict[str, int]:
    """`WIDTHS` of a configuration, or of many."""
    return {name: getattr(config, name) for name in WIDTHS}


def _read(configs: Sequence[LayerConfig]) -> dict[str, NDArray[Any]]:
    """Fields of configurations by name, shape (n,)."""
    some = _ids(configs[:REPEATING])
    if 2 * len(np.unique(some)) > len(some):
        return _fields(configs)
    _, firsts, inverse = np.unique(_ids(configs), return_index=True, return_inverse=True)
    return {name: values[inverse] for name, values in _fields([configs[i] for i in firsts.tolist()]).items()}


def _fields(configs: Sequence[LayerConfig]) -> dict[str, NDArray[Any]]:
    """Fields of configurations that are mostly objects of their own, as `_read`."""
    fields: dict[str, NDArray[Any]] = {
        name: np.fromiter(map(attrgetter(name), configs), dtype, len(configs))
        for name, dtype in (("weight_bit_width", np.int64), ("act_bit_width", np.int64), ("sparsity", np.float64))
    }
    for name, kinds in ENUMERATIONS.items():  # members are single objects, and comparing them by value is slow
        ids = np.fromiter(map(id, map(attrgetter(name), configs)), np.int64, len(configs))
        fields[name] = sum(number * (ids == id(kind)) for number, kind in enumerate(kinds))
    return fields


def _ids(objects: Sequence[object]) -> Array:
    return np.fromiter(map(id, objects), np.int64, len(objects))


def by_kind(configs: Iterable[LayerConfig]) -> list[Kind]:
    """Choices of one layer, by kind."""
    found: dict[tuple[object, ...], list[tuple[int, LayerConfig]]] = {}
    for number, config in enumerate(configs):
        key = (config.weight_bit_width, config.act_bit_width, config.weight_format, config.granularity)
        found.setdefault(key, []).append((number, config))
    return [
        Kind(own[0][1], np.array([number for number, _ in own]), np.array([config.sparsity for _, config in own]))
        for own in found.values()
    ]
