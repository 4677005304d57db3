from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qat.errors import RunFolderError, SearchError
from qat.search import store as module
from qat.search.export import export_parquet
from qat.search.schema import MIGRATIONS, SCHEMA_VERSION
from qat.search.store import TrialStore, is_being_written
from qat.search.trial import Screening, Trial, TrialState
from tests.qat.search.problems import FIDELITY, PROBLEM_FOR_CRASHES

PROBLEM = PROBLEM_FOR_CRASHES


def add(store: TrialStore, *point: int) -> Trial:
    config = PROBLEM.space.config(point)
    return store.add(
        point=point, config=config, fidelity=FIDELITY, seed=7, target="t", origin="random", cost={"bits": 3.0},
        predicted=(0.5, 0.1),
    )  # fmt: skip


def test_a_trials_life(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "new" / "trials.sqlite") as store:
        pending = add(store, 0, 1, 2)
        assert (pending.id, pending.state, pending.attempts, pending.duration_s) == (1, TrialState.PENDING, 0, None)
        running = store.start(pending)
        assert (running.state, running.attempts) == (TrialState.RUNNING, 1)
        assert store.release(running).attempts == 0
        completed = store.complete(store.start(store.trial(1)), {"accuracy": 0.75, "loss": 1})
        assert completed.accuracy == 0.75
        assert completed.duration_s is not None and completed.duration_s >= 0
        failed = store.fail(store.start(add(store, 1, 1, 1)), "ValueError: no")
        assert (failed.state, failed.error) == (TrialState.FAILED, "ValueError: no")
        before = store.trials()
        store.check_integrity()
    with TrialStore(tmp_path / "new" / "trials.sqlite") as store:
        assert store.trials() == before
        assert store.trials()[0].config == PROBLEM.space.config((0, 1, 2))


def test_a_point_is_recorded_once_per_fidelity(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "s.sqlite") as store:
        add(store, 0, 0, 0)
        with pytest.raises(SearchError, match=r"cannot write to the trial store .*UNIQUE"):
            add(store, 0, 0, 0)
        with pytest.raises(SearchError, match="has no trial 9"):
            store.trial(9)


def test_readers_see_the_trials_while_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with TrialStore(path) as writer:
        add(writer, 0, 0, 0)
        with TrialStore(path, read_only=True) as reader:
            assert len(reader.trials()) == 1
            add(writer, 0, 0, 1)
            assert len(reader.trials()) == 2
            with pytest.raises(SearchError, match="readonly"):
                reader.save_document("x", 1)
    with pytest.raises(SearchError, match="there is no trial store at .*; start a search first"):
        TrialStore(tmp_path / "none.sqlite", read_only=True)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    other = f"from pathlib import Path; from qat.search.store import TrialStore; TrialStore(Path({str(path)!r}))"
    with TrialStore(path):
        with pytest.raises(SearchError, match=rf"another search is writing .* \(process {os.getpid()}\)"):
            TrialStore(path)
        result = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert "another search is writing" in result.stderr
    subprocess.run([sys.executable, "-c", other], check=True)


def test_locked_by_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qat.search.store.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "s.sqlite"
    with TrialStore(path) as store:
        add(store, 0, 0, 0)
        browser = sqlite3.connect(path, isolation_level=None)
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(SearchError, match=r"database is locked; another program has locked the file.*: close it"):
            add(store, 0, 0, 1)
        assert len(store.trials()) == 1
        browser.execute("ROLLBACK")
        browser.close()
        add(store, 0, 0, 1)
        assert len(store.trials()) == 2
        store.check_integrity()


