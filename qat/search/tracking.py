"""Every trial as a run of an experiment tracker, by Lightning's own loggers: TensorBoard, and MLflow if installed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger

from qat.search.trial import Trial, TrialState

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where runs are kept."""

    def has(self, run: str) -> bool:
        """Whether a run of this name is there."""

    def begin(self, run: str) -> Logger:
        """A logger of a new run."""


class TrialTracking:
    """An `Observer` that keeps each ended trial as a run `trial_<number>` of a tracker, once.

    A run holds the choice of each layer, target, origin and seed as hyperparameters; metrics and costs as figures.

    Args:
        tracker: Where runs are kept.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def search_started(self, trials: Sequence[Trial], total: int) -> None:
        """Adds what ended before, and is not there yet: a search that was killed, or a tracker installed later."""
        for trial in trials:
            if trial.has_ended:
                self._keep(trial)

    def trial_started(self, trial: Trial) -> None:
        """Nothing: a trial is kept when it has ended."""

    def trial_ended(self, trial: Trial) -> None:
        """Keeps a trial."""
        self._keep(trial)

    def search_ended(self) -> None:
        """Nothing: each run is closed already."""

    def _keep(self, trial: Trial) -> None:
        """The store has the trial already: a tracker that fails costs a warning, not the search."""
        try:
            if self._tracker.has(run_name(trial)):
                return
            run = self._tracker.begin(run_name(trial))
            run.log_hyperparams(hyperparameters(trial))
            run.log_metrics(figures(trial), step=trial.id)
            run.save()  # TensorBoard's logger would do it for a success only
            run.finalize("failed" if trial.state is TrialState.FAILED else "success")
        except Exception as error:  # a server that does not answer, a full disk: each tracker has its own kinds
            logger.warning("trial %d is not in %s: %s", trial.id, type(self._tracker).__name__, error)


def run_name(trial: Trial) -> str:
    """`trial_0007`."""
    return f"trial_{trial.id:04d}"


def hyperparameters(trial: Trial) -> dict[str, Any]:
    """What was chosen: each layer's precision, where the choice came from, and what became of it."""
    origin = {"state": str(trial.state), "target": trial.target, "origin": trial.origin, "seed": trial.seed}
    if trial.screening is not None:
        origin |= {f"screening_{name}": value for name, value in trial.screening.to_dict().items()}
    chosen = origin | trial.choices
    return chosen | ({"error": trial.error} if trial.error else {})


def figures(trial: Trial) -> dict[str, float]:
    """What came out: metrics, costs, seconds."""
    found = {f"metric/{name}": value for name, value in trial.metrics.items()}
    found |= {f"cost/{name}": value for name, value in trial.cost.items()}
    if trial.duration_s is not None:
        found["seconds"] = trial.duration_s
    return found


class TensorBoard:
    """Runs as folders of TensorBoard's event files.

    Args:
        folder: Give it to `tensorboard --logdir`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, run: str) -> bool:
        """Whether a run of this name is there, with all that belongs to it."""
        return (self.folder / run / TensorBoardLogger.NAME_HPARAMS_FILE).is_file()  # what is written last

    def begin(self, run: str) -> Logger:
        """A logger of a new run."""
        return TensorBoardLogger(self.folder, name="", version=run, default_hp_metric=False)


class MLflow:
    """Runs of one MLflow experiment.

    Args:
        experiment: Its name.
        uri: Of the tracking server or database.
    """

    def __init__(self, experiment: str, uri: str) -> None:
        from mlflow import MlflowClient  # type: ignore[import-not-found,unused-ignore]

        self.experiment, self.uri = experiment, uri
        self._client = MlflowClient(uri)

    def has(self, run: str) -> bool:
        """Whether a run of this name is there."""
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return False
        return bool(self._client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run}'"))

    def begin(self, run: str) -> Logger:
        """A logger of a new run."""
        return MLFlowLogger(self.experiment, run_name=run, tracking_uri=self.uri)


TRACKERS: dict[str, Callable[[str, Path], Tracker]] = {
    "tensorboard": lambda name, folder: TensorBoard(folder / "tensorboard"),
    "mlflow": lambda name, folder: MLflow(
        f"{name} {folder.name}", os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
    ),
}
"""By the package that it needs: (name of the experiment, run folder) -> tracker."""


def installed_tracking(name: str, folder: Path) -> list[TrialTracking]:
    """Observers for the trackers whose packages are installed.

    Args:
        name: Of the experiment.
        folder: Of the run.
    """
    return [TrialTracking(make(name, folder)) for package, make in TRACKERS.items() if find_spec(package)]
