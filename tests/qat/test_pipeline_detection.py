"""The whole line for a detector of two heads, given as a user gives a network of his own."""

from __future__ import annotations

from pathlib import Path

from qat import pipeline
from qat.compose import compose_config
from qat.export import load_packed
from qat.pipeline.records import results
from qat.runs import RunFolder

MODULE = """
from qat.models.darknet import Conv, Darknet, Detect, Route, Table, Upsample
from qat.models.darknet_tables import HEAD, body


def two_heads(num_classes):
    rows = (
        *body((8, 3), "pool", (8, 3), "pool", (12, 3), "=fine", "pool", (16, 3), "=coarse"),
        HEAD,
        Detect(((24.0, 24.0),), softmax=False),
        Route(("coarse",)),
        Upsample(label="up"),
        Route(("up", "fine")),
        Conv(12),
        HEAD,
        Detect(((12.0, 12.0),), softmax=False),
    )
    return Darknet(Table("two_heads", rows, in_channels=1), num_classes)
"""


def test_two_heads_from_training_to_packed_files(tmp_path: Path) -> None:
    (tmp_path / "my_detector.py").write_text(MODULE)
    overrides = {
        "experiment": "digits_detect_demo",
        "network.name": "two_heads",
        "network.factory": "my_detector:two_heads",
        "network.path": tmp_path,
        "data.val_images": 8,
        "data.test_images": 8,
        "data.detection.fit_images": 32,
        "data.batch_size": 8,
        "trainer.float_epochs": 1,
        "trainer.epochs": 1,
        "trainer.progress_bar": "false",
        "trainer.accelerator": "cpu",
        "search.trials": 2,
        "search.initial_trials": 2,
        "search.train_steps": 2,
        "search.eval_images": 8,
        "search.sensitivity_images": 8,
        "search.weight_bit_widths": "[1,4]",
        "search.min_compression": "[12]",
        "baselines": "[4]",
        "run_dir": tmp_path / "run",
    }
    config = compose_config([f"{name}={value}" for name, value in overrides.items()])
    run = RunFolder.create(config)
    assert pipeline.demo(config, run) == 0
    found = results(run)
    assert {result.name for result in found} == {"mix_12x", "uniform_w4"}
    assert all(result.differing_codes == 0 and result.integer_score == result.quantized_score for result in found)
    packed = load_packed(run.path / "networks" / "mix_12x" / "packed")
    assert len(packed.network.outputs) == len(packed.output_scales) == 2
