"""Fits a task with Lightning, and keeps what was already computed when something fails."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import CSVLogger

from qat.errors import CheckpointError, TrainingError
from qat.files import write_rows
from qat.layers import use_integer_forward
from qat.tasks.random_state import random_state, set_random_state
from qat.tasks.training import TrainingTask

logger = logging.getLogger(__name__)

RANDOM_STATE = "random_state"
"""Key of a checkpoint: what the next epoch draws from."""


@dataclass(frozen=True)
class Machine:
    """What a fit runs on.

    Args:
        accelerator: Lightning's: "auto", "cpu", "gpu".
        devices: Number of devices.
        strategy: Lightning's: "auto", "ddp".
        precision: Lightning's: "32-true" or "bf16-mixed".
        progress_bar: Whether a progress bar is shown.
        compiled: Whether the model is trained as compiled graphs (torch.compile).
        integer_forward: Whether compiled quantized convolutions compute forward in 8-bit integers, on CPUs that gain.
        epochs_per_validation: Epochs of a fit in a folder between two measurements on validation images, >= 1.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    progress_bar: bool = True
    compiled: bool = False
    integer_forward: bool = True
    epochs_per_validation: int = 1

    @property
    def device(self) -> torch.device:
        """Where networks are calibrated and measured outside of a fit: on the GPU if fits use one."""
        has_gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if has_gpu else "cpu")


def write_checkpoint(values: Mapping[str, Any], path: Path) -> None:
    """Writes tensors and plain values to a temporary name, then renames: the old file stays until the new is whole.

    Raises:
        CheckpointError: The file could not be written (disk full, no permission); what was there is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(dict(values), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into RuntimeError
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"could not write checkpoint {path}: {error}; earlier checkpoints are intact. "
            "Free some space or choose another run_dir, then run the same command again"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a file of tensors and plain values (`weights_only=True`).

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"weights file {path} does not exist; check network.weights, or train first")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds: pickle, zip, runtime, EOF errors
        raise CheckpointError(f"weights file {path} is damaged or no checkpoint: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"weights file {path} holds a {type(values).__name__}, expected a dictionary")
    return values


def is_first_process() -> bool:
    """Whether this process writes what a fit leaves: of several that train one network, only the first does."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def wait_for_processes() -> None:
    """Waits until all processes that train one network are here; returns at once where there is one only."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written by `write_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint atomically; `storage_options` has no meaning for local files."""
        write_checkpoint(checkpoint, Path(path))


class _LastCheckpoint(Checkpoint):
    """One file, written anew after every epoch.

    Lightning's own `ModelCheckpoint(save_last=True, save_top_k=0)` writes nothing before the fit has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the state that the next epoch starts from."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what dropout and the like draw next.  Of several processes all draw alike: one state serves them."""
        checkpoint[RANDOM_STATE] = random_state(trainer.strategy.root_device)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on drawing where the fit was interrupted."""
        if RANDOM_STATE in checkpoint:
            set_random_state(checkpoint[RANDOM_STATE], trainer.strategy.root_device)
        elif is_first_process():
            logger.warning(
                "%s, of an earlier version, has no random state: a network with dropout will differ from one that was "
                "trained in one go",
                self.path,
            )


def fit(
    task: TrainingTask,
    data: pl.LightningDataModule,
    machine: Machine,
    folder: Path | None = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> None:
    """Trains a task in place.

    With a folder, every epoch leaves `last.ckpt` there, metrics go to `logs/version_<attempt>/metrics.csv`, and a fit
    that was interrupted goes on from the last epoch, on a CPU bit for bit as if it had not been; at its end
    `metrics.csv` and `metrics.json` hold all attempts.

    Args:
        task: Model, recipe, teacher.
        data: Fit and validation images.
        machine: Devices and precision.
        folder: Where checkpoints and metrics go; None for short fits that leave nothing.
        epochs: Passes over the data; by default the recipe's.
        steps: Optimizer steps, in place of epochs.
        callbacks: Further Lightning callbacks.

    Raises:
        TrainingError: The loss is not finite, or no compiler for `machine.compiled`.
        CheckpointError: A checkpoint could not be written, earlier ones are intact; or `last.ckpt` is damaged.
        KeyboardInterrupt: The user's, or a SIGTERM.
    """
    if machine.compiled:
        _check_compiler()
        if machine.integer_forward:
            use_integer_forward(task.model)
        # Small kernels of a GPU wait for the processor that launches them: there they are recorded and replayed.
        on_gpu = machine.accelerator != "cpu" and torch.cuda.is_available()
        task.compile_model("reduce-overhead" if on_gpu else "default")
    if steps is None:
        epochs = task.recipe.epochs if epochs is None else epochs
    last = None if folder is None else folder / "last.ckpt"
    trainer = pl.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        strategy=machine.strategy,
        precision=machine.precision,  # type: ignore[arg-type]
        max_epochs=epochs if steps is None else -1,
        max_steps=-1 if steps is None else steps,
        gradient_clip_val=task.recipe.gradient_clip or None,
        logger=False if folder is None else CSVLogger(folder, name="logs"),
        callbacks=[*([_LastCheckpoint(last)] if last else []), *callbacks],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=folder is not None,
        enable_progress_bar=machine.progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0 if folder is None else None,
        check_val_every_n_epoch=machine.epochs_per_validation,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    resume = str(last) if last is not None and last.is_file() else None
    if resume is not None:
        _check_resumable(Path(resume))
    task.train()
    with warnings.catch_warnings():
        # Lightning 2.6 asks torch for a tree API that torch has renamed: nothing that a user could mend.
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        except SystemExit as stop:
            if not trainer.interrupted:
                raise
            # Lightning ends the process, deaf to further interrupts; how a command ends is for the command to say.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from stop
    if folder is not None and is_first_process():
        _collect_metrics(folder)


def _check_resumable(last: Path) -> None:
    """Raises CheckpointError where Lightning would fail with whatever torch or it makes of a damaged file."""
    try:
        values = read_checkpoint(last)
        missing = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"} - set(values)
        if missing:
            raise CheckpointError(f"weights file {last} lacks {sorted(missing)}")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove {last} to train from the start") from error


def _check_compiler() -> None:
    """Raises TrainingError where torch.compile would fail minutes later."""
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise TrainingError(
            f"trainer.compile=true needs a C++ compiler, none of {compilers} was found; install one, name it in the "
            "variable CXX, or set trainer.compile=false"
        )


def _collect_metrics(folder: Path) -> None:
    """Joins the logs of all attempts; a step that was run again counts once, as in the last attempt.

    The row at which an attempt was cut off, by a full disk or a power cut, is left out: the step was run again.
    """
    rows: dict[tuple[int, int, bool], dict[str, float]] = {}
    attempts = sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    for path in attempts:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                with suppress(AttributeError, KeyError, TypeError, ValueError):
                    numbers = {
                        name: int(value) if name in ("epoch", "step") else float(value)
                        for name, value in row.items()
                        if value
                    }
                    rows[int(row["epoch"]), int(row["step"]), "val_loss" in numbers] = numbers
    write_rows(folder / "metrics", list(rows.values()))
