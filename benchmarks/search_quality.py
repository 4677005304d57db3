"""Accuracy and hypervolume found per evaluation, by search method and problem.

    python benchmarks/search_quality.py --folder runs/search_quality
    python benchmarks/search_quality.py --folder runs/search_quality --problems synthetic54 --methods ours Sobol
    python benchmarks/search_quality.py --folder runs/search_quality --collect docs/search/quality.csv.gz
    python benchmarks/search_quality.py --report docs/search/quality.csv.gz

Problems: `synthetic20`, `synthetic54` (a new instance for every seed) and `resnet20` (measured, `search_tabular.py`).
Goals: `budget` is the best accuracy inside one budget, in points below a reference; `front` is the hypervolume of
accuracy and stored bits per weight inside the widest of some budgets, as a share of the reference's.  The reference
of a synthetic problem is the exact allocation by the true damage of every layer (not the optimum, as layers interact),
for a front at forty budgets; that of `resnet20` is the best row of the table.  Scored accuracies are free of noise,
those that methods see are not.

A run is one problem, goal, method and seed.  Finished runs are files and are not done again; runs that another process
has claimed are left to it: `--workers` starts several, and a kill at any time loses the running runs only.
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
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from botorch.utils.multi_objective.hypervolume import Hypervolume
from search_botorch import BOTORCH
from search_methods import METHODS, Evaluations
from search_peers import PEERS
from search_problems import synthetic_problem
from search_tabular import tabular_problem

from qat.files import write_bytes, write_text
from qat.search.pool import THREAD_VARIABLES
from qat.search.proposer import Proposer
from qat.search.trial import FloatArray, Target

ALL_METHODS = METHODS | BOTORCH | PEERS
PROBLEMS = ("synthetic20", "synthetic54", "resnet20")
GOALS = ("budget", "front")
MARKS = (10, 30, 60, 120)
HEADER = ("problem", "goal", "method", "seed", "evaluation", "accuracy", "bits_per_weight", "seconds_per_evaluation")
FRONT_TARGETS = 12
"""Budgets at which methods of one objective take turns where a front is sought."""

REFERENCE_TARGETS = 40
SECONDS = {"Ax": 250, "BoTorch qLogNEHVI": 160, "BoTorch LogEI": 80, "ours": 40, "ours, no profile": 40}
"""About how long the runs take that take long, to start these first."""


@cache
def problem_of(name: str, seed: int) -> Any:
    """An instance; that of measured data is the same for all seeds."""
    return tabular_problem() if name == "resnet20" else synthetic_problem(int(name.removeprefix("synthetic")), seed)


def targets_of(problem: Any, goal: str, count: int = FRONT_TARGETS) -> list[Target]:
    """The budgets of a goal, the widest last; those of a front are equally far apart, from about the least size on."""
    least = sum(row.min() for row in problem.space.dimension_bits) / sum(problem.space.weights)
    widest = problem.widest_budget
    budgets = [problem.budget] if goal == "budget" else np.linspace(1.02 * least, widest, count).tolist()
    return [Target(f"{bits:g}", {"bits_per_weight": (None, bits)}) for bits in budgets]


@cache
def reference(name: str, seed: int, goal: str) -> tuple[FloatArray, FloatArray]:
    """Accuracies and bits per weight of what the reference would choose inside each budget."""
    problem = problem_of(name, seed)
    targets = targets_of(problem, goal, REFERENCE_TARGETS)
    if hasattr(problem, "known"):
        rows = np.array(list(problem.known))
        accuracy, costs = np.array(list(problem.known.values())), problem.cost(rows)
        inside = [target.feasible(costs) for target in targets]
        points = np.array([rows[mask][int(np.argmax(accuracy[mask]))] for mask in inside if mask.any()])
    else:
        truth = problem.reference_profile()
        proposer = Proposer(problem.space, problem.cost, truth)
        points = np.array([proposer.allocate(truth, target, np.random.default_rng(0)) for target in targets])
    layers = problem.space.layer_indices(points)
    return problem.true_accuracy(layers), problem.cost(layers)["bits_per_weight"]


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


def scores(name: str, seed: int, goal: str, accuracy: FloatArray, bits: FloatArray) -> FloatArray:
    """The goal's figure after each evaluation; shape (n,)."""
    best_accuracy, best_bits = reference(name, seed, goal)
    if goal == "budget":
        gaps: FloatArray = 100 * (best_accuracy[0] - np.maximum.accumulate(accuracy))
        return gaps
    problem = problem_of(name, seed)
    lowest, widest = problem.lowest_accuracy, problem.widest_budget + 1e-9
    whole = hypervolume(best_accuracy, best_bits, lowest, widest)
    counts = range(1, len(accuracy) + 1)
    return np.array([hypervolume(accuracy[:n], bits[:n], lowest, widest) / whole for n in counts])


