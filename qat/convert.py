"""Float model -> quantized model.

`prepare` reads the model's graph, copies its weights into quantized layers and connects them as the graph says.  The
result is a `QuantNetwork`: layers under their module paths, executed in order.  It must be calibrated on some images
before use (`QuantNetwork.calibrate`), which sets the steps of the activation quantizers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hwmodel.network import INPUT, NORMALIZING, NetworkSpec, Op
from hwmodel.precision import LayerConfig, NetworkConfig, ofm_bit_widths
from qat.errors import CheckpointError, ConfigError, TraceError
from qat.graph import Graph, Node, read_graph
from qat.layers import (
    QuantAdd,
    QuantAvgPool,
    QuantConcat,
    QuantLookup,
    QuantMul,
    QuantNorm,
    QuantScale,
    QuantWeighted,
    Relay,
    SharedWeighted,
    WeightedCall,
)
from qat.masks import Saliency
from qat.quantizers import ActQuantizer, ScaleRule

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

NOT_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid")
"""Activations whose results are never negative: their codes are unsigned."""

CONTAINER = "quantized"
"""Sub-module of a `QuantNetwork` that has the layers, so that they may be called like its attributes."""

NOMINAL_SIZES = (32, 224, *range(4, 65, 4), *range(96, 673, 32), 28, 227, 299, 300)
"""Image sizes tried to order the layers of a model whose input shape was not given; no result depends on them."""


def prepare(
    model: nn.Module,
    config: NetworkConfig,
    input_shape: tuple[int, int, int] | None = None,
    scale_rule: ScaleRule = ScaleRule.LEARNED,
) -> QuantNetwork:
    """A quantized copy of a float model; the float model stays as it is.

    All of it is quantized: nothing is left in float.  What cannot be mapped is refused by name; what does nothing at
    inference (dropout, stochastic depth) is left out, logged, and listed in `QuantNetwork.left_out`.

    Args:
        model: Float model that `qat.trace` can read.
        config: Precision of every layer with weights.
        input_shape: Channels, rows and columns; if None it is taken from the images of `calibrate`.
        scale_rule: Which values the steps of weights and activations may have.

    Raises:
        TraceError: The model cannot be mapped to hardware.
        SpecError: `config` does not cover exactly the layers with weights.
        ConfigError: There is no such `scale_rule`.
    """
    rules = [str(rule) for rule in ScaleRule]
    if scale_rule not in rules:
        raise ConfigError(f"scale_rule={scale_rule!r}, expected one of {rules}")
    graph = read_graph(model)
    network = graph.spec(input_shape) if input_shape is not None else _nominal_spec(graph)
    config.check_matches(network)
    if graph.left_out:
        logger.info("%s: left out, as it does nothing at inference: %s", graph.name, ", ".join(graph.left_out))
    return QuantNetwork(graph, network, config, ScaleRule(scale_rule))


def apply(model: QuantNetwork, config: NetworkConfig) -> QuantNetwork:
    """Gives a quantized network another configuration, in place.

    Weights, batch norm and the values of the largest activation codes stay as they are.  Masks and weight steps of
    the layers that changed are chosen anew when the network is next run, saved or lowered.  `calibrate` afterwards
    brings activation steps and batch-norm statistics up to date.

    Args:
        model: A network that `prepare` made.
        config: Its new precision.

    Returns:
        The same network.

    Raises:
        SpecError: `config` does not cover exactly the layers with weights; the network is unchanged.
    """
    config.check_matches(model.network)
    widths = ofm_bit_widths(model.network, config)
    model.config = config
    model.input_quantizer.set_bit_width(widths[INPUT])
    for node in model.graph.nodes:
        layer = model.layer(node.name)
        quantizer = getattr(layer, "ofm_quantizer", None)
        if isinstance(quantizer, ActQuantizer):
            quantizer.set_bit_width(widths[node.name])
        if isinstance(layer, QuantWeighted):
            layer.weight_quantizer.set_config(config[node.name])
        if isinstance(layer, WeightedCall):
            source = model.written_by(node.inputs[0])
            asked = config[node.name].act_bit_width
            layer.set_input_bit_width(asked if asked < source.bit_width else None, source)
    return model


def _nominal_spec(graph: Graph) -> NetworkSpec:
    channels = next((node.in_channels for node in graph.nodes if node.in_channels), 1)
    for size in NOMINAL_SIZES:
        try:
            return graph.spec((channels, size, size))
        except TraceError:
            continue
    raise TraceError(f"{graph.name}: give prepare() the input_shape (C, H, W); no usual image size fits")


class QuantNetwork(nn.Module):
    """A network of quantized layers.

    Sub-modules of `quantized` have the paths of the float model's layers; in state dicts they have these alone.
    `forward` maps normalised float images (N, C, H, W) to logits or maps on the output quantizer's grid.

    Args:
        graph: The float model's graph.
        network: The graph with shapes.
        config: Precision of every layer with weights.
        scale_rule: Which values the steps of weights and activations may have.

    Attributes:
        calibrated: Whether activation steps come from images: by `calibrate`, or from a checkpoint that had them.
    """

    def __init__(
        self,
        graph: Graph,
        network: NetworkSpec,
        config: NetworkConfig,
        scale_rule: ScaleRule = ScaleRule.LEARNED,
    ) -> None:
        super().__init__()
        self.calibrated = False
        self.scale_rule = scale_rule
        self.graph = graph
        self.network = network
        self.config = config
        widths = ofm_bit_widths(network, config)
        signed = _signedness(graph)
        self._producers = {node.name: node.inputs for node in graph.nodes}
        self.input_quantizer = ActQuantizer(widths[INPUT], signed=True, scale_rule=scale_rule)
        self.quantized = nn.Module()
        for node in graph.nodes:
            quantizer = ActQuantizer(widths[node.name], signed[node.name], scale_rule)
            self._place(node.name, self._build(node, quantizer, signed))
        self._last_use = _last_uses(graph)
        self.register_state_dict_pre_hook(_refresh)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(_without_container)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_into_container)  # type: ignore[no-untyped-call]

    def _build(self, node: Node, ofm_quantizer: ActQuantizer, signed: Mapping[str, bool]) -> nn.Module:
        if node.op in (Op.CONV, Op.LINEAR):
            (source,) = node.inputs
            layer: LayerConfig = self.config[node.name]
            producer = self.written_by(source)
            narrower = layer.act_bit_width < producer.bit_width
            own_quantizer = ActQuantizer(layer.act_bit_width, signed[source], self.scale_rule) if narrower else None
            owner = None if node.weights_of is None else self.layer(node.weights_of)
            if isinstance(owner, QuantWeighted):
                return SharedWeighted(node, owner, ofm_quantizer, own_quantizer, producer)
            return QuantWeighted(node, layer, ofm_quantizer, own_quantizer, producer)
        if node.op is Op.ADD:
            return QuantAdd(node, ofm_quantizer)
        if node.op is Op.MUL:
            return QuantMul(ofm_quantizer)
        if node.op is Op.SCALE:
            return QuantScale(node, ofm_quantizer)
        if node.op in NORMALIZING:
            first = None if node.weights_of is None else self.layer(node.weights_of)
            return QuantNorm(node, ofm_quantizer, first if isinstance(first, QuantNorm) else None)
        if node.op is Op.LOOKUP:
            return QuantLookup(node, ofm_quantizer)
        if node.op is Op.CONCAT:
            return QuantConcat(ofm_quantizer)
        if node.op is Op.AVG_POOL:
            return QuantAvgPool(node, ofm_quantizer)
        return Relay(node)

    def _place(self, path: str, layer: nn.Module) -> None:
        parent: nn.Module = self.quantized
        *parents, last = path.split(".")
        for name in parents:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        if last in parent._modules:
            for name, child in parent._modules[last].named_children():  # type: ignore[union-attr]
                layer.add_module(name, child)
        parent.add_module(last, layer)

    def written_by(self, name: str) -> ActQuantizer:
        """Quantizer whose codes a tensor holds, by the tensor's producer."""
        while name != INPUT:
            quantizer = getattr(self.layer(name), "ofm_quantizer", None)
            if isinstance(quantizer, ActQuantizer):
                return quantizer
            (name,) = self._producers[name]
        return self.input_quantizer

    def layer(self, name: str) -> nn.Module:
        """The quantized layer of that name."""
        return self.quantized.get_submodule(name)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the float model has and this network has not, because it does nothing at inference: dropout, ..."""
        return self.graph.left_out

    @property
    def weighted_layers(self) -> dict[str, QuantWeighted]:
        """Layers with weights of their own by name, in execution order."""
        layers = {node.name: self.layer(node.name) for node in self.graph.nodes}
        return {name: layer for name, layer in layers.items() if isinstance(layer, QuantWeighted)}

    def forward(self, x_NCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits (N, classes), or maps (N, C, H, W) if the last layer is no linear layer; several as a tuple."""
        return as_results(self.walk(self.input_quantizer(x_NCHW), self.compute))

    def compute(self, name: str, operands: list[Tensor]) -> Tensor:
        """What a layer makes of its operands."""
        result: Tensor = self.layer(name)(*operands)
        return result

    def walk(self, ifm: Value, compute: Callable[[str, list[Value]], Value]) -> list[Value]:
        """Goes through the layers in the order of execution; what nothing reads any more is let go.

        Args:
            ifm: Stands for the network's input.
            compute: Makes of a layer's name and of what stands for its operands what stands for its ofm.

        Returns:
            What stands for the network's outputs.
        """
        values = {INPUT: ifm}
        for node in self.graph.nodes:
            values[node.name] = compute(node.name, [values[name] for name in node.inputs])
            for name in self._last_use[node.name]:
                del values[name]
        return [values[name] for name in self.graph.outputs]

    @torch.no_grad()
    def calibrate(self, batches_NCHW: Iterable[Tensor]) -> None:
        """Sets the step of every activation quantizer, and batch-norm statistics to the new weights.

        Args:
            batches_NCHW: Normalised images in batches, augmented as in training: batch-norm statistics of plain
                images differ enough to cost accuracy.  The first batch sets the steps, all set the statistics.

        Raises:
            ValueError: There is no batch.
        """
        training, self.calibrated = self.training, False
        count = 0
        self.train()
        try:
            with _cumulative_batch_norm(self):
                for count, batch in enumerate(batches_NCHW, 1):
                    if count == 1:
                        self.network = self.graph.spec(tuple(batch.shape[1:]))  # type: ignore[arg-type]
                        with _calibrating(self):
                            self(batch)
                    else:
                        self(batch)
        finally:
            self.train(training)
        if count == 0:
            raise ValueError("calibrate() needs at least one batch of images")
        self.calibrated = True

    @torch.no_grad()
    def repick_masks(self, saliency: Saliency = Saliency.MAGNITUDE, progress: float = 1.0) -> None:
        """Chooses the sparse planes anew from the present weights.

        Args:
            saliency: What decides; Taylor needs the gradients of a backward pass and is called before they are
                cleared.
            progress: Share of a gradual schedule (`qat.masks.gradual_sparsity`); at 1 densities are exact.

        Raises:
            ValueError: Taylor saliency without gradients.
        """
        for name, layer in self.weighted_layers.items():
            gradient = None
            if saliency is Saliency.TAYLOR:
                if layer.weight.grad is None:
                    raise ValueError(f"layer {name!r} has no gradient: run a backward pass before Taylor saliency")
                gradient = layer.weight.grad.reshape(layer.weight_OIHW.shape)
            layer.weight_quantizer.repick_mask(layer.weight_OIHW, gradient, progress)

    def get_extra_state(self) -> dict[str, Any]:
        """Configuration and input shape, for checkpoints; JSON text, so that loading needs no pickle."""
        shape = (self.network.input_channels, self.network.input_height, self.network.input_width)
        state: dict[str, Any] = {"config": json.dumps(self.config.to_dict()), "input_shape": list(shape)}
        if self.scale_rule is not ScaleRule.LEARNED:
            state["scale_rule"] = str(self.scale_rule)
        if not self.calibrated:
            state["calibrated"] = False
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Checks that a checkpoint is of this configuration; takes over its input shape.

        Raises:
            CheckpointError: The checkpoint has another configuration; the message lists the differences.
        """
        found = NetworkConfig.from_dict(json.loads(state["config"]))
        if found != self.config:
            raise CheckpointError(
                "the checkpoint has another configuration: " + "; ".join(differences(found, self.config))
            )
        scale_rule = state.get("scale_rule", ScaleRule.LEARNED)
        if scale_rule != self.scale_rule:
            raise CheckpointError(f"the checkpoint has scale_rule={scale_rule}, expected {self.scale_rule}")
        _refresh(self)
        self.calibrated = state.get("calibrated", True)
        self.network = self.graph.spec(tuple(state["input_shape"]))


def as_results(found: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Outputs (N, C, H, W) of a network as it returns them: (N, C) where H = W = 1, and not in a tuple if it is one."""
    results = tuple(result.flatten(1) if result.shape[2:] == (1, 1) else result for result in found)
    return results[0] if len(results) == 1 else results


