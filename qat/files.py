"""Files that are either whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.errors import RunFolderError


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8; the old file stays until the new one is whole.

    Args:
        path: The file; its folder is made if it is missing.
        text: The content.

    Raises:
        RunFolderError: The file could not be written (disk full, no permission); what was there is intact.
    """
    write_bytes(path, text.encode())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of plain values twice, as CSV for spreadsheets and as JSON; what a row lacks is empty or left out.

    Args:
        path: The files, without suffix: `runs/a/metrics` makes `metrics.csv` and `metrics.json`.
        rows: The rows; columns come in the order in which they first occur.

    Raises:
        RunFolderError: A file could not be written; what was there is intact.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path.with_suffix(".csv"), text.getvalue())
    write_text(path.with_suffix(".json"), json.dumps(list(rows), indent=1) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file; the old one stays until the new one is whole.

    Args:
        path: The file; its folder is made if it is missing.
        content: The content.

    Raises:
        RunFolderError: The file could not be written (disk full, no permission); what was there is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the folder itself is out of reach, the first error says so
            temporary.unlink(missing_ok=True)
        raise RunFolderError(
            f"could not write {path}: {error.strerror or error}; what was there is intact. Free some space or choose "
            "another folder, then run the same command again"
        ) from error
