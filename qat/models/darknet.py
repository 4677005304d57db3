"""Networks of the darknet family: rows, tables of rows, and the module that runs a table.

A table lists what happens to the feature map, row by row; a row reads the row before it unless it says otherwise.
Rows that others refer to carry a label.

Source:
    github.com/pjreddie/darknet, cfg/*.cfg of the same names; Sim-YOLO-v2: Nguyen et al., IEEE TVLSI 27(8), 2019,
    table IV.  Three things differ, so that hardware can run them:
    - leaky ReLU has the slope 1/8 (darknet: 0.1), a shift; `Darknet(table, negative_slope=0.1)` is darknet's,
    - a max pooling of stride 1 and even kernel, which pads one row and column more at the end, is one wider: 2x2 is 3x3
      with padding 1,
    - reorg is space to depth (darknet's own indexing mixes rows of different channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qat.errors import ConfigError
from qat.models.heads import Anchors, YoloHead

HARDWARE_SLOPE = 0.125
"""Slope of leaky ReLU below zero; a power of two is a shift."""

POOLS = "expected a padding below the kernel's size that is even, or a stride of 2"
"""What other max poolings are told."""

PRIOR_OBJECTNESS = 0.01
"""Share of anchors that hold an object, as a new head believes.  Source: RetinaNet (arXiv 1708.02002), section 4.1."""


@dataclass(frozen=True)
class Conv:
    """Convolution, padded by half the kernel, with batch norm unless it is a head.

    Args:
        filters: Channels of the ofm; 0 stands for what the following `Detect`, or the number of classes, asks for.
        kernel: Rows and columns.
        stride: Of rows and columns.
        batch_norm: Whether batch norm stands between sum and activation; else there is a bias.
        activation: leaky, relu or linear.
        label: What other rows call this one.
    """

    filters: int
    kernel: int = 3
    stride: int = 1
    batch_norm: bool = True
    activation: str = "leaky"
    label: str = ""


@dataclass(frozen=True)
class Pool:
    """Max pooling of a padded map; nothing that is padded is ever the maximum.

    Args:
        kernel: Rows and columns of a window.
        stride: Of rows and columns.
        label: What other rows call this one.
        padding: Rows and columns of both sides together, half of them, rounded down, in front; None for kernel - 1, so
            that 13 columns become 13 at stride 1 and 7 at stride 2.
    """

    kernel: int = 2
    stride: int = 2
    label: str = ""
    padding: int | None = None

    def module(self) -> nn.MaxPool2d | None:
        """What computes it, but for the even kernels of stride 1 above; None where no max pooling of torch does.

        darknet's map has (size + padding - kernel) / stride + 1 rows, rounded down.  torch pads both sides alike; its
        last window may reach over the end where the number of windows is rounded up, and has to begin inside the map.
        """
        kernel, padding = self.kernel, self.kernel - 1 if self.padding is None else self.padding
        if self.stride == 1 and kernel % 2 == 0 and padding == kernel - 1:
            kernel, padding = kernel + 1, kernel
        is_odd = bool(padding % 2)
        if padding >= kernel or (is_odd and self.stride != 2 and kernel != 2):
            return None
        return nn.MaxPool2d(kernel, self.stride, padding // 2, ceil_mode=is_odd)


@dataclass(frozen=True)
class Reorg:
    """Space to depth."""

    factor: int = 2
    label: str = ""


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour upsampling."""

    factor: int = 2
    label: str = ""


@dataclass(frozen=True)
class Route:
    """Goes on from an earlier row, or from the channels of several side by side."""

    sources: tuple[str, ...]
    label: str = ""


@dataclass(frozen=True)
class Shortcut:
    """Adds an earlier row."""

    source: str
    label: str = ""


@dataclass(frozen=True)
class Average:
    """Mean over the whole map; the network's result."""

    label: str = ""


@dataclass(frozen=True)
class Detect:
    """The map so far is a result of the network: boxes of some anchors.

    Args:
        anchors: Widths and heights, in pixels of the image.
        softmax: Whether a box has one class of all (YOLOv2), or each class on its own (YOLOv3).
        label: What other rows call this one.
    """

    anchors: Anchors
    softmax: bool
    label: str = ""


Row = Conv | Pool | Reorg | Upsample | Route | Shortcut | Average | Detect


@dataclass(frozen=True)
class Table:
    """A network of the darknet family.

    Args:
        name: What reports call it.
        rows: What happens, in order.
        in_channels: Channels of the image.
    """

    name: str
    rows: tuple[Row, ...]
    in_channels: int = 3