def _refresh(model: nn.Module, *_: Any) -> None:
    """Masks and steps that `apply` left to be chosen are chosen before they are saved or replaced."""
    for module in model.modules():
        if isinstance(module, QuantWeighted):
            module.weight_quantizer.refresh(module.weight_OIHW)


def _without_container(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """In checkpoints layers have their paths alone."""
    container = f"{prefix}{CONTAINER}."
    for name in [name for name in state if name.startswith(container)]:
        state[prefix + name.removeprefix(container)] = state.pop(name)


def _into_container(model: QuantNetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The inverse of `_without_container`."""
    own = {f"{prefix}input_quantizer.{name}" for name in model.input_quantizer.state_dict()} | {f"{prefix}_extra_state"}
    for name in [name for name in state if name.startswith(prefix) and name not in own]:
        state[f"{prefix}{CONTAINER}.{name.removeprefix(prefix)}"] = state.pop(name)


def differences(found: NetworkConfig, expected: NetworkConfig) -> list[str]:
    """What differs between two configurations, one readable line each."""
    lines = []
    names = list(dict.fromkeys([*found, *expected]))
    for name in names:
        ours, theirs = expected.by_name.get(name), found.by_name.get(name)
        if ours != theirs:
            lines.append(f"layer {name!r} is {theirs}, expected {ours}")
    for name in ("sum_bit_width", "input_bit_width", "output_bit_width"):
        if getattr(found, name) != getattr(expected, name):
            lines.append(f"{name} is {getattr(found, name)}, expected {getattr(expected, name)}")
    return lines


def _signedness(graph: Graph) -> dict[str, bool]:
    """Whether the codes of each tensor may be negative: not behind a ReLU or a sigmoid."""
    signed = {INPUT: True}
    for node in graph.nodes:
        carried = any(signed[name] for name in node.inputs)
        makes_signs = node.op in (Op.CONV, Op.LINEAR, Op.SCALE, Op.LOOKUP, Op.GROUP_NORM)
        makes_signs = makes_signs or node.gain is not None  # training may give it either sign
        signed[node.name] = node.activation not in NOT_NEGATIVE and (makes_signs or carried)
    return signed


def _last_uses(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Tensors that nothing reads after a layer, by that layer: they can be freed."""
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    return {
        node.name: tuple(name for name, user in last.items() if user == node.name and name not in graph.outputs)
        for node in graph.nodes
    }


@contextmanager
def _calibrating(model: nn.Module) -> Iterator[None]:
    quantizers = [module for module in model.modules() if isinstance(module, ActQuantizer)]
    for quantizer in quantizers:
        quantizer.calibrating = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False


@contextmanager
def _cumulative_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch norms forget their statistics and take the plain average over the batches seen inside."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
