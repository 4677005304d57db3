"""ResNets: for ImageNet (names of torchvision's modules) and for CIFAR-10 (option-A shortcuts).

Source:
    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1 and section 4.2; the stride of a
    bottleneck lies in its 3x3 convolution, as in torchvision ("v1.5").
"""

from __future__ import annotations

from hwmodel.network import INPUT, NetworkSpec
from hwmodel.networks.builder import NetworkBuilder


def resnet18() -> NetworkSpec:
    """ResNet-18 for ImageNet, 224 x 224."""
    return _imagenet("resnet18", (2, 2, 2, 2), bottleneck=False)


def resnet50() -> NetworkSpec:
    """ResNet-50 for ImageNet, 224 x 224."""
    return _imagenet("resnet50", (3, 4, 6, 3), bottleneck=True)


def resnet152() -> NetworkSpec:
    """ResNet-152 for ImageNet, 224 x 224."""
    return _imagenet("resnet152", (3, 8, 36, 3), bottleneck=True)


def resnet20() -> NetworkSpec:
    """ResNet-20 for CIFAR-10, 32 x 32."""
    return _cifar("resnet20", 3)


def resnet56() -> NetworkSpec:
    """ResNet-56 for CIFAR-10, 32 x 32."""
    return _cifar("resnet56", 9)


def imagenet_stages(net: NetworkBuilder, depths: tuple[int, ...], *, bottleneck: bool) -> list[str]:
    """Stem and four stages; returns the output of each stage."""
    tensor = net.max_pool("maxpool", net.conv("conv1", INPUT, 64, 7, 2), 3, 2, 1)
    stages = []
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            tensor = _block(net, f"layer{stage + 1}.{block}", tensor, 64 << stage, stride, bottleneck)
        stages.append(tensor)
    return stages


def _imagenet(name: str, depths: tuple[int, ...], *, bottleneck: bool) -> NetworkSpec:
    net = NetworkBuilder(name, 3, 224)
    tensor = imagenet_stages(net, depths, bottleneck=bottleneck)[-1]
    net.linear("fc", net.flatten("flatten", net.global_avg_pool("avgpool", tensor)), 1000)
    return net.build()


def _block(net: NetworkBuilder, name: str, source: str, width: int, stride: int, bottleneck: bool) -> str:
    out_channels = 4 * width if bottleneck else width
    if bottleneck:
        tensor = net.conv(f"{name}.conv1", source, width, 1)
        tensor = net.conv(f"{name}.conv2", tensor, width, 3, stride)
        tensor = net.conv(f"{name}.conv3", tensor, out_channels, 1, activation="none")
    else:
        tensor = net.conv(f"{name}.conv1", source, width, 3, stride)
        tensor = net.conv(f"{name}.conv2", tensor, width, 3, activation="none")
    shortcut = source
    if stride > 1 or net.channels(source) != out_channels:
        shortcut = net.conv(f"{name}.downsample.0", source, out_channels, 1, stride, activation="none")
    return net.add(f"{name}.add", tensor, shortcut)


def _cifar(name: str, blocks: int) -> NetworkSpec:
    net = NetworkBuilder(name, 3, 32)
    tensor = net.conv("conv1", INPUT, 16)
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            path = f"layer{stage + 1}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut = tensor
            tensor = net.conv(f"{path}.conv1", tensor, width, 3, stride)
            tensor = net.conv(f"{path}.conv2", tensor, width, activation="none")
            if stride > 1:
                shortcut = net.subsample(f"{path}.subsample", shortcut, width, stride)
            tensor = net.add(f"{path}.add", tensor, shortcut)
    net.linear("linear", net.flatten("flatten", net.global_avg_pool("avg_pool", tensor)), 10)
    return net.build()
