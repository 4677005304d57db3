"""Post-training quantization: weights rounded so that each layer's result changes least, without training.

Rounding a weight to the nearest code makes each weight's error smallest, not the layer's.  Here weights are rounded
one after the other (in the order of a filter's products), and the error of each is passed on to those that are not
rounded yet, so that the sums over real inputs stay what they were.  One forward pass over calibration images does it:
every layer is rounded when its input arrives, with all layers before it rounded already.

Source: Frantar et al., "GPTQ", ICLR 2023 (arXiv 2210.17323), algorithm 1 (from Hassibi and Stork's optimal brain
surgeon); with a fixed mask, Frantar and Alistarh, "SparseGPT" (arXiv 2301.00774).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from qat.convert import QuantNetwork
from qat.layers import QuantWeighted, pad_uneven
from qat.sampling import spread_places


class Rounding(StrEnum):
    """How the weights of a network that is not trained become codes."""

    NEAREST = "nearest"  # each weight by itself
    LAYERWISE = "layerwise"  # so that each layer's result changes least: `quantize_after_training`


DAMPING = 0.01
"""Share of the mean second moment that is added to every input's own: keeps the inverse finite."""

MAX_ROWS = 8192
"""Input windows that a layer's second moments are estimated from at least, per group, if there are as many."""

BLOCK = 64
"""Weights whose errors are passed on inside a block first, then to the rest at once."""


@torch.no_grad()
def quantize_after_training(model: QuantNetwork, batches_NCHW: Iterable[Tensor]) -> None:
    """Calibrates a network and rounds its weights layer by layer; the cheap evaluation before training is paid for.

    Args:
        model: What `qat.prepare` or `qat.convert.apply` gave; its float weights become weights on the grid.
        batches_NCHW: Normalised images in batches.  The first one sets steps and rounds weights, all set batch-norm
            statistics.

    Raises:
        ValueError: There is no batch.
    """
    batches = list(batches_NCHW)
    model.calibrate(batches)
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: _round_weights(module, inputs[0]))
        for layer in model.weighted_layers.values()
    ]
    training = model.training
    model.eval()
    try:
        model(batches[0])
    finally:
        for hook in hooks:
            hook.remove()
    model.train(training)
    model.calibrate(batches)


def _round_weights(layer: QuantWeighted, x_NCHW: Tensor) -> None:
    """Replaces a layer's weights by values on its grid that change its sums over `x_NCHW` least."""
    if layer.input_quantizer is not None:
        x_NCHW = layer.input_quantizer(x_NCHW)
    weight_OIHW = layer.weight_OIHW
    quantizer = layer.weight_quantizer
    quantizer.refresh(weight_OIHW)
    groups, shape = layer.groups, weight_OIHW.shape
    # Everything per group of the convolution: weights (G, O/G, K), inverse second moments (G, K, K).
    weight = weight_OIHW.float().reshape(groups, shape[0] // groups, -1)
    upper = _inverse_root(_second_moments(layer, x_NCHW.float()))
    scale = quantizer.scale.float().expand(shape).reshape(weight.shape)
    mask = None if quantizer.mask is None else quantizer.mask.expand(shape).reshape(weight.shape)
    rest, rounded = weight.clone(), torch.empty_like(weight)
    size = weight.shape[2]
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = torch.zeros_like(weight[:, :, start:end])
        for place in range(start, end):
            column = rest[:, :, place]
            kept = None if mask is None else mask[:, :, place]
            value = quantizer.nearest(column, scale[:, :, place], kept)
            rounded[:, :, place] = value
            error = (column - value) / upper[:, place, place, None]
            errors[:, :, place - start] = error
            rest[:, :, place:end] -= error[:, :, None] * upper[:, place, None, place:end]
        rest[:, :, end:] -= errors @ upper[:, start:end, end:]
    layer.weight.copy_(rounded.reshape(layer.weight.shape))


def _second_moments(layer: QuantWeighted, x_NCHW: Tensor) -> Tensor:
    """Sums of products of a filter's inputs over windows, shape (groups, K, K)."""
    if layer.weight.dim() == 2:
        windows = x_NCHW.flatten(1).T[None]  # (1, K, N)
    else:
        end = layer.padding if layer.padding_end is None else layer.padding_end
        x_NCHW = pad_uneven(x_NCHW, layer.padding, end)
        kernel = layer.weight.shape[2:]
        unfolded = F.unfold(x_NCHW, kernel, layer.dilation, 0, layer.stride)  # (N, C * Kh * Kw, windows)
        windows = unfolded.transpose(0, 1).flatten(1).reshape(layer.groups, -1, unfolded.shape[0] * unfolded.shape[2])
    if windows.shape[2] > MAX_ROWS:
        windows = windows[:, :, spread_places(windows.shape[2], MAX_ROWS).to(windows.device)]
    return windows @ windows.transpose(1, 2)


def _inverse_root(moments: Tensor) -> Tensor:
    """Upper triangular U with inverse(moments) = U^T U, per group."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1).clamp_min(1e-8)
    damped = moments + torch.diag_embed(damping[:, None].expand_as(diagonal))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root
