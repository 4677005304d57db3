"""What is known while a traced graph is walked: layers so far, and which tensor each traced node stands for."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from torch import fx, nn

from hwmodel.network import INPUT
from qat.errors import TraceError
from qat.graph.nodes import Node, Pair


def pair(value: Any) -> Pair:
    """Rows and columns of a module's argument, which may be one number."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


class Ledger:
    """Bookkeeping of a walk over traced nodes.

    Args:
        model: The traced model.
        traced: Its graph.
    """

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        self.model = model
        self.traced = traced
        self.modules = dict(model.named_modules())
        self.nodes: dict[str, Node] = {}
        self.alias: dict[fx.Node, str] = {}
        """Layer whose ofm a traced node stands for."""
        self.passed_on: dict[fx.Node, fx.Node] = {}
        """Traced nodes that are the same tensor as another one."""
        self.padding: dict[fx.Node, tuple[int, int, int, int]] = {}
        """Zero padding that waits for its convolution: top, left, bottom, right."""
        self.shape_values: set[fx.Node] = set()
        """Results of size() and the like: only for views."""
        self.left_out: list[str] = []
        self._owners: dict[int, str] = {}
        """Layers with weights by the id of their module."""
        self._weights: dict[int, str] = {}
        """Modules by the id of their weights."""

    def add(self, node: fx.Node, layer: Node) -> None:
        """A traced node is a layer."""
        if layer.name == INPUT:
            raise TraceError(f"{self.where(node)}: {INPUT!r} is the network's input in files and reports; rename it")
        if layer.name in self.nodes:
            raise TraceError(f"{self.where(node)}: there is a layer {layer.name!r} already; give each call its own")
        self.nodes[layer.name] = layer
        self.alias[node] = layer.name

    def forward(self, node: fx.Node) -> None:
        """A traced node stands for the same tensor as its input."""
        source = self.argument(node)
        if source in self.padding:
            self.refuse(source, "padding that is not directly followed by its convolution")
        self.alias[node] = self.source(source, node)
        self.passed_on[node] = source

    def argument(self, node: fx.Node) -> fx.Node:
        """The traced node of the (first) tensor that `node` reads."""
        return cast(fx.Node, node.args[0] if node.args else node.kwargs["input"])

    def inputs(self, node: fx.Node) -> tuple[str, ...]:
        """Producer of the tensor that `node` reads, as `Node.inputs`."""
        return (self.source(self.argument(node), node),)

    def source(self, node: Any, reader: fx.Node) -> str:
        """Producer of a traced tensor."""
        if node not in self.alias:
            name = node.name if isinstance(node, fx.Node) else repr(node)
            self.refuse(reader, f"a use of {name!r}, which is not a feature map")
        return self.alias[node]

    def only_reader_of(self, node: fx.Node) -> Node | None:
        """The layer before `node`, if nothing but `node` reads its output."""
        return self.only_read(self.argument(node))

    def only_read(self, source: fx.Node) -> Node | None:
        """The layer whose output a traced tensor is, if it is read once, under whatever name."""
        while len(source.users) == 1 and source in self.passed_on:
            source = self.passed_on[source]
        layer = self.nodes.get(self.alias.get(source, INPUT))
        return layer if layer is not None and len(source.users) == 1 else None

    def check_inplace(self, node: fx.Node) -> None:
        """Refuses an operation in place on a tensor that others read: they would see the changed values, or not."""
        source = self.argument(node)
        shared = len(source.users) > 1
        while not shared and source in self.passed_on:
            source = self.passed_on[source]
            shared = len(source.users) > 1
        if shared:
            self.refuse(node, "an operation in place on a tensor that others read too; use inplace=False")

    def call_args(self, node: fx.Node, *names: tuple[str, Any]) -> list[Any]:
        """Arguments after the tensor, by position or keyword, with defaults."""
        given = dict(zip((name for name, _ in names), node.args[1:], strict=False)) | node.kwargs
        return [given.get(name, default) for name, default in names]

    def claim(self, node: fx.Node, path: str) -> tuple[str, str | None]:
        """Name of a layer with parameters, and of the earlier layer that has them if its module was called before."""
        module = self.modules[path]
        tied = self._weights.setdefault(id(module if module.weight is None else module.weight), path)
        if self.modules[tied] is not module:
            raise TraceError(f"{self.where(node)}: its weights are those of module {tied!r}; call that one twice")
        owner = self._owners.get(id(module))
        if owner is None:
            self._owners[id(module)] = path
            return path, None
        return self._unused(owner, 2), owner

    def _unused(self, name: str, count: int) -> str:
        """A name that no layer and no module has."""
        while (unique := name if count == 1 else f"{name}_{count}") in self.nodes or unique in self.modules:
            count += 1
        return unique

    def call_name(self, node: fx.Node, what: str) -> str:
        """A module's path, or for functions the path of the module that calls them plus what they do."""
        if node.op == "call_module":
            name = str(node.target)
            return name if name not in self.nodes else self._unused(name, 2)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        return self._unused(f"{path}.{what}" if path else what, 1)

    def where(self, node: fx.Node) -> str:
        """The place of a traced node, for messages."""
        if node.op == "call_module":
            return f"module {str(node.target)!r}"
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        inside = f" in module {stack[-1][0]!r}" if stack and stack[-1][0] else ""
        return f"operation {node.name!r}{inside}"

    def refuse(self, node: fx.Node, what: str) -> NoReturn:
        """Raises `TraceError` with the place and what is supported."""
        raise TraceError(
            f"{self.where(node)}: {what} cannot be mapped to hardware. Supported are Conv2d, Linear, BatchNorm, "
            "GroupNorm, F.normalize over channels (times a parameter per channel), ReLU, ReLU6, LeakyReLU, Hardswish, "
            "Hardsigmoid, SiLU, Sigmoid, Tanh, max and average pooling, nearest upsampling, add, channel concat, "
            "channel chunk, slice and shuffle, gates of one value per channel, space to depth, flatten, and "
            "x[:, :, ::s, ::s] with padded channels"
        )