def test_trials_of_another_search_are_adopted_as_it_makes_them(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "a.sqlite") as earlier, TrialStore(tmp_path / "b.sqlite") as store:
        for i in range(3):
            earlier.complete(earlier.start(add(earlier, 0, 0, i)), {"accuracy": 0.5})
        trials = [replace(trial, cost={"bits": 9.0}) for trial in earlier.trials()]
        damaged = replace(trials[2], attempts="many")  # type: ignore[arg-type]
        with pytest.raises(SearchError, match="cannot write to the trial store"):
            store.adopt([*trials[:2], damaged])
        assert store.trials() == ()
        assert store.adopt(trials) == 3
        assert list(store.trials()) == [replace(trial, origin="earlier") for trial in trials]
        own = store.complete(store.start(add(store, 0, 0, 3)), {"accuracy": 0.25})
        assert store.adopt(trials[:1]) == 3
        before = store.trials()
        assert len(before) == 4
        # The other search goes on, also at a point that was evaluated here.
        for i in (3, 4):
            earlier.complete(earlier.start(add(earlier, 0, 0, i)), {"accuracy": 0.75})
        assert store.adopt(earlier.trials()) == 4
        assert store.trials()[:4] == before and store.trials()[3] == own
        assert [(t.point, t.accuracy, t.origin) for t in store.trials()[4:]] == [((0, 0, 4), 0.75, "earlier")]
        once = store.trials()
        assert store.adopt(earlier.trials()) == 4
        assert store.trials() == once
        store.check_integrity()


def test_what_becomes_of_an_adopted_trial_that_had_failed_is_taken_over(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "a.sqlite") as earlier, TrialStore(tmp_path / "b.sqlite") as store:
        earlier.fail(earlier.start(add(earlier, 0, 0, 0)), "no driver")
        own = store.fail(store.start(add(store, 1, 1, 1)), "too large")
        assert store.adopt(earlier.trials()) == 1
        assert store.retry_failed() == (own,)
        assert [t.state for t in store.trials()] == [TrialState.PENDING, TrialState.FAILED]
        earlier.retry_failed()
        mended = earlier.complete(earlier.start(earlier.trials()[0]), {"accuracy": 0.5})
        assert store.adopt(earlier.trials()) == 1
        assert store.trials()[1] == replace(mended, id=2, origin="earlier")


def test_whether_a_search_runs_is_seen_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    assert not is_being_written(path)
    with TrialStore(path) as store:
        add(store, 0, 0, 0)
        assert is_being_written(path)
        with TrialStore(path, read_only=True):
            assert is_being_written(path)
    assert not is_being_written(path)
    with TrialStore(path, read_only=True):
        assert not is_being_written(path)
    with TrialStore(path):  # having asked is in nobody's way
        pass


def test_who_asks_whether_a_search_runs_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sqlite"
    TrialStore(path).close()
    with open(tmp_path / "s.sqlite.lock", encoding="utf-8") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        monkeypatch.setattr("qat.search.store.time.sleep", lambda seconds: fcntl.flock(asking, fcntl.LOCK_UN))
        with TrialStore(path):
            assert is_being_written(path)


def test_failed_trials_become_pending_again(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "s.sqlite") as store:
        store.complete(store.start(add(store, 0, 0, 0)), {"accuracy": 0.5})
        pending = add(store, 0, 0, 1)
        failed = store.fail(store.start(pending), "no driver")
        assert store.retry_failed() == (failed,)
        assert store.trials()[1] == pending
        assert store.trials()[0].is_completed and store.retry_failed() == ()


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(SearchError, match=r"cannot lock the trial store .*No locks available; use a run"):
        TrialStore(tmp_path / "s.sqlite")


def test_newer_and_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.sqlite"
    TrialStore(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(SearchError, match=rf"has schema version {SCHEMA_VERSION + 1}, this program knows up to"):
        TrialStore(path)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE mine (a)")
    database.close()
    with pytest.raises(SearchError, match="is an SQLite file, but no trial store"):
        TrialStore(foreign)
    noise = tmp_path / "noise.sqlite"
    noise.write_bytes(b"not a database at all, but long enough to have a header" * 20)
    content = noise.read_bytes()
    with pytest.raises(SearchError, match=r"cannot open the trial store .*the file is damaged or no trial store"):
        TrialStore(noise)
    assert noise.read_bytes() == content


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SearchError, match=r"cannot write the trial store .*; choose another run folder"):
        TrialStore(tmp_path / "file" / "s.sqlite")


def test_a_full_disk_leaves_what_is_stored(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "s.sqlite") as store:
        kept = store.complete(store.start(add(store, 0, 0, 0)), {"accuracy": 0.5})
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to run out of space
        with pytest.raises(SearchError, match=r"full; free some disk space and run the same command again"):
            store.save_document("large", "x" * 100_000)
        store._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
        assert store.trials() == (kept,)
        store.check_integrity()
        store.save_document("large", "x" * 100_000)


