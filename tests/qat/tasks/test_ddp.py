"""One training in two processes: Lightning's DDP over gloo, as `trainer=ddp` asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qat.compose import compose_config

ROOT = Path(__file__).resolve().parents[3]

JOB = '''
import hashlib
import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed

from hwmodel import LayerConfig, NetworkConfig, WeightFormat
from pytorch_lightning.callbacks import Callback
from qat.compose import compose_config
from qat.data import build_data
from qat.graph import trace
from qat.models import build_network
from qat.pipeline.setup import machine_of, recipe_of
from qat.tasks import TrainingTask, fit, objective_of
from qat.tasks.quantize import quantize


class Seen(Callback):
    """Keeps what this process was given."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append([hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch[0]])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    config = compose_config(
        ["experiment=digits_demo", "trainer=ddp", "trainer.accelerator=cpu", "trainer.progress_bar=false",
         "trainer.distillation_weight=0.5", "trainer.mask_update_steps=2", f"run_dir={folder}"]
    )
    data, teacher = build_data(config.data, 0), build_network(config.network, 0).eval()
    network = trace(teacher, data.input_shape)
    layer = LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE)
    precision = NetworkConfig(tuple((spec.name, layer) for spec in network.weighted))
    pl.seed_everything(0, verbose=False)
    model = quantize(teacher, precision, data, data.normalization)
    task = TrainingTask(model, data.normalization, recipe_of(config), objective_of(teacher), teacher)
    seen = Seen()
    fit(task, data, machine_of(config), steps=6, callbacks=(seen,))
    state = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    for layer in model.weighted_layers.values():
        state.update(layer.weight_quantizer.mask.numpy().tobytes())
    result = {
        "backend": torch.distributed.get_backend(),
        "world_size": torch.distributed.get_world_size(),
        "state": state.hexdigest(),
        "batches": seen.batches,
    }
    (folder / f"rank{task.global_rank}.json").write_text(json.dumps(result))
'''


def by_rank(job: str, folder: Path) -> list[dict[str, Any]]:
    """What the two processes of a job wrote into `rank<n>.json` of a folder, which is its argument."""
    script = folder / "job.py"
    script.write_text(job)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_the_configuration_asks_for_two_processes() -> None:
    trainer = compose_config(["trainer=ddp"]).trainer
    assert (trainer.devices, trainer.strategy) == (2, "ddp")


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    first, second = by_rank(JOB, tmp_path)
    assert (first["backend"], first["world_size"]) == ("gloo", 2)
    assert first["state"] == second["state"]  # weights, steps and masks, bit for bit
    for ours, theirs in zip(first["batches"], second["batches"], strict=True):
        assert len(ours) == len(theirs) == 32  # half of 64 each
        assert not set(ours) & set(theirs)


PIPELINE_JOB = """
import json
import os
import sys
from pathlib import Path

import torch

import qat.pipeline.setup as setup
import qat.tasks.quantize as quantize
from hwmodel import uniform
from qat.compose import compose_config
from qat.runs import RunFolder

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ.get("LOCAL_RANK", "0")
    torch.set_num_threads(1)
    written = []

    def noting(function, place):
        def call(*args, **kwargs):
            written.append(str(args[place]))
            return function(*args, **kwargs)
        return call

    fitting = sys.modules["qat.tasks.fit"]  # its package gives the name to a function
    quantize.write_checkpoint = noting(quantize.write_checkpoint, 1)
    RunFolder.write_json = noting(RunFolder.write_json, 1)
    fitting.write_rows = noting(fitting.write_rows, 0)
    config = compose_config(
        ["experiment=digits_demo", "trainer=ddp", "trainer.accelerator=cpu", "trainer.progress_bar=false",
         "trainer.float_epochs=1", "trainer.epochs=1", "trainer.epochs_per_validation=2", f"run_dir={folder / 'run'}"]
    )
    run = RunFolder.create(config)
    ready = setup.train(config, run)
    model = quantize.finetune(
        ready.float_model, uniform(ready.network, 4, 8), ready.data, ready.normalization, ready.recipe, ready.machine,
        run.path / "networks" / "a", 0, ready.objective,
    )
    sums = [{name: float(value.double().sum()) for name, value in one.state_dict().items() if "running" in name}
            for one in (ready.float_model, model)]
    (folder / f"rank{rank}.json").write_text(json.dumps({"written": written, "sums": sums}))
"""


@pytest.mark.slow
def test_the_first_process_alone_writes(tmp_path: Path) -> None:
    """All go on with its running statistics, which the others gathered from other images."""
    first, second = by_rank(PIPELINE_JOB, tmp_path)
    names = [Path(name).name for name in first["written"]]
    assert sorted(names) == [
        "environment.json", "float.ckpt", "float.json", "metrics", "metrics", "model.ckpt", "network.json"
    ]  # fmt: skip
    assert second["written"] == []
    assert first["sums"] == second["sums"] and first["sums"][0]
