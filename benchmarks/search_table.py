"""One-shot accuracy of thousands of configurations of ResNet-20 on CIFAR-10: data for `search_quality.py`.

    python benchmarks/search_table.py --data-root ../shared/data --count 3200 --out benchmarks/data/resnet20_oneshot.npz

The published float weights are quantized and calibrated once, at 8 bits everywhere.  A configuration then only changes
weight bits and density of the layers; it is scored without any training on the same held-out images, with batch-norm
statistics of those images under the changed weights.  The same configuration always gives the same score.

Weights and images are kept in one file, and finished rows in a CSV file: the same command goes on where it was stopped,
with any number of processes.  The last step writes everything into one NPZ file, which `search_tabular.py` reads.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import platform
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from search_oneshot import IMAGES, PROBE, ROW, OneShot, keep_inputs
from search_rows import COLUMNS, KINDS, draw, read_rows, table_space, text_of
from search_tabular import cross_validate

from hwmodel import uniform
from hwmodel.networks import load_network
from hwmodel.precision import NetworkConfig
from qat.errors import SearchError
from qat.files import write_bytes, write_text
from qat.search.executor import Task
from qat.search.pool import ProcessPool
from qat.search.sensitivity import SensitivityProfile, measure
from qat.search.space import SearchSpace
from qat.search.trial import Fidelity

INPUTS = "inputs.pt"
"""File of weights and images in the folder; with it no data root is needed, so that another machine can go on."""

GENERATION = 200
"""Rows that are drawn at once, from the earlier generations: any number of processes makes the same rows."""


def generate(folder: Path, count: int, seed: int, workers: int) -> None:
    """Measures the profile and `count` rows, as far as they are not there."""
    space = table_space(load_network("resnet20"))
    profile_path, rows_path = folder / "profile.json", folder / "rows.csv"
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPool(partial(OneShot, folder / INPUTS), workers, threads=1) as pool, Progress(*bars) as progress:
        if not profile_path.is_file():
            write_text(profile_path, json.dumps(_profile(pool, space, progress).to_dict()))
        profile = SensitivityProfile.from_dict(json.loads(profile_path.read_text(encoding="utf-8")))
        rows = read_rows(rows_path, len(space.sizes))
        # The file is rewritten once, so that a line that a kill cut in two is gone.
        write_text(rows_path, ",".join((*COLUMNS, *space.layers)) + "\n" + "".join(map(text_of, rows)))
        task = progress.add_task("configurations", total=count, completed=len(rows))
        for first in range(0, count, GENERATION):
            earlier = [(point, accuracy) for number, _, point, accuracy, _ in rows if number < first]
            drawn = dict(enumerate(draw(space, profile, earlier, GENERATION, seed), first))
            done = {number for number, *_ in rows}
            missing = {n: space.config(drawn[n][1]) for n in drawn if n < count and n not in done}
            with open(rows_path, "a", encoding="utf-8") as file:
                for number, metrics in scored(pool, missing, ROW):
                    row = (number, *drawn[number], round(metrics["accuracy"], 6), round(metrics["loss"], 5))
                    file.write(text_of(row))
                    file.flush()
                    rows.append(row)
                    progress.update(task, completed=len(rows))
            rows.sort(key=lambda row: row[0])
            if missing and not progress.console.is_terminal:
                print(f"{len(rows)} rows", flush=True)


def _profile(pool: ProcessPool, space: SearchSpace, progress: Progress) -> SensitivityProfile:
    """Sensitivities of the space: its configurations are asked for once in vain, then scored at once."""
    base = uniform(load_network("resnet20"), 8, 8)
    asked: dict[NetworkConfig, float] = {}
    measure(lambda config: asked.setdefault(config, 0.0), space, base)
    task = progress.add_task("sensitivity", total=len(asked))
    configs = dict(enumerate(asked))
    for number, metrics in scored(pool, configs, PROBE):
        asked[configs[number]] = metrics["loss"]
        progress.advance(task)
    return measure(asked.__getitem__, space, base)


def scored(
    pool: ProcessPool, configs: dict[int, NetworkConfig], fidelity: Fidelity
) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Numbers and metrics in the order in which they are there.

    Raises:
        SearchError: A configuration could not be scored.
    """
    tasks = [Task(number, config, fidelity, 0) for number, config in configs.items()]
    left = len(tasks)
    for task in tasks[: pool.workers]:
        pool.submit(task)
    waiting = iter(tasks[pool.workers :])
    while left:
        for outcome in pool.wait():
            if not outcome.metrics:
                raise SearchError(f"configuration {outcome.trial_id}: {outcome.error or 'its process died'}")
            for task in islice(waiting, 1):
                pool.submit(task)
            left -= 1
            yield outcome.trial_id, outcome.metrics


def pack(folder: Path, out: Path) -> None:
    """Writes all rows, the profile, and how they were made into one NPZ file."""
    space = table_space(load_network("resnet20"))
    rows = read_rows(folder / "rows.csv", len(space.sizes))
    _, kinds, points, accuracy, loss = (np.array(column) for column in zip(*rows, strict=True))
    settings, error = cross_validate(space.sizes, points, accuracy)
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    header = {
        "what": "one-shot quantized accuracy of the published ResNet-20 on CIFAR-10; every layer read in 8 bits",
        "command": "python benchmarks/search_table.py",
        "images": f"first {IMAGES} held-out images of experiment=cifar10_resnet20; batch norm by their own statistics",
        "arithmetic": f"bfloat16 under torch.autocast on one thread of a CPU ({processor})",
        "profile": "loss increase on one batch of augmented fit images, other layers at 8 bits",
        "torch": torch.__version__,
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "rows": len(rows),
        "layers": space.layers,
        "choices": [f"{c.weight_format} {c.weight_bit_width} bit, density {c.density:g}" for c in space.choices[1]],
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        header=json.dumps(header),
        points=points.astype(np.uint8),
        accuracy=accuracy.astype(np.float32),
        loss=loss.astype(np.float32),
        kind=np.array([KINDS.index(kind) for kind in kinds], np.uint8),
        profile=(folder / "profile.json").read_text(encoding="utf-8"),
        surrogate=np.array(settings),
        surrogate_error_points=error,
    )
    write_bytes(out, buffer.getvalue())
    print(f"{out}: {len(rows)} rows; surrogate's cross-validated error {error:.2f} points")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder with CIFAR-10 and weights/")
    parser.add_argument("--folder", type=Path, default=Path("runs/search_table"), help="rows so far")
    parser.add_argument("--count", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="NPZ file to write when all rows are there")
    parser.add_argument("--workers", type=int, default=1, help="processes; the rows are the same for any number")
    arguments = parser.parse_args()
    if not (arguments.folder / INPUTS).is_file():
        if not arguments.data_root:
            parser.error(f"{arguments.folder / INPUTS} is missing: --data-root says where CIFAR-10 and weights/ are")
        keep_inputs(arguments.data_root.resolve(), arguments.folder, arguments.folder / INPUTS)
    generate(arguments.folder, arguments.count, arguments.seed, arguments.workers)
    if arguments.out:
        pack(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
