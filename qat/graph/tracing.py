"""Torch module -> graph: `trace` and `read_graph`.

A model is traced symbolically (torch.fx), then `qat.graph.reader` recognises what an accelerator executes: batch norm
and activation join the layer before them, explicit zero padding joins the convolution after it, dropout and
identities vanish (`Graph.left_out` names them).  What cannot be mapped is an error that names the module.
"""

from __future__ import annotations

from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d

from hwmodel.network import NetworkSpec
from qat.errors import TraceError
from qat.graph.nodes import Graph
from qat.graph.reader import Reader


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> NetworkSpec:
    """The inference graph of a float model as hardware sees it; names equal module paths.

    Args:
        model: A float model that torch.fx can trace symbolically.
        input_shape: Channels, rows and columns of the input.

    Raises:
        TraceError: A module or operation cannot be mapped; the message names it and what can be done.
    """
    return read_graph(model).spec(input_shape)


def read_graph(model: nn.Module) -> Graph:
    """Traces a model and maps it to hardware layers.

    Raises:
        TraceError: A module or operation cannot be mapped; the message names it and what can be done.
    """
    try:
        traced = _Tracer().trace(model)
    except Exception as error:  # torch.fx runs the user's forward: anything can come out of it
        raise TraceError(
            f"{type(model).__name__} cannot be traced: {error}. Its forward must not depend on values of tensors; "
            "move such code out of the network"
        ) from error
    return Reader(model, traced).read()


class _Tracer(fx.Tracer):
    """Takes layers as they are, also those that a user derived without changing what they compute."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether calls of a module stay calls."""
        if super().is_leaf_module(m, module_qualified_name):
            return True
        base = next(kind for kind in type(m).__mro__ if _is_known(kind))
        computes = ("forward", "_conv_forward", "_check_input_dim")
        same = all(getattr(type(m), name, None) is getattr(base, name, None) for name in computes)
        return same and not isinstance(m, nn.Sequential | nn.ModuleList) and base is not nn.Module


def _is_known(kind: type) -> bool:
    """Whether a class is a layer of torch, or torchvision's frozen batch norm."""
    return kind.__module__.startswith("torch.nn") or kind is FrozenBatchNorm2d
