"""Layer tables of published networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

from hwmodel.errors import SpecError
from hwmodel.network import NetworkSpec
from hwmodel.networks.classic import mobilenet_v2, vgg16
from hwmodel.networks.darknet import (
    darknet19,
    sim_yolo_v2_fpga,
    yolo_voc_2_0,
    yolov2_tiny_voc,
    yolov2_voc,
    yolov3,
    yolov3_tiny,
)
from hwmodel.networks.resnet import resnet18, resnet20, resnet50, resnet56, resnet152
from hwmodel.networks.retinanet import retinanet_r50

NETWORKS: Mapping[str, Callable[[], NetworkSpec]] = MappingProxyType(
    {
        table.__name__: table
        for table in (
            resnet18,
            resnet50,
            resnet152,
            resnet20,
            resnet56,
            vgg16,
            mobilenet_v2,
            darknet19,
            yolov2_voc,
            yolov2_tiny_voc,
            yolo_voc_2_0,
            yolov3,
            yolov3_tiny,
            sim_yolo_v2_fpga,
            retinanet_r50,
        )
    }
)
"""Tables by network name."""

ALIASES: Mapping[str, str] = MappingProxyType({"tiny_yolov2": "yolov2_tiny_voc", "yolov2": "yolov2_voc"})
"""Other names in use, by which `load_network` finds a table too."""


def network_names() -> tuple[str, ...]:
    """Names of the networks that `load_network` knows, sorted."""
    return tuple(sorted(NETWORKS))


def load_network(name: str) -> NetworkSpec:
    """Layer table of a published network.

    Args:
        name: One of `network_names()`, or of `ALIASES`.

    Raises:
        SpecError: There is no table of that name.

    >>> load_network("resnet20").total_weights
    268336
    """
    if not isinstance(name, str):
        raise SpecError(f"network {name!r}: expected a name, one of {list(network_names())}")
    try:
        return NETWORKS[ALIASES.get(name, name)]()
    except KeyError:
        near = get_close_matches(name.lower().replace("-", "_"), (*NETWORKS, *ALIASES), n=1)
        hint = f"; did you mean {ALIASES.get(near[0], near[0])}?" if near else ""
        raise SpecError(f"network {name!r} has no layer table; there are {list(network_names())}{hint}") from None
