"""Trials in one SQLite file that survives a crash at any moment; one process writes, any number may read.

A trial is recorded before it starts and again after it ends, each in one transaction that is on disk before the
search goes on.  The file uses a write-ahead log, so it must lie on a local disk.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hwmodel.errors import SpecError
from hwmodel.precision import NetworkConfig
from qat.errors import ConfigError, SearchError
from qat.search.export import export_csv
from qat.search.schema import APPLICATION_ID, COLUMNS, MIGRATIONS, SCHEMA_VERSION, TABLES
from qat.search.trial import Fidelity, Screening, Trial, TrialState

ADOPTED = "earlier"
"""Origin of trials that another search has paid for."""

BUSY_TIMEOUT_S = 30.0
"""How long a statement waits for another program that has locked the file."""

ASKING_S = 0.05
"""How long `is_being_written` may hold the lock that it asks about, with much to spare."""


def is_being_written(path: Path) -> bool:
    """Whether a process has the store at `path` open for writing: a search runs there."""
    try:
        with open(_lock_path(path), encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a disk without locks
        return False
    return False


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


class TrialStore:
    """The trials of one search.

    Args:
        path: The SQLite file; created, with its folder, unless `read_only`.
        read_only: For a process that only watches: takes no lock and changes nothing.

    Raises:
        SearchError: Another process writes to the store, it is damaged, of a newer version or no store of ours, its
            folder cannot be written, or it does not exist and `read_only` is set.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._lock: io.TextIOWrapper | None = None
        if read_only:
            if not self.path.is_file():
                raise SearchError(f"there is no trial store at {self.path}; start a search first")
            self._database = self._connect(f"{self.path.resolve().as_uri()}?mode=ro")
        else:
            self._lock = self._acquire_lock()
            self._database = self._connect(self.path.resolve().as_uri())
        try:
            self._prepare(read_only)
        except BaseException:
            self.close()
            raise

    # -- opening and closing --------------------------------------------------------------------------------------

    def _acquire_lock(self) -> io.TextIOWrapper:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(_lock_path(self.path), "a+", encoding="utf-8")  # noqa: SIM115  (held open as long as the store is)
        except OSError as error:
            raise SearchError(
                f"cannot write the trial store {self.path}: {error}; choose another run folder"
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the process dies
            except BlockingIOError:  # perhaps somebody only asks whether a search runs
                time.sleep(ASKING_S)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise SearchError(
                f"another search is writing to the trial store {self.path} (process {owner}); wait for it to end, stop "
                "it, or use another run folder"
            ) from None
        except OSError as error:
            lock.close()
            raise SearchError(
                f"cannot lock the trial store {self.path}: {error}; use a run folder on a local disk"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock

    def _connect(self, uri: str) -> sqlite3.Connection:
        try:
            return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        except sqlite3.Error as error:
            self.close()
            raise SearchError(f"cannot open the trial store {self.path}: {error}") from error

    def _prepare(self, read_only: bool) -> None:
        with self._errors("open"):
            application = self._database.execute("PRAGMA application_id").fetchone()[0]
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            is_empty = not self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not is_empty and application != APPLICATION_ID:
            raise SearchError(f"{self.path} is an SQLite file, but no trial store; choose another path")
        if version > SCHEMA_VERSION:
            raise SearchError(
                f"the trial store {self.path} has schema version {version}, this program knows up to {SCHEMA_VERSION}; "
                "update the program, or use another run folder"
            )
        if read_only:
            if is_empty:
                raise SearchError(f"the trial store {self.path} is empty; start a search first")
            if version < SCHEMA_VERSION:
                self._read_up_to_date_copy(version)
            return
        with self._errors("open"):
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            if is_empty:
                # One transaction: a crash leaves either nothing or a whole schema.
                self._database.executescript(
                    f"BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; "
                    f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
                version = SCHEMA_VERSION
            for number in range(version, SCHEMA_VERSION):
                self._migrate(number)

    def _read_up_to_date_copy(self, version: int) -> None:
        """Reads a store of an earlier version as it is now, from a copy in memory: the file is not ours to change."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        with self._errors("open"):
            self._database.backup(copy)
            self._database.close()
            self._database = copy
            for number in range(version, SCHEMA_VERSION):
                self._migrate(number)

    def _migrate(self, version: int) -> None:
        """From one schema version to the next, in one transaction: a crash leaves either the old or the new one."""
        try:
            self._database.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[version - 1]} PRAGMA user_version = {version + 1}; COMMIT;"
            )
        except sqlite3.Error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Closes the file and lets other processes write."""
        if hasattr(self, "_database"):
            self._database.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            remedy = {
                sqlite3.SQLITE_BUSY: "another program has locked the file, such as a database browser: close it "
                "and run the same command again; what is stored is intact",
                sqlite3.SQLITE_FULL: "free some disk space and run the same command again; what is stored is intact",
                sqlite3.SQLITE_IOERR: "check the disk and run the same command again",
                sqlite3.SQLITE_NOTADB: "the file is damaged or no trial store; move it away to start anew",
                sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a copy, or move it away to start anew",
            }.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "check the path and its permissions")
            raise SearchError(f"cannot {doing} the trial store {self.path}: {error}; {remedy}") from error

    # -- documents ------------------------------------------------------------------------------------------------

    def document(self, name: str) -> Any | None:
        """A JSON value saved under this name, or `None`."""
        with self._errors("read"):
            row = self._database.execute("SELECT value FROM documents WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def save_document(self, name: str, value: Any) -> None:
        """Saves a JSON value under a name, replacing an earlier one."""
        text = json.dumps(value, sort_keys=True)
        with self._errors("write to"):
            self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (name, text))

    def bind(self, fingerprint: Mapping[str, Any]) -> None:
        """Ties the store to the settings of a search: records them, or checks that they are still the same.

        Args:
            fingerprint: Settings as plain values; everything that makes trials comparable.

        Raises:
            SearchError: The store belongs to other settings; the message lists each difference.
        """
        now = json.loads(json.dumps(fingerprint))
        stored = self.document("fingerprint")
        if stored is None:
            self.save_document("fingerprint", now)
        elif stored != now:
            differences = "\n".join(f"  {line}" for line in setting_differences(stored, now))
            raise SearchError(
                f"the trial store {self.path} belongs to a search with other settings:\n{differences}\n"
                "restore the settings to resume it, or use another run folder for a new search"
            )

    # -- trials ---------------------------------------------------------------------------------------------------

    def add(
        self,
        *,
        point: tuple[int, ...],
        config: NetworkConfig,
        fidelity: Fidelity,
        seed: int,
        target: str,
        origin: str,
        cost: Mapping[str, float],
        predicted: tuple[float, float] | None = None,
        screening: Screening | None = None,
    ) -> Trial:
        """Records a new trial as pending; its id is the next number.

        Raises:
            SearchError: The same point was already recorded at this fidelity, or the file cannot be written.
        """
        values = (
            json.dumps([int(i) for i in point]),
            json.dumps(config.to_dict()),
            json.dumps(fidelity.to_dict()),
            seed,
            target,
            origin,
            TrialState.PENDING,
            json.dumps({name: float(value) for name, value in cost.items()}),
            "{}",
            json.dumps(predicted),
            time.time(),
            None,
            None,
            0,
            None,
            _screening_text(screening),
        )
        marks = ", ".join("?" * len(values))
        with self._errors("write to"):
            cursor = self._database.execute(f"INSERT INTO trials ({', '.join(COLUMNS[1:])}) VALUES ({marks})", values)
        return self.trial(int(cursor.lastrowid or 0))

    def adopt(self, trials: Sequence[Trial]) -> int:
        """Takes over ended trials of another search, all or none, as often as it has new ones.

        Of a trial that was taken over before, what has become of it since is; one that was evaluated here stays.

        Args:
            trials: Their costs as they are here; the origin becomes `ADOPTED`.

        Returns:
            How many adopted trials the store holds.
        """
        rows = [
            (
                json.dumps([int(i) for i in trial.point]),
                json.dumps(trial.config.to_dict()),
                json.dumps(trial.fidelity.to_dict()),
                trial.seed,
                trial.target,
                ADOPTED,
                trial.state,
                json.dumps(dict(trial.cost)),
                json.dumps(dict(trial.metrics)),
                json.dumps(trial.predicted),
                *(trial.created_s, trial.started_s, trial.ended_s, trial.attempts, trial.error),
                _screening_text(trial.screening),
            )
            for trial in trials
        ]
        marks = ", ".join("?" * len(COLUMNS[1:]))
        outcome = ("state", "metrics", "started_s", "ended_s", "attempts", "error", "screening")
        insert = (
            f"INSERT INTO trials ({', '.join(COLUMNS[1:])}) VALUES ({marks}) ON CONFLICT (point, fidelity) "
            f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in outcome)} "
            "WHERE origin = excluded.origin AND state != excluded.state"
        )
        with self._errors("write to"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany(insert, rows)
                self._database.execute("COMMIT")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
            count = self._database.execute("SELECT count(*) FROM trials WHERE origin = ?", (ADOPTED,)).fetchone()[0]
        return int(count)

    def start(self, trial: Trial) -> Trial:
        """Records that an attempt at a trial starts now."""
        self._update(trial.id, state=TrialState.RUNNING, started_s=time.time(), attempts=trial.attempts + 1)
        return self.trial(trial.id)

    def complete(self, trial: Trial, metrics: Mapping[str, float]) -> Trial:
        """Records the metrics of a trial that ended."""
        text = json.dumps({name: float(value) for name, value in metrics.items()})
        self._update(trial.id, state=TrialState.COMPLETED, metrics=text, ended_s=time.time())
        return self.trial(trial.id)

    def stop(self, trial: Trial, metrics: Mapping[str, float]) -> Trial:
        """Records what a trial had reached when its screening ended it."""
        text = json.dumps({name: float(value) for name, value in metrics.items()})
        self._update(trial.id, state=TrialState.STOPPED, metrics=text, ended_s=time.time())
        return self.trial(trial.id)

    def fail(self, trial: Trial, error: str) -> Trial:
        """Records why a trial failed."""
        self._update(trial.id, state=TrialState.FAILED, error=error, ended_s=time.time())
        return self.trial(trial.id)

    def release(self, trial: Trial) -> Trial:
        """Takes an attempt back that was interrupted on purpose: the trial is pending again."""
        self._update(trial.id, state=TrialState.PENDING, started_s=None, attempts=trial.attempts - 1)
        return self.trial(trial.id)

    def retry(self, trial: Trial) -> Trial:
        """Records that the worker died during an attempt: the trial is pending again, and the attempt counts."""
        self._update(trial.id, state=TrialState.PENDING, started_s=None)
        return self.trial(trial.id)

    def retry_failed(self) -> tuple[Trial, ...]:
        """Makes the failed trials pending, as if they had never been started; adopted ones are another search's.

        Returns:
            The trials as they were, with their errors.
        """
        failed = tuple(t for t in self.trials() if t.state is TrialState.FAILED and t.origin != ADOPTED)
        with self._errors("write to"):
            self._database.execute(
                "UPDATE trials SET state = ?, started_s = NULL, ended_s = NULL, attempts = 0, error = NULL "
                "WHERE state = ? AND origin != ?",
                (TrialState.PENDING, TrialState.FAILED, ADOPTED),
            )
        return failed

    def _update(self, trial_id: int, **changes: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in changes)
        with self._errors("write to"):
            self._database.execute(f"UPDATE trials SET {names} WHERE id = ?", (*changes.values(), trial_id))

    def trial(self, trial_id: int) -> Trial:
        """One trial by id.

        Raises:
            SearchError: There is none with this id.
        """
        with self._errors("read"):
            row = self._database.execute(
                f"SELECT {', '.join(COLUMNS)} FROM trials WHERE id = ?", (trial_id,)
            ).fetchone()
        if row is None:
            raise SearchError(f"the trial store {self.path} has no trial {trial_id}")
        return self._from_row(row)

    def trials(self) -> tuple[Trial, ...]:
        """All trials in the order in which they were recorded."""
        with self._errors("read"):
            rows = self._database.execute(f"SELECT {', '.join(COLUMNS)} FROM trials ORDER BY id").fetchall()
        return tuple(map(self._from_row, rows))

    def _from_row(self, row: tuple[Any, ...]) -> Trial:
        values = dict(zip(COLUMNS, row, strict=True))
        try:
            predicted = json.loads(values.pop("predicted"))
            screening = json.loads(values.pop("screening"))
            return Trial(
                point=tuple(json.loads(values.pop("point"))),
                config=NetworkConfig.from_dict(json.loads(values.pop("config"))),
                fidelity=Fidelity.from_dict(json.loads(values.pop("fidelity"))),
                state=TrialState(values.pop("state")),
                cost=json.loads(values.pop("cost")),
                metrics=json.loads(values.pop("metrics")),
                predicted=None if predicted is None else (predicted[0], predicted[1]),
                screening=None if screening is None else Screening.from_dict(screening),
                **values,
            )
        except (ValueError, TypeError, SpecError, ConfigError) as error:
            raise SearchError(f"trial {row[0]} in the trial store {self.path} is damaged: {error}") from error

    # -- checks --------------------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raises `SearchError` if SQLite's own check of the whole file finds damage."""
        with self._errors("check"):
            found = [row[0] for row in self._database.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            raise SearchError(f"the trial store {self.path} is damaged: {'; '.join(found[:5])}")

    def export_csv(self, path: Path) -> None:
        """Writes every trial as one row of a CSV file; `qat.search.export` says what is in it."""
        export_csv(self.trials(), path)


def _screening_text(screening: Screening | None) -> str:
    return json.dumps(None if screening is None else screening.to_dict())


def setting_differences(stored: Any, now: Any, where: str = "") -> Iterator[str]:
    """One line for each plain value that differs, by its path."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*stored, *now)):
            name = f"{where}.{key}" if where else str(key)
            if key not in now:
                yield f"{name}: stored {_short(stored[key])}, now absent"
            elif key not in stored:
                yield f"{name}: stored nothing, now {_short(now[key])}"
            else:
                yield from setting_differences(stored[key], now[key], name)
    elif stored != now:
        yield f"{where}: stored {_short(stored)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
