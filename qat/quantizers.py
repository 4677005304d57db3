"""Fake quantization of weights and activations, with learned step sizes (LSQ).

A quantizer maps floats to integer codes times a step: `scale * clamp(round(x / scale), quant_min, quant_max)`.
All quantizers are symmetric (zero_point 0).  Gradients are straight-through: the input's passes where the code is
not clamped; the step's is LSQ's.

Steps are learned as `log2_scale`: an Adam step then changes the step by a fixed share, whatever its size, and a
step can never become zero or negative.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020 (arXiv 1902.08153), eq. 1-5, section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwmodel.precision import SIGNIFICANT_BIT_WIDTH, LayerConfig, WeightFormat
from qat.integer import BINARY_SHIFT
from qat.masks import expand_mask, gradual_sparsity, pick_mask
from qat.sampling import spread_places


class ScaleRule(StrEnum):
    """Which values the steps of codes may have."""

    LEARNED = "learned"  # any value > 0
    POWER_OF_TWO = "power_of_two"  # 2**k, learned straight-through


SCALE_CANDIDATES = 48
"""Steps tried per channel or tensor when a quantizer is initialised by least squares."""

CACHED_VALUES = 1 << 16
"""Values of a temporary tensor that a CPU's cache holds beside others."""

CALIBRATION_SAMPLES = 1 << 16
"""Values of an activation tensor that the least-squares search looks at, at least."""


