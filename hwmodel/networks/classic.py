"""VGG-16 and MobileNetV2 (names of torchvision's modules)."""

from __future__ import annotations

from hwmodel.network import INPUT, NetworkSpec
from hwmodel.networks.builder import NetworkBuilder


def vgg16() -> NetworkSpec:
    """VGG-16 for ImageNet, 224 x 224.

    Source:
        Simonyan and Zisserman, ICLR 2015, table 1, configuration D.
    """
    net = NetworkBuilder("vgg16", 3, 224)
    tensor, index = INPUT, 0
    for filters, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            tensor = net.conv(f"features.{index}", tensor, filters)
            index += 2  # each convolution is followed by its ReLU
        tensor = net.max_pool(f"features.{index}", tensor, 2, 2)
        index += 1
    tensor = net.flatten("flatten", tensor)
    tensor = net.linear("classifier.0", tensor, 4096, activation="relu")
    tensor = net.linear("classifier.3", tensor, 4096, activation="relu")
    net.linear("classifier.6", tensor, 1000)
    return net.build()


def mobilenet_v2() -> NetworkSpec:
    """MobileNetV2 for ImageNet, 224 x 224.

    Source:
        Sandler et al., CVPR 2018, table 2.
    """
    net = NetworkBuilder("mobilenet_v2", 3, 224)
    tensor, index = net.conv("features.0.0", INPUT, 32, 3, 2, activation="relu6"), 1
    for expansion, channels, repeats, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            tensor = _inverted_residual(net, f"features.{index}", tensor, channels, stride, expansion)
            index += 1
    tensor = net.conv(f"features.{index}.0", tensor, 1280, 1, activation="relu6")
    net.linear("classifier.1", net.flatten("flatten", net.global_avg_pool("avgpool", tensor)), 1000)
    return net.build()


def _inverted_residual(net: NetworkBuilder, name: str, source: str, channels: int, stride: int, expansion: int) -> str:
    hidden = expansion * net.channels(source)
    tensor, part = source, 0
    if expansion > 1:
        tensor = net.conv(f"{name}.conv.0.0", tensor, hidden, 1, activation="relu6")
        part = 1
    tensor = net.conv(f"{name}.conv.{part}.0", tensor, hidden, 3, stride, groups=hidden, activation="relu6")
    tensor = net.conv(f"{name}.conv.{part + 1}", tensor, channels, 1, activation="none")
    if stride == 1 and net.channels(source) == channels:
        return net.add(f"{name}.add", tensor, source, activation="none")
    return tensor
