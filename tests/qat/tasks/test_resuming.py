"""A fit that was interrupted draws on from the random numbers where it stopped."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from qat.tasks import Recipe, TrainingTask, fit
from qat.tasks.fit import read_checkpoint, write_checkpoint
from qat.tasks.random_state import random_state, set_random_state
from tests.qat.nets import NORMALIZATION
from tests.qat.tasks.stripes import CPU, OBJECTIVE, Quarters, Stripes


class Dropping(Quarters):
    """Draws from both generators in training, and from one also where it is measured."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.5:
            x = x + torch.randn(())
        return nn.functional.dropout(super().forward(x), 0.3, training=True)


class StopAt(pl.Callback):
    """Stops a fit before a batch of its third epoch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (2, self.batch):
            raise RuntimeError("power cut")


def train(folder: Path, *callbacks: pl.Callback, epochs_per_validation: int = 1) -> dict[str, Tensor]:
    pl.seed_everything(3, verbose=False)
    task = TrainingTask(Dropping(), NORMALIZATION, Recipe(epochs=4), OBJECTIVE)
    fit(task, Stripes(), replace(CPU, epochs_per_validation=epochs_per_validation), folder, callbacks=callbacks)
    return dict(task.state_dict())


@pytest.mark.parametrize("batch", [0, 5])
@pytest.mark.parametrize("epochs_per_validation", [1, 3])
def test_dropout_goes_on_where_it_was(tmp_path: Path, batch: int, epochs_per_validation: int) -> None:
    whole = train(tmp_path / "whole", epochs_per_validation=epochs_per_validation)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", StopAt(batch), epochs_per_validation=epochs_per_validation)
    resumed = train(tmp_path / "cut", epochs_per_validation=epochs_per_validation)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_checkpoint_without_random_state_is_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As earlier versions wrote them."""
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, StopAt(0))
    values = read_checkpoint(tmp_path / "last.ckpt")
    del values["random_state"]
    write_checkpoint(values, tmp_path / "last.ckpt")
    train(tmp_path)
    assert "last.ckpt, of an earlier version, has no random state: a network with dropout will differ" in caplog.text


@pytest.mark.parametrize("torn", ["2,17,0.5e", "2", "", "epo", "\0\0\0\0,1"])
def test_a_log_that_was_cut_off_does_not_keep_a_fit_from_ending(tmp_path: Path, torn: str) -> None:
    whole = tmp_path / "whole"
    train(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", StopAt(5))
    log = tmp_path / "cut" / "logs" / "version_0" / "metrics.csv"
    log.write_text((log.read_text() + torn) if torn[:1] == "2" else torn)
    train(tmp_path / "cut")
    rows, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "cut", whole))
    assert [row for row in rows if row["epoch"] >= 2] == [row for row in expected if row["epoch"] >= 2]


@pytest.mark.gpu
def test_the_generator_of_a_gpu_goes_on_too() -> None:

    device = torch.device("cuda", torch.cuda.current_device())
    state = random_state(device)
    before = torch.rand(4, device=device)
    set_random_state(state, device)
    assert torch.equal(torch.rand(4, device=device), before)
