"""Group norm and division by length in integers, in torch: the formulas of `qat.integer`."""

from __future__ import annotations

import torch
from torch import Tensor

from hwmodel.network import LayerSpec, Op
from qat.integer import NORM_FRACTION_BITS, NORM_INVERSE_BITS, NORM_ROOT_BITS


def normalize(spec: LayerSpec, epsilon: int, codes_NCHW: Tensor) -> Tensor:
    """Normalised values with `NORM_FRACTION_BITS` binary places, int64 of the same shape.

    Args:
        spec: A `group_norm` or `l2_norm`.
        epsilon: What is added to the spread of a group.
        codes_NCHW: int64.
    """
    if spec.op is Op.L2_NORM:
        return _divided(codes_NCHW, (codes_NCHW * codes_NCHW).sum(1, keepdim=True))
    groups = codes_NCHW.reshape(codes_NCHW.shape[0], spec.groups, -1)  # (N, groups, values)
    count, total = spec.normalized_values, groups.sum(2, keepdim=True)
    spread = count * (groups * groups).sum(2, keepdim=True) - total * total + epsilon
    return _divided(count * groups - total, spread).reshape(codes_NCHW.shape)


def _divided(centred: Tensor, spread: Tensor) -> Tensor:
    spread = spread.clamp_min(1)
    powers = torch.tensor([4**count for count in range(1, 31)], device=spread.device)
    exponent = torch.bucketize(spread, powers, right=True)
    places = 2 * (NORM_ROOT_BITS - 1 - exponent)
    normalised = (spread << places.clamp_min(0)) >> (-places).clamp_min(0)
    # Below 2**48, so that the root's rounding in float64 cannot reach the next integer.
    root = normalised.double().sqrt().long()
    inverse = (1 << (NORM_ROOT_BITS - 1 + NORM_INVERSE_BITS)) // root
    inverse = inverse.clamp_max((1 << NORM_INVERSE_BITS) - 1)
    shift = exponent + NORM_INVERSE_BITS - NORM_FRACTION_BITS
    return (centred * inverse + (torch.ones_like(shift) << (shift - 1))) >> shift