def test_a_store_is_bound_to_its_settings(tmp_path: Path) -> None:
    settings = {"space": {"fc": [1, 2]}, "seed": 1, "targets": [{"name": "a"}]}
    with TrialStore(tmp_path / "s.sqlite") as store:
        store.bind(settings)
        store.bind(dict(settings))
        message = r"other settings:\n  seed: stored 1, now absent\n  space\.fc: stored \[1, 2\], now \[1\]\n  .*now 3\n"
        with pytest.raises(SearchError, match=message):
            store.bind({"space": {"fc": [1]}, "targets": [{"name": "a"}], "extra": 3})


def test_export(tmp_path: Path) -> None:
    path = tmp_path / "out" / "trials.csv"
    with TrialStore(tmp_path / "s.sqlite") as store:
        store.export_csv(path)
        assert path.read_text() == "id\n"
        store.complete(store.start(add(store, 0, 1, 2)), {"accuracy": 0.75})
        store.fail(store.start(add(store, 0, 0, 0)), 'ValueError: "quoted", and\nbroken')
        store.export_csv(path)
        export_parquet(store.trials(), path.with_suffix(".parquet"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["completed", "failed"]
    assert (rows[0]["metric.accuracy"], rows[1]["metric.accuracy"]) == ("0.75", "")
    assert rows[1]["error"] == 'ValueError: "quoted", and\nbroken'
    assert rows[0]["conv0.weight_bit_width"] == str(PROBLEM.space.choices[0][0].weight_bit_width)
    assert sorted(file.name for file in path.parent.iterdir()) == ["trials.csv", "trials.parquet"]
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    table = parquet.read_table(path.with_suffix(".parquet")).to_pylist()
    assert table[0]["metric.accuracy"] == 0.75 and table[1]["metric.accuracy"] is None
    assert list(table[0]) == list(rows[0])
    assert table[1]["error"] == rows[1]["error"] and table[0]["error"] is None


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    with TrialStore(tmp_path / "s.sqlite") as store, pytest.raises(RunFolderError, match="in_the_way"):
        store.export_csv(tmp_path / "in_the_way" / "trials.csv")


def test_an_older_store_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.sqlite"
    with TrialStore(path) as store:
        add(store, 0, 0, 0)
        before = store.trials()
    column = "ALTER TABLE trials ADD COLUMN host TEXT;"
    monkeypatch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, column, "ALTER TABLE nowhere ADD COLUMN host TEXT;"))
    for read_only in (True, False):
        with pytest.raises(SearchError, match="cannot open the trial store .*no such table: nowhere"):
            TrialStore(path, read_only=read_only)
    assert version_of(path) == SCHEMA_VERSION + 1  # the first step is whole, the second left nothing behind
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, column, "UPDATE trials SET host = 'here';"))
    with TrialStore(path, read_only=True) as store:
        assert store.trials() == before
    assert version_of(path) == SCHEMA_VERSION + 1
    with TrialStore(path) as store:
        assert store.trials() == before
        assert store._database.execute("SELECT host FROM trials").fetchall() == [("here",)]
    assert version_of(path) == SCHEMA_VERSION + 2


VERSION_1 = """
CREATE TABLE documents (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    point TEXT NOT NULL,
    config TEXT NOT NULL,
    fidelity TEXT NOT NULL,
    seed INTEGER NOT NULL,
    target TEXT NOT NULL,
    origin TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'completed', 'failed')),
    cost TEXT NOT NULL,
    metrics TEXT NOT NULL,
    predicted TEXT NOT NULL,
    created_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    attempts INTEGER NOT NULL,
    error TEXT,
    UNIQUE (point, fidelity)
) STRICT;
PRAGMA application_id = 0x51415431;
PRAGMA user_version = 1;
"""
"""A store as revision cdb8472 made it."""


