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


@dataclass(frozen=True)
class Choices:
    """Choices of one layer.

    Args:
        configs: Each choice.
        kinds: The choices by what they have in common.
        act_bits: Shape (choices,): bits that each reads.
        act_widths: The distinct ones of `act_bits`.
    """

    configs: Sequence[LayerConfig]
    kinds: tuple[Kind, ...]
    act_bits: Array
    act_widths: frozenset[int]


def by_kind(configs: Sequence[LayerConfig]) -> Choices:
    """Sorts the choices of one layer, at least one, by kind."""
    acts = np.array([config.act_bit_width for config in configs], dtype=np.int64)
    keys = np.array([config.weight_bit_width for config in configs], dtype=np.int64) * 32 + acts
    # Members of an enumeration are single objects, and the hash of one is slow.
    formats = np.array([id(config.weight_format) for config in configs], dtype=np.int64)
    granularities = np.array([id(config.granularity) for config in configs], dtype=np.int64)
    for objects, kinds in ((formats, WeightFormat), (granularities, Granularity)):
        keys *= len(kinds)
        for number, kind in enumerate(kinds):
            keys += number * (objects == id(kind))
    densities = np.array([config.sparsity for config in configs], dtype=np.float64)
    found = []
    for key in np.flatnonzero(np.bincount(keys)):
        members = np.flatnonzero(keys == key)
        found.append(Kind(configs[members[0]], members, densities[members]))
    return Choices(configs, tuple(found), acts, frozenset(np.flatnonzero(np.bincount(acts)).tolist()))
