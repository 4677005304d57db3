"""Writes a folder so that it appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qat.errors import ExportError, PackedFormatError
from qat.export.manifest import MANIFEST, read_manifest


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files to a temporary folder beside `folder`, then renames it.

    A packed model that is there already is replaced; anything else is left alone.

    Args:
        folder: Where the files shall be.
        files: Contents by name; a name may have one folder in front.

    Raises:
        ExportError: The place holds something else, or cannot be written.
    """
    _check_replaceable(folder)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new, old = temporary / "new", temporary / "old"
        for name, data in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
        # All are written before the first is synced: the disk then takes them together.
        for path in [*(new / name for name in files), *{(new / name).parent for name in files}, new]:
            _sync(path)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        _sync(folder.parent)
    except OSError as error:
        raise ExportError(f"{folder}: the packed model could not be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    cure = "choose another folder or empty this one"
    if not folder.is_dir():
        raise ExportError(f"{folder}: is not a folder; {cure}")
    if not (folder / MANIFEST).exists():
        raise ExportError(f"{folder}: holds something that is not a packed model; {cure}")
    try:
        listed = {MANIFEST, *read_manifest(folder)["files"]}
    except (PackedFormatError, KeyError, TypeError) as error:
        raise ExportError(f"{folder}: holds a packed model that cannot be read ({error}); {cure}") from error
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if foreign := sorted(present - listed):
        raise ExportError(f"{folder}: holds files beside a packed model, {foreign}; move them, or {cure}")


def _sync(path: Path) -> None:
    """Makes a file or a rename in a folder durable (folders: where the system lets them be synced)."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
