"""Tables of a trial store, and how stores of earlier versions get there."""

from __future__ import annotations

APPLICATION_ID = 0x51415431
"""Marks the file as ours in SQLite's header: the letters QAT1."""

_TRIALS_2 = """(
    id INTEGER PRIMARY KEY,
    point TEXT NOT NULL,
    config TEXT NOT NULL,
    fidelity TEXT NOT NULL,
    seed INTEGER NOT NULL,
    target TEXT NOT NULL,
    origin TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'completed', 'stopped', 'failed')),
    cost TEXT NOT NULL,
    metrics TEXT NOT NULL,
    predicted TEXT NOT NULL,
    created_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    attempts INTEGER NOT NULL,
    error TEXT,
    screening TEXT NOT NULL,
    UNIQUE (point, fidelity)
) STRICT"""
"""The table of trials of version 2; a later version gets a text of its own, since this one is also a migration."""

TABLES = f"""
CREATE TABLE documents (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE trials {_TRIALS_2};
"""
"""Of the newest version."""

COLUMNS = (
    "id",
    "point",
    "config",
    "fidelity",
    "seed",
    "target",
    "origin",
    "state",
    "cost",
    "metrics",
    "predicted",
    "created_s",
    "started_s",
    "ended_s",
    "attempts",
    "error",
    "screening",
)
"""Of the table of trials, in its order."""

STOPPED_TRIALS = f"""
CREATE TABLE renewed {_TRIALS_2};
INSERT INTO renewed SELECT *, 'null' FROM trials;
DROP TABLE trials;
ALTER TABLE renewed RENAME TO trials;
"""
"""To version 2: trials may be stopped by a screening.  SQLite changes the states of a column in a new table only."""

MIGRATIONS: tuple[str, ...] = (STOPPED_TRIALS,)
"""SQL that brings a store from schema version 1 to 2, from 2 to 3, and so on."""

SCHEMA_VERSION = 1 + len(MIGRATIONS)
