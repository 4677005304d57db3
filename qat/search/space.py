"""Which configurations a search may choose: per layer an ordered list of choices; tied layers share one dimension.

A *point* holds one choice per dimension; *layer indices* hold one choice per layer, as cost functions read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hwmodel.errors import SpecError
from hwmodel.network import LayerSpec, NetworkSpec
from hwmodel.precision import Granularity, LayerConfig, NetworkConfig, WeightFormat, group_shape
from hwmodel.storage import stored, weight_storage
from qat.errors import ConfigError, SearchError
from qat.patterns import matching
from qat.search.noise import group_weights_of, relative_noise
from qat.search.trial import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """What one layer may be.

    Args:
        weight_bit_widths: Dense bit widths, each 1..8.
        significant_densities: For `binary_plus_sparse`, offered if 1 is among the bit widths: shares of significant
            weights in [0, 1); 0 is plain dense 1 bit and offered anyway.
        binary_densities: For `sparse` with 1 bit: shares of weights kept, in (0, 1).
        sparse_densities: For `sparse` with two or more bits: shares of weights kept, in (0, 1).
        granularities: Which weights are kept together: each is a choice of its own at each density.
        act_bit_widths: Bits of the codes that the layer may read, each 1..8 or 16.

    Raises:
        ConfigError: A field is out of range.
    """

    weight_bit_widths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    significant_densities: tuple[float, ...] = (0.01, 0.02, 0.05)
    binary_densities: tuple[float, ...] = ()
    sparse_densities: tuple[float, ...] = (0.5, 0.25)
    granularities: tuple[Granularity, ...] = (Granularity.ELEMENT,)
    act_bit_widths: tuple[int, ...] = (4,)

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ConfigError(f"{name}={value!r}, expected a list")
            object.__setattr__(self, name, tuple(value))
        bits = self.weight_bit_widths
        if not bits or any(not isinstance(b, int) or isinstance(b, bool) or not 1 <= b <= 8 for b in bits):
            raise ConfigError(f"weight_bit_widths={list(bits)!r}, expected at least one of 1..8")
        low_is_allowed = {"significant_densities": True, "binary_densities": False, "sparse_densities": False}
        for name, allows_zero in low_is_allowed.items():
            for density in getattr(self, name):
                numeric = isinstance(density, int | float) and not isinstance(density, bool)
                if not numeric or not (0 <= density < 1) or (density == 0 and not allows_zero):
                    raise ConfigError(
                        f"{name} holds {density!r}, expected a share in {'[0, 1)' if allows_zero else '(0, 1)'}"
                    )
        try:
            object.__setattr__(self, "granularities", tuple(Granularity(name) for name in self.granularities))
        except ValueError:
            words = [str(granularity) for granularity in Granularity]
            raise ConfigError(f"granularities={list(self.granularities)!r}, expected some of {words}") from None
        if not self.granularities:
            raise ConfigError("granularities=[], expected at least one")
        widths = self.act_bit_widths
        if not widths or any(width not in (*range(1, 9), 16) for width in widths):
            raise ConfigError(f"act_bit_widths={list(widths)!r}, expected at least one of 1..8 and 16")

    def choices(self) -> tuple[LayerConfig, ...]:
        """Every configuration that the rule allows, without repetition; activation bits change fastest."""
        found: list[LayerConfig] = []
        widest = max(self.act_bit_widths)
        for bits in sorted(set(self.weight_bit_widths)):
            found.append(LayerConfig(bits, widest))
            for density in sorted(set(self.binary_densities if bits == 1 else self.sparse_densities)):
                found += self._with_plane(bits, density, WeightFormat.SPARSE)
            for density in sorted(set(self.significant_densities) - {0}) if bits == 1 else ():
                found += self._with_plane(1, density, WeightFormat.BINARY_PLUS_SPARSE)
        widths = sorted(set(self.act_bit_widths))
        return tuple(replace(choice, act_bit_width=width) for choice in found for width in widths)

    def _with_plane(self, bits: int, density: float, weight_format: WeightFormat) -> list[LayerConfig]:
        # Rounding keeps 1 - 0.02 from becoming 0.97999..., so that files and tables stay readable.
        widest = max(self.act_bit_widths)
        return [
            LayerConfig(bits, widest, round(1 - density, 9), weight_format, granularity)
            for granularity in dict.fromkeys(self.granularities)
        ]

    def may_be_tied_to(self, other: LayerRule) -> bool:
        """Whether both offer the same choices; given activation bits may differ, searched ones may not."""
        given = len(self.act_bit_widths) == len(other.act_bit_widths) == 1
        alike = self if not given else replace(self, act_bit_widths=other.act_bit_widths)
        return alike == other


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """How a space is made from a network.

    Args:
        rule: What a layer may be unless a pattern says otherwise.
        first_act_bit_width: Bits of the codes that the first layer reads: the network's input.
        layers: Restrictions, each an fnmatch pattern of layer names and `{field of LayerRule: value}`; later ones
            override earlier ones field by field.
        groups: Each a list of patterns; the layers that match any of them are tied: they take the same choice.
        sum_bit_width: As in `NetworkConfig`.
        input_bit_width: As in `NetworkConfig`.
        output_bit_width: As in `NetworkConfig`.
    """

    rule: LayerRule = LayerRule()
    first_act_bit_width: int = 8
    layers: Sequence[tuple[str, Mapping[str, Any]]] = ()
    groups: Sequence[Sequence[str]] = ()
    sum_bit_width: int = 8
    input_bit_width: int = 8
    output_bit_width: int = 16


@dataclass(frozen=True)
class SearchSpace:
    """Choices of every layer and which layers are tied.

    Args:
        layers: Layer names in execution order.
        weights: Number of weights of each layer; 0 for one that uses another layer's, to which it is tied.
        choices: Per layer its configurations, cheapest first.
        stored_bits: Per layer and choice everything that is stored for its weights, in bits.
        noise: Per layer and choice the relative noise of Gaussian weights.
        groups: Partition of the layer columns into dimensions; a dimension's layers have equally many choices.
        sum_bit_width: As in `NetworkConfig`.
        input_bit_width: As in `NetworkConfig`.
        output_bit_width: As in `NetworkConfig`.

    Raises:
        ConfigError: Lengths differ, a layer has no choice, or groups are no partition.
    """

    layers: tuple[str, ...]
    weights: tuple[int, ...]
    choices: tuple[tuple[LayerConfig, ...], ...] = field(repr=False)
    stored_bits: tuple[tuple[int, ...], ...] = field(repr=False)
    noise: tuple[tuple[float, ...], ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...] = field(repr=False)
    sum_bit_width: int = 8
    input_bit_width: int = 8
    output_bit_width: int = 16

    def __post_init__(self) -> None:
        count = len(self.layers)
        if not count or {len(self.weights), len(self.choices), len(self.stored_bits), len(self.noise)} != {count}:
            raise ConfigError("a search space needs layers, and weights, choices, stored_bits and noise for each")
        for name, choices, bits, noise in zip(self.layers, self.choices, self.stored_bits, self.noise, strict=True):
            if not choices or not len(choices) == len(bits) == len(noise):
                raise ConfigError(
                    f"layer {name!r} has {len(choices)} choices, {len(bits)} stored sizes and {len(noise)} noises"
                )
        if sorted(column for group in self.groups for column in group) != list(range(count)):
            raise ConfigError(f"groups {self.groups!r} are no partition of the {count} layers")
        for group in self.groups:
            if len({len(self.choices[column]) for column in group}) != 1:
                raise ConfigError(f"tied layers {[self.layers[c] for c in group]} have different numbers of choices")

    @classmethod
    def from_network(cls, network: NetworkSpec, settings: SpaceSettings | None = None) -> SearchSpace:
        """The space of a network.

        Raises:
            ConfigError: A rule is out of range, a pattern matches no layer, a layer is in two groups, or tied layers
                may not be the same.
        """
        settings = settings or SpaceSettings()
        names = [layer.name for layer in network.weighted]
        if not names:
            raise ConfigError(f"network {network.name!r} has no layer with weights, nothing to search")
        owners = [layer.weights_of or layer.name for layer in network.weighted]
        rules = _rules(names, owners, settings)
        groups = _groups(names, owners, settings.groups)
        ordered: dict[str, tuple[LayerConfig, ...]] = {}
        for group in groups:
            members = [names[column] for column in group]
            lead = rules[members[0]]
            for name in members[1:]:
                if not rules[name].may_be_tied_to(lead):
                    raise ConfigError(
                        f"tied layers {members[0]!r} and {name!r} have different rules; give them the same, "
                        "or do not tie them"
                    )
            specs = [network.by_name[name] for name in members]
            offered = [rules[name].choices() for name in members]
            rows = _different(specs, offered)
            sizes = [
                sum(_stored_bits(spec, choices[i]) for spec, choices in zip(specs, offered, strict=True)) for i in rows
            ]
            order = [rows[i] for i in np.argsort(sizes, kind="stable")]
            for name, choices in zip(members, offered, strict=True):
                ordered[name] = tuple(choices[i] for i in order)
        return cls(
            layers=tuple(names),
            weights=tuple(layer.weights if layer.owns_weights else 0 for layer in network.weighted),
            choices=tuple(ordered[name] for name in names),
            stored_bits=tuple(
                tuple(_stored_bits(network.by_name[name], choice) for choice in ordered[name]) for name in names
            ),
            noise=tuple(
                tuple(
                    relative_noise(choice, group_weights_of(network.by_name[name], choice.granularity))
                    for choice in ordered[name]
                )
                for name in names
            ),
            groups=groups,
            sum_bit_width=settings.sum_bit_width,
            input_bit_width=settings.input_bit_width,
            output_bit_width=settings.output_bit_width,
        )

    # -- shape ----------------------------------------------------------------------------------------------------

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """Name of each dimension: its layers with weights of their own, joined by `+`."""
        return tuple("+".join(self.layers[column] for column in group if self.weights[column]) for group in self.groups)

    @cached_property
    def sizes(self) -> IntArray:
        """Number of choices of each dimension; shape (dimensions,)."""
        return np.array([len(self.choices[group[0]]) for group in self.groups], dtype=np.int64)

    @cached_property
    def dimension_choices(self) -> tuple[tuple[LayerConfig, ...], ...]:
        """Per dimension the choices of its first layer."""
        return tuple(self.choices[group[0]] for group in self.groups)

    @cached_property
    def dimension_bits(self) -> tuple[FloatArray, ...]:
        """Per dimension the stored bits of each choice, summed over its layers."""
        return tuple(
            np.sum([self.stored_bits[column] for column in group], axis=0, dtype=np.float64) for group in self.groups
        )

    @cached_property
    def dimension_noise(self) -> tuple[FloatArray, ...]:
        """Per dimension the relative noise of Gaussian weights of each choice, the mean over its layers' weights."""
        return tuple(
            np.average([self.noise[column] for column in group], axis=0, weights=[self.weights[c] for c in group])
            for group in self.groups
        )

    @cached_property
    def act_bit_widths(self) -> tuple[tuple[int, ...], ...]:
        """Per dimension the activation bits among which it chooses, fewest first."""
        return tuple(tuple(sorted({choice.act_bit_width for choice in row})) for row in self.dimension_choices)

    @property
    def searches_activations(self) -> bool:
        """Whether a dimension has more than one width of activations."""
        return any(len(widths) > 1 for widths in self.act_bit_widths)

    @cached_property
    def choices_by_layer(self) -> dict[str, tuple[LayerConfig, ...]]:
        """Choices by layer name, in the order of layer indices: what `hwmodel.table.CostTable` takes."""
        return dict(zip(self.layers, self.choices, strict=True))

    # -- points ---------------------------------------------------------------------------------------------------

    def check_points(self, points: ArrayLike) -> IntArray:
        """`points` as integers of shape (n, dimensions).

        Raises:
            SearchError: The shape is another one, or a choice does not exist.
        """
        array = np.asarray(points)
        if array.ndim != 2 or array.shape[1] != len(self.sizes) or array.dtype.kind not in "iu":
            raise SearchError(
                f"points of shape {array.shape} and dtype {array.dtype}, expected integers of shape "
                f"(n, {len(self.sizes)})"
            )
        outside = (array < 0) | (array >= self.sizes)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise SearchError(
                f"points[{row}, {column}]={array[row, column]}: {self.dimensions[column]!r} has choices "
                f"0..{self.sizes[column] - 1}"
            )
        return array.astype(np.int64)

    def layer_indices(self, points: ArrayLike) -> IntArray:
        """Choice of each layer; shape (n, layers) from points of shape (n, dimensions)."""
        return self.check_points(points)[:, self._dimension_of_layer]

    @cached_property
    def _dimension_of_layer(self) -> IntArray:
        owner = np.zeros(len(self.layers), dtype=np.int64)
        for dimension, group in enumerate(self.groups):
            owner[list(group)] = dimension
        return owner

    def config(self, point: Sequence[int] | IntArray) -> NetworkConfig:
        """The configuration that a point means."""
        row = self.layer_indices(np.asarray(point)[None, :])[0]
        layers = tuple((name, self.choices[i][row[i]]) for i, name in enumerate(self.layers))
        return NetworkConfig(layers, self.sum_bit_width, self.input_bit_width, self.output_bit_width)

    def point(self, config: NetworkConfig) -> tuple[int, ...]:
        """Inverse of `config`.

        Raises:
            SearchError: The configuration is not in the space; the message names the layer.
        """
        point = []
        for group in self.groups:
            found = set()
            for column in group:
                name = self.layers[column]
                layer = config[name]
                if layer not in self.choices[column]:
                    raise SearchError(f"layer {name!r}: {layer} is not among the choices of the search space")
                found.add(self.choices[column].index(layer))
            if len(found) > 1:
                raise SearchError(f"tied layers {[self.layers[c] for c in group]} are configured differently")
            point.append(found.pop())
        return tuple(point)

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """Uniformly random points; shape (count, dimensions)."""
        return rng.integers(0, self.sizes, size=(count, len(self.sizes)))

    def mean_bits(self, config: NetworkConfig) -> float:
        """Mean stored bits per weight without index, scale and bias: what a table calls `bits`."""
        total = 0.0
        for name, weights in zip(self.layers, self.weights, strict=True):
            layer = config[name]
            plain = 1 if layer.weight_format is WeightFormat.BINARY_PLUS_SPARSE else 0
            total += weights * (plain + layer.density * layer.stored_bit_width)
        return total / sum(self.weights)

    def mean_density(self, config: NetworkConfig) -> float:
        """Share of all weights that are not zero; the sign plane counts."""
        kept = 0.0
        for name, weights in zip(self.layers, self.weights, strict=True):
            layer = config[name]
            kept += weights * (layer.density if layer.weight_format is WeightFormat.SPARSE else 1.0)
        return kept / sum(self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what a store compares before it resumes."""
        return {
            "layers": {
                name: {
                    "weights": weights,
                    "choices": [_label(choice) for choice in choices],
                }
                for name, weights, choices in zip(self.layers, self.weights, self.choices, strict=True)
            },
            "dimensions": list(self.dimensions),
            "sum_bit_width": self.sum_bit_width,
            "input_bit_width": self.input_bit_width,
            "output_bit_width": self.output_bit_width,
        }


def _stored_bits(layer: LayerSpec, choice: LayerConfig) -> int:
    bits: int = stored(layer, weight_storage(layer, choice)).total_bits
    return bits


def _different(layers: Sequence[LayerSpec], offered: Sequence[Sequence[LayerConfig]]) -> list[int]:
    """Which choices of tied layers are not an earlier one under another name, as kernels of 1x1 are elements."""
    seen: dict[object, int] = {}
    for i, row in enumerate(zip(*offered, strict=True)):
        grids = [group_shape(layer.weight_shape, choice.granularity) for layer, choice in zip(layers, row, strict=True)]
        plain = [replace(choice, granularity=Granularity.ELEMENT) for choice in row]
        seen.setdefault((tuple(grids), tuple(plain)), i)
    return list(seen.values())


def _label(choice: LayerConfig) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(choice).items())


def _rules(names: Sequence[str], owners: Sequence[str], settings: SpaceSettings) -> dict[str, LayerRule]:
    """Rule of each layer; what is said of one call of a layer is said of all."""
    owner_of = dict(zip(names, owners, strict=True))
    rules = dict.fromkeys(owners, settings.rule)
    rules[names[0]] = replace(settings.rule, act_bit_widths=(settings.first_act_bit_width,))
    known = [f.name for f in fields(LayerRule)]
    for pattern, changes in settings.layers:
        named = matching(pattern, names, "search.layers")
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise ConfigError(f"search.layers[{pattern!r}] has unknown fields {unknown}, expected some of {known}")
        for owner in dict.fromkeys(owner_of[name] for name in named):
            try:
                rules[owner] = replace(rules[owner], **changes)
            except (ConfigError, SpecError) as error:
                raise ConfigError(f"search.layers[{pattern!r}]: {error}") from error
    return {name: rules[owner] for name, owner in owner_of.items()}


def _groups(
    names: Sequence[str], owners: Sequence[str], patterns: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], ...]:
    """Columns that are tied: by patterns, and because they are calls of one layer."""
    owner_of = dict(zip(names, owners, strict=True))
    number_of: dict[str, int] = {}
    for number, group in enumerate(patterns):
        if isinstance(group, str):
            raise ConfigError(f"search.groups[{number}]={group!r}, expected a list of patterns")
        for pattern in group:
            for name in matching(pattern, names, f"search.groups[{number}]"):
                known = number_of.setdefault(owner_of[name], number)
                if known != number:
                    raise ConfigError(f"layer {name!r} is in search.groups {known} and {number}, expected one")
    groups: dict[object, list[int]] = {}
    for column, owner in enumerate(owners):
        groups.setdefault(number_of.get(owner, owner), []).append(column)
    return tuple(tuple(columns) for columns in groups.values())
