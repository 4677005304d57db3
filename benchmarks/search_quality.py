"""Accuracy found per evaluation, by method, on the synthetic problems of `search_problems.py`.

    python benchmarks/search_quality.py --layers 20 --evaluations 60 --seeds 5 --out docs/search/synthetic20.csv
    python benchmarks/search_quality.py --plot docs/search/synthetic20.csv

Each method gets the same problems, budget (1.4 stored bits per weight) and noisy evaluations.  The figure is the
noise-free accuracy of the best configuration evaluated so far that fits, in points below a reference: what the exact
allocation finds when it knows the true damage of every layer (which is not the optimum, as layers interact).
Finished runs are kept in the CSV file: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_methods import METHODS, Evaluations
from search_peers import PEERS
from search_problems import SyntheticProblem, synthetic_problem

from qat.search.proposer import Proposer
from qat.search.sensitivity import SensitivityProfile
from qat.search.trial import Target

TARGET = Target("weights", {"bits_per_weight": (None, 1.4)})
MARKS = (10, 20, 30, 60, 120)
ALL_METHODS = METHODS | PEERS
HEADER = ("layers", "method", "seed", "evaluation", "gap_points", "seconds_per_evaluation")


def reference(problem: SyntheticProblem) -> float:
    """Accuracy of the allocation that knows the true damage of every layer."""
    truth = SensitivityProfile(problem.space.dimensions, tuple(tuple(row) for row in problem.damage))
    point = Proposer(problem.space, problem.cost, truth).allocate(truth, TARGET, np.random.default_rng(0))
    return float(problem.true_accuracy(problem.space.layer_indices(point[None, :]))[0])


def evaluate(layers: int, name: str, evaluations: int, seed: int) -> list[tuple[object, ...]]:
    """Rows of one method on one problem."""
    problem = synthetic_problem(layers, seed)
    best = reference(problem)
    run = Evaluations(problem, TARGET, evaluations, seed)
    start = time.process_time()
    ALL_METHODS[name](run)
    seconds = (time.process_time() - start) / evaluations
    points = np.array(run.points[:evaluations])
    truth = problem.true_accuracy(problem.space.layer_indices(points))
    gaps = 100 * (best - np.maximum.accumulate(truth))
    return [(layers, name, seed, i + 1, round(float(gap), 4), round(seconds, 4)) for i, gap in enumerate(gaps)]


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none if it does not exist."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(layers: int, evaluations: int, seeds: int, methods: Sequence[str], out: Path) -> None:
    """Runs what the file does not hold yet; each finished run is appended at once."""
    done = {(row["layers"], row["method"], row["seed"]) for row in read(out)}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name in methods:
            if (str(layers), name, str(seed)) in done:
                continue
            rows = evaluate(layers, name, evaluations, seed)
            is_new = not out.exists()
            with open(out, "a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                if is_new:
                    writer.writerow(HEADER)
                writer.writerows(rows)
            print(f"seed {seed}  {name:<18}{rows[-1][4]:8.2f} points  {rows[-1][5]:8.2f} s/evaluation", flush=True)


def curves(path: Path) -> dict[str, tuple[np.ndarray, float]]:
    """By method, gaps of shape (seeds, evaluations) and seconds per evaluation; the method with least gap first."""
    by_run: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for row in read(path):
        by_run.setdefault(row["method"], {}).setdefault(row["seed"], []).append(float(row["gap_points"]))
        seconds.setdefault(row["method"], []).append(float(row["seconds_per_evaluation"]))
    found = {name: (np.array(list(runs.values())), float(np.mean(seconds[name]))) for name, runs in by_run.items()}
    return dict(sorted(found.items(), key=lambda item: float(np.median(item[1][0][:, -1]))))


def table(path: Path) -> str:
    """Medians and quartiles as a Markdown table."""
    found = curves(path)
    count = max(gaps.shape[1] for gaps, _ in found.values())
    marks = [mark for mark in MARKS if mark <= count]
    lines = [
        "| method | seeds | " + " | ".join(f"n={mark}" for mark in marks) + " | CPU s per evaluation |",
        "|---|" + "---|" * (len(marks) + 2),
    ]
    for name, (gaps, seconds) in found.items():
        cells = []
        for mark in marks:
            low, middle, high = np.percentile(gaps[:, mark - 1], (25, 50, 75))
            cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name} | {len(gaps)} | " + " | ".join(cells) + f" | {seconds:.2f} |")
    return "\n".join(lines)


def plot(path: Path) -> Path:
    """Writes the curves with their quartiles beside the CSV file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name, (gaps, _) in curves(path).items():
        low, middle, high = np.percentile(gaps, (25, 50, 75), axis=0)
        evaluations = np.arange(1, gaps.shape[1] + 1)
        (line,) = axes.plot(evaluations, middle, label=name, linewidth=2.2 if name == "ours" else 1.2)
        axes.fill_between(evaluations, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel="evaluations", ylabel="points below the reference", yscale="symlog")
    axes.set_yscale("symlog", linthresh=0.5)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    target = path.with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
    return target


def environment() -> str:
    """What the figures were taken on."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    versions = []
    for package in ("torch", "botorch", "numpy", "optuna", "pymoo", "ax-platform"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, revision {revision or 'unknown'}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} thread, {', '.join(versions)}"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(ALL_METHODS), default=list(ALL_METHODS))
    parser.add_argument("--out", type=Path, default=Path("search_quality.csv"))
    parser.add_argument("--plot", type=Path, help="only tabulate and plot this CSV file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.plot or arguments.out
    if not arguments.plot:
        run(arguments.layers, arguments.evaluations, arguments.seeds, arguments.methods, path)
    print(environment())
    print(table(path))
    print(plot(path))


if __name__ == "__main__":
    main()
