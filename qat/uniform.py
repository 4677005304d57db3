"""Uniform precisions, with which searched ones are compared."""

from __future__ import annotations

from dataclasses import replace

import hwmodel
from hwmodel import NetworkConfig, NetworkSpec
from qat.config import QuantSettings
from qat.patterns import matching


def uniform_of(quant: QuantSettings, network: NetworkSpec, bits: int) -> NetworkConfig:
    """The same weight bits in all layers but the ends, which get `end_bit_width`; activations as settings give them.

    Args:
        quant: Activation bits, those of single layers too; the last pattern that matches counts.
        network: The network to configure.
        bits: Of the weights, 1..8.

    Raises:
        ConfigError: A pattern matches no layer.
    """
    config = hwmodel.uniform(
        network, bits, quant.act_bit_width, end_bit_width=quant.end_bit_width, sum_bit_width=quant.sum_bit_width
    )
    layers, names = dict(config.layers), [name for name, _ in config.layers]
    owners = {layer.name: layer.weights_of or layer.name for layer in network.weighted}
    for rule in quant.layers:
        # What is said of one call of a layer is said of all.
        changed = {owners[name] for name in matching(rule.pattern, names, "quant.layers")}
        for name in names:
            if owners[name] in changed:
                layers[name] = replace(layers[name], act_bit_width=rule.act_bit_width)
    return replace(config, layers=tuple(layers.items()))
