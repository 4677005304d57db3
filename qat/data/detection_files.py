"""Files of a data set, in a folder or in a tar archive, by name."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from qat.errors import DataError


class Files(Protocol):
    """Files by their names, with forward slashes, below one root."""

    @property
    def where(self) -> str:
        """What errors call the root."""

    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: The file is missing or cannot be read.
        """


@dataclass(frozen=True)
class Folder:
    """Files below a folder.

    Args:
        root: The folder.
    """

    root: Path

    @property
    def where(self) -> str:
        """What errors call the root."""
        return str(self.root)

    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""
        return tuple(sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"{name!r} lies outside of {self.root}")
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error


class Tar:
    """Files in an uncompressed tar archive, read in place; any number of processes may read at a time.

    Args:
        path: The archive.

    Raises:
        DataError: It is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with tarfile.open(self.path, "r:") as archive:
                members = [member for member in archive if member.isfile() and not member.issparse()]
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"archive {path} is missing, compressed or damaged: {error}") from error
        self._places = {member.name.removeprefix("./"): (member.offset_data, member.size) for member in members}
        size = self.path.stat().st_size
        if any(start + length > size for start, length in self._places.values()):
            raise DataError(f"archive {path} ends early; copy it again")

    @property
    def where(self) -> str:
        """What errors call the root."""
        return str(self.path)

    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted."""
        return tuple(sorted(self._places))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        if name not in self._places:
            raise DataError(f"archive {self.path} has no {name!r}")
        start, length = self._places[name]
        with open(self.path, "rb") as file:
            data = os.pread(file.fileno(), length, start)
        if len(data) != length:
            raise DataError(f"archive {self.path} ends early in {name!r}; copy it again")
        return data


def open_files(root: Path) -> Files:
    """A folder, or a `.tar` file.

    Raises:
        DataError: There is neither.
    """
    if root.is_dir():
        return Folder(root)
    if root.is_file():
        return Tar(root)
    raise DataError(f"{root} is neither a folder nor a .tar file; check data.root")


def to_mode(picture: Image.Image, mode: str) -> Image.Image:
    """An image with 8 bits per channel, as it is stored: the orientation of its EXIF data does not count.

    Of grey images with 16 bits the upper 8 remain, as Pillow does with coloured ones.

    Args:
        picture: Any image.
        mode: Pillow's: "RGB" or "L".

    Raises:
        ValueError: Its range is not known.
        OSError: It is damaged.
    """
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion cuts off everything above 255.
        grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert(mode)
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers of unknown range (mode {picture.mode}), expected 8 or 16 bits")
    return picture.convert(mode)


def read_image(files: Files, name: str, mode: str) -> Image.Image:
    """A decoded image.

    Args:
        files: Where it lies.
        name: Which file.
        mode: Pillow's: "RGB" or "L".

    Raises:
        DataError: It is missing or damaged.
    """
    data = files.read(name)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return to_mode(picture, mode)
    except Exception as error:  # Pillow raises many kinds on damaged bytes
        raise DataError(f"image {name!r} in {files.where} is damaged: {error}") from error
