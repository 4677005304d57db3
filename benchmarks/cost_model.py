"""Speed of the cost model: configurations per second, one core.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py
    OMP_NUM_THREADS=1 python benchmarks/cost_model.py --peer-python /path/to/venv/bin/python

By gather from a `CostTable` under a fixed schedule (*gather*); without a table for the same draws, from `NetworkConfig`
objects (*no table*); from the formulas for densities that are all different, given as arrays (*formulas*,
`estimate_arrays`) and as objects (*objects*, `estimate_many`, which reads them into arrays); one full report at a time
from the scalar reference; and with the schedule searched anew for every configuration.  *Schedules* are 40
configurations after 20 others, as in a search: they draw from few choices per layer, so that nearly all options are
there.  All rates are the best of three runs, *schedules* each time of a new `Scheduler`; *first* is the first schedule
of the first of them, which makes the options of all layers, and *slowest* is of the best.  *Proven* is the share of
these 40 whose off-chip bits and interval are proven optimal.  Layers draw their precision at random.  CPU time counts,
so that other work on the machine disturbs little, and one thread: those of BLAS that wait count too.
The peer is zigzag-dse on ResNet-18, timed in the same run if a Python that has it is named; it searches mappings of
every layer, so its figure belongs beside the schedules, not beside the gather.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from hwmodel import (
    Board,
    ConfigArrays,
    CostTable,
    LayerConfig,
    NetworkConfig,
    NetworkSpec,
    estimate,
    estimate_arrays,
    estimate_many,
    load_board,
    load_network,
    schedule,
    uniform,
)
from hwmodel.scheduler import Scheduler, search

Array = NDArray[np.int64]

CHOICES = [
    *(LayerConfig(bits, 4) for bits in (1, 2, 3, 4, 6, 8)),
    *(LayerConfig(1, 4, sparsity, "binary_plus_sparse") for sparsity in (0.98, 0.95, 0.9, 0.8)),
]


def revision() -> str:
    """Git revision of the working tree."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """Model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def rate(count: int, work: Callable[[], object], repeats: int = 3) -> float:
    """Items per second of CPU time, the best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / max(best, 1e-9)


def draw(network: NetworkSpec, count: int) -> Array:
    """Random choices, shape (count, layers)."""
    return np.random.default_rng(0).integers(0, len(CHOICES), (count, len(network.weighted)))


def draw_densities(network: NetworkSpec, count: int) -> ConfigArrays:
    """Configurations of which no layer has the same density as another one."""
    sparsity = np.random.default_rng(1).uniform(0.5, 0.99, (count, len(network.weighted)))
    return ConfigArrays(tuple(layer.name for layer in network.weighted), 1, 4, sparsity, "binary_plus_sparse")


def table_of(network: NetworkSpec, board: Board) -> CostTable:
    """The table under the best schedule of 4 bits everywhere."""
    choices = {layer.name: CHOICES for layer in network.weighted}
    return CostTable(network, board, choices, schedule(network, uniform(network, 4, 4), board))


def schedule_seconds(scheduler: Scheduler, configs: Sequence[NetworkConfig]) -> list[float]:
    """Seconds of CPU time of each schedule."""
    return [1 / rate(1, lambda config=config: scheduler.schedule(config), repeats=1) for config in configs]


def measure(network: NetworkSpec, board: Board, configurations: int) -> list[float]:
    """Configurations per second; seconds of the first and the slowest schedule; share of proven ones."""
    table = table_of(network, board)
    indices = draw(network, configurations)
    many = [table.config(row) for row in indices[: configurations // 5]]
    configs, asked = many[:10], many[10:70]
    own = draw_densities(network, configurations // 10)
    objects = [own.config(row) for row in range(len(own))]
    runs = [schedule_seconds(Scheduler(network, board), asked) for _ in range(3)]
    # A search meets the options of most choices in its first configurations.
    times = min((seconds[20:] for seconds in runs), key=sum)
    scheduler = Scheduler(network, board)
    found = [search(scheduler.segments(config), board) for config in asked[20:]]
    return [
        rate(configurations, lambda: table.evaluate(indices)),
        rate(len(many), lambda: estimate_many(network, many, board, table.schedule)),
        rate(len(own), lambda: estimate_arrays(network, own, board, table.schedule)),
        rate(len(own), lambda: estimate_many(network, objects, board, table.schedule)),
        rate(10, lambda: [estimate(network, config, board, table.schedule) for config in configs]),
        runs[0][0],
        len(times) / sum(times),
        max(times),
        sum(best is not None and best.is_proven for best in found) / len(found),
    ]


PEER = """
import sys, time, logging
from zigzag import api
folder = sys.argv[1]
start = time.process_time()
api.get_hardware_performance_zigzag(
    workload="zigzag/inputs/workload/resnet18.onnx", accelerator="zigzag/inputs/hardware/tpu_like.yaml",
    mapping="zigzag/inputs/mapping/tpu_like.yaml", opt="EDP", dump_folder=folder, pickle_filename=folder + "/p.pickle")
print("SECONDS", time.process_time() - start)
"""


def time_peer(python: str) -> str:
    """CPU seconds of zigzag-dse's search of ResNet-18, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        find = [python, "-c", "import zigzag, pathlib; print(pathlib.Path(list(zigzag.__path__)[0]).parent)"]
        where = subprocess.run(find, capture_output=True, text=True, check=False).stdout.strip() or "."
        command = [python, "-c", PEER, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where, timeout=3600)
    seconds = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not seconds:
        return f"it did not run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return f"{float(seconds[0]):.1f} s per search, mappings of all layers included"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=100_000)
    parser.add_argument("--peer-python")
    args = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, revision {revision()}, {processor()}, one core")
    print(f"python {platform.python_version()}, numpy {np.__version__}; {len(CHOICES)} choices per layer\n")
    print(
        "| network | layers | board | gather/s | no table/s | formulas/s | objects/s | reports/s | first schedule "
        "| schedules/s | slowest schedule | proven |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    networks = [load_network(name) for name in ("yolov2_tiny_voc", "resnet20", "resnet50")]
    for network, board in [*((network, "u250") for network in networks), (networks[-1], "zcu102")]:
        *rates, cold, schedules, slowest, proven = measure(network, load_board(board), args.configurations)
        print(
            f"| {network.name} | {len(network.weighted)} | {board} "
            f"| {' | '.join(f'{one:,.0f}' for one in rates)} "
            f"| {cold:.2f} s | {schedules:.1f} | {slowest:.2f} s | {proven:.0%} |",
            flush=True,
        )
    print("\nresnet50 on u250, seconds of CPU time by configurations:")
    table = table_of(networks[-1], load_board("u250"))
    for count in (args.configurations, 2 * args.configurations, 4 * args.configurations):
        indices = draw(networks[-1], count)
        print(f"{count:9,d}: {count / rate(count, lambda rows=indices: table.evaluate(rows)):.3f}")
    print(f"\nu250, seconds of CPU time of {args.configurations:,d} configurations by layers with weights:")
    for network in [load_network(name) for name in ("resnet20", "resnet56", "resnet152")]:
        table, indices = table_of(network, load_board("u250")), draw(network, args.configurations)
        seconds = args.configurations / rate(len(indices), lambda table=table, rows=indices: table.evaluate(rows))
        each = 1e9 * seconds / indices.size
        print(f"{len(network.weighted):9d}: {seconds:.3f}, {each:.1f} ns per layer")
    if args.peer_python:
        print(f"\nzigzag-dse, ResNet-18: {time_peer(args.peer_python)}")


if __name__ == "__main__":
    main()
