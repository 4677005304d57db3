"""Images with boxes drawn on them, several answers side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from qat.data.boxes import unpack
from qat.files import write_bytes
from qat.models.heads import Detections

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#e377c2", "#17becf")
LEAST_SIDE = 256
"""Pixels of the shorter side of a drawn image; smaller images are enlarged."""

LEAST_SCORE = 0.3
"""Boxes with a lower score are not drawn."""

MARGIN = 18


def draw_detections(
    images_NCHW: Tensor,
    targets_NB6: Tensor,
    answers: Mapping[str, Sequence[Detections]],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Writes a PNG: one row per image; columns are the true boxes and each answer.

    Args:
        images_NCHW: uint8, one or three channels (red, green, blue).
        targets_NB6: True boxes, as in `qat.data.boxes`.
        answers: Boxes that were found in each image, by what the column is called.
        class_names: Names of the classes.
        path: Where the picture goes.
    """
    true = [
        Detections(torch.from_numpy(own.sides_B4), torch.ones(len(own)), torch.from_numpy(own.labels_B))
        for own in unpack(targets_NB6)
    ]
    columns = {"true": true, **answers}
    rows, width = images_NCHW.shape[-2:]
    factor = max(1, -(-LEAST_SIDE // min(rows, width)))
    tile_width, tile_height = width * factor + 4, rows * factor + 4
    canvas = Image.new("RGB", (tile_width * len(columns), MARGIN + tile_height * len(images_NCHW)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, (name, found) in enumerate(columns.items()):
        pen.text((column * tile_width + 4, 3), name, fill="black")
        for row, image_CHW in enumerate(images_NCHW):
            place = (column * tile_width, MARGIN + row * tile_height)
            canvas.paste(_picture(image_CHW, factor), place)
            _draw_boxes(pen, place, (width * factor, rows * factor), found[row], class_names)
    write_bytes(path, _png(canvas))


def _picture(image_CHW: Tensor, factor: int) -> Image.Image:
    pixels = image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _draw_boxes(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    size: tuple[int, int],
    found: Detections,
    class_names: Sequence[str],
) -> None:
    boxes = zip(found.boxes_K4.tolist(), found.scores_K.tolist(), found.labels_K.tolist(), strict=True)
    for (left, top, right, bottom), score, label in boxes:
        if score < LEAST_SCORE:
            continue
        corners = (
            place[0] + max(0.0, left) * size[0],
            place[1] + max(0.0, top) * size[1],
            place[0] + min(1.0, right) * size[0] - 1,
            place[1] + min(1.0, bottom) * size[1] - 1,
        )
        color = COLORS[label % len(COLORS)]
        pen.rectangle(corners, outline=color, width=2)
        text = class_names[label] if score == 1 else f"{class_names[label]} {score:.2f}"
        label_place = (corners[0] + 3, corners[1] + 1)
        pen.rectangle(pen.textbbox(label_place, text), fill=color)
        pen.text(label_place, text, fill="white")


def _png(canvas: Image.Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
