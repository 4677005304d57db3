"""The networks of the darknet family, one readable table each.

Source:
    github.com/pjreddie/darknet, cfg/*.cfg of the same names; Sim-YOLO-v2: Nguyen et al., IEEE TVLSI 27(8), 2019,
    table IV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qat.models.darknet import (
    HARDWARE_SLOPE,
    Average,
    Conv,
    Darknet,
    Detect,
    Pool,
    Reorg,
    Route,
    Row,
    Shortcut,
    Table,
    Upsample,
)
from qat.models.heads import Anchors

HEAD = Conv(0, 1, batch_norm=False, activation="linear")


def body(*layers: tuple[int, int] | str) -> tuple[Row, ...]:
    """Rows of (filters, kernel) and "pool"; a word after a convolution, "=label", labels it."""
    rows: list[Row] = []
    for layer in layers:
        if layer == "pool":
            rows.append(Pool())
        elif isinstance(layer, str):
            rows[-1] = replace(rows[-1], label=layer.removeprefix("="))
        else:
            rows.append(Conv(*layer))
    return tuple(rows)


def cells(anchors: Sequence[tuple[float, float]], pixels: float = 32) -> Anchors:
    """Anchors in pixels, of anchors in cells of so many pixels."""
    return tuple((width * pixels, height * pixels) for width, height in anchors)


VOC_ANCHORS = cells(((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071)))
"""Of yolov2-voc.cfg."""

TINY_VOC_ANCHORS = cells(((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52)))
"""Of yolov2-tiny-voc.cfg and yolo-voc.2.0.cfg."""

COCO_ANCHORS: Anchors = (
    (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326),
)  # fmt: skip
"""Of yolov3.cfg: three for each head, the finest first."""

TINY_COCO_ANCHORS: Anchors = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
"""Of yolov3-tiny.cfg."""

_STAGES_1_TO_4 = body(
    (32, 3), "pool",
    (64, 3), "pool",
    (128, 3), (64, 1), (128, 3), "pool",
    (256, 3), (128, 1), (256, 3), "pool",
)  # fmt: skip
_STAGE_5 = body((512, 3), (256, 1), (512, 3), (256, 1), (512, 3))
_STAGE_6 = body((1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3))

DARKNET19 = Table(
    "darknet19",
    (*_STAGES_1_TO_4, *_STAGE_5, Pool(), *_STAGE_6, Conv(0, 1, batch_norm=False, activation="linear"), Average()),
)
YOLOV2_TINY_VOC = Table(
    "yolov2_tiny_voc",
    (
        *body((16, 3), "pool", (32, 3), "pool", (64, 3), "pool", (128, 3), "pool", (256, 3), "pool", (512, 3)),
        Pool(2, 1),
        *body((1024, 3), (1024, 3)),
        HEAD,
        Detect(TINY_VOC_ANCHORS, softmax=True),
    ),
)
YOLOV2_VOC = Table(
    "yolov2_voc",
    (
        *_STAGES_1_TO_4,
        *_STAGE_5[:-1],
        Conv(512, label="fine"),
        Pool(),
        *_STAGE_6,
        *body((1024, 3), (1024, 3), "=coarse"),
        Route(("fine",)),
        Conv(64, 1),
        Reorg(label="passed"),
        Route(("passed", "coarse")),
        Conv(1024),
        HEAD,
        Detect(VOC_ANCHORS, softmax=True),
    ),
)
SIM_YOLO_V2_FPGA = Table(
    "sim_yolo_v2_fpga",
    (
        *_STAGES_1_TO_4,
        *_STAGE_5,
        Pool(),
        *body((1024, 3), (512, 1), (1024, 3)),
        HEAD,
        Detect(VOC_ANCHORS, softmax=True),
    ),
)
"""As built on VC707.  Its anchors are not published; those of YOLOv2 stand in."""

YOLOV3_TINY = Table(
    "yolov3_tiny",
    (
        *body((16, 3), "pool", (32, 3), "pool", (64, 3), "pool", (128, 3), "pool", (256, 3), "=fine", "pool"),
        Conv(512),
        Pool(2, 1),
        *body((1024, 3), (256, 1), "=neck", (512, 3)),
        HEAD,
        Detect(TINY_COCO_ANCHORS[3:], softmax=False),
        Route(("neck",)),
        Conv(128, 1),
        Upsample(label="up"),
        Route(("up", "fine")),
        Conv(256),
        HEAD,
        Detect(TINY_COCO_ANCHORS[:3], softmax=False),
    ),
)


def _residual_stage(filters: int, blocks: int, label: str) -> tuple[Row, ...]:
    rows: list[Row] = [Conv(filters, stride=2, label=f"{label}.0")]
    for block in range(1, blocks + 1):
        rows += [Conv(filters // 2, 1), Conv(filters), Shortcut(f"{label}.{block - 1}", label=f"{label}.{block}")]
    rows[-1] = replace(rows[-1], label=label)
    return tuple(rows)


def _pyramid_level(filters: int, anchors: Anchors, neck: str) -> tuple[Row, ...]:
    half = filters // 2
    return (
        *body((half, 1), (filters, 3), (half, 1), (filters, 3), (half, 1), f"={neck}", (filters, 3)),
        HEAD,
        Detect(anchors, softmax=False),
    )


def _finer_level(filters: int, neck: str, stage: str) -> tuple[Row, ...]:
    return (Route((neck,)), Conv(filters, 1), Upsample(label=f"{neck}.up"), Route((f"{neck}.up", stage)))


YOLOV3 = Table(
    "yolov3",
    (
        Conv(32),
        *_residual_stage(64, 1, "stage1"),
        *_residual_stage(128, 2, "stage2"),
        *_residual_stage(256, 8, "stage3"),
        *_residual_stage(512, 8, "stage4"),
        *_residual_stage(1024, 4, "stage5"),
        *_pyramid_level(1024, COCO_ANCHORS[6:], "neck1"),
        *_finer_level(256, "neck1", "stage4"),
        *_pyramid_level(512, COCO_ANCHORS[3:6], "neck2"),
        *_finer_level(128, "neck2", "stage3"),
        *_pyramid_level(256, COCO_ANCHORS[:3], "neck3"),
    ),
)


def _with_relu(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """ReLU in place of leaky ReLU: 4-bit codes then need no sign."""
    is_body = [isinstance(row, Conv) and row.batch_norm for row in rows]
    return tuple(
        replace(row, activation="relu") if isinstance(row, Conv) and body_row else row
        for row, body_row in zip(rows, is_body, strict=True)
    )


_FINE_GRID = _with_relu(body((16, 3), "pool", (32, 3), "pool", (64, 3), "pool", (96, 3), (96, 3)))

DIGITS_YOLO = Table(
    "digits_yolo",
    (*_FINE_GRID, HEAD, Detect(((16.0, 16.0), (24.0, 24.0), (36.0, 36.0)), softmax=True)),
    in_channels=1,
)
"""For grey scenes of digits, 96x96 and up."""

BOARD_YOLO = Table(
    "board_yolo",
    (*_FINE_GRID, HEAD, Detect(((16.0, 15.0), (25.0, 16.0), (19.0, 25.0), (41.0, 25.0)), softmax=True)),
    in_channels=1,
)
"""For DeepPCB at 320x320; anchors are the means of its training boxes in four groups by overlap."""

BLOOD_YOLO = Table(
    "blood_yolo",
    (
        *_with_relu(body((16, 3), "pool", (32, 3), "pool", (64, 3), "pool", (128, 3), "pool", (256, 3), (256, 3))),
        HEAD,
        Detect(((20.0, 19.0), (48.0, 52.0), (50.0, 41.0), (59.0, 55.0), (106.0, 96.0)), softmax=True),
    ),
)
"""For BCCD at 320x240; anchors are the means of its training boxes in five groups by overlap."""


def _factory(table: Table) -> Callable[..., Darknet]:
    def build(num_classes: int, negative_slope: float = HARDWARE_SLOPE) -> Darknet:
        return Darknet(table, num_classes, negative_slope)

    build.__name__ = build.__qualname__ = table.name
    build.__doc__ = f"The table of {table.name} for so many classes, with random weights."
    return build


darknet19 = _factory(DARKNET19)
yolov2_tiny_voc = _factory(YOLOV2_TINY_VOC)
yolov2_voc = _factory(YOLOV2_VOC)
sim_yolo_v2_fpga = _factory(SIM_YOLO_V2_FPGA)
yolov3_tiny = _factory(YOLOV3_TINY)
yolov3 = _factory(YOLOV3)
digits_yolo = _factory(DIGITS_YOLO)
board_yolo = _factory(BOARD_YOLO)
blood_yolo = _factory(BLOOD_YOLO)
