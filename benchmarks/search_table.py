"""One-shot accuracy of thousands of configurations of ResNet-20 on CIFAR-10: data for `search_quality.py`.

    python benchmarks/search_table.py --data-root ../shared/data --count 3200 --out benchmarks/data/resnet20_oneshot.npz

The published float weights are quantized and calibrated once, at 8 bits everywhere.  A configuration then only changes
weight bits and density of the layers; it is scored without any training on the same held-out images, with batch-norm
statistics of those images under the changed weights.  The same configuration always gives the same score.

Finished rows are kept in a CSV file beside the result: the same command goes on where it was stopped.  The last step
writes everything into one NPZ file, which `search_tabular.py` reads.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from search_rows import COLUMNS, KINDS, draw, read_rows, table_space
from search_tabular import cross_validate
from torch import Tensor

import hwmodel
from hwmodel.networks import load_network
from hwmodel.precision import NetworkConfig
from qat.compose import compose_config
from qat.files import write_bytes, write_text
from qat.pipeline.setup import Setup, train
from qat.quantizers import WeightQuantizer
from qat.runs import RunFolder
from qat.search.sensitivity import SensitivityProfile, measure
from qat.search.space import SearchSpace
from qat.search.trial import IntArray
from qat.tasks.quantize import SensitivityProbe

IMAGES = 500
"""Held-out images that score a configuration."""

PROBE_IMAGES = 128
"""Calibration images of the sensitivity profile."""


class OneShot:
    """Scores points of a space without training; weights are quantized once per layer and choice.

    Args:
        setup: Float network and images.
        space: The choices.
    """

    def __init__(self, setup: Setup, space: SearchSpace) -> None:
        self.space = space
        base = hwmodel.uniform(setup.network, 8, 8)
        pl.seed_everything(0, verbose=False)
        probe = SensitivityProbe(
            setup.float_model, base, setup.data, setup.normalization, PROBE_IMAGES, setup.objective
        )
        self.base, self.probe, self.model = base, probe, probe.model
        self.objective = setup.objective
        images, labels = [], []
        for batch, label in setup.data.val_dataloader():
            images.append(batch)
            labels.append(label)
        self.x_NCHW: Tensor = setup.normalization(torch.cat(images)[:IMAGES])
        self.labels: Tensor = torch.cat(labels)[:IMAGES]
        self._quantizers: dict[tuple[int, int], WeightQuantizer] = {}

    def probe_loss(self, config: NetworkConfig) -> float:
        """Loss of a configuration on the calibration images, in the same number format as the scores."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.probe(config)

    @torch.no_grad()
    def __call__(self, point: IntArray) -> tuple[float, float]:
        """Accuracy in [0, 1] and cross-entropy."""
        layers = self.model.weighted_layers
        for i, name in enumerate(self.space.layers):
            key = (i, int(point[i]))
            if key not in self._quantizers:
                self._quantizers[key] = WeightQuantizer(layers[name].weight_OIHW, self.space.choices[i][key[1]])
            layers[name].weight_quantizer = self._quantizers[key]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(self.x_NCHW).float()
        loss = torch.nn.functional.cross_entropy(logits, self.labels)
        return float((logits.argmax(1) == self.labels).double().mean()), float(loss)


def generate(data_root: Path, folder: Path, count: int, seed: int) -> None:
    """Measures the profile and `count` rows, as far as they are not there."""
    overrides = ["experiment=cifar10_resnet20", f"data.root={data_root}", "trainer.progress_bar=false"]
    cfg = compose_config([*overrides, "trainer.num_threads=1", f"run_dir={folder / 'float'}"])
    setup = train(cfg, RunFolder.create(cfg))
    space = table_space(setup.network)
    score = OneShot(setup, space)
    profile_path, rows_path = folder / "profile.json", folder / "rows.csv"
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars) as progress:
        if not profile_path.is_file():
            task = progress.add_task("sensitivity")
            profile = measure(
                score.probe_loss, space, score.base, lambda n, total: progress.update(task, completed=n, total=total)
            )
            write_text(profile_path, json.dumps(profile.to_dict()))
        profile = SensitivityProfile.from_dict(json.loads(profile_path.read_text(encoding="utf-8")))
        known = read_rows(rows_path, len(space.sizes))
        rows = [(point, accuracy) for _, point, accuracy, _ in known]
        # The file is rewritten once, so that a line that a kill cut in two is gone.
        with open(rows_path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*COLUMNS, *space.layers))
            for number, (kind, point, accuracy, loss) in enumerate(known):
                writer.writerow((number, kind, accuracy, loss, *point.tolist()))
            file.flush()
            task = progress.add_task("configurations", total=count, completed=len(rows))
            start = time.monotonic()
            while len(rows) < count:
                kind, point = draw(space, profile, rows, seed)
                accuracy, loss = score(point)
                writer.writerow((len(rows), kind, round(accuracy, 6), round(loss, 5), *point.tolist()))
                file.flush()
                rows.append((point, accuracy))
                progress.update(task, completed=len(rows))
                if not progress.console.is_terminal and len(rows) % 100 == 0:
                    print(f"{len(rows)} rows, {time.monotonic() - start:.0f} s", flush=True)


def pack(folder: Path, out: Path) -> None:
    """Writes all rows, the profile, and how they were made into one NPZ file."""
    space = table_space(load_network("resnet20"))
    rows = read_rows(folder / "rows.csv", len(space.sizes))
    points, accuracy = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    settings, error = cross_validate(space.sizes, points, accuracy)
    header = {
        "what": "one-shot quantized accuracy of the published ResNet-20 on CIFAR-10; every layer read in 8 bits",
        "command": "python benchmarks/search_table.py",
        "images": f"first {IMAGES} held-out images of experiment=cifar10_resnet20; batch norm by their own statistics",
        "arithmetic": "bfloat16 under torch.autocast on a CPU",
        "profile": f"loss increase on {PROBE_IMAGES} augmented fit images, other layers at 8 bits",
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
        loss=np.array([row[3] for row in rows], np.float32),
        kind=np.array([KINDS.index(row[0]) for row in rows], np.uint8),
        profile=(folder / "profile.json").read_text(encoding="utf-8"),
        surrogate=np.array(settings),
        surrogate_error_points=error,
    )
    write_bytes(out, buffer.getvalue())
    print(f"{out}: {len(rows)} rows; surrogate's cross-validated error {error:.2f} points")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder with CIFAR-10 and weights/")
    parser.add_argument("--folder", type=Path, default=Path("runs/search_table"), help="rows so far")
    parser.add_argument("--count", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="NPZ file to write when all rows are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generate(arguments.data_root.resolve(), arguments.folder, arguments.count, arguments.seed)
    if arguments.out:
        pack(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
