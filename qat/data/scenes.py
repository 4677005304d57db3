"""Scenes of handwritten digits with exact boxes, drawn from a seed; the digits ship with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from qat.data.boxes import Boxes, BoxReport
from qat.data.splits import stratified_split

INK = 24
"""A pixel belongs to the digit if it is this much brighter than the paper, of 255."""

SMALLEST, LARGEST = 16, 40
"""Pixels of a drawn digit's square, in a scene of 96x96; larger scenes have larger digits."""

MOST_DIGITS = 6
ATTEMPTS = 30
"""Places tried for a digit that may not touch another one."""


@dataclass(frozen=True)
class Scenes:
    """Grey scenes of one to six digits of many sizes, with strokes as clutter and noise.

    Args:
        digits_D88: uint8 digits, black paper.
        labels_D: Their classes.
        count: Number of scenes.
        size: Rows and columns of a scene, each >= 96.
        seed: Scene number i is a pure function of seed and i.
    """

    digits_D88: NDArray[np.uint8]
    labels_D: NDArray[np.int64]
    count: int
    size: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        return self.count

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    @property
    def report(self) -> BoxReport:
        """All boxes are good, and as many as there are digits."""
        return BoxReport(images=self.count, boxes=sum(len(own) for own in self.boxes))

    @property
    def boxes(self) -> tuple[Boxes, ...]:
        """The boxes of all scenes."""
        return tuple(boxes for _, boxes in self._drawn)

    def image(self, index: int) -> Image.Image:
        """Scene number `index`."""
        return Image.fromarray(self._drawn[index][0])

    @cached_property
    def _drawn(self) -> tuple[tuple[NDArray[np.uint8], Boxes], ...]:
        """Every scene, drawn once: 9 KB each at 96x96."""
        return tuple(self.draw(index) for index in range(self.count))

    def draw(self, index: int) -> tuple[NDArray[np.uint8], Boxes]:
        """Scene number `index` (H, W) and its boxes, each exactly around the ink of its digit."""
        rng = np.random.default_rng((self.seed, index))
        rows, columns = self.size
        canvas = np.zeros((rows, columns), np.float32)
        for _ in range(rng.integers(0, 4)):
            _draw_stroke(canvas, rng)
        unit = min(rows, columns) / 96
        taken: list[tuple[int, int, int]] = []
        sides, labels = [], []
        for _ in range(rng.integers(1, MOST_DIGITS + 1)):
            side = round(unit * float(rng.uniform(SMALLEST, LARGEST)))
            place = _free_place(rng, side, taken, rows, columns)
            if place is None:
                continue
            top, left = place
            taken.append((top, left, side))
            number = int(rng.integers(len(self.digits_D88)))
            ink = np.asarray(Image.fromarray(self.digits_D88[number]).resize((side, side), Image.Resampling.BICUBIC))
            ink = ink * float(rng.uniform(0.6, 1.0))
            patch = canvas[top : top + side, left : left + side]
            np.maximum(patch, ink, out=patch)
            inked_rows, inked_columns = np.flatnonzero((ink > INK).any(1)), np.flatnonzero((ink > INK).any(0))
            box = (
                (left + inked_columns[0]) / columns,
                (top + inked_rows[0]) / rows,
                (left + inked_columns[-1] + 1) / columns,
                (top + inked_rows[-1] + 1) / rows,
            )
            sides.append(box)
            labels.append(int(self.labels_D[number]))
        canvas += rng.normal(0, 8, canvas.shape).astype(np.float32)
        return canvas.clip(0, 255).astype(np.uint8), Boxes.from_lists(sides, labels)


def _free_place(
    rng: np.random.Generator, side: int, taken: list[tuple[int, int, int]], rows: int, columns: int
) -> tuple[int, int] | None:
    for _ in range(ATTEMPTS):
        top, left = int(rng.integers(rows - side + 1)), int(rng.integers(columns - side + 1))
        if all(
            top + side <= other_top
            or other_top + other <= top
            or left + side <= other_left
            or other_left + other <= left
            for other_top, other_left, other in taken
        ):
            return top, left
    return None


def _draw_stroke(canvas: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A straight, faint line: something that is no digit."""
    rows, columns = canvas.shape
    start, end = rng.uniform(0, 1, (2, 2)) * (rows - 1, columns - 1)
    steps = np.linspace(0, 1, 2 * max(rows, columns))[:, None]
    points = np.rint(start + steps * (end - start) * 0.5).astype(int)
    canvas[points[:, 0], points[:, 1]] = rng.uniform(40, 120)


def digit_scenes(images: tuple[int, int, int], size: tuple[int, int], split_seed: int) -> tuple[Scenes, Scenes, Scenes]:
    """Scenes to fit, to select and to test; no handwritten digit occurs in two of the three.

    Args:
        images: Number of scenes of each part.
        size: Rows and columns.
        split_seed: Decides which digits go where, and the scenes.

    Source: UCI "Optical Recognition of Handwritten Digits", test part, as packed in scikit-learn.
    """
    bunch = load_digits()
    pixels, labels = (bunch.images * 15).astype(np.uint8), bunch.target.astype(np.int64)
    rest, test = stratified_split(labels, len(labels) // 5, split_seed)
    fit, val = stratified_split(labels[rest], len(labels) // 10, split_seed)
    parts = (rest[fit], rest[val], test)
    scenes = [
        Scenes(pixels[part], labels[part], count, size, 3 * split_seed + number)
        for number, (part, count) in enumerate(zip(parts, images, strict=True))
    ]
    return scenes[0], scenes[1], scenes[2]
