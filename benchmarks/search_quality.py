"""Accuracy and hypervolume found per evaluation, by search method and problem.

    python benchmarks/search_quality.py --folder runs/search_quality
    python benchmarks/search_quality.py --folder runs/search_quality --problems synthetic54 --methods ours Sobol
    python benchmarks/search_quality.py --folder runs/search_quality --collect docs/search/quality.csv.gz
    python benchmarks/search_quality.py --report docs/search/quality.csv.gz

Problems: `synthetic20`, `synthetic54` (a new instance for every seed) and `resnet20` (measured, `search_tabular.py`).
Goals: `budget` is the best accuracy inside one budget, in points below a reference; `front` is the hypervolume of
accuracy and stored bits per weight inside the widest of six budgets, as a share of the reference's.  The reference
of a synthetic problem is the exact allocation by the true damage of every layer (not the optimum, as layers interact);
that of `resnet20` is the best row of the table.  Scored accuracies are free of noise, those that methods see are not.

A run is one problem, goal, method and seed.  Finished runs are files and are not done again; runs that another process
has claimed are left to it, so the same command may be started several times.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from botorch.utils.multi_objective.hypervolume import Hypervolume
from search_methods import METHODS, Evaluations
from search_peers import PEERS
from search_problems import synthetic_problem
from search_tabular import tabular_problem

from qat.files import write_bytes, write_text
from qat.search.proposer import Proposer
from qat.search.trial import FloatArray, IntArray, Target

ALL_METHODS = METHODS | PEERS
PROBLEMS = ("synthetic20", "synthetic54", "resnet20")
GOALS = ("budget", "front")
MARKS = (10, 30, 60, 120)
HEADER = ("problem", "goal", "method", "seed", "evaluation", "score", "seconds_per_evaluation")
LOWEST_ACCURACY = {"synthetic20": 0.82, "synthetic54": 0.82, "resnet20": 0.5}
"""Accuracy of the hypervolume's reference point."""


@cache
def problem_of(name: str, seed: int) -> Any:
    """An instance; that of measured data is the same for all seeds."""
    return tabular_problem() if name == "resnet20" else synthetic_problem(int(name.removeprefix("synthetic")), seed)


def targets_of(problem: Any, goal: str) -> list[Target]:
    """The budgets of a goal, the widest last; those of a front that the cheapest choices exceed are left out."""
    least = sum(row.min() for row in problem.space.dimension_bits) / sum(problem.space.weights)
    budgets = [problem.budget] if goal == "budget" else [bits for bits in problem.front_budgets if bits > least]
    return [Target(f"{bits:g}", {"bits_per_weight": (None, bits)}) for bits in budgets]


def reference_points(problem: Any, targets: Sequence[Target]) -> IntArray:
    """What the reference would choose inside each budget."""
    if hasattr(problem, "known"):
        points = np.array(list(problem.known))
        accuracy, costs = np.array(list(problem.known.values())), problem.cost(points)
        inside = [target.feasible(costs) for target in targets]
        return np.array([points[mask][int(np.argmax(accuracy[mask]))] for mask in inside])
    truth = problem.reference_profile()
    proposer = Proposer(problem.space, problem.cost, truth)
    return np.array([proposer.allocate(truth, target, np.random.default_rng(0)) for target in targets])


def hypervolume(accuracy: FloatArray, bits: FloatArray, lowest: float, widest: float) -> float:
    """Area between the front and the point of the lowest accuracy and the widest budget."""
    inside = (accuracy > lowest) & (bits < widest)
    if not inside.any():
        return 0.0
    front = torch.from_numpy(np.stack([accuracy[inside], -bits[inside]], axis=1))
    return float(Hypervolume(torch.tensor([lowest, -widest], dtype=torch.float64)).compute(_non_dominated(front)))


def _non_dominated(points: torch.Tensor) -> torch.Tensor:
    from botorch.utils.multi_objective.pareto import is_non_dominated

    return points[is_non_dominated(points)]


def scores(problem: Any, name: str, goal: str, points: IntArray) -> FloatArray:
    """The goal's figure after each evaluation; shape (n,)."""
    targets = targets_of(problem, goal)
    best = problem.space.layer_indices(reference_points(problem, targets))
    layers = problem.space.layer_indices(points)
    accuracy, reference = problem.true_accuracy(layers), problem.true_accuracy(best)
    if goal == "budget":
        gaps: FloatArray = 100 * (reference[0] - np.maximum.accumulate(accuracy))
        return gaps
    lowest, widest = LOWEST_ACCURACY[name], problem.front_budgets[-1] + 1e-9
    bits, reference_bits = (problem.cost(rows)["bits_per_weight"] for rows in (layers, best))
    whole = hypervolume(reference, reference_bits, lowest, widest)
    return np.array([hypervolume(accuracy[:n], bits[:n], lowest, widest) / whole for n in range(1, len(points) + 1)])