def evaluate(name: str, goal: str, method: str, evaluations: int, seed: int) -> list[tuple[object, ...]]:
    """Rows of one run."""
    problem = problem_of(name, seed)
    run = Evaluations(problem, targets_of(problem, goal), evaluations, seed)
    torch.manual_seed(seed)
    start = time.process_time()
    ALL_METHODS[method](run)
    seconds = round((time.process_time() - start) / evaluations, 4)
    layers = problem.space.layer_indices(np.array(run.points[:evaluations]))
    accuracy, bits = problem.true_accuracy(layers), problem.cost(layers)["bits_per_weight"]
    return [
        (name, goal, method, seed, i + 1, round(float(accuracy[i]), 6), round(float(bits[i]), 5), seconds)
        for i in range(evaluations)
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
    """Does what is not done yet; seeds outermost, so that all methods have equally many, and the longest runs first."""
    folder.mkdir(parents=True, exist_ok=True)
    parent = os.getppid()
    runs = product(arguments.problems, arguments.goals, arguments.methods)
    longest_first = sorted(runs, key=lambda key: -SECONDS.get(key[2], 1) * (2 if key[0] == "synthetic54" else 1))
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for seed, (name, goal, method) in product(seeds, longest_first):
        slug = "".join(c if c.isalnum() else "_" for c in method)
        path = folder / f"{name}-{goal}-{slug}-{arguments.evaluations}-{seed}.csv"
        if path.is_file():
            continue
        if os.getppid() != parent:  # what started this process is gone
            return
        with claimed(path) as mine:
            if not mine or path.is_file():
                continue
            rows = evaluate(name, goal, method, arguments.evaluations, seed)
            write_text(path, _text(rows))
        accuracy = max(float(str(row[5])) for row in rows)
        print(f"{name} {goal} {method} seed {seed}: {accuracy:.4f}, {rows[-1][7]} s/evaluation", flush=True)


def run_in_processes(workers: int) -> int:
    """Starts this command in several processes of one thread each, and waits; the largest exit status."""
    command = [sys.executable, *sys.argv, "--workers", "1"]
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    processes = [subprocess.Popen(command, env=environment) for _ in range(workers)]
    return max(process.wait() for process in processes)


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


class Curve(NamedTuple):
    """Of one method: scores of shape (seeds, evaluations), CPU seconds per evaluation, and which seeds these are."""

    values: FloatArray
    seconds: float
    seeds: tuple[int, ...]


Curves = dict[str, Curve]


def read(path: Path) -> dict[tuple[str, str], Curves]:
    """By problem and goal and then method."""
    runs: dict[tuple[str, str], dict[str, dict[str, list[tuple[float, ...]]]]] = {}
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            of_method = runs.setdefault((row["problem"], row["goal"]), {}).setdefault(row["method"], {})
            figures = (float(row[column]) for column in HEADER[5:])
            of_method.setdefault(row["seed"], []).append(tuple(figures))
    found: dict[tuple[str, str], Curves] = {}
    for key, methods in runs.items():
        curves = {}
        for method, by_seed in methods.items():
            figures = {int(seed): np.array(rows).T for seed, rows in by_seed.items()}
            values = [scores(key[0], seed, key[1], rows[0], rows[1]) for seed, rows in figures.items()]
            seconds = float(np.mean([rows[2] for rows in figures.values()]))
            curves[method] = Curve(np.array(values), seconds, tuple(figures))
        sign = 1 if key[1] == "budget" else -1
        found[key] = dict(sorted(curves.items(), key=lambda item: sign * float(np.median(item[1].values[:, -1]))))
    return dict(sorted(found.items(), key=lambda item: (PROBLEMS.index(item[0][0]), item[0][1])))


def table(curves: Curves, goal: str) -> str:
    """Medians and quartiles as a Markdown table.

    The last column compares seed by seed: in how many ours is ahead after half of the evaluations of what the method
    has after all of them.
    """
    digits = 2 if goal == "budget" else 3
    count = max(curve.values.shape[1] for curve in curves.values())
    marks = [mark for mark in MARKS if mark <= count]
    lines = [
        "| method | seeds | "
        + " | ".join(f"n={mark}" for mark in marks)
        + f" | CPU s per evaluation | ours at {count // 2} ahead of it at {count} |",
        "|---|" + "---|" * (len(marks) + 3),
    ]
    for name, (values, seconds, seeds) in curves.items():
        cells = []
        for mark in marks:
            low, middle, high = np.percentile(values[:, mark - 1], (25, 50, 75))
            cells.append(f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        ahead = "" if name == "ours" or "ours" not in curves else _ahead(curves["ours"], curves[name], goal)
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + f" | {seconds:.2f} | {ahead} |")
    return "\n".join(lines)


def _ahead(ours: Curve, other: Curve, goal: str) -> str:
    """In how many of the seeds that both have ours is ahead at half the evaluations."""
    sign = -1 if goal == "budget" else 1
    common = [seed for seed in other.seeds if seed in ours.seeds]
    half = ours.values.shape[1] // 2
    won = sum(
        bool(sign * ours.values[ours.seeds.index(seed), half - 1] > sign * other.values[other.seeds.index(seed), -1])
        for seed in common
    )
    return f"{won} of {len(common)}"


def plot(found: dict[tuple[str, str], Curves], target: Path) -> None:
    """Draws medians and quartiles, a column of panels per problem and a row per goal."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    problems, goals = ([one for one in all_ if any(one in key for key in found)] for all_ in (PROBLEMS, GOALS))
    size = (5.2 * len(problems), 4.2 * len(goals))
    figure, axes = plt.subplots(len(goals), len(problems), figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()  # there may be no runs of it
    names = sorted({name for curves in found.values() for name in curves})
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    for (problem, goal), curves in found.items():
        panel = axes[goals.index(goal), problems.index(problem)]
        panel.set_axis_on()
        for name, (values, _, _) in curves.items():
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
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="so that several machines share the seeds")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--collect", type=Path, help="only join the finished runs into this CSV.GZ file")
    parser.add_argument("--report", type=Path, help="only tabulate and plot this CSV.GZ file")
    parser.add_argument("--figure", type=Path, default=Path("docs/search/quality.png"))
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
        one_thread = all(os.environ.get(name) == "1" for name in THREAD_VARIABLES)
        if arguments.workers > 1 or not one_thread:  # sums by several threads come in another order
            sys.exit(run_in_processes(arguments.workers))
        run(arguments.folder, arguments)


if __name__ == "__main__":
    main()
