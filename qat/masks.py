"""Which weight groups are in the sparse plane, and at what granularity.

A mask is a boolean grid with one entry per group (`hwmodel.precision.group_shape`); the number of True entries is
always exactly `hwmodel.precision.kept_groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from hwmodel.precision import LayerConfig, WeightFormat, group_shape, kept_groups
from qat.integer import BINARY_SHIFT


def expand_mask(mask: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """The mask of every weight, shape `weight_shape` (O, I, Kh, Kw), from the mask of the groups."""
    return mask.expand(*weight_shape)


def pick_mask(weight_OIHW: Tensor, config: LayerConfig) -> Tensor:
    """Chooses the groups of the sparse plane by the error that they save.

    `sparse`: a group saves its energy, sum(w**2), if it is kept.  `binary_plus_sparse`: it saves the difference
    between the error of its signs and that of its 8-bit values.

    Args:
        weight_OIHW: Float weights, shape (O, I, Kh, Kw).
        config: Format, sparsity, granularity.

    Returns:
        Boolean group grid with exactly `kept_groups` True entries; ties go to the lower index.
    """
    weight = weight_OIHW.detach().float()
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        magnitude = weight.abs().flatten(1).mean(1)[:, None, None, None].clamp_min(1e-12)
        # The error of the 8-bit values is rounding inside +-8 magnitudes: small, and zero for the choice at hand.
        limit = magnitude * (127 / (1 << BINARY_SHIFT))
        saved = (weight.abs() - magnitude).square() - (weight.abs() - limit).clamp_min(0.0).square()
    else:
        saved = weight.square()
    shape = group_shape(tuple(weight.shape), config.granularity)  # type: ignore[arg-type]
    dims = [axis for axis in range(4) if shape[axis] != weight.shape[axis]]
    scores = saved.sum(dims, keepdim=True) if dims else saved
    groups = prod(shape)
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    mask = torch.zeros(groups, dtype=torch.bool, device=weight.device)
    mask[order[: kept_groups(groups, config.sparsity)]] = True
    return mask.reshape(shape)
