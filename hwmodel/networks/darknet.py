"""YOLO detectors and Darknet-19.

Source:
    github.com/pjreddie/darknet, cfg/*.cfg of the same names.  A darknet max pooling of size 2 and stride 1 pads one
    row and column at the end; layers here pad evenly, so it stands as 3 x 3 with padding 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.network import INPUT, NetworkSpec
from hwmodel.networks.builder import NetworkBuilder

POOL = "pool"
"""Marks a 2 x 2 max pooling of stride 2 in a table of layers."""

Layers = Sequence[tuple[int, int] | str]  # (filters, kernel) or POOL

DARKNET19: Layers = (
    (32, 3), POOL, (64, 3), POOL,
    (128, 3), (64, 1), (128, 3), POOL,
    (256, 3), (128, 1), (256, 3), POOL,
    (512, 3), (256, 1), (512, 3), (256, 1), (512, 3), POOL,
    (1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3),
)  # fmt: skip


class _Darknet(NetworkBuilder):
    """Numbers layers as it adds them: conv0, conv1, ..., pool0, ..."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, 3, size)
        self._counts: dict[str, int] = {}

    def next_name(self, kind: str) -> str:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}{number}"

    def leaky(self, source: str, filters: int, kernel: int, stride: int = 1) -> str:
        return self.conv(self.next_name("conv"), source, filters, kernel, stride, activation="leaky_relu")

    def head(self, source: str, filters: int) -> str:
        return self.conv(self.next_name("conv"), source, filters, 1, activation="none")

    def pool(self, source: str) -> str:
        return self.max_pool(self.next_name("pool"), source, 2, 2)

    def stack(self, source: str, layers: Layers) -> str:
        for layer in layers:
            source = self.pool(source) if isinstance(layer, str) else self.leaky(source, *layer)
        return source


def darknet19() -> NetworkSpec:
    """Darknet-19 for ImageNet, 224 x 224."""
    net = _Darknet("darknet19", 224)
    net.global_avg_pool("avgpool", net.head(net.stack(INPUT, DARKNET19), 1000))
    return net.build()


def yolov2_voc() -> NetworkSpec:
    """YOLOv2 for Pascal VOC (yolov2-voc.cfg), 416 x 416."""
    net = _Darknet("yolov2_voc", 416)
    fine = net.stack(INPUT, DARKNET19[:17])  # up to the last 26 x 26 layer
    coarse = net.stack(fine, (*DARKNET19[17:], (1024, 3), (1024, 3)))
    passed = net.reorg("reorg", net.leaky(fine, 64, 1), 2)
    net.head(net.leaky(net.concat("route", passed, coarse), 1024, 3), 125)
    return net.build()


def yolo_voc_2_0() -> NetworkSpec:
    """The first YOLOv2 for Pascal VOC (yolo-voc.2.0.cfg), 416 x 416."""
    net = _Darknet("yolo_voc_2_0", 416)
    fine = net.stack(INPUT, DARKNET19[:17])
    coarse = net.stack(fine, (*DARKNET19[17:], (1024, 3), (1024, 3)))
    net.head(net.leaky(net.concat("route", net.reorg("reorg", fine, 2), coarse), 1024, 3), 125)
    return net.build()


def yolov2_tiny_voc() -> NetworkSpec:
    """Tiny YOLOv2 for Pascal VOC (yolov2-tiny-voc.cfg), 416 x 416."""
    net = _Darknet("yolov2_tiny_voc", 416)
    tensor = net.stack(INPUT, ((16, 3), POOL, (32, 3), POOL, (64, 3), POOL, (128, 3), POOL, (256, 3), POOL, (512, 3)))
    tensor = net.max_pool(net.next_name("pool"), tensor, 3, 1, 1)
    net.head(net.stack(tensor, ((1024, 3), (1024, 3))), 125)
    return net.build()


def yolov3_tiny() -> NetworkSpec:
    """YOLOv3-tiny for COCO (yolov3-tiny.cfg), 416 x 416."""
    net = _Darknet("yolov3_tiny", 416)
    fine = net.stack(INPUT, ((16, 3), POOL, (32, 3), POOL, (64, 3), POOL, (128, 3), POOL, (256, 3)))
    tensor = net.leaky(net.pool(fine), 512, 3)
    tensor = net.leaky(net.max_pool(net.next_name("pool"), tensor, 3, 1, 1), 1024, 3)
    neck = net.leaky(tensor, 256, 1)
    net.head(net.leaky(neck, 512, 3), 255)
    merged = net.concat("route", net.upsample("upsample", net.leaky(neck, 128, 1), 2), fine)
    net.head(net.leaky(merged, 256, 3), 255)
    return net.build()


def yolov3() -> NetworkSpec:
    """YOLOv3 for COCO (yolov3.cfg), 416 x 416."""
    net = _Darknet("yolov3", 416)
    tensor = net.leaky(INPUT, 32, 3)
    stages = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        tensor = net.leaky(tensor, filters, 3, 2)
        for _ in range(blocks):
            inner = net.leaky(net.leaky(tensor, filters // 2, 1), filters, 3)
            tensor = net.add(net.next_name("shortcut"), inner, tensor, activation="none")
        stages.append(tensor)
    for scale, filters in enumerate((1024, 512, 256)):
        half = filters // 2
        neck = net.stack(tensor, ((half, 1), (filters, 3), (half, 1), (filters, 3), (half, 1)))
        net.head(net.leaky(neck, filters, 3), 255)
        if scale < 2:
            up = net.upsample(f"upsample{scale}", net.leaky(neck, half // 2, 1), 2)
            tensor = net.concat(f"route{scale}", up, stages[3 - scale])
    return net.build()


def sim_yolo_v2_fpga() -> NetworkSpec:
    """Sim-YOLO-v2 for Pascal VOC as built on VC707, 416 x 416.

    Source:
        Nguyen et al., IEEE TVLSI 27(8), 2019, table IV.
    """
    net = _Darknet("sim_yolo_v2_fpga", 416)
    tensor = net.stack(INPUT, (*DARKNET19[:18], (1024, 3), (512, 1), (1024, 3)))
    net.head(tensor, 125)
    return net.build()