def evaluate(name: str, goal: str, method: str, evaluations: int, seed: int) -> list[tuple[object, ...]]:
    """Rows of one run."""
    problem = problem_of(name, seed)
    run = Evaluations(problem, targets_of(problem, goal), evaluations, seed)
    torch.manual_seed(seed)
    start = time.process_time()
    ALL_METHODS[method](run)
    seconds = (time.process_time() - start) / evaluations
    values = scores(problem, name, goal, np.array(run.points[:evaluations]))
    return [
        (name, goal, method, seed, i + 1, round(float(value), 4), round(seconds, 4)) for i, value in enumerate(values)
    ]


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process has the run to itself; a claim of a process that has ended on this machine is void."""
    lock = path.with_suffix(".claim")
    for _ in range(2):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _is_held(lock):
                yield False
                return
            lock.unlink(missing_ok=True)
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{platform.node()} {os.getpid()}")
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)
        return
    yield False


def _is_held(lock: Path) -> bool:
    try:
        node, process = lock.read_text(encoding="utf-8").split()
        if node == platform.node():
            os.kill(int(process), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except ValueError:  # just made, not yet written
        return True
    return True


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Does what is not done yet; seeds outermost, so that all methods have equally many."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for name in arguments.problems:
            for goal in arguments.goals:
                for method in arguments.methods:
                    slug = "".join(c if c.isalnum() else "_" for c in method)
                    path = folder / f"{name}-{goal}-{slug}-{arguments.evaluations}-{seed}.csv"
                    if path.is_file():
                        continue
                    with claimed(path) as mine:
                        if not mine or path.is_file():
                            continue
                        rows = evaluate(name, goal, method, arguments.evaluations, seed)
                        write_text(path, _text(rows))
                    print(f"{name} {goal} {method} seed {seed}: {rows[-1][5]}, {rows[-1][6]} s/evaluation", flush=True)


def _text(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(rows)
    return buffer.getvalue()


def collect(folder: Path, out: Path) -> None:
    """Joins the files of all finished runs."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            rows += list(csv.reader(file))[1:]
    write_bytes(out, gzip.compress(_text(rows).encode("utf-8"), mtime=0))


Curves = dict[str, tuple[FloatArray, float]]


def read(path: Path) -> dict[tuple[str, str], Curves]:
    """By problem and goal and then method: scores of shape (seeds, evaluations), CPU seconds per evaluation."""
    runs: dict[tuple[str, str], dict[str, dict[str, list[tuple[float, float]]]]] = {}
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            of_method = runs.setdefault((row["problem"], row["goal"]), {}).setdefault(row["method"], {})
            of_method.setdefault(row["seed"], []).append((float(row["score"]), float(row["seconds_per_evaluation"])))
    found: dict[tuple[str, str], Curves] = {}
    for key, methods in runs.items():
        curves = {}
        for method, by_seed in methods.items():
            values = np.array(list(by_seed.values()))
            curves[method] = (values[:, :, 0], float(values[:, :, 1].mean()))
        sign = 1 if key[1] == "budget" else -1
        found[key] = dict(sorted(curves.items(), key=lambda item: sign * float(np.median(item[1][0][:, -1]))))
    return dict(sorted(found.items(), key=lambda item: (PROBLEMS.index(item[0][0]), item[0][1])))


def table(curves: Curves, goal: str) -> str:
    """Medians and quartiles as a Markdown table."""
    digits = 2 if goal == "budget" else 3
    count = max(values.shape[1] for values, _ in curves.values())
    marks = [mark for mark in MARKS if mark <= count]
    lines = [
        "| method | seeds | " + " | ".join(f"n={mark}" for mark in marks) + " | CPU s per evaluation |",
        "|---|" + "---|" * (len(marks) + 2),
    ]
    for name, (values, seconds) in curves.items():
        cells = []
        for mark in marks:
            low, middle, high = np.percentile(values[:, mark - 1], (25, 50, 75))
            cells.append(f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        lines.append(f"| {name} | {len(values)} | " + " | ".join(cells) + f" | {seconds:.2f} |")
    return "\n".join(lines)


def plot(found: dict[tuple[str, str], Curves], target: Path) -> None:
    """Draws medians and quartiles, one panel per problem and goal."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(5.2 * len(found), 4.2), layout="constrained", squeeze=False, sharex=True
    )
    names = sorted({name for curves in found.values() for name in curves})
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    for panel, ((problem, goal), curves) in zip(axes[0], found.items(), strict=True):
        for name, (values, _) in curves.items():
            low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
            steps = np.arange(1, values.shape[1] + 1)
            label = f"{name} ({len(values)})"
            panel.plot(steps, middle, label=label, color=colours[name], linewidth=2.2 if name == "ours" else 1.2)
            panel.fill_between(steps, low, high, color=colours[name], alpha=0.12, linewidth=0)
        panel.set(title=problem, xlabel="evaluations")
        panel.set_ylabel("points below the reference" if goal == "budget" else "hypervolume / reference's")
        if goal == "budget":
            panel.set_yscale("symlog", linthresh=0.5)
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    plt.close(figure)


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
    parser.add_argument("--folder", type=Path, default=Path("runs/search_quality"), help="files of finished runs")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--goals", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--methods", nargs="+", choices=list(ALL_METHODS), default=list(ALL_METHODS))
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--collect", type=Path, help="only join the finished runs into this CSV.GZ file")
    parser.add_argument("--report", type=Path, help="only tabulate and plot this CSV.GZ file")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/search_quality.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.collect:
        collect(arguments.folder, arguments.collect)
    if arguments.report:
        found = read(arguments.report)
        print(environment())
        for (problem, goal), curves in found.items():
            print(f"\n{problem}, {goal}\n\n{table(curves, goal)}")
        plot(found, arguments.figure)
    if not arguments.collect and not arguments.report:
        run(arguments.folder, arguments)


if __name__ == "__main__":
    main()
