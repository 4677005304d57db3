"""Pictures of boxes: they are where they should be, in every column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor

from qat.data.boxes import Boxes, pack
from qat.models.heads import Detections
from qat.tasks.detection_pictures import COLORS, MARGIN, draw_detections


def test_each_answer_has_its_column(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    targets = pack([Boxes.from_lists([[0.25, 0.25, 0.75, 0.5]], [1]), Boxes.from_lists([], [])], 2)
    sure = Detections(torch.tensor([[0.5, 0.5, 1.2, 0.9]]), torch.tensor([0.9]), torch.tensor([2]))
    unsure = Detections(torch.tensor([[0.1, 0.1, 0.9, 0.9]]), torch.tensor([0.1]), torch.tensor([0]))
    draw_detections(images, targets, {"float": [unsure, sure]}, ("a", "b", "c"), tmp_path / "boxes.png")
    with Image.open(tmp_path / "boxes.png") as picture:
        pixels = np.asarray(picture)
    tile = 64 * 4 + 4
    assert pixels.shape == (MARGIN + 2 * tile, 2 * tile, 3)

    def places(row: int, column: int, label: int) -> tuple[int, int, int, int] | None:
        part = pixels[MARGIN + row * tile : MARGIN + (row + 1) * tile, column * tile : (column + 1) * tile]
        found = np.argwhere((part == ImageColor.getrgb(COLORS[label])).all(2))
        if not len(found):
            return None
        (top, left), (bottom, right) = found.min(0), found.max(0)
        return int(left), int(top), int(right), int(bottom)

    assert places(0, 0, 1) == (64, 64, 191, 127)
    assert places(1, 1, 2) == (128, 128, 255, 229)
    assert places(0, 1, 0) is None  # not sure enough
    assert places(1, 0, 1) is None
