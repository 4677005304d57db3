"""All trials as one flat table, for other programs: CSV, or Parquet with types."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat.errors import SearchError
from qat.files import write_bytes, write_text
from qat.search.trial import Trial


def export_csv(trials: Sequence[Trial], path: Path) -> None:
    """Writes every trial as one row; metrics, cost and each layer's choice become columns.

    Raises:
        RunFolderError: The file cannot be written; an earlier one is intact.
    """
    rows = [_flat(trial) for trial in trials]
    text = io.StringIO()
    writer = csv.DictWriter(text, _header(rows) or ["id"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def export_parquet(trials: Sequence[Trial], path: Path) -> None:
    """Writes the table of `export_csv` with types; what a trial lacks is null.

    Raises:
        SearchError: PyArrow is not installed.
        RunFolderError: The file cannot be written; an earlier one is intact.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SearchError(f"Parquet needs PyArrow ({error}); pip install 'qat-fpga[parquet]', or export CSV") from error
    rows = [_flat(trial) for trial in trials]
    columns = {name: [row.get(name) for row in rows] for name in _header(rows) or ["id"]}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    write_bytes(path, buffer.getvalue())


def _header(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _flat(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": trial.id,
        "state": str(trial.state),
        "target": trial.target,
        "origin": trial.origin,
        "fidelity": trial.fidelity.name,
        "epochs": trial.fidelity.epochs,
        "data_fraction": trial.fidelity.data_fraction,
        "seed": trial.seed,
        "predicted_mean": None if trial.predicted is None else trial.predicted[0],
        "predicted_std": None if trial.predicted is None else trial.predicted[1],
        "created_s": trial.created_s,
        "started_s": trial.started_s,
        "ended_s": trial.ended_s,
        "attempts": trial.attempts,
        "error": trial.error,
        "screening_share": None if trial.screening is None else trial.screening.share,
        "screening_least": None if trial.screening is None else trial.screening.least,
    }
    row |= {f"metric.{name}": value for name, value in trial.metrics.items()}
    row |= {f"cost.{name}": value for name, value in trial.cost.items()}
    return row | trial.choices
