"""Random changes of an image together with its boxes, by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from qat.data.boxes import Boxes
from qat.errors import ConfigError

LEAST_VISIBLE = 0.3
"""Share of a box that must remain in the image; what remains of others need not be found."""

LEAST_SIDE = 2.0
"""Pixels of a box's shorter side; smaller ones need not be found."""

Picture = Callable[[int, tuple[int, int]], tuple[Image.Image, Boxes]]
"""(number of an image, its rows and columns) -> the image in that size, and its boxes."""


@dataclass(frozen=True)
class DetectionAugmentation:
    """What happens to an image that is trained on.

    Args:
        horizontal_flip: Whether half of the images are mirrored.
        vertical_flip: Whether half of them are turned upside down.
        shift: Largest shift, as a share of the image's sides, in [0, 1).
        zoom: Size changes by a factor in [1 / zoom, zoom]; 1 for none.
        color: Brightness, contrast and saturation change by up to this share, in [0, 1].
        mosaic: Share of images that are put together from four, in [0, 1].

    Raises:
        ConfigError: A field is out of range.
    """

    horizontal_flip: bool = False
    vertical_flip: bool = False
    shift: float = 0.0
    zoom: float = 1.0
    color: float = 0.0
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("shift", 0 <= self.shift < 1, "in [0, 1)"),
            ("zoom", self.zoom >= 1, ">= 1"),
            ("color", 0 <= self.color <= 1, "in [0, 1]"),
            ("mosaic", 0 <= self.mosaic <= 1, "in [0, 1]"),
        ):
            if not ok:
                raise ConfigError(f"data.{name}={getattr(self, name)!r}, expected a number {expected}")

    def __call__(
        self, picture: Picture, index: int, images: int, size: tuple[int, int], seed: int
    ) -> tuple[Tensor, Boxes]:
        """A changed image and its boxes.

        Args:
            picture: Gives images by number.
            index: Which one.
            images: How many there are, for mosaics.
            size: Rows and columns of the result.
            seed: Decides everything random.

        Returns:
            uint8 image (C, H, W), and boxes.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if float(torch.rand(())) < self.mosaic:
                others = torch.randint(images, (3,)).tolist()
                image, boxes = self._mosaic(picture, [index, *others], size)
            else:
                image, boxes = picture(index, size)
            return self._transform(v2.functional.pil_to_tensor(image), boxes)

    @staticmethod
    def _mosaic(picture: Picture, indices: list[int], size: tuple[int, int]) -> tuple[Image.Image, Boxes]:
        """Four images, each stretched into a corner of the result."""
        rows, columns = size
        split_row, split_column = (
            round(length * (0.3 + 0.4 * float(share))) for length, share in zip(size, torch.rand(2), strict=True)
        )
        corners = (
            (0, 0, split_row, split_column),
            (0, split_column, split_row, columns),
            (split_row, 0, rows, split_column),
            (split_row, split_column, rows, columns),
        )
        canvas: Image.Image | None = None
        parts = []
        for index, (top, left, bottom, right) in zip(indices, corners, strict=True):
            image, boxes = picture(index, (bottom - top, right - left))
            canvas = Image.new(image.mode, (columns, rows)) if canvas is None else canvas
            canvas.paste(image, (left, top))
            scale = np.array([right - left, bottom - top] * 2) / (columns, rows, columns, rows)
            offset = np.array([left, top] * 2) / (columns, rows, columns, rows)
            parts.append(Boxes((boxes.sides_B4 * scale + offset).astype(np.float32), boxes.labels_B, boxes.kinds_B))
        assert canvas is not None
        sides, labels, kinds = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("sides_B4", "labels_B", "kinds_B")
        )
        return canvas, Boxes(sides, labels, kinds)

    def _transform(self, image_CHW: Tensor, boxes: Boxes) -> tuple[Tensor, Boxes]:
        rows, columns = image_CHW.shape[-2:]
        unit = torch.tensor([columns, rows, columns, rows])
        sides = tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes.sides_B4) * unit, format="XYXY", canvas_size=(rows, columns), clamping_mode=None
        )
        image, sides = v2.Compose(self._steps())(tv_tensors.Image(image_CHW), sides)
        full_B4 = sides.as_subclass(torch.Tensor)
        seen_B4 = torch.stack((full_B4[:, 0::2].clamp(0, columns), full_B4[:, 1::2].clamp(0, rows)), 2).flatten(1)
        width_B, height_B = seen_B4[:, 2] - seen_B4[:, 0], seen_B4[:, 3] - seen_B4[:, 1]
        whole_B = (full_B4[:, 2] - full_B4[:, 0]) * (full_B4[:, 3] - full_B4[:, 1])
        is_there_B = ((width_B > 0) & (height_B > 0)).numpy()
        is_small_B = torch.minimum(width_B, height_B) < LEAST_SIDE
        hidden_B = (is_small_B | (width_B * height_B < LEAST_VISIBLE * whole_B)).numpy()
        result = Boxes(
            (seen_B4 / unit).numpy()[is_there_B],
            boxes.labels_B[is_there_B],
            np.maximum(boxes.kinds_B, hidden_B)[is_there_B],
        )
        return image.as_subclass(torch.Tensor), result

    def _steps(self) -> list[torch.nn.Module]:
        steps: list[torch.nn.Module] = [v2.Identity()]
        if self.color:
            steps.append(v2.ColorJitter(self.color, self.color, self.color))
        if self.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.vertical_flip:
            steps.append(v2.RandomVerticalFlip())
        if self.shift or self.zoom > 1:
            steps.append(
                v2.RandomAffine(
                    0,
                    translate=(self.shift, self.shift),
                    scale=(1 / self.zoom, self.zoom),
                    interpolation=v2.InterpolationMode.BILINEAR,
                )
            )
        return steps