def test_a_store_of_version_1_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    config = json.dumps(PROBLEM.space.config((0, 1, 2)).to_dict())
    row = ("[0, 1, 2]", config, json.dumps(FIDELITY.to_dict()), 7, "t", "random", "completed", '{"bits": 3.0}',
           '{"accuracy": 0.5}', "[0.6, 0.1]", 1.0, 2.0, 3.0, 1, None)  # fmt: skip
    database = sqlite3.connect(path)
    database.executescript(VERSION_1)
    database.execute("INSERT INTO documents VALUES ('profile', '1')")
    database.execute(f"INSERT INTO trials VALUES (4, {', '.join('?' * len(row))})", row)
    database.commit()
    database.close()
    with TrialStore(path, read_only=True) as store:
        (before,) = store.trials()
        assert (before.id, before.accuracy, before.predicted, before.screening) == (4, 0.5, (0.6, 0.1), None)
    assert version_of(path) == 1
    with TrialStore(path) as store:
        assert store.trials() == (before,)
        assert store.document("profile") == 1
        assert store.stop(store.start(add(store, 1, 1, 1)), {}).id == 5
        store.check_integrity()
    assert version_of(path) == SCHEMA_VERSION


def test_a_stopped_trial_keeps_what_it_had_to_reach(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "s.sqlite") as store:
        trial = store.add(
            point=(0, 0, 0), config=PROBLEM.space.config((0, 0, 0)), fidelity=FIDELITY, seed=1, target="t",
            origin="random", cost={}, screening=Screening(0.25, 0.9),
        )  # fmt: skip
        assert (trial.screening, trial.has_ended, trial.effort) == (Screening(0.25, 0.9), False, 1.0)
        stopped = store.stop(store.start(trial), {"screening_accuracy": 0.8})
        assert (stopped.state, stopped.screening_accuracy, stopped.effort) == (TrialState.STOPPED, 0.8, 0.25)
        assert stopped.has_ended and not stopped.is_completed and np.isnan(stopped.accuracy)
        store.export_csv(tmp_path / "trials.csv")
    with TrialStore(tmp_path / "s.sqlite") as store:
        assert store.trials() == (stopped,)
    with open(tmp_path / "trials.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["state"], row["screening_share"], row["screening_least"]) == ("stopped", "0.25", "0.9")
    assert row["metric.screening_accuracy"] == "0.8"


def version_of(path: Path) -> int:
    database = sqlite3.connect(path)
    try:
        return int(database.execute("PRAGMA user_version").fetchone()[0])
    finally:
        database.close()


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "s.sqlite") as store:
        add(store, 0, 0, 0)
        store._database.execute("UPDATE trials SET config = '{}'")
        with pytest.raises(SearchError, match="trial 1 in the trial store .* is damaged: version=None"):
            store.trials()


CRASHING = """
import sys, itertools
from pathlib import Path
from qat.search.store import TrialStore
from tests.qat.search.problems import PROBLEM_FOR_CRASHES as PROBLEM, FIDELITY

with TrialStore(Path(sys.argv[1])) as store:
    start = len(store.trials())
    points = list(itertools.product(*map(range, PROBLEM.space.sizes)))
    for point in points[start:]:
        trial = store.add(point=point, config=PROBLEM.space.config(point), fidelity=FIDELITY, seed=1, target="t",
                          origin="random", cost={"bits": 1.0})
        store.complete(store.start(trial), {"accuracy": 0.5})
"""


def test_killed_while_writing_at_many_moments(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    finished: dict[int, Trial] = {}
    for delay in np.random.default_rng(0).uniform(0, 0.3, 5):
        process = subprocess.Popen([sys.executable, "-c", CRASHING, str(path)], env=environment)
        while process.poll() is None and _count(path) <= len(finished):
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        assert process.wait() < 0
        with TrialStore(path) as store:
            store.check_integrity()
            trials = store.trials()
        now = {trial.id: trial for trial in trials if trial.is_completed}
        assert finished.items() <= now.items()
        assert len(now) > len(finished)
        assert [trial.id for trial in trials] == list(range(1, len(trials) + 1))
        finished = now


def _count(path: Path) -> int:
    """Completed trials, 0 while there is no store."""
    try:
        with TrialStore(path, read_only=True) as store:
            return sum(trial.is_completed for trial in store.trials())
    except SearchError:
        return 0
