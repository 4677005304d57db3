"""The report of a run, from what its folder holds."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from hwmodel import CostReport
from qat.config import Config
from qat.files import write_text
from qat.pipeline.planning import space_settings, untrained
from qat.pipeline.records import NETWORKS, TRIALS, results
from qat.report import ReportData, Result, markdown, score_name, write_report
from qat.runs import RunFolder
from qat.search.cross_validation import leave_one_out
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.store import TrialStore
from qat.search.trial import Trial, TrialState


def report(cfg: Config, run: RunFolder) -> Path:
    """Writes `report.html`, `plots/` and `summary.md` from what the run folder holds.

    Raises:
        RunFolderError: The run has no trained network.
    """
    found = results(run)
    folders = {result.name: run.path / NETWORKS / result.name for result in found}
    every, profile = _searched(run)
    trials = [trial for trial in every if trial.is_completed]
    environment = run.read_json("environment.json")[0]
    data = ReportData(
        title=f"{cfg.network.name} on {cfg.data.name}, {cfg.board.name}",
        board=cfg.board.name,
        bram18_available=cfg.board.bram18,
        results=found,
        foretold=_foretold(cfg, profile, trials) if profile else (),
        trials=[(trial.id, trial.target, trial.cost["compression"], trial.accuracy) for trial in trials],
        fronts={name: [(trial.cost[name], trial.accuracy) for trial in trials] for name in cfg.search.front},
        costs={
            name: CostReport.from_dict(json.loads((path / "cost.json").read_text())) for name, path in folders.items()
        },
        sensitivity=_sensitivity(profile) if profile else {},
        curves={name: _curve(path / "metrics.csv", found[0].score) for name, path in folders.items()},
        notes=[*_notes(cfg, found), *_stopped(every)],
        commands=[("this run", shlex.join(environment["command"]))],
        environment={
            "date": environment["date"],
            "device": f"{environment['device']}, {environment['threads']} threads",
            "revision": f"{environment['git_revision']}{' with changes' if environment['git_dirty'] else ''}",
            "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version),
        },
    )
    write_text(run.path / "summary.md", markdown(found) + "\n")
    return write_report(data, run.path)


def _searched(run: RunFolder) -> tuple[tuple[Trial, ...], SensitivityProfile | None]:
    """All trials of the search, which may not have ended, and its sensitivities; none where nothing was searched."""
    if not (run.path / TRIALS).is_file():
        return (), None
    with TrialStore(run.path / TRIALS, read_only=True) as store:
        profile = store.document("profile")
        return store.trials(), profile and SensitivityProfile.from_dict(profile)


def _foretold(cfg: Config, profile: SensitivityProfile, trials: Sequence[Trial]) -> list[tuple[float, float, float]]:
    """Each trial's score, what the others foretell of it, and how surely."""
    network = untrained(cfg)
    space = SearchSpace.from_network(network, space_settings(cfg, network))
    return [(one.observed, one.predicted, one.std) for one in leave_one_out(space, profile, trials)]


def _sensitivity(profile: SensitivityProfile) -> dict[str, float]:
    """Loss increase of each layer at its lowest precision; of tied ones that of all together."""
    rows = zip(profile.dimensions, profile.loss_increase, strict=True)
    return {layer: max(row) for dimension, row in rows for layer in dimension.split("+")}


def _curve(path: Path, score: str) -> list[tuple[int, float]]:
    """(epoch, validation score) from the metrics of a training."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"val_{score}")]
    return [(int(row["epoch"]), float(row[f"val_{score}"])) for row in rows]


def _stopped(trials: Sequence[Trial]) -> list[str]:
    """What the search did not spend."""
    stopped = [trial for trial in trials if trial.state is TrialState.STOPPED]
    if not stopped:
        return []
    share = 1 - sum(trial.effort for trial in trials) / sum(trial.fidelity.effort for trial in trials)
    return [
        f"{len(stopped)} of {len(trials)} trials were stopped early, which saved {100 * share:.0f} % of the trials' "
        "training; the plots leave them out, trials.csv has them."
    ]


def _notes(cfg: Config, found: list[Result]) -> list[str]:
    """What a reader must know to read the figures right."""
    images, is_share = found[0].images, found[0].score == "accuracy"  # average precision has no simple error
    spread = 100 * (found[0].float_score * (1 - found[0].float_score) / images) ** 0.5
    error = (
        f" One network's standard error is about {spread:.1f} points: read 'lost / won', the paired comparison with "
        "float."
    )
    notes = [
        f"Test {'accuracy' if is_share else score_name(found)} is on {images} images that neither training nor search "
        f"saw; all networks on the same ones.{error if is_share else ''}",
        "All networks were trained in full with the same recipe, epochs and seed. Compression counts everything that "
        "hardware stores: weights of all layers, indices, scales, biases, shifts; over 32 bits per float weight.",
    ]
    if cfg.network.weights:
        notes.append(
            "The float weights were trained elsewhere and may have seen the images that select configurations here: "
            "validation accuracy, also that of the trials, then reads too high. Only test figures are claims."
        )
    mixes = [result for result in found if result.kind == "mix"]
    for uniform in (result for result in found if result.kind == "uniform"):
        peers = [mix for mix in mixes if mix.stored_bits <= uniform.stored_bits * 1.005]
        for mix in peers:
            gain = 100 * (mix.quantized_score - uniform.quantized_score)
            verdict = "better" if gain > 0 else "not better"
            notes.append(
                f"At equal size or less, {mix.name} ({mix.compression:.2f}x) is {verdict} than {uniform.name} "
                f"({uniform.compression:.2f}x): {gain:+.2f} points."
            )
    return notes