class Darknet(nn.Module):
    """Runs a table.  Convolutions are called conv0, conv1, ... in order, as in `hwmodel`'s tables.

    Args:
        table: What happens.
        num_classes: Of the boxes, or of the image where the table has no `Detect`.
        negative_slope: Slope of leaky ReLU below zero.

    Raises:
        ConfigError: A row refers to one that is not there, or a head has no convolution before it.
    """

    def __init__(self, table: Table, num_classes: int, negative_slope: float = HARDWARE_SLOPE) -> None:
        super().__init__()
        self.table = table
        self.num_classes = num_classes
        heads: list[YoloHead] = []
        self._steps: list[tuple[Row, str, tuple[int, ...]]] = []
        shapes: list[tuple[int, float]] = []  # channels, and pixels of the image per pixel of the map
        counts: dict[str, int] = {}
        for number, row in enumerate(_with_filters(table, num_classes)):
            sources = self._sources(row, number)
            channels, pixels = shapes[sources[0]] if number else (table.in_channels, 1.0)
            kind = type(row).__name__.lower()
            name = f"{kind}{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
            if isinstance(row, Conv):
                self._add_conv(name, row, channels, negative_slope)
                channels, pixels = row.filters, pixels * row.stride
            elif isinstance(row, Pool):
                self._add_pool(name, row, number)
                pixels *= row.stride
            elif isinstance(row, Reorg):
                self.add_module(name, nn.PixelUnshuffle(row.factor))
                channels, pixels = channels * row.factor**2, pixels * row.factor
            elif isinstance(row, Upsample):
                self.add_module(name, nn.Upsample(scale_factor=row.factor, mode="nearest"))
                pixels /= row.factor
            elif isinstance(row, Route):
                channels = sum(shapes[source][0] for source in sources)
            elif isinstance(row, Average):
                self.add_module(name, nn.AdaptiveAvgPool2d(1))
            elif isinstance(row, Detect):
                heads.append(YoloHead(row.anchors, round(pixels), num_classes, row.softmax))
            shapes.append((channels, pixels))
            self._steps.append((row, name, sources))
        self.heads = tuple(heads)
        self._init_heads()

    def _sources(self, row: Row, number: int) -> tuple[int, ...]:
        labels = {step[0].label: position for position, step in enumerate(self._steps) if step[0].label}
        wanted = row.sources if isinstance(row, Route) else (row.source,) if isinstance(row, Shortcut) else ()
        missing = [label for label in wanted if label not in labels]
        if missing:
            raise ConfigError(
                f"network {self.table.name!r}, row {number} ({type(row).__name__}): refers to {missing}, earlier rows "
                f"are labelled {list(labels)}"
            )
        found = tuple(labels[label] for label in wanted)
        return found if isinstance(row, Route) else (number - 1, *found)

    def _add_conv(self, name: str, row: Conv, channels: int, negative_slope: float) -> None:
        padding = row.kernel // 2
        conv = nn.Conv2d(channels, row.filters, row.kernel, row.stride, padding, bias=not row.batch_norm)
        nn.init.kaiming_normal_(conv.weight, negative_slope if row.activation == "leaky" else 0.0)
        self.add_module(name, conv)
        number = name.removeprefix("conv")
        if row.batch_norm:
            self.add_module(f"norm{number}", nn.BatchNorm2d(row.filters))
        if row.activation == "leaky":
            self.add_module(f"act{number}", nn.LeakyReLU(negative_slope))
        elif row.activation == "relu":
            self.add_module(f"act{number}", nn.ReLU())

    def _add_pool(self, name: str, row: Pool, number: int) -> None:
        pool = row.module()
        if pool is None:
            raise ConfigError(
                f"network {self.table.name!r}, row {number} (Pool): kernel={row.kernel}, stride={row.stride}, "
                f"padding={row.padding}, {POOLS}"
            )
        self.add_module(name, pool)

    @torch.no_grad()
    def _init_heads(self) -> None:
        """New heads answer "no object" everywhere, so that the many empty cells do not drown the first steps."""
        heads = iter(self.heads)
        for before, after in zip(self._steps, self._steps[1:], strict=False):
            if isinstance(after[0], Detect):
                conv = self._modules[before[1]]
                assert isinstance(conv, nn.Conv2d) and conv.bias is not None
                conv.weight.normal_(0.0, 0.01)
                objectness = conv.bias.zero_().view(len(next(heads).anchors), -1)[:, 4]
                objectness.fill_(math.log(PRIOR_OBJECTNESS / (1 - PRIOR_OBJECTNESS)))

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
        """Convolutions and their batch norms, in order."""
        found = []
        for row, name, _ in self._steps:
            if isinstance(row, Conv):
                conv, norm = self._modules[name], self._modules.get(name.replace("conv", "norm"))
                assert isinstance(conv, nn.Conv2d) and (norm is None or isinstance(norm, nn.BatchNorm2d))
                found.append((conv, norm))
        return found

    def forward(self, x_NCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps of the heads, each (N, anchors * (5 + classes), H, W); logits (N, classes) without a head.

        Args:
            x_NCHW: Normalised images.
        """
        results: list[Tensor] = []
        maps: list[Tensor] = []
        for row, name, sources in self._steps:
            operands = [maps[source] for source in sources] if maps else [x_NCHW]
            result = operands[0]
            if isinstance(row, Route) and len(operands) > 1:
                result = torch.cat(operands, 1)
            elif isinstance(row, Shortcut):
                result = operands[0] + operands[1]
            elif isinstance(row, Conv):
                number = name.removeprefix("conv")
                for part in (name, f"norm{number}", f"act{number}"):
                    if part in self._modules:
                        result = getattr(self, part)(result)
            elif name in self._modules:
                result = getattr(self, name)(result)
            if isinstance(row, Detect):
                results.append(result)
            maps.append(result)
        if not results:
            return maps[-1].flatten(1)
        return results[0] if len(results) == 1 else tuple(results)


def _with_filters(table: Table, num_classes: int) -> list[Row]:
    """The rows, with the filters of the last convolutions filled in."""
    rows = list(table.rows)
    for number, row in enumerate(rows):
        if not isinstance(row, Detect | Average):
            continue
        before = rows[number - 1] if number else None
        if not isinstance(before, Conv) or (isinstance(row, Detect) and (before.batch_norm or before.label)):
            raise ConfigError(
                f"network {table.name!r}, row {number} ({type(row).__name__}): expected a convolution right before it, "
                "without batch norm and label before a Detect"
            )
        filters = len(row.anchors) * (5 + num_classes) if isinstance(row, Detect) else num_classes
        if before.filters not in (0, filters):
            raise ConfigError(
                f"network {table.name!r}, row {number - 1}: filters={before.filters}, expected {filters} for "
                f"{num_classes} classes"
            )
        rows[number - 1] = replace(before, filters=filters)
    return rows