def quant_range(bit_width: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code.

    >>> quant_range(4, signed=True), quant_range(4, signed=False)
    ((-8, 7), (0, 15))
    """
    if signed:
        return -(1 << (bit_width - 1)), (1 << (bit_width - 1)) - 1
    return 0, (1 << bit_width) - 1


class _FakeQuantize(torch.autograd.Function):
    """LSQ run eagerly, in few passes over memory; one step for the whole tensor, a leaky ReLU before it.

    The step's gradient, sum(g * (code - x/scale)) inside the range and sum(g * code) outside, is computed as
    sum(g * out) / scale - sum(g_x * x/scale): two dot products instead of the codes once more.  x/scale is kept in
    place of x, so that the range's ends are plain numbers and no step is read back from a device.

    On a CPU a pass over new memory costs several times one over memory that was touched before: with `consume` the
    result is written over x, which needs float32.
    """

    @staticmethod
    def forward(ctx, x, scale, quant_min, quant_max, negative_slope=1.0, consume=False):  # type: ignore[no-untyped-def]
        ctx.negative_slope, ctx.quant_range = negative_slope, (quant_min, quant_max)
        if negative_slope != 1:
            steps = F.leaky_relu(x, negative_slope).mul_(1.0 / scale)
        else:
            steps = torch.mul(x, 1.0 / scale) if x.dtype == torch.float32 else x.float().mul_(1.0 / scale)
        if consume:
            out = torch.round(steps, out=x).clamp_(quant_min, quant_max).mul_(scale)
            ctx.mark_dirty(x)
        else:
            out = steps.round().clamp_(quant_min, quant_max).mul_(scale)
            out = out if x.dtype == torch.float32 else out.to(x.dtype)
        ctx.save_for_backward(steps.to(x.dtype), scale, out)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        steps, scale, out = ctx.saved_tensors
        quant_min, quant_max = ctx.quant_range
        grad_x = torch.ops.aten.hardtanh_backward(grad, steps, quant_min, quant_max)
        lsq = 1.0 / math.sqrt(steps.numel() * max(quant_max, 1))
        grad_scale = (_dot(grad, out) / scale - _dot(grad_x, steps)) * lsq
        if ctx.negative_slope != 1:
            backward = torch.ops.aten.leaky_relu_backward.grad_input  # x/scale has the sign of the ReLU's input
            backward(grad_x, steps, ctx.negative_slope, True, grad_input=grad_x)
        return grad_x, grad_scale.reshape(scale.shape), None, None, None, None


class _FusedFakeQuantize(torch.autograd.Function):
    """The same for torch.compile, which joins operations by itself where they keep to the order of values in memory.

    Hence no flat views: convolutions hand their results on channels last, and a dot product over the flattened tensor
    made inductor gather its operands value by value.  The step's gradient is one sum, whose terms are computed from x
    anew; codes are those of `_FakeQuantize`, bit for bit.
    """

    @staticmethod
    def forward(ctx, x, scale, quant_min, quant_max):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, scale)
        ctx.quant_range = quant_min, quant_max
        out = (x.float() * (1.0 / scale)).round().clamp(quant_min, quant_max) * scale
        return out if x.dtype == torch.float32 else out.to(x.dtype)  # see `_times` on operations that do nothing

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, scale = ctx.saved_tensors
        quant_min, quant_max = ctx.quant_range
        steps = x.float() * (1.0 / scale)
        inside = (steps > quant_min) & (steps < quant_max)
        codes = steps.round().clamp(quant_min, quant_max)
        slope = torch.where(inside, codes - steps, codes)
        lsq = 1.0 / math.sqrt(steps.numel() * max(quant_max, 1))
        return torch.where(inside, grad, 0.0), _sum_by_channel(grad * slope) * lsq, None, None


def _times(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes times scale, written over the codes but in compiled graphs.

    torch 2.11 compiles a function whose last operation works in place, or does nothing, without its backward: the
    gradient is then zero, silently (`tests/qat/test_quantizers.py::test_training_is_one_graph` notices).
    """
    return codes * scale if torch.compiler.is_compiling() else codes.mul_(scale)


def _sum_by_channel(a: Tensor) -> Tensor:
    """Sum of all values, over each channel first: batch norm's gradient sums so too, and both become one pass.

    A sum over everything at once was a pass of its own, and where a shortcut has a projection inductor laid out the
    sum of both branches in another order than its operands, to be transposed by all who read it.
    """
    return a.sum([axis for axis in range(a.dim()) if axis != 1]).sum()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products in float32; torch.dot would round a bfloat16 result to 8 bits."""
    if a.dtype == torch.float32:
        if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
            a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # as they lie: flattening copies nothing
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return (a * b).sum(dtype=torch.float32)


class _RoundWeights(torch.autograd.Function):
    """LSQ with a step per output channel; weights at the range's ends still learn, as those that were rounded do."""

    @staticmethod
    def forward(ctx, weight_OIHW, scale_O111, quant_min, quant_max):  # type: ignore[no-untyped-def]
        out = _times((weight_OIHW / scale_O111).round_().clamp_(quant_min, quant_max), scale_O111)
        ctx.save_for_backward(weight_OIHW, scale_O111, out)
        ctx.quant_range = quant_min, quant_max
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        weight_OIHW, scale_O111, out = ctx.saved_tensors
        quant_min, quant_max = ctx.quant_range
        ends = quant_min - _END_MARGIN, quant_max + _END_MARGIN  # the operation itself leaves its ends out
        grad_weight = weight_OIHW / scale_O111
        torch.ops.aten.hardtanh_backward.grad_input(grad, grad_weight, *ends, grad_input=grad_weight)
        grad_scale = (_row_dots(grad, out) - _row_dots(grad_weight, weight_OIHW)) / scale_O111
        return grad_weight, grad_scale, None, None


class _SignWeights(torch.autograd.Function):
    """-2**shift or +2**shift steps (zero counts as +); the weight's gradient passes, the step's is the code.

    Source: Rastegari et al., XNOR-Net (arXiv 1603.05279), section 3.1, with the scale learned.
    """

    @staticmethod
    def forward(ctx, weight_OIHW, scale_O111, shift):  # type: ignore[no-untyped-def]
        magnitude = scale_O111 * (1 << shift)
        out = torch.where(weight_OIHW >= 0, magnitude, -magnitude)
        ctx.save_for_backward(scale_O111, out)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        scale_O111, out = ctx.saved_tensors
        return grad, _row_dots(grad, out) / scale_O111, None


_END_MARGIN = 2.0**-10


def _row_dots(a_OIHW: Tensor, b_OIHW: Tensor) -> Tensor:
    """Sum of products per output channel, shape (O, 1, 1, 1)."""
    if torch.compiler.is_compiling():
        return (a_OIHW * b_OIHW).sum((1, 2, 3), keepdim=True)
    a_ON, b_ON = a_OIHW.flatten(1), b_OIHW.flatten(1)
    if a_ON.is_cpu:  # a part's products stay in the cache
        rows = max(1, CACHED_VALUES // a_ON.shape[1])
        parts = zip(torch.split(a_ON, rows), torch.split(b_ON, rows), strict=True)
        dots = torch.cat([torch.linalg.vecdot(*part) for part in parts])
    else:
        dots = torch.linalg.vecdot(a_ON, b_ON)
    return dots[:, None, None, None]


class ActQuantizer(nn.Module):
    """Activation quantizer: one learned step per tensor.

    Args:
        bit_width: 1..16.
        signed: Whether codes may be negative.
        scale_rule: Which values the step may have.
    """

    def __init__(self, bit_width: int, signed: bool, scale_rule: ScaleRule = ScaleRule.LEARNED) -> None:
        super().__init__()
        self.scale_rule = scale_rule
        self.bit_width = bit_width
        self.signed = signed
        self.quant_min, self.quant_max = quant_range(bit_width, signed)
        self.log2_scale = nn.Parameter(torch.zeros(()))
        self.calibrating = False

    @torch.no_grad()
    def set_bit_width(self, bit_width: int) -> None:
        """Changes the bits; the largest code keeps its value, which `fit_scale` may refine."""
        if bit_width == self.bit_width:
            return
        largest = self.quant_max
        self.bit_width = bit_width
        self.quant_min, self.quant_max = quant_range(bit_width, self.signed)
        self.log2_scale.add_(math.log2(max(largest, 1) / max(self.quant_max, 1)))

    @property
    def scale(self) -> Tensor:
        """Value of one code step, > 0; a 0-dim tensor."""
        return _step(self.log2_scale, self.scale_rule)

    def forward(self, x: Tensor, negative_slope: float = 1.0, consume: bool = False) -> Tensor:
        """Values of `x`, after a leaky ReLU, on the quantizer's grid, same shape and type.

        Args:
            x: Any shape.
            negative_slope: Of the leaky ReLU, >= 0; 1 for none.
            consume: Whether the result may be written over `x`.  What made `x` must not need it for its gradient, or
                torch refuses the backward pass.
        """
        compiling = torch.compiler.is_compiling()
        fuses = x.dtype == torch.float32 and not compiling
        if negative_slope != 1 and (self.calibrating or not fuses):
            x, negative_slope = F.leaky_relu(x, negative_slope), 1.0
        if self.calibrating:
            self.fit_scale(x)
        if compiling:
            fused: Tensor = _FusedFakeQuantize.apply(x, self.scale, self.quant_min, self.quant_max)
            return fused
        quantize: Callable[..., Tensor] = _FakeQuantize.apply
        return quantize(x, self.scale, self.quant_min, self.quant_max, negative_slope, consume and fuses)

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> None:
        """Sets the step that reproduces `x` with the least squared error."""
        values = x.detach().flatten()
        if len(values) > CALIBRATION_SAMPLES:
            values = values[spread_places(len(values), CALIBRATION_SAMPLES).to(values.device)]
        scale = _least_squares_scale(
            values.float()[None], self.quant_min, self.quant_max, x.abs().max().float().reshape(1)
        )
        self.log2_scale.copy_(torch.log2(scale).reshape(()))

    def extra_repr(self) -> str:
        """Text for print(model)."""
        return f"bit_width={self.bit_width}, signed={self.signed}"


def _least_squares_scale(values: Tensor, quant_min: int, quant_max: int, peak: Tensor) -> Tensor:
    """Step of least squared error per row.

    Args:
        values: Shape (rows, n).
        quant_min: Smallest code.
        quant_max: Largest code.
        peak: Largest magnitude per row, shape (rows,): the coarsest step tried maps it to the range's end.

    Returns:
        Steps > 0, shape (rows,).
    """
    widest = peak.clamp_min(1e-8) / max(quant_max, -quant_min if quant_max <= 1 else quant_max)
    best = widest.clone()
    best_error = torch.full_like(best, float("inf"))
    for share in torch.logspace(0, -2, SCALE_CANDIDATES).tolist():
        step = widest * share
        codes = (values / step[:, None]).round_().clamp_(quant_min, quant_max)
        error = (codes.mul_(step[:, None]) - values).square_().sum(1)
        better = error < best_error
        best = torch.where(better, step, best)
        best_error = torch.where(better, error, best_error)
    return best


def _step(log2_scale: Tensor, scale_rule: ScaleRule) -> Tensor:
    return torch.exp2(log2_scale if scale_rule is ScaleRule.LEARNED else _round_ste(log2_scale))


def _round_ste(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class WeightQuantizer(nn.Module):
    """Weight quantizer of one layer: per output channel a learned step, and the mask of its sparse plane.

    Code domains (as in `qat.integer`): `dense` and `sparse` two's complement of `weight_bit_width` bits, -1/+1 for
    one bit, 0 where pruned; `binary_plus_sparse` -16/+16 for signs, -128..127 in significant groups, so that both
    planes share one scale (the sign's magnitude is 16 steps).

    Args:
        weight: Float weights to start from, shape (O, I, Kh, Kw); linear weights as (O, I, 1, 1).
        config: Format, bit width, sparsity, granularity.
        scale_rule: Which values the steps may have.
    """

    mask: Tensor | None

    def __init__(self, weight: Tensor, config: LayerConfig, scale_rule: ScaleRule = ScaleRule.LEARNED) -> None:
        super().__init__()
        self.config = config
        self.scale_rule = scale_rule
        self.log2_scale = nn.Parameter(torch.zeros(weight.shape[0]))
        sparse = config.weight_format is not WeightFormat.DENSE
        self.register_buffer("mask", pick_mask(weight.detach(), config) if sparse else None)
        self.stale = False
        self.fit_scale(weight)

    def set_config(self, config: LayerConfig) -> None:
        """Changes the precision in place; mask and steps are chosen anew when weights are seen next.

        Choosing them takes some passes over the weights: a search that applies many configurations does not pay for
        those that it never runs.
        """
        if config == self.config:
            return
        self.config = config
        self.stale = True

    @torch.no_grad()
    def refresh(self, weight_OIHW: Tensor) -> None:
        """Chooses mask and steps if `set_config` left them to be chosen."""
        if not self.stale:
            return
        sparse = self.config.weight_format is not WeightFormat.DENSE
        self.mask = pick_mask(weight_OIHW.detach(), self.config) if sparse else None
        self.stale = False
        self.fit_scale(weight_OIHW)

    @property
    def scale(self) -> Tensor:
        """Value of one code step per output channel, shape (O, 1, 1, 1), > 0."""
        return _step(self.log2_scale, self.scale_rule)[:, None, None, None]

    @torch.no_grad()
    def fit_scale(self, weight_OIHW: Tensor) -> None:
        """Sets each channel's step: mean magnitude for signs, least squares for more bits.

        The step of a channel without kept weights suits all of them: it may be picked again.
        """
        rows = weight_OIHW.detach().float().flatten(1)
        kept = torch.ones_like(rows, dtype=torch.bool)
        if self.mask is not None:
            kept = self._element_mask(weight_OIHW).flatten(1)
        if self.config.weight_bit_width == 1:
            if self.config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
                kept = ~kept  # signs stand for the weights outside the sparse plane
            step = (rows.abs() * kept).sum(1) / kept.sum(1).clamp_min(1.0)
            step = torch.where(step > 0, step, rows.abs().mean(1))
            if self.config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
                step = step / (1 << BINARY_SHIFT)
        else:
            quant_min, quant_max = quant_range(self.config.weight_bit_width, signed=True)
            fitted = rows * (kept | ~kept.any(1, keepdim=True))
            step = _least_squares_scale(fitted, quant_min, quant_max, fitted.abs().amax(1))
        self.log2_scale.copy_(torch.log2(step.clamp_min(1e-8)))

    @torch.no_grad()
    def repick_mask(self, weight_OIHW: Tensor, gradient_OIHW: Tensor | None = None, progress: float = 1.0) -> None:
        """Chooses the groups of the sparse plane anew from the present weights; nothing to do for `dense`.

        Args:
            weight_OIHW: Float weights.
            gradient_OIHW: Of the loss, for Taylor saliency; None decides by the weights alone.
            progress: Share of a gradual schedule, see `qat.masks.gradual_sparsity`; at 1 the density is exact.
        """
        self.refresh(weight_OIHW)
        if self.mask is not None:
            config = replace(self.config, sparsity=gradual_sparsity(self.config.sparsity, progress))
            self.mask.copy_(pick_mask(weight_OIHW.detach(), config, gradient_OIHW))

    def _element_mask(self, weight_OIHW: Tensor) -> Tensor:
        assert self.mask is not None
        return expand_mask(self.mask, weight_OIHW.shape)

    def forward(self, weight_OIHW: Tensor) -> Tensor:
        """Quantized weights (codes times steps), same shape; differentiable in weights and steps."""
        if self.stale:
            self.refresh(weight_OIHW)
        return self._values(weight_OIHW, self.scale)

    @torch.no_grad()
    def codes(self, weight_OIHW: Tensor) -> Tensor:
        """Integer codes as int8, same shape: exactly those that `forward` multiplies by the steps."""
        self.refresh(weight_OIHW)
        return (self._values(weight_OIHW, self.scale) / self.scale).round().to(torch.int8)

    @torch.no_grad()
    def nearest(self, values: Tensor, scale: Tensor, kept: Tensor | None) -> Tensor:
        """Values on the grid of the layer's format, as `forward` would give for weights of these values.

        Args:
            values: Any shape.
            scale: Steps, same shape.
            kept: Whether each is in the sparse plane, same shape; None for `dense`.
        """
        config = self.config
        if config.stored_bit_width == 1:
            codes = torch.where(values >= 0, 1.0, -1.0)
        else:
            quant_min, quant_max = quant_range(config.stored_bit_width, signed=True)
            codes = (values / scale).round_().clamp_(quant_min, quant_max)
        if kept is not None:
            binary = config.weight_format is WeightFormat.BINARY_PLUS_SPARSE
            others = torch.where(values >= 0, 1.0, -1.0) * (1 << BINARY_SHIFT) if binary else torch.zeros_like(values)
            codes = torch.where(kept, codes, others)
        return codes * scale

    def _values(self, weight_OIHW: Tensor, scale_O111: Tensor) -> Tensor:
        config = self.config
        if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
            significant = _rounded(weight_OIHW, scale_O111, SIGNIFICANT_BIT_WIDTH)
            signs: Tensor = _SignWeights.apply(weight_OIHW, scale_O111, BINARY_SHIFT)
            return torch.where(self._element_mask(weight_OIHW), significant, signs)
        values = _rounded(weight_OIHW, scale_O111, config.weight_bit_width)
        if config.weight_format is WeightFormat.SPARSE:
            # Straight-through for pruned weights too: they keep learning and may be picked later.
            return torch.where(self._element_mask(weight_OIHW), values, weight_OIHW - weight_OIHW.detach())
        return values

    def extra_repr(self) -> str:
        """Text for print(model)."""
        return f"{self.config}"


def _rounded(weight_OIHW: Tensor, scale_O111: Tensor, bit_width: int) -> Tensor:
    """Values on the grid of `bit_width` bits; one bit is a sign."""
    if bit_width == 1:
        signs: Tensor = _SignWeights.apply(weight_OIHW, scale_O111, 0)
        return signs
    rounded: Tensor = _RoundWeights.apply(weight_OIHW, scale_O111, *quant_range(bit_width, signed=True))
    return rounded
