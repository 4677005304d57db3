"""Training, resuming, and what happens when something goes wrong."""

from __future__ import annotations

import csv
import errno
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hwmodel import LayerConfig, WeightFormat, uniform
from hwmodel.precision import NetworkConfig
from qat.convert import prepare
from qat.data import Augmentation, ImageSet, LabelDataModule, Splits
from qat.deployment import deploy
from qat.errors import CheckpointError, ConfigError, DataError, ExportError, TrainingError
from qat.graph import trace
from qat.masks import MaskSchedule, Saliency
from qat.tasks import Recipe, TrainingTask, evaluate, fit
from qat.tasks.fit import Machine, read_checkpoint, write_checkpoint
from qat.tasks.quantize import quantize
from tests.qat.nets import NORMALIZATION
from tests.qat.tasks.stripes import CPU, OBJECTIVE, Quarters, Stripes


def test_training_restores_what_one_bit_destroyed(trained: nn.Module) -> None:
    config = uniform(trace(trained, (3, 8, 8)), 1, 2, end_bit_width=None)
    data = Stripes()
    torch.manual_seed(0)
    model = quantize(trained, config, data, NORMALIZATION)

    def loss() -> float:
        return evaluate(model, data.val_dataloader(), NORMALIZATION, OBJECTIVE)["loss"]

    before = loss()
    task = TrainingTask(model, NORMALIZATION, Recipe(learning_rate=1e-2), OBJECTIVE, teacher=trained)
    fit(task, data, CPU, steps=80)
    assert loss() < 0.5 * before
    assert evaluate(model, data.val_dataloader(), NORMALIZATION, OBJECTIVE)["accuracy"] > 0.9
    assert not any("teacher" in name for name in task.state_dict())


def test_a_model_has_its_mode_again_where_a_batch_fails() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from Stripes().val_dataloader()
        raise DataError("damaged")

    model = Quarters().train()
    with pytest.raises(DataError, match="damaged"):
        evaluate(model, batches(), NORMALIZATION, OBJECTIVE)
    assert model.training


def test_validation_every_second_epoch(tmp_path: Path) -> None:
    task = TrainingTask(Quarters(), NORMALIZATION, Recipe(epochs=4), OBJECTIVE)
    fit(task, Stripes(), replace(CPU, epochs_per_validation=2), tmp_path)
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val_loss"]] == ["1", "3"]


class _Epochs(pl.Callback):
    """Notes which epochs were trained."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(trainer.current_epoch)


class _StopAfter(pl.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epochs:
            raise RuntimeError("power cut")


def test_an_interrupted_fit_goes_on_and_ends_as_if_nothing_had_happened(trained: nn.Module, tmp_path: Path) -> None:
    config = uniform(trace(trained, (3, 8, 8)), 1, 4)
    recipe = Recipe(epochs=4, learning_rate=5e-3)

    stripes = Stripes()
    part = ImageSet(stripes.images, stripes.labels)
    splits = Splits(part, part, part, ("a", "b", "c", "d"))

    def data() -> LabelDataModule:
        return LabelDataModule(splits, NORMALIZATION, Augmentation(1, True), batch_size=32, seed=0)

    def task() -> TrainingTask:
        torch.manual_seed(0)
        return TrainingTask(
            quantize(trained, config, Stripes(), NORMALIZATION), NORMALIZATION, recipe, OBJECTIVE, trained, 0.7
        )

    whole = task()
    fit(whole, data(), CPU, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(task(), data(), CPU, tmp_path / "cut", callbacks=(_StopAfter(2),))
    resumed, epochs = task(), _Epochs()
    fit(resumed, data(), CPU, tmp_path / "cut", callbacks=(epochs,))
    assert epochs.seen == [2, 3]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, msg=name)


class _Statistics(pl.Callback):
    """Notes the running means of a batch norm after each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.seen.append(next(v for name, v in pl_module.named_buffers() if name.endswith("running_mean")).clone())


