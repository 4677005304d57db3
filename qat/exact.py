"""Training with the accelerator's arithmetic in the loop: integers forward, gradients of fake quantization backward.

Fake quantization and integers differ by roundings: multipliers and biases have 16 bits, and a value near the middle
between two codes may become the other one.  A network that was trained and measured as an `ExactNetwork` answers on
the accelerator with the very values that it answered here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qat.convert import QuantNetwork, as_results
from qat.deployment import DeployedNetwork, deploy
from qat.normalization import Normalization


class ExactNetwork(nn.Module):
    """A quantized network whose values are those of its integers.

    Each forward pass lowers the present weights, steps and statistics, computes the codes of every layer with them, and
    hands these on to the next layer.  A layer's gradient is that of its fake quantization at the operands that it had
    (straight through what the integers round otherwise).  Batch norms use their running statistics and leave them as
    they are, also in training: integers have no others.  A forward pass puts them into inference mode.

    Args:
        model: Calibrated quantized network on any device.
        normalization: What turned 8-bit images into its input.
    """

    def __init__(self, model: QuantNetwork, normalization: Normalization) -> None:
        super().__init__()
        self.model = model
        self.normalization = normalization
        self.training = model.training

    def forward(self, x_NCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """As `QuantNetwork.forward`: codes of `qat.deploy`'s network times their scales, float32.

        Args:
            x_NCHW: Normalised images.

        Raises:
            ExportError: The model cannot be lowered to integers; the message names the layer.
        """
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        deployed = deploy(self.model, self.normalization).to(x_NCHW.device)
        values = self.model.input_quantizer(x_NCHW)
        codes = (values.detach() / self.model.input_quantizer.scale.detach()).round().long()
        layers = _Layers(self.model, deployed)
        return as_results([value for value, _ in self.model.walk((values, codes), layers.compute)])


class _Layers:
    """Layers on pairs of values and codes.

    Args:
        model: Computes the values that carry gradients.
        deployed: Computes the codes.
    """

    def __init__(self, model: QuantNetwork, deployed: DeployedNetwork) -> None:
        self._model, self._deployed = model, deployed

    def compute(self, name: str, operands: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Values and codes of a layer's ofm."""
        device = operands[0][1].device.type
        with torch.autocast(device, enabled=False):
            codes = self._deployed.compute(name, [codes for _, codes in operands])
        exact = codes.float() * self._deployed.integers.layers[name].ofm_scale
        if not torch.is_grad_enabled():
            return exact, codes
        value: Tensor = _Exact.apply(self._model.compute(name, [value for value, _ in operands]), exact)
        return value, codes


class _Exact(torch.autograd.Function):
    """Exact values forward, as if they were the others backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, exact: Tensor) -> Tensor:
        """Returns the exact ones."""
        ctx.dtype = value.dtype
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Hands the gradient to the others."""
        return gradient.to(ctx.dtype), None
