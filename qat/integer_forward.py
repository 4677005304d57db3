"""Convolutions whose forward pass is computed in 8-bit integers, on CPUs.

What a quantized layer multiplies are small integers times steps.  Products and sums of the integers are exact in
int32, and a processor with AVX-512 does four times as many of them in a cycle as of float32's; both steps join at the
end.  The result is the float convolution's without its rounding.  Gradients are not small integers: the backward pass
is the float one, of the same values and weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]

MAX_BITS = 15
"""Of activation and weight codes together: processors without VNNI add two products in 16 bits."""

MAX_PRODUCTS = 1 << 16
"""Summands of a result, so that int32 holds their sum."""


def has_integer_convolutions() -> bool:
    """Whether this machine's processor and torch's build gain by integer convolutions: AVX-512 and oneDNN."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
    )


@torch.library.custom_op(
    "qat::integer_conv2d",
    mutates_args=(),
    schema="(Tensor x, int zero_point, Tensor weight, Tensor scale, Tensor? bias, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor",
)
def _integer_conv2d(
    x_NCHW: Tensor,
    zero_point: int,
    weight_OIHW: Tensor,
    scale_O: Tensor,
    bias_O: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Sums of (x - zero_point) * weight, times scale, plus bias, in float32, channels last.

    One operation to torch.compile, which would not look into oneDNN's packed weights.  `x_NCHW` is uint8, the weights
    are int8.
    """
    onednn, geometry = torch.ops.onednn, (stride, padding, dilation, groups)
    packed = onednn.qconv_prepack(weight_OIHW, scale_O, 1.0, zero_point, *geometry, list(x_NCHW.shape))
    zeros_O = torch.zeros_like(scale_O, dtype=torch.int64)
    arguments = (x_NCHW, 1.0, zero_point, packed, scale_O, zeros_O, bias_O, *geometry, 1.0, 0)
    out: Tensor = onednn.qconv2d_pointwise(*arguments, torch.float32, "none", [], "")
    return out


@_integer_conv2d.register_fake
def _(x, zero_point, weight, scale, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    rows, columns = (
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, gap in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    out = scale.new_empty((x.shape[0], weight.shape[0], rows, columns))
    return out.to(memory_format=torch.channels_last)


class _IntegerForward(torch.autograd.Function):
    """Values and weights are codes times steps, and get the float convolution's gradients."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x, weight, bias, x_scale, weight_scale_O111, zero_point, stride, padding, dilation, groups
    ):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        ctx.geometry = stride, padding, dilation, groups
        x_codes = torch.mul(x, 1.0 / x_scale).add_(zero_point + 0.5).to(torch.uint8)  # rounds, as none is negative
        weight_codes = torch.div(weight, weight_scale_O111).round_().to(torch.int8)
        scale_O = weight_scale_O111.flatten() * x_scale
        return _integer_conv2d(x_codes, zero_point, weight_codes, scale_O, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        biases = [weight.shape[0]] if ctx.has_bias else None
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias]
        arguments = (stride, padding, dilation, False, [0, 0], groups, wanted)
        grads = torch.ops.aten.convolution_backward(grad, x, weight, biases, *arguments)
        return *grads, *[None] * 7


def integer_conv2d(
    x_NCHW: Tensor,
    weight_OIHW: Tensor,
    bias_O: Tensor | None,
    scales: tuple[Tensor, Tensor],
    zero_point: int,
    geometry: tuple[Pair, Pair, Pair],
    groups: int = 1,
) -> Tensor:
    """Convolution of values and weights on grids, its forward pass in integers.

    Args:
        x_NCHW: Integers times the first scale, float32; the integers plus `zero_point` in 0..255.
        weight_OIHW: Integers -128..127 times the second scale, float32.
        bias_O: Joins in float32; or None.
        scales: Steps > 0 of values, shape (), and of weights, shape (O, 1, 1, 1); they get no gradient here.
        zero_point: What makes the integers unsigned.
        geometry: Stride, padding and dilation, each of rows and columns.
        groups: As in torch.

    Returns:
        Float32, (N, O, rows, columns), in memory channels last.
    """
    steps, sizes = [scale.detach() for scale in scales], [list(pair) for pair in geometry]
    out: Tensor = _IntegerForward.apply(x_NCHW, weight_OIHW, bias_O, *steps, zero_point, *sizes, groups)
    return out
