"""Which weight groups are in the sparse plane, and at what granularity.

A mask is a boolean grid with one entry per group (`hwmodel.precision.group_shape`); the number of True entries is
always exactly `hwmodel.precision.kept_groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import prod

import torch
from torch import Tensor

from hwmodel.precision import LayerConfig, WeightFormat, group_shape, kept_groups
from qat.integer import BINARY_SHIFT


class Saliency(StrEnum):
    """What decides which groups are in the sparse plane."""

    MAGNITUDE = "magnitude"  # the error of the weights
    TAYLOR = "taylor"  # the first-order change of the loss


class MaskSchedule(StrEnum):
    """How the density of the sparse planes comes about while masks are picked anew."""

    IMMEDIATE = "immediate"  # exact from the first step on
    GRADUAL = "gradual"  # falls from 1 to what was asked, see `gradual_sparsity`

    def progress(self, step: int, last: int) -> float:
        """Share of the way to the asked density when masks are picked in `step` of `last`, both >= 0.

        >>> MaskSchedule.GRADUAL.progress(5, 20), MaskSchedule.IMMEDIATE.progress(5, 20)
        (0.25, 1.0)
        """
        return step / last if self is MaskSchedule.GRADUAL and step < last else 1.0


def expand_mask(mask: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """The mask of every weight, shape `weight_shape` (O, I, Kh, Kw), from the mask of the groups."""
    return mask.expand(*weight_shape)


def gradual_sparsity(final: float, progress: float) -> float:
    """Sparsity on the way: fast at first, when much can be dropped, slow at the end.

    Args:
        final: Sparsity at the end, in [0, 1].
        progress: Share of the way, 0 (nothing dropped) to 1.

    Source:
        Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), eq. 1, from sparsity 0.

    >>> [round(gradual_sparsity(0.9, step / 4), 3) for step in range(5)]
    [0.0, 0.52, 0.788, 0.886, 0.9]
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress}, expected 0..1")
    return final * (1 - (1 - progress) ** 3) if progress < 1 else final


def pick_mask(weight_OIHW: Tensor, config: LayerConfig, gradient_OIHW: Tensor | None = None) -> Tensor:
    """Chooses the groups of the sparse plane by the error that they save.

    `sparse`: a group saves its energy, sum(w**2), if it is kept.  `binary_plus_sparse`: it saves the difference
    between the error of its signs and that of its 8-bit values.  With a gradient (Taylor saliency) it saves the
    square of the first-order change of the loss that the group's own change brings.

    Args:
        weight_OIHW: Float weights, shape (O, I, Kh, Kw).
        config: Format, sparsity, granularity.
        gradient_OIHW: Of the loss, same shape; None decides by the weights alone.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771), eq. 8.

    Returns:
        Boolean group grid with exactly `kept_groups` True entries; ties go to the lower index.
    """
    weight = weight_OIHW.detach().float()
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        magnitude = weight.abs().flatten(1).mean(1)[:, None, None, None].clamp_min(1e-12)
        # The error of the 8-bit values is rounding inside +-8 magnitudes: small, and zero for the choice at hand.
        limit = magnitude * (127 / (1 << BINARY_SHIFT))
        saved = (weight.abs() - magnitude).square() - (weight.abs() - limit).clamp_min(0.0).square()
        change = weight.clamp(-limit, limit) - torch.where(weight >= 0, magnitude, -magnitude)
    else:
        saved, change = weight.square(), weight
    shape = group_shape(tuple(weight.shape), config.granularity)  # type: ignore[arg-type]
    dims = [axis for axis in range(4) if shape[axis] != weight.shape[axis]]
    if gradient_OIHW is not None:
        saved = change * gradient_OIHW.detach().float()
    scores = saved.sum(dims, keepdim=True) if dims else saved
    if gradient_OIHW is not None:
        scores = scores.square()
    groups = prod(shape)
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    mask = torch.zeros(groups, dtype=torch.bool, device=weight.device)
    mask[order[: kept_groups(groups, config.sparsity)]] = True
    return mask.reshape(shape)
