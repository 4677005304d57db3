"""Speed of the cost model: configurations per second, one core.

    python benchmarks/cost_model.py

Three ways: by gather from a `CostTable` under a fixed schedule, one full report at a time, and with the schedule
searched anew for every configuration.  CPU time counts, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from hwmodel import CostTable, LayerConfig, NetworkSpec, estimate, load_board, load_network, schedule, uniform

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


def rate(count: int, work: Callable[[], object]) -> float:
    """Items per second of CPU time, best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / max(best, 1e-9)


def measure(network: NetworkSpec, configurations: int) -> tuple[float, float, float]:
    """Configurations per second: by gather, as full reports, and with a new schedule each."""
    board = load_board("u250")
    table = CostTable(
        network,
        board,
        {layer.name: CHOICES for layer in network.weighted},
        schedule(network, uniform(network, 4, 4), board),
    )
    indices = np.random.default_rng(0).integers(0, len(CHOICES), (configurations, len(table.layers)))
    configs = [table.config(row) for row in indices[:10]]
    return (
        rate(configurations, lambda: table.evaluate(indices)),
        rate(10, lambda: [estimate(network, config, board, table.schedule) for config in configs]),
        rate(1, lambda: schedule(network, configs[0], board)),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=200_000)
    args = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, revision {revision()}, {processor()}, one core")
    print(f"python {platform.python_version()}, numpy {np.__version__}; board u250, {len(CHOICES)} choices per layer")
    print(f"{'network':18} {'layers':>6} {'gather/s':>12} {'reports/s':>10} {'schedules/s':>12}")
    for name in ("yolov2_tiny_voc", "resnet20", "resnet50"):
        network = load_network(name)
        gather, reports, schedules = measure(network, args.configurations)
        print(f"{name:18} {len(network.weighted):6d} {gather:12,.0f} {reports:10,.0f} {schedules:12.2f}")
    print("\nlinear in configurations (resnet50, seconds of CPU time):")
    for count in (args.configurations // 4, args.configurations // 2, args.configurations):
        gather, _, _ = measure(load_network("resnet50"), count)
        print(f"{count:9,d}: {count / gather:.3f}")


if __name__ == "__main__":
    main()
