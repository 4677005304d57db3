"""Settings of a run on a few digits that takes seconds."""

from __future__ import annotations

from pathlib import Path

from qat.compose import compose_config
from qat.config import Config

SMALL = [
    "experiment=digits_demo",
    "trainer.float_epochs=3",
    "trainer.epochs=1",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "search.trials=4",
    "search.initial_trials=2",
    "search.train_steps=4",
    "search.sensitivity_images=64",
    "search.weight_bit_widths=[1,2,4]",
    "search.significant_densities=[0.02]",
    "search.min_compression=[16]",
    "search.screening_share=0",
    "baselines=[2]",
]


def small_config(folder: Path, *overrides: str) -> Config:
    """`SMALL` in a folder, and what else is said."""
    return compose_config([*SMALL, f"run_dir={folder}", *overrides])