def test_the_last_steps_train_and_validate_with_the_integers(trained: nn.Module, tmp_path: Path) -> None:
    data, statistics = Stripes(), _Statistics()
    torch.manual_seed(0)
    model = quantize(trained, uniform(trace(trained, (3, 8, 8)), 1, 2), data, NORMALIZATION)
    recipe = Recipe(epochs=5, learning_rate=1e-2)
    task = TrainingTask(model, NORMALIZATION, recipe, OBJECTIVE, trained, exact_share=0.4)
    fit(task, data, CPU, tmp_path, callbacks=(statistics,))
    per_epoch = len(data.train_dataloader())
    moved = [not torch.equal(a, b) for a, b in pairwise(statistics.seen)]
    assert moved == [True] * (3 * per_epoch - 1) + [False] * (2 * per_epoch)  # statistics are fixed there
    deployed, meter = deploy(model.eval(), NORMALIZATION), OBJECTIVE.meter()
    for images, labels in data.val_dataloader():
        meter.update(deployed(images).float() * deployed.output_scales[0], labels)
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        validated = [row for row in csv.DictReader(file) if row["val_loss"]][-1]
    assert float(validated["val_loss"]) == pytest.approx(meter.compute()["loss"], rel=1e-6)
    # Fake quantization answers otherwise: the test would see if it had been measured.
    fake = evaluate(model, data.val_dataloader(), NORMALIZATION, OBJECTIVE)
    assert fake["loss"] != pytest.approx(meter.compute()["loss"], rel=1e-6)


class _Poison(pl.Callback):
    """Spoils a weight after some steps."""

    def __init__(self, steps: int, name: str) -> None:
        self.steps, self.name = steps, name

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if trainer.global_step == self.steps:
            with torch.no_grad():
                next(v for name, v in pl_module.named_parameters() if name.endswith(self.name)).view(-1)[0] = math.nan


@pytest.mark.parametrize("steps", [5, 6])
@pytest.mark.parametrize("name", ["conv1.weight", "bn1.bias", "log2_scale"])
def test_what_is_no_number_is_seen_behind_integers_too(trained: nn.Module, steps: int, name: str) -> None:
    """Codes of a weight that is no number are integers, and a loss computed with them is finite."""
    model = quantize(trained, uniform(trace(trained, (3, 8, 8)), 4, 4), Stripes(), NORMALIZATION)
    name = name.replace("bn1", "conv1.batch_norm")
    task = TrainingTask(model, NORMALIZATION, Recipe(), OBJECTIVE, exact_share=0.5)
    with pytest.raises(TrainingError, match=rf"a weight became infinite or no number at step {steps}; .*learning_rate"):
        fit(task, Stripes(), CPU, steps=6, callbacks=(_Poison(steps, name),))


def test_a_fit_that_is_to_end_with_integers_needs_them_before_it_starts(trained: nn.Module) -> None:
    model = prepare(trained, uniform(trace(trained, (3, 8, 8)), 4, 4), (3, 8, 8))
    task = TrainingTask(model, NORMALIZATION, Recipe(epochs=5), OBJECTIVE, exact_share=0.1)
    with pytest.raises(ExportError, match=r"was not calibrated.*; trainer\.exact_share=0 trains without integers"):
        fit(task, Stripes(), CPU, steps=3)
    assert task.global_step == 0


