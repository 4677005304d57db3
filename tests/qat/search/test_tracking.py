"""Trials as runs of TensorBoard and MLflow."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import Logger

from qat.search.tracking import MLflow, TensorBoard, TrialTracking, installed_tracking
from qat.search.trial import Screening, TrialState
from tests.qat.search.problems import Problem

PROBLEM = Problem(layers=4)
DONE = PROBLEM.completed(np.array([[0, 0, 0, 0], [8, 8, 8, 8], [1, 0, 1, 0]]))
STOPPED = replace(
    DONE[1], id=4, state=TrialState.STOPPED, metrics={"screening_accuracy": 0.25}, screening=Screening(0.5, 0.75)
)
FAILED = replace(DONE[2], id=3, state=TrialState.FAILED, metrics={}, error="out of memory")


def test_each_trial_is_one_run_even_after_a_crash(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TrialTracking(TensorBoard(tmp_path))
    first.search_started((), 3)
    first.trial_started(replace(DONE[0], state=TrialState.RUNNING, metrics={}))
    first.trial_ended(DONE[0])
    # The process died here; trial 2 had been stored, but of its run no more than the folder.
    (tmp_path / "trial_0002").mkdir()
    again = TrialTracking(TensorBoard(tmp_path))
    again.search_started((*DONE[:2], replace(FAILED, state=TrialState.RUNNING)), 3)
    again.trial_ended(FAILED)
    again.trial_ended(STOPPED)
    again.search_ended()

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"trial_000{i}" for i in (1, 2, 3, 4)]
    assert all(len(list(path.glob("events*"))) == 1 for path in tmp_path.iterdir())
    events = EventAccumulator(str(tmp_path / "trial_0002")).Reload()
    (accuracy,) = events.Scalars("metric/accuracy")
    assert accuracy.step == 2 and accuracy.value == pytest.approx(DONE[1].accuracy, rel=1e-6)
    (bits,) = events.Scalars("cost/bits_per_weight")
    assert bits.value == pytest.approx(DONE[1].cost["bits_per_weight"], rel=1e-6)
    chosen = (tmp_path / "trial_0003" / "hparams.yaml").read_text(encoding="utf-8")
    early = EventAccumulator(str(tmp_path / "trial_0004")).Reload().Scalars("metric/screening_accuracy")
    assert [event.value for event in early] == [0.25]
    assert "screening_least: 0.75" in (tmp_path / "trial_0004" / "hparams.yaml").read_text(encoding="utf-8")
    assert "error: out of memory" in chosen and "conv0.weight_bit_width:" in chosen and "origin:" in chosen


def test_mlflow_keeps_a_trial_once(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        TrialTracking(MLflow("a search", uri)).search_started((DONE[0], FAILED), 3)
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("a search").experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {"trial_0001": "FINISHED", "trial_0003": "FAILED"}
    (done,) = (run for run in runs if run.info.run_name == "trial_0001")
    assert done.data.metrics["metric/accuracy"] == pytest.approx(DONE[0].accuracy)
    assert done.data.params["conv0.weight_format"] == DONE[0].choices["conv0.weight_format"]


def test_a_tracker_that_fails_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Unreachable:
        def has(self, run: str) -> bool:
            raise ConnectionError("no answer")

        def begin(self, run: str) -> Logger:
            raise AssertionError("was asked before")

    with caplog.at_level(logging.WARNING):
        TrialTracking(Unreachable()).trial_ended(DONE[0])
    assert caplog.messages == ["trial 1 is not in Unreachable: no answer"]


def test_nothing_is_tracked_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qat.search.tracking.find_spec", lambda name: None)
    assert installed_tracking("a search", tmp_path) == []


def test_trackers_are_not_imported_before_they_are_used() -> None:
    code = "import sys, qat.search.tracking; print([n for n in ('mlflow', 'tensorboard') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
