"""Configurations of one layer as arrays: those that differ in nothing but their density go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.precision import Granularity, LayerConfig, WeightFormat

Array = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """Choices that differ in nothing but their density.

    Args:
        example: One of them.
        members: Shape (n,): which choices these are.
        sparsity: Shape (n,): share of groups outside the sparse plane of each.
    """

    example: LayerConfig
    members: Array
    sparsity: Floats


class Fields:
    """Fields of configurations as arrays of one shape.

    Args:
        rows: Configurations, row by row: objects lie in memory as they were made, and reading them by columns is much
            slower.
    """

    def __init__(self, rows: Sequence[Sequence[LayerConfig]]) -> None:
        weight_bits: list[int] = []
        act_bits: list[int] = []
        sparsity: list[float] = []
        formats: list[int] = []
        granularities: list[int] = []
        for row in rows:
            weight_bits += [config.weight_bit_width for config in row]
            act_bits += [config.act_bit_width for config in row]
            sparsity += [config.sparsity for config in row]
            # Members of an enumeration are single objects, and the hash of one is slow.
            formats += [id(config.weight_format) for config in row]
            granularities += [id(config.granularity) for config in row]
        shape = (len(rows), -1)
        self.act_bits = np.array(act_bits, dtype=np.int64).reshape(shape)
        self.sparsity = np.array(sparsity, dtype=np.float64).reshape(shape)
        self.keys = np.array(weight_bits, dtype=np.int64).reshape(shape) * 32 + self.act_bits
        """A number for each combination of fields other than the density."""
        for objects, kinds in ((formats, WeightFormat), (granularities, Granularity)):
            found = np.array(objects, dtype=np.int64).reshape(shape)
            self.keys *= len(kinds)
            for number, kind in enumerate(kinds):
                self.keys += number * (found == id(kind))


class ReadChoices(tuple[LayerConfig, ...]):
    """Choices of a layer whose fields have been read already.

    Attributes:
        fields: Fields of the choices, and perhaps of other layers.
        column: Column of `fields` that is of this layer.
    """

    fields: Fields
    column: int

    @classmethod
    def of(cls, configs: Sequence[LayerConfig], fields: Fields, column: int) -> ReadChoices:
        """Choices of a layer with their fields."""
        choices = cls(configs)
        choices.fields, choices.column = fields, column
        return choices


def act_bits(configs: Sequence[LayerConfig]) -> Array:
    """Bits that each choice of a layer reads, shape (choices,)."""
    if isinstance(configs, ReadChoices):
        return np.ascontiguousarray(configs.fields.act_bits[:, configs.column])
    return np.array([config.act_bit_width for config in configs], dtype=np.int64)


def by_kind(configs: Sequence[LayerConfig]) -> list[Kind]:
    """Sorts the choices of one layer by kind."""
    if isinstance(configs, ReadChoices):
        fields, column = configs.fields, configs.column
    else:
        fields, column = Fields([[config] for config in configs]), 0
    keys, sparsity = np.ascontiguousarray(fields.keys[:, column]), fields.sparsity[:, column]
    found = []
    for key in np.flatnonzero(np.bincount(keys)):
        members = np.flatnonzero(keys == key)
        found.append(Kind(configs[members[0]], members, sparsity[members]))
    return found