class _Interrupt(pl.Callback):
    def on_train_batch_end(self, *_: object) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_leaves_a_fit_as_one() -> None:
    """Lightning would end the process with status 1, deaf to further interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores interrupts
    try:
        task = TrainingTask(Quarters(), NORMALIZATION, Recipe(), OBJECTIVE)
        with pytest.raises(KeyboardInterrupt):
            fit(task, Stripes(), CPU, steps=3, callbacks=(_Interrupt(),))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_sparse_planes_settle_and_keep_their_density(trained: nn.Module) -> None:
    network = trace(trained, (3, 8, 8))
    layer = LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE)
    config = NetworkConfig(tuple((spec.name, layer) for spec in network.weighted))
    model = quantize(trained, config, Stripes(), NORMALIZATION)
    counts = [int(w.weight_quantizer.mask.sum()) for w in model.weighted_layers.values()]  # type: ignore[union-attr]
    recipe = Recipe(learning_rate=1e-2, mask_update_share=0.5, mask_update_steps=2)
    fit(TrainingTask(model, NORMALIZATION, recipe, OBJECTIVE), Stripes(), CPU, steps=10)
    assert counts == [int(w.weight_quantizer.mask.sum()) for w in model.weighted_layers.values()]  # type: ignore[union-attr]


def test_without_a_share_of_the_steps_planes_stay_as_they_are(trained: nn.Module) -> None:
    network = trace(trained, (3, 8, 8))
    layer = LayerConfig(4, 4, 0.5, WeightFormat.SPARSE)
    config = NetworkConfig(tuple((spec.name, layer) for spec in network.weighted))
    model = quantize(trained, config, Stripes(), NORMALIZATION)
    for call in model.weighted_layers.values():
        call.weight_quantizer.mask.logical_not_()  # type: ignore[union-attr]
    before = {name: call.weight_quantizer.mask.clone() for name, call in model.weighted_layers.items()}  # type: ignore[union-attr]
    recipe = Recipe(learning_rate=1e-2, mask_update_share=0.0, mask_update_steps=1)
    fit(TrainingTask(model, NORMALIZATION, recipe, OBJECTIVE), Stripes(), CPU, steps=3)
    for name, call in model.weighted_layers.items():
        assert torch.equal(call.weight_quantizer.mask, before[name])  # type: ignore[union-attr]


def test_a_teacher_without_weight_is_not_asked(trained: nn.Module) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("asked")

    task = TrainingTask(Quarters(), NORMALIZATION, Recipe(distillation_weight=0.0), OBJECTIVE, Silent())
    fit(task, Stripes(), CPU, steps=1)


def test_a_damaged_checkpoint_of_an_interrupted_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 something")
    task = TrainingTask(Quarters(), NORMALIZATION, Recipe(epochs=1), OBJECTIVE)
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt is damaged or no checkpoint: .*; remove .*last\.ckpt to train"
    ):
        fit(task, Stripes(), CPU, tmp_path)
    torch.save({"state_dict": task.state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt lacks \['epoch', .*; remove .*last\.ckpt to train"):
        fit(task, Stripes(), CPU, tmp_path)


@pytest.mark.parametrize("saliency", list(Saliency))
def test_gradual_planes_thin_out_and_end_at_the_exact_density(trained: nn.Module, saliency: Saliency) -> None:
    """The last choice falls between two intervals, and is made all the same."""
    network = trace(trained, (3, 8, 8))
    layer = LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE)
    model = quantize(trained, NetworkConfig(tuple((s.name, layer) for s in network.weighted)), Stripes(), NORMALIZATION)

    def kept() -> int:
        return sum(int(w.weight_quantizer.mask.sum()) for w in model.weighted_layers.values())  # type: ignore[union-attr]

    exact, counts = kept(), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            counts.append(kept())

    schedule = MaskSchedule.GRADUAL
    recipe = Recipe(mask_update_share=0.7, mask_update_steps=3, mask_saliency=saliency, mask_schedule=schedule)
    fit(TrainingTask(model, NORMALIZATION, recipe, OBJECTIVE), Stripes(), CPU, steps=10, callbacks=(Watch(),))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[3] > counts[6] > exact == counts[7] == counts[9]


def test_taylor_saliency_decides_by_the_gradients_of_the_batch(trained: nn.Module) -> None:
    network = trace(trained, (3, 8, 8))
    layer = LayerConfig(4, 4, 0.8, WeightFormat.SPARSE)
    masks = []
    for saliency in Saliency:
        pl.seed_everything(0, verbose=False)
        config = NetworkConfig(tuple((spec.name, layer) for spec in network.weighted))
        model = quantize(trained, config, Stripes(), NORMALIZATION)
        recipe = Recipe(mask_update_share=1.0, mask_update_steps=1, mask_saliency=saliency)
        fit(TrainingTask(model, NORMALIZATION, recipe, OBJECTIVE), Stripes(), CPU, steps=1)
        mask = model.weighted_layers["conv2"].weight_quantizer.mask
        assert mask is not None
        masks.append(mask.clone())
    assert int(masks[0].sum()) == int(masks[1].sum()) and not torch.equal(*masks)


def test_a_loss_that_is_not_finite_stops_training_with_advice(trained: nn.Module, tmp_path: Path) -> None:
    model = Quarters()
    fit(TrainingTask(model, NORMALIZATION, Recipe(epochs=1), OBJECTIVE), Stripes(), CPU, tmp_path)
    kept = read_checkpoint(tmp_path / "last.ckpt")
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=r"the loss became nan at step 0; earlier checkpoints are intact. Try a smaller"
    ):
        fit(TrainingTask(model, NORMALIZATION, Recipe(epochs=2), OBJECTIVE), Stripes(), CPU, steps=4)
    assert kept.keys() == read_checkpoint(tmp_path / "last.ckpt").keys()


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint({"value": torch.ones(3)}, path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"could not write checkpoint .*No space left on device.*intact"):
        write_checkpoint({"value": torch.zeros(3)}, path)
    assert torch.equal(read_checkpoint(path)["value"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_full_disk_during_a_fit_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fit(TrainingTask(Quarters(), NORMALIZATION, Recipe(epochs=1), OBJECTIVE), Stripes(), CPU, tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fit(TrainingTask(Quarters(), NORMALIZATION, Recipe(epochs=3), OBJECTIVE), Stripes(), CPU, tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("warmup_share", 1.0),
        ("distillation_weight", 1.1),
        ("mask_update_steps", 0),
        ("mask_saliency", 3),
        ("mask_schedule", 3),
    ],
)
def test_a_recipe_out_of_range_names_the_field(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{field}={value}, expected"):
        Recipe(**{field: value})  # type: ignore[arg-type]


@pytest.mark.filterwarnings("default")  # of torch's own code
def test_compiled_networks_train_like_others_and_checkpoints_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As far as the graphs of forward and backward; tests/qat/test_quantizers.py looks at what a compiler makes of them.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    data = Stripes()
    found = []
    for compiled in (False, True):
        pl.seed_everything(0, verbose=False)
        model = quantize(Quarters(), uniform(trace(Quarters(), (3, 8, 8)), 4, 4), data, NORMALIZATION)
        task = TrainingTask(model, NORMALIZATION, Recipe(epochs=4, learning_rate=1e-2), OBJECTIVE)
        machine = Machine(accelerator="cpu", progress_bar=False, compiled=compiled)
        fit(task, data, machine, tmp_path / f"compiled_{compiled}")
        found.append((task.state_dict(), evaluate(model, data.val_dataloader(), NORMALIZATION, OBJECTIVE)))
    (eager, eager_figures), (compiled_state, compiled_figures) = found
    assert list(eager) == list(compiled_state)
    assert compiled_figures["accuracy"] > 0.9
    assert compiled_figures["loss"] == pytest.approx(eager_figures["loss"], abs=0.1)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # of torch's own code
def test_recorded_training_on_a_gpu_equals_eager(tmp_path: Path) -> None:
    data = Stripes()
    found = []
    for compiled in (False, True):
        pl.seed_everything(0, verbose=False)
        model = quantize(Quarters(), uniform(trace(Quarters(), (3, 8, 8)), 4, 4), data, NORMALIZATION)
        recipe = Recipe(epochs=4, learning_rate=1e-2, distillation_weight=0.5)
        task = TrainingTask(model, NORMALIZATION, recipe, OBJECTIVE, Quarters())
        fit(task, data, Machine(accelerator="gpu", progress_bar=False, compiled=compiled), tmp_path / f"{compiled}")
        found.append(evaluate(model, data.val_dataloader(), NORMALIZATION, OBJECTIVE))
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], abs=0.1)
    assert found[1]["accuracy"] == pytest.approx(found[0]["accuracy"], abs=0.05)


def test_compiled_training_without_a_compiler_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    task = TrainingTask(Quarters(), NORMALIZATION, Recipe(), OBJECTIVE)
    with pytest.raises(TrainingError, match=r"trainer.compile=true needs a C\+\+ compiler, none of .*g\+\+"):
        fit(task, Stripes(), Machine(accelerator="cpu", progress_bar=False, compiled=True))
