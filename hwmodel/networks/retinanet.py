"""RetinaNet: feature pyramid and two heads whose weights serve all five levels.

Source:
    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, section 4 and figure 3; module names, the sixth level
    from the fifth and 91 classes as in torchvision's `retinanet_resnet50_fpn`.
"""

from __future__ import annotations

from hwmodel.network import NetworkSpec
from hwmodel.networks.builder import NetworkBuilder
from hwmodel.networks.resnet import imagenet_stages

CHANNELS = 256
"""Channels of every level and of the heads' hidden maps."""
ANCHORS = 9
"""Three scales by three shapes."""
CLASSES = 91
"""COCO's category numbers, as torchvision counts them."""


def retinanet_r50() -> NetworkSpec:
    """RetinaNet with ResNet-50 for COCO, 800 x 800."""
    net = NetworkBuilder("retinanet_r50", 3, 800)
    stages = imagenet_stages(net, (3, 4, 6, 3), bottleneck=True)[1:]
    for level, features in enumerate(_pyramid(net, stages)):
        _head(net, "head.classification_head", "cls_logits", features, ANCHORS * CLASSES, level)
        _head(net, "head.regression_head", "bbox_reg", features, ANCHORS * 4, level)
    return net.build()


def _pyramid(net: NetworkBuilder, stages: list[str]) -> list[str]:
    """Levels 3 to 7, finest first."""
    levels: list[str] = []
    above = ""
    for index in range(len(stages))[::-1]:
        merged = net.conv(f"fpn.inner_blocks.{index}", stages[index], CHANNELS, 1, activation="none")
        if above:
            merged = net.add(f"fpn.add.{index}", merged, net.upsample(f"fpn.up.{index}", above, 2), activation="none")
        levels.insert(0, net.conv(f"fpn.layer_blocks.{index}", merged, CHANNELS, activation="none"))
        above = merged
    sixth = net.conv("fpn.extra_blocks.p6", levels[-1], CHANNELS, 3, 2, activation="none")
    relu = net.lookup("fpn.extra_blocks.relu", sixth, "relu")
    return [*levels, sixth, net.conv("fpn.extra_blocks.p7", relu, CHANNELS, 3, 2, activation="none")]


def _head(net: NetworkBuilder, path: str, result: str, features: str, out_channels: int, level: int) -> None:
    """Four convolutions and the result's; from the second level on with the first one's weights."""

    def conv(name: str, source: str, channels: int, activation: str) -> str:
        owner = f"{path}.{name}"
        if level == 0:
            return net.conv(owner, source, channels, activation=activation)
        return net.conv(f"{owner}.{level}", source, channels, activation=activation, weights_of=owner)

    tensor = features
    for depth in range(4):
        tensor = conv(f"conv.{depth}.0", tensor, CHANNELS, "relu")
    conv(result, tensor, out_channels, "none")
