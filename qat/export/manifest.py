"""`manifest.json` and the safety of a packed folder: checksums, sizes, names.

The manifest's first line of content is `manifest_sha256`: the SHA-256 of the manifest's bytes with those 64 digits
replaced by zeros.  `files` lists every other file with size and SHA-256.  So each bit of the folder is covered, and
what is damaged can be named.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hwmodel.errors import SpecError
from qat.errors import ExportError, PackedFormatError

MAGIC = "qat packed integer network"
VERSION = 1
"""Schema version of a packed folder."""
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 24
LINE_LENGTH = 110
_BLOCK_BYTES = 1 << 20
_HEAD = b'{\n  "manifest_sha256": "'
_ZEROS = b"0" * 64
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?", re.ASCII)


def manifest_bytes(body: Mapping[str, Any]) -> bytes:
    """The file's content: JSON, short values on one line, with the checksum in front.

    Args:
        body: Plain values; keys are strings.

    Raises:
        ValueError: A value is not JSON (NaN included).
        TypeError: A value has another type.
    """
    text = _render({"manifest_sha256": _ZEROS.decode(), "format": MAGIC, "version": VERSION, **body}, "") + "\n"
    data = text.encode("ascii")
    assert data.startswith(_HEAD + _ZEROS)
    digest = hashlib.sha256(data).hexdigest().encode()
    return _HEAD + digest + data[len(_HEAD) + 64 :]


def _render(value: Any, indent: str) -> str:
    compact = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or not value or (indent and len(indent + compact) <= LINE_LENGTH):
        return compact
    inner = indent + "  "
    if isinstance(value, dict):
        rows = [f"{json.dumps(key)}: {_render(item, inner)}" for key, item in value.items()]
    else:
        rows = [_render(item, inner) for item in value]
    brackets = "{}" if isinstance(value, dict) else "[]"
    return f"{brackets[0]}\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}{brackets[1]}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The verified content of `manifest.json`.

    Raises:
        PackedFormatError: It is missing, damaged, of another kind or newer.
    """
    path = folder / MANIFEST
    data = _read(path, MAX_MANIFEST_BYTES)
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PackedFormatError(f"{path}: damaged, not JSON ({error})") from error
    if not isinstance(body, dict) or body.get("format") != MAGIC:
        raise PackedFormatError(f"{path}: not the manifest of a packed model (format is not {MAGIC!r})")
    version = body.get("version")
    if isinstance(version, int) and version > VERSION:
        raise PackedFormatError(f"{path}: version {version}, written by a newer release; this one reads {VERSION}")
    if version != VERSION:
        raise PackedFormatError(f"{path}: version {version!r}, expected {VERSION}")
    digits = data[len(_HEAD) : len(_HEAD) + 64]
    blank = _HEAD + _ZEROS + data[len(_HEAD) + 64 :]
    if not data.startswith(_HEAD) or digits != hashlib.sha256(blank).hexdigest().encode():
        raise PackedFormatError(f"{path}: damaged, its SHA-256 is not what manifest_sha256 says")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


@contextmanager
def contents_of(path: Path) -> Iterator[None]:
    """Turns whatever a contradictory description provokes into `PackedFormatError` with the file's name."""
    try:
        yield
    except PackedFormatError:
        raise
    except KeyError as error:
        raise PackedFormatError(f"{path}: {error} is missing") from error
    except (SpecError, ExportError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise PackedFormatError(f"{path}: {error}") from error


def file_entry(data: bytes) -> dict[str, Any]:
    """What the manifest's `files` says of a file."""
    return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares every listed file with its size and SHA-256.

    Raises:
        PackedFormatError: A name leads outside the folder, or a file is missing, damaged, truncated or swapped.
    """
    for name, entry in files.items():
        path = safe_path(folder, name)
        digest, size = hashlib.sha256(), 0
        with _open(path) as descriptor:
            _check_size(path, descriptor, entry)
            while block := os.read(descriptor, _BLOCK_BYTES):
                size += len(block)
                digest.update(block)
        _check_digest(path, digest.hexdigest(), entry)


def read_file(folder: Path, name: str, entry: Mapping[str, Any], size_bytes: int) -> bytes:
    """Content of a listed file that must have `size_bytes` bytes.

    Raises:
        PackedFormatError: As for `check_files`.
    """
    path = safe_path(folder, name)
    if entry["size_bytes"] != size_bytes:
        raise PackedFormatError(f"{path}: listed with {entry['size_bytes']} bytes, the layers need {size_bytes}")
    with _open(path) as descriptor:
        _check_size(path, descriptor, entry)
    data = _read(path, size_bytes)
    _check_digest(path, hashlib.sha256(data).hexdigest(), entry)
    return data


def safe_path(folder: Path, name: str) -> Path:
    """Path of a listed file.

    Raises:
        PackedFormatError: The name could lead outside the folder.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PackedFormatError(f"{folder / MANIFEST}: files lists {name!r}, which is not a plain name in the folder")
    path = folder / name
    if path.parent != folder and path.parent.is_symlink():
        raise PackedFormatError(f"{path.parent}: is a symbolic link; a packed folder has none")
    return path


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """File descriptor of a regular file; links, pipes and devices are refused."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise PackedFormatError(f"{path}: missing") from error
    except OSError as error:
        raise PackedFormatError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PackedFormatError(f"{path}: not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path: Path, max_bytes: int) -> bytes:
    with _open(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise PackedFormatError(f"{path}: {size} bytes, at most {max_bytes} expected")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(max_bytes)


def _check_size(path: Path, descriptor: int, entry: Mapping[str, Any]) -> None:
    size, expected = os.fstat(descriptor).st_size, entry["size_bytes"]
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise PackedFormatError(f"{path}: {what}, {size} bytes instead of {expected}")


def _check_digest(path: Path, digest: str, entry: Mapping[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise PackedFormatError(f"{path}: damaged or swapped, its SHA-256 is not the manifest's")
